"""What is stored: image files, in a folder or anywhere, and arrays; (in records.py) data sets of TFDS.

Each is a `protocol.Source`. Nothing here decodes an image or imports TensorFlow.
"""

import abc
import copy
import logging
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from barlow_jax.data import readers
from barlow_jax.data.fingerprint import fingerprint
from barlow_jax.data.protocol import Source
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

# torchvision's list, and GIF. What a file is tells its content: a PNG named .JPEG is read as a PNG.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")

# How files of these formats begin; "." is any byte.
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM....\x00\x00\x00\x00|GIF8[79]a|II\*\x00|MM\x00\*", re.DOTALL
)


def _is_image(folder, name):
    """Whether a file goes by the name of an image, or has a name of no kind (`photo`, `0042.bin`) and begins as one."""
    if name.startswith("."):
        return False
    if name.lower().endswith(EXTENSIONS):
        return True
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return SIGNATURE.match(file.read(12)) is not None
    except OSError:  # a socket, or another's file: no image of ours
        return False


def _image_files(root):
    """Paths below root of all image files, sorted, '/'-separated; hidden ones are left out."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = pathlib.Path(folder).relative_to(root)
        found += [(relative / name).as_posix() for name in files if _is_image(folder, name)]
    return sorted(found)


def read_list(path):
    """The lines of a file list, without empty ones. UserError where it cannot be read or has none."""
    path = pathlib.Path(path).expanduser()
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(
            f"The file list {path} cannot be read ({reason}): give a text file, one image a line."
        ) from None
    if not (lines := [line for line in lines if line]):
        raise UserError(f"The file list {path} is empty: give a text file, one image a line.")
    return lines


def _listed(files, path, root):
    """Places in `files` (paths below root) of what a file list names, by path below root or by bare file name."""
    by_name = {}
    for place, file in enumerate(files):
        by_name.setdefault(file.rpartition("/")[2], []).append(place)
        by_name[file] = [place]
    lines = read_list(path)
    for line in lines:
        if len(by_name.get(line, ())) > 1:
            raise UserError(f"The file list {path} names {line}, which is several files below {root}: give its folder.")
    missing = [line for line in lines if line not in by_name]
    if len(missing) == len(lines):
        raise UserError(f"The file list {path} names no file below {root}: its lines are like {lines[0]}.")
    if missing:
        logger.warning(
            "%d of the %d files in %s are not below %s, %s for one", len(missing), len(lines), path, root, missing[0]
        )
    return sorted({by_name[line][0] for line in lines if line in by_name})


class Encoded(abc.ABC):
    """What sources of encoded images have in common: they are read, and faults found in them, by decode.py.

    A subclass gives what is abstract here, and the rest of `protocol.Source`.
    """

    channels: int
    images = sizes = shape = None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """One image file."""

    @abc.abstractmethod
    def fetch(self) -> Callable[..., Any]:
        """For tf.data: a function from an index to (encoded image, label int32; -1 without labels)."""

    def batches(self, job):
        """The batches that a readers.Job asks for."""
        return readers.file_batches(self.fetch(), len(self), self.channels, job)

    def why_unreadable(self, index):
        """A few words on what is wrong with an image, for a person."""
        from barlow_jax.data import decode  # here, as TensorFlow takes seconds to import

        return decode.why_unreadable(self, index)


class Files(Encoded):
    """Image files, wherever they lie, in the order they are given.

    paths: list of str. name: for messages. channels: 3 reads the images as RGB, 1 as grey; 0 is 3.
    labels: int32 [n], or None. class_names: names of the classes in order, where there are labels.
    """

    def __init__(self, paths, *, name, channels=0, labels=None, class_names=None):
        self.paths, self.name, self.channels = paths, name, channels or 3
        self.labels, self.class_names = labels, class_names

    def __len__(self):
        return len(self.paths)

    @property
    def num_classes(self):
        return None if self.class_names is None else len(self.class_names)

    def take(self, rows):
        """The examples `rows` (int [m]) as a source of their own."""
        part = copy.copy(self)
        part.paths = [self.paths[row] for row in rows]
        part.labels = None if self.labels is None else self.labels[rows]
        return part

    def where(self, index):
        """The path of one file."""
        return self.paths[index]

    def fingerprint(self):
        """Of the files' paths, sizes and times of change, and the labels; see `fingerprint.fingerprint`."""
        return fingerprint({"channels": self.channels}, arrays=[self.labels], files=self.paths)

    def encoded(self, index):
        """The bytes of one file."""
        return pathlib.Path(self.paths[index]).read_bytes()

    def fetch(self):
        """The function for tf.data that `Encoded.fetch` describes."""
        from barlow_jax.data import decode

        return decode.from_files(self.paths, self.labels)


def _class_numbers(root, files, folders, class_names):
    """The class of each file below root: int32 [n]. UserError for a class folder that is empty or not asked for."""
    classes = [name.split("/", 1)[0] for name in files]
    empty = sorted(set(folders) - set(classes))
    if empty:
        raise UserError(
            f"The class folder {root / empty[0]} holds no image: add some, delete it, or set labels='none'."
        )
    number = {name: k for k, name in enumerate(class_names)}
    unknown = sorted(set(classes) - set(number))
    if unknown:
        raise UserError(
            f"The class folder {root / unknown[0]} is none of the {len(number)} classes asked for: rename or remove it."
        )
    return np.asarray([number[name] for name in classes], np.int32)


class ImageFolder(Files):
    """Image files below one folder, in the sorted order of their paths, the same on every machine.

    labels="folders": the classes are the sub-folders of root, numbered in sorted order (torchvision's rule); an
      image belongs to the one it lies in, at any depth.
    labels="none": unlabelled; images lie anywhere.
    labels="auto": "folders" if root has at least two sub-folders and no image lies beside them, else "none".
    class_names: the classes of another split, in order, where this one does not hold all of them or must be
      numbered like it (implies labels="folders").
    listed: a text file that names the images to take, one a line, by path below root or by bare name, as the lists of
      1 % and 10 % of ImageNet do; "" takes all. Classes are numbered as without it.
    channels: 3 reads the images as RGB, 1 as grey; 0 is 3.

    Hidden files and folders are ignored, and so are files that neither are named nor begin as an image. UserError
    names the folder that is missing, empty or holds no image, or what is wrong with the list.
    """

    def __init__(self, root, *, labels="auto", class_names=None, listed="", channels=0):
        if labels not in ("auto", "folders", "none"):
            raise UserError(f"labels is {labels!r}, but must be 'auto', 'folders' or 'none'.")
        root = pathlib.Path(root).expanduser()
        if not root.is_dir():
            raise UserError(f"{root} is not a folder: point the data path to the folder that holds the images.")
        files = _image_files(root)
        if not files:
            raise UserError(f"{root} holds no image: put files named {', '.join(EXTENSIONS)} below it.")
        folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        beside = [name for name in files if "/" not in name]
        if labels == "auto" and class_names is None:
            labels = "folders" if len(folders) >= 2 and not beside else "none"

        numbers, name = None, str(root)
        if labels == "folders" or class_names is not None:
            if beside:
                raise UserError(
                    f"{root / beside[0]} lies beside the class folders: move it into one, or set labels='none'."
                )
            class_names = tuple(class_names or folders)
            numbers = _class_numbers(root, files, folders, class_names)
        if listed:
            rows, name = _listed(files, listed, root), f"{root} ({listed})"
            files = [files[row] for row in rows]
            numbers = None if numbers is None else numbers[rows]
        paths = [str(root / file) for file in files]
        super().__init__(paths, name=name, channels=channels, labels=numbers, class_names=class_names)


class Arrays:
    """Images in memory: uint8 [n, height, width, channels], labels integers [n] or None.

    sizes: int32 [n, 2], height and width of each image, where they differ; the rest of an image is then zero, below
      and to the right. None: all are as large as the array says.
    UserError says what is wrong with another dtype, shape or number of labels.
    """

    def __init__(self, images, labels=None, *, class_names=None, name="arrays", sizes=None):
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise UserError(f"{name}: images are {images.dtype}, but must be uint8 with values 0 to 255.")
        if images.ndim != 4 or 0 in images.shape:
            raise UserError(
                f"{name}: images have shape {images.shape}, but must be [n, height, width, channels], with n >= 1."
            )
        if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):  # of 1 or 3 rows there are none
            raise UserError(
                f"{name}: images have shape {images.shape}, which looks like [n, channels, height, width]: put the "
                "channels last, with transpose (0, 2, 3, 1)."
            )
        self.images, self.name, self.sizes = images, name, sizes
        self._numbers = np.arange(len(images))  # of the images in the set that this is a part of
        self.labels = None if labels is None else self._checked(np.asarray(labels), len(images), name)
        self.class_names = None if class_names is None else tuple(str(c) for c in class_names)
        if self.labels is not None and self.class_names and self.labels.max() >= len(self.class_names):
            raise UserError(
                f"{name}: label {self.labels.max()} has no name among the {len(self.class_names)} class names."
            )

    @staticmethod
    def _checked(labels, n, name):
        if labels.shape == (n, 1):  # as the original CIFAR pickles' converters leave them
            labels = labels[:, 0]
        if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{name}: labels are {labels.dtype} {labels.shape}, but must be integers [{n}], one for each image."
            )
        if labels.min() < -1:
            raise UserError(f"{name}: label {labels.min()} is negative; classes count from 0, -1 means unlabelled.")
        return labels.astype(np.int32)

    def __len__(self):
        return len(self.images)

    @property
    def shape(self):
        return self.images.shape[1:]

    @property
    def channels(self):
        return self.images.shape[-1]

    @property
    def num_classes(self):
        if self.labels is None or self.labels.max() < 0:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    def take(self, rows):
        """The examples `rows` (int [m]) as a source of their own."""
        part = copy.copy(self)
        part.images = self.images[rows]
        part.labels = None if self.labels is None else self.labels[rows]
        part.sizes = None if self.sizes is None else self.sizes[rows]
        part._numbers = self._numbers[rows]
        return part

    def where(self, index):
        """The name of the set and the number of one image in it."""
        return f"{self.name}[{self._numbers[index]}]"

    def fingerprint(self):
        """Of every byte of the images, and the labels; see `fingerprint.fingerprint`."""
        return fingerprint({}, arrays=[self.images, self.sizes, self.labels])

    def batches(self, job):
        """The batches that a readers.Job asks for."""
        return readers.array_batches(self.images, self.sizes, self.labels, job)

    def why_unreadable(self, index):
        """Nothing: what is in memory has been read."""
        return ""


def labelled(source: Source) -> np.ndarray:
    """The examples of a source that have a label: int64 [m]; all of a source that knows only as it reads."""
    if source.num_classes is None:
        return np.zeros(0, np.int64)
    return np.arange(len(source)) if source.labels is None else np.flatnonzero(source.labels >= 0)


def evenly_spaced(source: Source, count: int, among: np.ndarray | None = None) -> Source:
    """`count` of a source's examples, evenly spaced over its stored order; all of them for 0 or a count too large.

    among: int [m], the examples to choose from, in stored order; None for all.
    """
    among = np.arange(len(source)) if among is None else among
    count = count if 0 < count < len(among) else len(among)
    if count == len(source):
        return source
    return source.take(among[np.linspace(0, len(among) - 1, count).round().astype(int)])
