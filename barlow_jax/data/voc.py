"""PASCAL VOC for classification: images that show several classes, or some so badly that they count for nobody.

    VOC2007/JPEGImages/000012.jpg ...
    VOC2007/ImageSets/Main/aeroplane_trainval.txt ...      one line an image, "000012 -1"

In the lists 1 is present, -1 absent, and 0 present but "difficult", which the challenge leaves out of the measure
(Everingham et al. 2010, section 3.2).
"""

import numpy as np

from barlow_jax.data.pixels import MAX_PIXELS
from barlow_jax.data.sources import Files
from barlow_jax.data.walk import local_path
from barlow_jax.errors import UserError

PRESENT, DIFFICULT, ABSENT = 1, 0, -1


class VOC(Files):
    """One split of a VOC folder, in the order of the images' names.

    root: the folder of one year, such as VOCdevkit/VOC2007. split: such as "trainval" or "test".
    channels: 3 reads the images as RGB, 1 as grey; 0 is 3. max_pixels: see pixels.Reading.
    targets: int8 [n, C] of PRESENT, DIFFICULT, ABSENT; an image that the list of a class lacks is DIFFICULT there.
    target_names: the C classes, sorted. There are no labels: an image has any number of classes. The targets are no
      part of the fingerprint.
    UserError names the folder, list, line or image that is missing or wrong.
    """

    def __init__(self, root, split, *, channels=0, max_pixels=MAX_PIXELS):
        root = local_path(root)
        lists = root / "ImageSets" / "Main"
        if not lists.is_dir():
            raise UserError(f"{root} has no folder ImageSets/Main: point config.data.path to VOCdevkit/VOC2007.")
        # Of lists like aeroplane_test.txt; test.txt is no list of a class.
        files = sorted(file for file in lists.glob(f"*_{split}.txt") if file.stem.count("_") == 1 and file.is_file())
        if not files:
            raise UserError(
                f"{lists} has no list of a class, such as dog_{split}.txt: VOC's trainval and test come in two "
                "archives, unpack both there."
            )
        name = f"{root.name}:{split}"
        self.target_names = tuple(file.stem.removesuffix(f"_{split}") for file in files)
        listed = [_read(file) for file in files]
        images = sorted(set().union(*listed))
        targets = [[of_class.get(image, DIFFICULT) for of_class in listed] for image in images]
        self.targets = np.asarray(targets, np.int8)
        paths = [root / "JPEGImages" / f"{image}.jpg" for image in images]
        there = {file.name for file in (root / "JPEGImages").glob("*.jpg") if file.is_file()}
        missing = [path for path in paths if path.name not in there]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(paths)} images of {name} are missing, {missing[0]} for one: unpack "
                "the archive of this split again."
            )
        super().__init__([str(path) for path in paths], name=name, channels=channels, max_pixels=max_pixels)

    def take(self, rows):
        """The examples `rows` (int [m]) as a source of their own."""
        part = super().take(rows)
        part.targets = self.targets[rows]
        return part


def _read(file):
    """{name of an image: 1, 0 or -1} of one list."""
    targets = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("1", "0", "-1"):
            raise UserError(f"Line {number} of {file} is {line!r}: it must be the name of an image and 1, 0 or -1.")
        targets[words[0]] = int(words[1])
    if not targets:
        raise UserError(f"{file} is empty: unpack the archive of VOC again.")
    return targets
