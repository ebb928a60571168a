"""Image files that a text file names, wherever they lie."""

from barlow_jax.data import walk
from barlow_jax.data.sources import Files
from barlow_jax.errors import UserError


class ListedFiles(Files):
    """The image files of a list, unlabelled and in its order.

    path: a text file, one image a line; a path that is not absolute begins at the folder of the list.
    reading: fields of pixels.Reading; channels of 0 are 3.

    UserError names a list that cannot be read, and the first file that is not there.
    """

    def __init__(self, path, **reading):
        path = walk.local_path(path)
        paths = walk.joined(path.parent, walk.read_list(path))
        if missing := walk.missing(paths):
            raise UserError(
                f"{walk.readable(missing[0])}, which {path} names, does not exist, nor do {len(missing) - 1} other of "
                f"its {len(paths)} lines; correct the list."
            )
        super().__init__(paths, name=str(path), **reading)
