"""Features of many images on the disk: parts while they are computed, one file when they are complete.

    parts = Parts("features.npz.parts", about)       # opened again after a kill, it knows what is done
    parts.add(rows, index, labels, features)
    write_npz("features.npz", parts, paths, class_names)

No more than one part is in memory at a time, so that a set may be larger than it.
"""

import contextlib
import importlib
import io
import json
import pathlib
import shutil
import zipfile
import zlib

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.run import writing

ABOUT = "about.json"
METADATA = "barlow_jax"  # where a .parquet keeps the same

# What numpy and zipfile raise where the bytes of an .npz are not what they should be.
DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class Parts:
    """Features of the first images of a source, in files of some thousand rows.

    Args:
      folder: made if it does not exist.
      about: what the features depend on, a plain dict.
    Raises:
      UserError: the folder holds features of something else, or cannot be written.
    """

    def __init__(self, folder, about):
        self.folder = pathlib.Path(folder)
        self.about = about = json.loads(json.dumps(about))  # as it will be read back
        file = self.folder / ABOUT
        with writing.told(self.folder):
            self.folder.mkdir(exist_ok=True)
        if not file.exists():
            writing.text(file, json.dumps(about, indent=1))
        try:
            found = json.loads(file.read_bytes().decode())
            other = [name for name in found | about if name not in found or found[name] != about.get(name)]
        except (OSError, ValueError, TypeError, RecursionError):  # not made by us
            other = [ABOUT]
        if other:
            raise UserError(
                f"{self.folder} holds a part of other features ({', '.join(other)}); remove it, or give another --out."
            )

    @property
    def files(self):
        return sorted(file for file in self.folder.glob("*.npz") if file.stem.isdecimal())

    @property
    def done(self):
        """How many images of the source have been looked at."""
        return max((int(file.stem) for file in self.files), default=0)

    def add(self, done, index, labels, features):
        """The rows of the images up to `done`; those that could not be read have none."""
        writing.arrays(self.folder / f"{done:012}.npz", {"index": index, "labels": labels, "features": features})

    def __iter__(self):
        """(index int [m], labels int32 [m], features float32 [m, F]) of each part, in order."""
        for file in self.files:
            try:
                with open(file, "rb") as stream, np.load(stream) as part:  # numpy leaves a damaged file open
                    yield part["index"], part["labels"], part["features"]
            except DAMAGE as error:
                raise UserError(f"{file} is damaged ({error}); remove {self.folder}, and start again.") from error

    def index(self):
        """Places in the source of all rows."""
        return np.concatenate([index for index, _, _ in self])

    def remove(self):
        shutil.rmtree(self.folder)


def write_npz(path, parts, path_of, class_names, about=None):
    """features float32 [n, F], paths [n] and, of labelled images, labels int32 [n] and class_names; about, as JSON.

    path_of: place in the source -> what to call the image. about: how they were made, a plain dict.
    """
    index = parts.index()
    labels = np.concatenate([found for _, found, _ in parts])
    width = next(iter(parts))[2].shape[1]
    small = {
        "paths": np.array([path_of(place) for place in index], np.str_),
        "about": np.array(json.dumps(about or {})),
    }
    if np.any(labels >= 0):
        small |= {"labels": labels, "class_names": np.array(class_names or (), np.str_)}
    with writing.whole(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            head = {"descr": "<f4", "fortran_order": False, "shape": (len(index), width)}
            np.lib.format.write_array_header_2_0(member, head)
            for _, _, features in parts:
                member.write(features.astype("<f4").tobytes())
        for name, array in small.items():
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{name}.npy", stream.getvalue())


def write_parquet(path, parts, path_of, class_names, about=None):
    """Columns path, features (a list of F float32) and, of labelled images, label and class; about in the metadata."""
    pyarrow, parquet = parquet_library()
    labelled = any(np.any(labels >= 0) for _, labels, _ in parts)
    with writing.whole(path) as unfinished, contextlib.ExitStack() as stack:
        writer = None
        for index, labels, features in parts:
            flat = pyarrow.array(features.astype(np.float32).ravel())
            columns = {
                "path": pyarrow.array([path_of(place) for place in index], pyarrow.string()),
                "features": pyarrow.FixedSizeListArray.from_arrays(flat, features.shape[1]),
            }
            if labelled:
                columns["label"] = pyarrow.array(labels)
                names = [class_names[k] if class_names and k >= 0 else None for k in labels]
                columns["class"] = pyarrow.array(names, pyarrow.string())
            table = pyarrow.table(columns).replace_schema_metadata({METADATA: json.dumps(about or {})})
            writer = writer or stack.enter_context(parquet.ParquetWriter(unfinished, table.schema))
            writer.write_table(table)


def parquet_library(otherwise="take --out=FILE.npz"):
    """pyarrow and pyarrow.parquet; UserError where it is not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"A .parquet file needs pyarrow; pip install pyarrow, or {otherwise}.") from None


def nearest(parts, rows, count):
    """The `count` nearest rows by cosine of each of `rows`, itself left out: int [len(rows), count], nearest first."""
    return nearest_and_cosines(parts, rows, count)[0]


def nearest_and_cosines(parts, rows, count):
    """As `nearest`, and the cosines, [len(rows), count]."""

    def unit(features):
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    queries, start = [], 0
    for _, _, features in parts:
        queries.append(features[rows[(rows >= start) & (rows < start + len(features))] - start])
        start += len(features)
    queries = unit(np.concatenate(queries))
    best, places, start = np.zeros((len(rows), 0)), np.zeros((len(rows), 0), int), 0
    for _, _, features in parts:
        here = np.arange(start, start + len(features))
        alike = np.where(here == rows[:, None], -np.inf, queries @ unit(features).T)
        best = np.concatenate([best, alike], 1)
        places = np.concatenate([places, np.broadcast_to(here, alike.shape)], 1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, places = np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)
        start += len(features)
    return places, best
