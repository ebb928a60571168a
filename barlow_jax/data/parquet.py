"""Parquet files with encoded images, as the Hugging Face Hub has them, addressed by index.

The unit that can be read is a row group: all images of some hundred rows. A few of them are kept, so that images of one
group that are asked for at about the same time cost one read; an order over the whole set reads a group for each image.
"""

import concurrent.futures
import importlib
import itertools
import json
import logging

import numpy as np

from barlow_jax.data import shards, walk
from barlow_jax.data.archives import Archive
from barlow_jax.data.blocks import Held
from barlow_jax.data.remote.bucket import IN_FLIGHT
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

IMAGES = ("image", "img", "jpg", "png", "picture")  # names of columns, the first that is there
LABELS = ("label", "labels", "fine_label", "cls", "class", "target")
HELD_BYTES = 2**28  # of row groups that are kept, and at least one
READERS = 8  # files whose foot is read at a time


class Parquets(Archive):
    """The images of one split of Parquet files, see `Archive`.

    Images are in the column that the Hub's own description calls an Image, or one of `IMAGES`: binary, or a struct with
    the field bytes. Labels are in the one that it calls a ClassLabel, whose names are those of the classes, or one of
    `LABELS`: whole numbers (pandas writes them as fractions where one is missing), truth values or text.
    UserError where pyarrow is missing, a file is damaged, or no column of images is found.
    """

    ending = ".parquet"

    def _open(self, folder, split):
        self._parquet = library()
        with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT if folder.store else READERS, "parquet") as pool:
            self._feet = list(pool.map(self._foot, self._shards))
        schema = self._feet[0].schema.to_arrow_schema()
        self._image, label, names = columns(schema, self._shards[0].path)
        for shard, foot in zip(self._shards, self._feet, strict=True):
            held = foot.schema.to_arrow_schema()
            for column in filter(None, (self._image, label)):
                if column not in held.names or held.field(column).type != schema.field(column).type:
                    raise UserError(
                        f"{walk.readable(shard.path)} has no column {column!r} such as {self._shards[0].name} has: "
                        "name the files of one set by config.data.train."
                    )
        kind = schema.field(self._image).type
        self._leaf = f"{self._image}.bytes" if hasattr(kind, "num_fields") and kind.num_fields else self._image
        # (shard, group, first row of it in its file) of each group, and where each begins in the whole.
        counts = [[foot.row_group(g).num_rows for g in range(foot.num_row_groups)] for foot in self._feet]
        groups = [
            (k, g, first)
            for k, rows in enumerate(counts)
            for g, first in zip(range(len(rows)), itertools.accumulate(rows, initial=0), strict=False)
        ]
        self._groups = np.asarray(groups, np.int64).reshape(-1, 3)
        counts = list(itertools.chain(*counts))
        self._begins = np.cumsum([0, *counts])
        self._rows = np.arange(self._begins[-1])
        size = sum(foot.row_group(g).total_byte_size for foot in self._feet for g in range(foot.num_row_groups))
        if size > HELD_BYTES and len(groups) > 1:
            logger.warning(
                "%s: %.1f GB in %d row groups, of which training in an order over the whole set reads nearly one an "
                "image; with config.data.block it reads each once, and of the tar shards of barlow-jax pack the image",
                *(self.name, size / 1e9, len(groups)),
            )
        self._held = Held(HELD_BYTES)
        if label is None:
            return np.full(len(self._rows), -1), None
        return self._labels(label), names or shards.class_names(folder)

    def _foot(self, shard):
        with told(shard.path):
            with shard.stream() as file:
                return self._parquet.read_metadata(file)

    def _labels(self, column):
        """What the column of labels holds: integers [n], or list of str."""

        def of_file(shard, foot):
            with told(shard.path), shard.stream() as file:
                read = self._parquet.ParquetFile(file, metadata=foot).read(columns=[column], use_threads=False)
                return read.column(0).to_pylist()

        with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT if self.afar else 1, "labels") as pool:
            parts = list(itertools.chain.from_iterable(pool.map(of_file, self._shards, self._feet)))
        if any(isinstance(part, str) for part in parts):
            return ["" if part is None else " ".join(part.split()) for part in parts]
        # pandas writes whole numbers among which one is missing as fractions.
        if wrong := [part for part in parts if isinstance(part, float) and not (part.is_integer() or part != part)]:
            raise UserError(
                f"{self.name}: the column {column!r} holds {wrong[0]:g}, which is no number of a class: name another "
                "column 'label', or write whole numbers."
            )
        return np.asarray([-1 if part is None or part != part else int(min(part, 2**62)) for part in parts], np.int64)

    def _contents(self):
        names = [shard.name for shard in self._shards]
        held = "\0".join(f"{name}\0{foot.num_rows}" for name, foot in zip(names, self._feet, strict=True))
        return [np.frombuffer(held.encode("utf-8", "surrogateescape"), np.uint8), self._rows]

    def _place(self, index):
        """(shard, group, row in the group, row in the file) of one image."""
        row = self._rows[index]
        place = int(np.searchsorted(self._begins, row, side="right")) - 1
        shard, group, first = map(int, self._groups[place])
        inside = int(row - self._begins[place])
        return shard, group, inside, first + inside

    def where(self, index):
        """The file and the row, for a person."""
        shard, _, _, row = self._place(index)
        return f"{walk.readable(self._shards[shard].path)}, row {row}"

    def encoded(self, index):
        """The image file of one row: bytes. OSError or ValueError where there is none."""
        shard, group, inside, _ = self._place(index)
        value = self._held.get((shard, group), lambda: self._read(shard, group))[inside].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if value is None:
            raise ValueError("the row holds no bytes of an image")
        return value

    @property
    def groups(self):
        """The places where row groups begin, see `protocol.Source.groups`."""
        of = np.searchsorted(self._begins, self._rows, side="right")
        return np.flatnonzero(np.diff(of, prepend=-1))

    def read_together(self, places):
        """The image files of some examples, or the error for one that cannot be read: list of bytes."""
        found = []
        for place in places:
            try:
                found.append(self.encoded(place))
            except (OSError, ValueError) as error:
                found.append(error)
        return found

    def _read(self, shard, group):
        with self._shards[shard].stream() as file:
            foot = self._feet[shard]
            table = self._parquet.ParquetFile(file, metadata=foot).read_row_group(
                group, columns=[self._leaf], use_threads=False
            )
        return table.column(0)


def library():
    """pyarrow.parquet. UserError where it is not installed."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            "config.data.kind is 'parquet', which needs pyarrow, and that is not installed: pip install pyarrow."
        ) from None


class told:
    """What pyarrow and the system say of a file that cannot be read is a UserError that names it."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        arrow = kind is not None and kind.__module__.startswith("pyarrow")
        if arrow or isinstance(error, OSError | ValueError):
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:120].rstrip(".")
            raise UserError(
                f"{walk.readable(self.path)} cannot be read as Parquet ({reason}): fetch it again, or remove it."
            ) from None


def columns(schema, path):
    """(column of the images, column of the labels or None, names of the classes or None) of a pyarrow schema."""
    features = _hub_features(schema)
    of_kind = {
        kind: [name for name, told in features.items() if told.get("_type") == kind and name in schema.names]
        for kind in ("Image", "ClassLabel")
    }
    able = [name for name in schema.names if _holds_images(schema.field(name).type)]
    image = next((n for n in [*of_kind["Image"], *IMAGES, *(able if len(able) == 1 else ())] if n in able), None)
    if image is None:
        raise UserError(
            f"{walk.readable(path)} has {'several columns' if able else 'no column'} that may hold encoded images (its "
            f"columns: {', '.join(schema.names)[:120]}): name one 'image'; it holds bytes, or a struct with them."
        )
    fit = [name for name in schema.names if _holds_labels(schema.field(name).type)]
    named = [n for n in [*_known_first(of_kind["ClassLabel"], LABELS), *LABELS] if n in schema.names]
    label = next((n for n in named if n in fit), None)
    if named and label is None:
        logger.warning(
            "%s: the column %r is of the type %s, which no labels are: the images are taken as unlabelled",
            *(walk.readable(path), named[0], schema.field(named[0]).type),
        )
    names = features.get(label, {}).get("names")
    sound = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return image, label, tuple(names) if sound else None


def _known_first(names, known):
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def _hub_features(schema):
    """What datasets has written of the columns: {name: {"_type": ..., ...}}; {} where there is nothing sound."""
    try:
        held = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: told for name, told in held.items() if isinstance(told, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_images(kind):
    if str(kind).startswith("struct<"):
        return any(kind.field(k).name == "bytes" and _holds_images(kind.field(k).type) for k in range(kind.num_fields))
    return str(kind) in ("binary", "large_binary", "binary_view")


def _holds_labels(kind):
    inner = getattr(kind, "value_type", None) if str(kind).startswith("dictionary<") else kind
    wide = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    texts = ("string", "large_string", "string_view")
    return str(inner) in (*wide, "bool", "halffloat", "float", "double", *texts)
