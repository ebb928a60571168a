"""What is stored: image files, in a folder or anywhere, and arrays; (in records.py) data sets of TFDS.

Each is a `protocol.Source`. Nothing here decodes an image or imports TensorFlow.
"""

import abc
import copy
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from barlow_jax.data import blocks, mapped, readers, walk
from barlow_jax.data.arranging import arranged
from barlow_jax.data.fingerprint import fingerprint
from barlow_jax.data.paths import Paths
from barlow_jax.data.pixels import Reading, largest_of_16_bits, stored_size
from barlow_jax.data.protocol import Source
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

# Every class costs a column of a classifier; public sets have up to 200,000.
MAX_CLASSES = 1_000_000
LOOKED_AT = 8  # images of a source of which one learns whether 16 bits are in use, evenly spaced


class Encoded(abc.ABC):
    """What sources of encoded images have in common: they are read, and faults found in them, by decode.py.

    A subclass gives what is abstract here, and the rest of `protocol.Source`.
    reading: pixels.Reading.
    together: whether it has read_together(places), int64 [m] -> list of what `fetch` reads of each, or of the error;
      `blocks` is then what a copy reads from that has been given some, else None, see blocks.py.
    """

    reading: Reading
    images = sizes = shape = groups = None
    together, blocks = False, None
    afar: readers.Afar | None = None  # where it is read over a network
    _looked_at = False

    @property
    def channels(self):
        return self.reading.channels

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """One image file."""

    @abc.abstractmethod
    def fetch(self) -> Callable[..., Any]:
        """For tf.data: a decode.Fetch, or a function index -> (encoded image, label int32; -1 without labels)."""

    def batches(self, job):
        """The batches that a readers.Job asks for."""
        if not self._looked_at:
            self._looked_at = True
            _warn_of_dark_files(self)
        return blocks.batches(self, job)

    def stored_size(self, index):
        """(height, width) of an image, by its header."""
        return stored_size(self.encoded(index), self.reading)

    def why_unreadable(self, index):
        """A few words on what is wrong with an image, for a person."""
        from barlow_jax.data import decode  # here, as TensorFlow takes seconds to import

        return decode.why_unreadable(self, index)


def _warn_of_dark_files(source):
    def largest(row):
        try:
            return largest_of_16_bits(source.encoded(row))
        except Exception:  # whatever the reader of records runs into; told of when it is the image's turn
            return None

    _warn_of_dark_images(source, source.reading, largest)


def warn_of_dark_arrays(source):
    """As of image files, of `Arrays` that hold uint16."""
    held = source.images
    if isinstance(held, mapped.Levels) and held.stored.dtype == np.uint16:
        _warn_of_dark_images(source, held.reading, lambda row: int(held.raw(row).max()) >> 8)


def _warn_of_dark_images(source, reading, largest):
    """Says so where images of 16 bits hold values of 12 or so, which come out nearly black.

    largest(row): the largest high byte of an image, None of one that has no 16 bits, or says how many are in use.
    """
    if reading.value_range:
        return
    rows = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int))
    found = [value for value in map(largest, rows) if value is not None]
    if found and max(found) < 256 // 8:
        logger.warning(
            "%s: the images of 16 bits that were looked at (%d) hold no value above %d of 65535, so they are nearly "
            "black; if fewer bits are in use, say so, as by --config.data.value_range='(0, 4095)' for 12",
            *(source.name, len(found), 256 * max(found) + 255),
        )


class Files(Encoded):
    """Image files, wherever they lie, in the order they are given.

    paths: of str, held as `Paths`. name: for messages.
    reading: fields of pixels.Reading; channels of 0 are 3.
    labels: int32 [n], or None. class_names: names of the classes in order, where there are labels.
    """

    def __init__(self, paths, *, name, labels=None, class_names=None, **reading):
        self.paths, self.name = Paths.of(paths), walk.readable(name)
        self.reading = Reading.of(reading)
        self.labels, self.class_names, self._listing = labels, class_names, None

    def __len__(self):
        return len(self.paths)

    @property
    def num_classes(self):
        return None if self.class_names is None else len(self.class_names)

    def take(self, rows):
        """The examples `rows` (int [m]) as a source of their own."""
        part = copy.copy(self)
        part.paths, part._listing = self.paths.take(rows), None
        part.labels = None if self.labels is None else self.labels[rows]
        return part

    def where(self, index):
        """The path of one file, in characters that can be printed and stored, see `walk.readable`."""
        return walk.readable(self.paths[index])

    def fingerprint(self):
        """Of the files' paths, sizes and times of change, and the labels; see `fingerprint.fingerprint`."""
        return fingerprint(self.reading.told(), arrays=[self.labels], files=self.paths)

    def listing(self):
        """Of the files' names below the folder that they share, and the labels; see `protocol.Source.listing`."""
        if self._listing is None:
            below = self.paths.without(len(self.paths.shared()))
            self._listing = fingerprint({}, text=below, arrays=[self.labels])
        return self._listing

    def encoded(self, index):
        """The bytes of one file."""
        return pathlib.Path(self.paths[index]).read_bytes()

    def fetch(self):
        """What `Encoded.fetch` describes."""
        from barlow_jax.data import decode

        return decode.from_files(self.paths, self.labels)


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
    reading: fields of pixels.Reading; channels of 0 are 3.

    Hidden files and folders are left out, and so are files that neither are named nor begin as an image; the log says
    how many of what kind. A folder is followed once on a path, see `walk.look`. Names that are not UTF-8 are told as
    `walk.readable` has them. UserError names the folder that is missing, empty or holds no image, or what is wrong
    with the list.
    """

    def __init__(self, root, *, labels="auto", class_names=None, listed="", **reading):
        root = walk.local_path(root)
        if not root.is_dir():
            raise UserError(f"{root} is not a folder: point config.data.path to the folder that holds the images.")
        found = walk.look(root)
        walk.tell(root, found)
        files = found.images
        if not files:
            raise UserError(f"{root} holds no image: put files named {', '.join(walk.EXTENSIONS)} below it.")
        files, numbers, class_names, name = arranged(root, files, found.folders, labels, class_names, listed)
        super().__init__(
            files.under(str(root / "x")[:-1]),
            name=name,
            labels=numbers,
            class_names=class_names,
            **reading,
        )


class Arrays:
    """Images in memory: uint8 [n, height, width, channels], labels integers [n] or None.

    Or uint16, whose white is 65535, or mapped.Levels, of other types or on the disk.

    sizes: int32 [n, 2], height and width of each image, where they differ; the rest of an image is then zero, below
      and to the right. None: all are as large as the array says.
    listing, groups: of the source that they were read from, see `protocol.Source`; None: the images say it, none.
    UserError says what is wrong with another dtype, shape or number of labels.
    """

    def __init__(self, images, labels=None, *, class_names=None, name="arrays", sizes=None, listing=None, groups=None):
        images = mapped.array_or_levels(images)
        if images.dtype not in (np.uint8, np.uint16):
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
        self.images, self.name, self.sizes, self._listing, self.groups = images, name, sizes, listing, groups
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
        if labels.max() >= MAX_CLASSES:
            raise UserError(
                f"{name}: label {labels.max()} is no number of a class, of which there may be {MAX_CLASSES:,}: number "
                "them from 0, as numpy.unique(labels, return_inverse=True)[1] does."
            )
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
        part.images = mapped.taken(self.images, rows)
        part.labels = None if self.labels is None else self.labels[rows]
        part.sizes = None if self.sizes is None else self.sizes[rows]
        part._numbers, part._listing, part.groups = self._numbers[rows], None, None
        return part

    def where(self, index):
        """The name of the set and the number of one image in it."""
        return f"{self.name}[{self._numbers[index]}]"

    def stored_size(self, index):
        """(height, width) of an image."""
        height, width = self.shape[:2] if self.sizes is None else self.sizes[index]
        return int(height), int(width)

    def fingerprint(self):
        """Of every byte of the images, and the labels; see `fingerprint.fingerprint`."""
        return fingerprint(mapped.about(self.images), arrays=[self.images, self.sizes, self.labels])

    def listing(self):
        """That of the files that the images were read from, or their fingerprint; see `protocol.Source.listing`."""
        self._listing = self._listing or self.fingerprint()
        return self._listing

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
