"""PASCAL VOC for classification: images that show several classes, or some so badly that they count for nobody.

    VOC2007/JPEGImages/000012.jpg ...
    VOC2007/ImageSets/Main/aeroplane_trainval.txt ...      one line an image, "000012 -1"

In the lists 1 is present, -1 absent, and 0 present but "difficult", which the challenge leaves out of the measure
(Everingham et al. 2010, section 3.2).
"""

import pathlib

import numpy as np

from barlow_jax.data.sources import ImageFolder
from barlow_jax.errors import UserError

PRESENT, DIFFICULT, ABSENT = 1, 0, -1


class VOC(ImageFolder):
    """One split of a VOC folder, in the order of the images' names.

    root: the folder of one year, such as VOCdevkit/VOC2007. split: such as "trainval" or "test".
    channels: 3 reads the images as RGB, 1 as grey; 0 is 3.
    targets: int8 [n, C] of PRESENT, DIFFICULT, ABSENT; an image that the list of a class lacks is DIFFICULT there.
    target_names: the C classes, sorted. There are no labels: an image has any number of classes.
    UserError names the folder, list, line or image that is missing or wrong.
    """

    labels = class_names = None

    def __init__(self, root, split, *, channels=0):
        root = pathlib.Path(root).expanduser()
        lists = root / "ImageSets" / "Main"
        if not lists.is_dir():
            raise UserError(f"{root} has no folder ImageSets/Main: point config.data.path to VOCdevkit/VOC2007.")
        # Of lists like aeroplane_test.txt; test.txt is no list of a class.
        files = sorted(file for file in lists.glob(f"*_{split}.txt") if file.stem.count("_") == 1)
        if not files:
            raise UserError(
                f"{lists} has no list of a class, such as dog_{split}.txt: VOC's trainval and test come in two "
                "archives, unpack both there."
            )
        self.name, self.channels = f"{root.name}:{split}", channels or 3
        self.target_names = tuple(file.stem.removesuffix(f"_{split}") for file in files)
        listed = [_read(file) for file in files]
        names = sorted(set().union(*listed))
        self.targets = np.asarray([[of_class.get(name, DIFFICULT) for of_class in listed] for name in names], np.int8)
        paths = [root / "JPEGImages" / f"{name}.jpg" for name in names]
        there = {file.name for file in (root / "JPEGImages").glob("*.jpg")}
        missing = [path for path in paths if path.name not in there]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(paths)} images of {self.name} are missing, {missing[0]} for one: unpack "
                "the archive of this split again."
            )
        self.paths = [str(path) for path in paths]

    def _keep(self, rows):
        super()._keep(rows)
        self.targets = self.targets[rows]


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
