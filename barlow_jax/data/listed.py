"""Image files that a text file names, wherever they lie."""

import pathlib

from barlow_jax.data.sources import ImageFolder, _read_list
from barlow_jax.errors import UserError


class ListedFiles(ImageFolder):
    """The image files of a list, unlabelled and in its order.

    path: a text file, one image a line; a path that is not absolute begins at the folder of the list.
    channels: 3 reads the images as RGB, 1 as grey.

    UserError names a list that cannot be read, and the first file that is not there.
    """

    def __init__(self, path, *, channels=3):
        path = pathlib.Path(path).expanduser()
        self.name, self.channels = str(path), channels
        self.labels = self.class_names = None
        self.paths = [str(path.parent / line) for line in _read_list(path)]
        missing = [file for file in self.paths if not pathlib.Path(file).is_file()]
        if missing:
            raise UserError(
                f"{missing[0]}, which {path} names, does not exist, nor do {len(missing) - 1} other of its "
                f"{len(self.paths)} lines; correct the list."
            )
