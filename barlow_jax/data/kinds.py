"""The kinds of sources by name, and `open_source`, which opens what a few fields of a config name."""

import inspect
import itertools

import numpy as np

from barlow_jax.data import mapped
from barlow_jax.data.parquet import Parquets
from barlow_jax.data.pixels import Reading, check
from barlow_jax.data.protocol import Source
from barlow_jax.data.remote.cache import kept
from barlow_jax.data.remote.files import content
from barlow_jax.data.remote.files import open_folder as open_remote
from barlow_jax.data.sources import Arrays, ImageFolder, warn_of_dark_arrays
from barlow_jax.data.tars import Tars
from barlow_jax.data.walk import is_remote, local_path
from barlow_jax.errors import UserError
from barlow_jax.fields.together import OF_FILES


def _read_npz(path, wanted, cache):
    """The names of all arrays in an .npz file, or what else `mapped.load` reads, and those among `wanted` as a dict."""
    try:
        if is_remote(path):
            with content(path, cache) as stream, np.load(stream) as file:
                return sorted(file.files), {key: file[key] for key in wanted if key in file.files}
        path = local_path(path)
        if not (path.is_file() or path.is_dir()):
            wrong = "is no regular file" if path.exists() else "does not exist"
            raise UserError(f"{path} {wrong}: point config.data.path to an .npz file.")
        return mapped.load(path, wanted)
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise whatever a damaged file makes them run into
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} cannot be read as an .npz file of plain arrays ({reason}): write it again with numpy.savez."
        ) from None


def load_npz(path, split="train", cache=None, any_range=False, **reading):
    """Arrays from one .npz file, on a disk or at an address; cache: of what is read from there.

    Images and labels are read from {split}_images and {split}_labels, or x_{split} and y_{split}; with
    split="" from images and labels. Labels may be absent. Class names: classes, class_names or names.
    Images [n, h, w] get a channel axis. On a disk it may be a folder of .npy files with these names, or one .npy of
    images, and large arrays stay there (mapped.load). reading: fields of pixels.Reading, for other types than uint8,
    see mapped.images_of. UserError names what the file lacks.
    """
    pairs = [(f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")] if split else [("images", "labels")]
    names_keys = ("classes", "class_names", "names")
    held, arrays = _read_npz(path, [*itertools.chain(*pairs), *names_keys], cache)
    found = next((pair for pair in pairs if pair[0] in arrays), None)
    if found is None:
        raise UserError(
            f"{path} has no array {' or '.join(pair[0] for pair in pairs)} (it has {', '.join(held)}): "
            "name another split, as in config.data.train or FILE:SPLIT, or write them as images and labels."
        )
    images, labels = arrays[found[0]], arrays.get(found[1])
    names = next((arrays[key] for key in names_keys if key in arrays), None)
    name = str(path).rpartition("/")[2]
    name = f"{name}:{split}" if split else name
    source = Arrays(mapped.images_of(images, name, reading, any_range=any_range), labels, class_names=names, name=name)
    if not any_range:
        warn_of_dark_arrays(source)
    return source


def _open_folder(path, split, labels="auto", class_names=None, listed="", cache=None, **reading):
    if is_remote(path):
        address = f"{path}/{split}" if split else path
        return open_remote(address, labels=labels, class_names=class_names, listed=listed, cache=cache, **reading)
    root = local_path(path)
    if split and root.is_dir() and not (root / split).is_dir():
        raise UserError(
            f"{root} has no sub-folder {split!r}: name one that it has in config.data.train and config.data.val, or "
            "'.' for the folder itself."
        )
    return ImageFolder(root / split, labels=labels, class_names=class_names, listed=listed, **reading)


def _open_tfds(path, split, name="", cache=None, **reading):
    from barlow_jax.data.records import Records  # here, as it brings TensorFlow

    if not name:
        raise UserError("config.data.kind 'tfds' needs config.data.name, a data set such as 'imagenet2012'.")
    return Records(name, split, data_dir=path, cache=cache, **reading)


def _open_npz(path, split, cache=None, any_range=False, value_range=(), bits=8):
    return load_npz(path, split, cache, any_range, value_range=value_range, bits=bits)


def _open_digits(path, split, size=24, renderings=3, seed=0):
    from barlow_jax.data.digits import scattered_digits  # here, as scikit-learn takes seconds to import

    if path:
        raise UserError(f"config.data.path is {path!r}, but the digits are built in: leave it empty.")
    return scattered_digits(split, size=size, renderings=renderings, seed=seed)


KINDS = {
    "folder": _open_folder,
    "tfds": _open_tfds,
    "tar": Tars,
    "parquet": Parquets,
    "npz": _open_npz,
    "digits": _open_digits,
}
CLASSES_OF_TRAIN = ("folder", "tar", "parquet")  # whose validation images are numbered like those trained on
CACHED = ("folder", "tfds", "tar", "parquet", "npz")  # what is read from afar may be kept
NEED_PATH = ("folder", "tar", "parquet", "npz")  # TFDS has a place of its own, the digits are built in


def open_source(kind: str, path: str = "", split: str = "train", **options) -> Source:
    """The source that a few fields of a config name.

    kind="folder": ImageFolder(path/split) or, with split="", ImageFolder(path); options labels, class_names, listed,
      and the fields of pixels.Reading.
    kind="tfds": Records(name, split, data_dir=path); options name, and the fields of pixels.Reading.
    kind="tar", "parquet": shards of many images, tar.Tars and parquet.Parquets; options class_names, and the fields of
      pixels.Reading.
    kind="npz": load_npz(path, split); options value_range and bits.
    Where path is an address (gs://, s3://, az://, https://), the option cache (a remote.cache.Cache) keeps what is
      read.
    kind="digits": digits.scattered_digits(split), built in, no path; options size, renderings, seed.
    UserError for an unknown kind or option, or an unusable path.
    """
    if kind not in KINDS:
        raise UserError(f"config.data.kind is {kind!r}, but must be one of {', '.join(map(repr, KINDS))}.")
    opener = KINDS[kind]
    known = list(inspect.signature(opener).parameters)[2:]
    if "reading" in known:
        known = [*known[:-1], *Reading._fields]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"config.data.kind {kind!r} has no option {unknown[0]!r}; its options: {', '.join(known) or 'none'}."
        )
    if not path and kind in NEED_PATH:
        raise UserError(f"config.data.kind {kind!r} needs config.data.path: set it to where the images are.")
    return opener(path, split, **options)


def open_fields(data, split: str, reading: dict, **more) -> Source:
    """The source that config.data names, of one split of it; its list of files is of the training images.

    reading: of pixels.Reading all but channels, see `pixels.check`; more: other options of `open_source`.
    """
    check(**reading, channels=data.channels if data.kind in OF_FILES else 0)
    if data.file_list and split == data.train:
        more["listed"] = data.file_list
    options = {"channels": data.channels, **reading} if data.kind in OF_FILES else {}
    if data.kind == "npz":
        options = {name: reading[name] for name in ("value_range", "bits") if name in reading}
    if data.kind == "tfds":
        options["name"] = data.name
    if data.kind in CACHED and is_remote(data.path) and data.get("cache", ""):
        options["cache"] = kept(data.cache, data.cache_bytes)
    split = "" if (data.kind, split) == ("folder", ".") else split
    source = open_source(data.kind, data.path, split, **options, **more)
    if data.kind == "npz" and data.channels and data.channels != source.channels:
        raise UserError(
            f"config.data.channels is {data.channels}, and the images of {source.name} are arrays of {source.channels} "
            "channels, which are taken as they are: set it to 0, or write other arrays."
        )
    return source
