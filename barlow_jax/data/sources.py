"""What is stored: image folders, arrays, and (in records.py) data sets of TFDS, each addressed by index.

A source has
  len(), name (for messages) and channels;
  num_classes (None: unlabelled), class_names (tuple or None) and labels: int32 [n], -1 = unlabelled, or None where
    there are none or, in Records alone, where they can be had only with the images;
  take(rows): the examples `rows` as a source of their own.
An ImageFolder adds `paths`, Arrays add `images`, which a trainer may put on the devices as they are. Sources of encoded
images add shape, (height, width, channels) where all share one, else None; where(i), what to call an example for a
person; and encoded(i), the bytes of its image file.
Nothing here decodes an image or imports TensorFlow.
"""

import copy
import inspect
import itertools
import logging
import os
import pathlib
import re
import zipfile
import zlib

import numpy as np

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


def _read_list(path):
    """The lines of a file list, without empty ones."""
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
    lines = _read_list(path)
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


class ImageFolder:
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

    shape = None

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

        self.name, self.channels = str(root), channels or 3
        self.labels = self.class_names = None
        if labels == "folders" or class_names is not None:
            if beside:
                raise UserError(
                    f"{root / beside[0]} lies beside the class folders: move it into one, or set labels='none'."
                )
            self.class_names = tuple(class_names or folders)
            self.labels = self._labels(root, files, folders)
        self.paths = [str(root / name) for name in files]
        if listed:
            self._keep(np.asarray(_listed(files, listed, root)))
            self.name = f"{root} ({listed})"

    @property
    def num_classes(self):
        return None if self.class_names is None else len(self.class_names)

    def take(self, rows):
        """The examples `rows` (int [m]) as a source of their own."""
        part = copy.copy(self)
        part._keep(rows)
        return part

    def _keep(self, rows):
        self.paths = [self.paths[row] for row in rows]
        self.labels = None if self.labels is None else self.labels[rows]

    def where(self, index):
        """What to call an example, for a person."""
        return self.paths[index]

    def encoded(self, index):
        """The bytes of one file."""
        return pathlib.Path(self.paths[index]).read_bytes()

    def _labels(self, root, files, folders):
        classes = [name.split("/", 1)[0] for name in files]
        empty = sorted(set(folders) - set(classes))
        if empty:
            raise UserError(
                f"The class folder {root / empty[0]} holds no image: add some, delete it, or set labels='none'."
            )
        number = {name: k for k, name in enumerate(self.class_names)}
        unknown = sorted(set(classes) - set(number))
        if unknown:
            raise UserError(
                f"The class folder {root / unknown[0]} is none of the {len(number)} classes asked for: "
                "rename or remove it."
            )
        return np.asarray([number[name] for name in classes], np.int32)

    def __len__(self):
        return len(self.paths)


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
        self.images, self.name, self.channels, self.sizes = images, name, images.shape[-1], sizes
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
        return part


def _read_npz(path, wanted):
    """The names of all arrays in an .npz file, and those among `wanted` as a dict."""
    if not path.exists():
        raise UserError(f"{path} does not exist: point the data path to an .npz file.")
    try:
        with open(path, "rb") as stream, np.load(stream) as file:  # numpy leaves a damaged file open
            return sorted(file.files), {key: file[key] for key in wanted if key in file.files}
    # ValueError: pickled objects. AttributeError, TypeError: a bare .npy, which is no context manager.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as an .npz file of plain arrays ({error}): write it again with numpy.savez."
        ) from None


def load_npz(path, split="train"):
    """Arrays from one .npz file.

    Images and labels are read from {split}_images and {split}_labels, or x_{split} and y_{split}; with
    split="" from images and labels. Labels may be absent. Class names: classes, class_names or names.
    Images [n, h, w] get a channel axis. UserError names what the file lacks.
    """
    path = pathlib.Path(path).expanduser()
    pairs = [(f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")] if split else [("images", "labels")]
    names_keys = ("classes", "class_names", "names")
    held, arrays = _read_npz(path, [*itertools.chain(*pairs), *names_keys])
    images_key, labels_key = next((pair for pair in pairs if pair[0] in arrays), (None, None))
    if images_key is None:
        raise UserError(
            f"{path} has no array {' or '.join(pair[0] for pair in pairs)} (it has {', '.join(held)}): "
            "choose another split, or '' for one named images."
        )
    images, labels = arrays[images_key], arrays.get(labels_key)
    names = next((arrays[key] for key in names_keys if key in arrays), None)
    if images.ndim == 3:
        images = images[..., None]
    return Arrays(images, labels, class_names=names, name=f"{path.name}:{split}" if split else path.name)


def _open_folder(path, split, labels="auto", class_names=None, listed="", channels=0):
    root = pathlib.Path(path).expanduser()
    if split and root.is_dir() and not (root / split).is_dir():
        raise UserError(f"{root} has no sub-folder {split!r}: set split to one it has, or to '' to read all of it.")
    return ImageFolder(root / split, labels=labels, class_names=class_names, listed=listed, channels=channels)


def _open_tfds(path, split, name="", channels=0):
    from barlow_jax.data.records import Records  # here, as it brings TensorFlow

    if not name:
        raise UserError("data kind 'tfds' needs the name of a data set: set name, such as 'imagenet2012'.")
    return Records(name, split, data_dir=path, channels=channels)


def _open_npz(path, split):
    return load_npz(path, split)


def _open_digits(path, split, size=24, renderings=3, seed=0):
    from barlow_jax.data.digits import scattered_digits  # here, as scikit-learn takes seconds to import

    if path:
        raise UserError(f"data path is {path!r}, but the digits are built in: leave it empty.")
    return scattered_digits(split, size=size, renderings=renderings, seed=seed)


KINDS = {"folder": _open_folder, "tfds": _open_tfds, "npz": _open_npz, "digits": _open_digits}
NEED_PATH = ("folder", "npz")  # TFDS has a place of its own, the digits are built in


def open_source(kind, path="", split="train", **options):
    """The source that a few fields of a config name.

    kind="folder": ImageFolder(path/split) or, with split="", ImageFolder(path); options labels, class_names, listed,
      channels.
    kind="tfds": Records(name, split, data_dir=path); options name, channels.
    kind="npz": load_npz(path, split).
    kind="digits": digits.scattered_digits(split), built in, no path; options size, renderings, seed.
    UserError for an unknown kind or option, or an unusable path.
    """
    if kind not in KINDS:
        raise UserError(f"data kind is {kind!r}, but must be one of {', '.join(map(repr, KINDS))}.")
    opener = KINDS[kind]
    known = list(inspect.signature(opener).parameters)[2:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"data kind {kind!r} has no option {unknown[0]!r}; its options: {', '.join(known) or 'none'}.")
    if not path and kind in NEED_PATH:
        raise UserError(f"data kind {kind!r} needs a data path: set it to where the images are.")
    return opener(path, split, **options)


def labelled(source):
    """The examples of a source that have a label: int64 [m]; all of a source that knows only as it reads."""
    if source.num_classes is None:
        return np.zeros(0, np.int64)
    return np.arange(len(source)) if source.labels is None else np.flatnonzero(source.labels >= 0)


def evenly_spaced(source, count, among=None):
    """`count` of a source's examples, evenly spaced over its stored order; all of them for 0 or a count too large.

    among: int [m], the examples to choose from, in stored order; None for all.
    """
    among = np.arange(len(source)) if among is None else among
    count = count if 0 < count < len(among) else len(among)
    if count == len(source):
        return source
    return source.take(among[np.linspace(0, len(among) - 1, count).round().astype(int)])
