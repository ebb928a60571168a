"""A file of embeddings, read again: `embed` wrote it, or whoever has rows of features.

    found = embedded.read("features.npz")     # .features [n, F], .paths [n], .labels, .class_names, .about

The features of an .npz stay on the disk, as a memory map, until a block of them is asked for.
"""

import json
import pathlib
import re
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

from barlow_jax.data import walk
from barlow_jax.errors import UserError
from barlow_jax.evaluation import embedding_files

BLOCK = 8192  # rows that are looked at together
_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # that stand for no byte of a file's name, see walk.readable
REMEDY = "give a file that `barlow-jax embed` wrote"


class Embeddings(NamedTuple):
    """Rows of features and what is known of each, in the order of the file."""

    features: Any  # float [n, F], an array or a memory map
    paths: np.ndarray  # str [n]
    labels: np.ndarray | None  # int32 [n], -1: unlabelled
    class_names: tuple[str, ...]  # may be empty
    about: dict  # how they were made, see embed.made_by; empty in files of others
    zeros: np.ndarray  # places of the rows that are all zeros, which resemble nothing


def read(path):
    """The embeddings in a file, as `Embeddings`.

    path: .npz with `features` and, if it has them, `paths`, `labels`, `class_names` and `about`; or .parquet with the
      columns `features`, `path`, `label`, `class`.
    Raises:
      UserError: there is no such file, it is something else or damaged, or holds a row that is not finite.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}; {REMEDY}.")
    if path.suffix not in (".npz", ".parquet"):
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}; {REMEDY}, .npz or .parquet.")
    try:
        found = _of_npz(path) if path.suffix == ".npz" else _of_parquet(path)
    except embedding_files.DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as embeddings ({reason}); {REMEDY}.") from None
    features, paths, labels, names, about = found
    about = about if isinstance(about, dict) else {}
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise UserError(f"{path} has features {features.dtype} {list(features.shape)}, not rows of numbers; {REMEDY}.")
    paths = np.array([f"row {k}" for k in range(len(features))]) if paths is None else np.asarray(paths, np.str_)
    paths = _writable(paths)
    if labels is not None and labels.dtype.kind not in "iu":
        raise UserError(
            f"{path} has labels {labels.dtype}, not whole numbers; give numbers of classes, -1 for none, and the names "
            "of these as class_names."
        )
    if paths.shape != features.shape[:1] or (labels is not None and labels.shape != paths.shape):
        raise UserError(f"{path} has {len(features)} rows of features and {paths.size} paths; {REMEDY}.")
    return Embeddings(features, paths, labels, names, about, _looked_through(path, features, paths))


def _writable(paths):
    r"""Paths as text of UTF-8, as `embed` writes them; others' files may hold halves of characters."""
    try:
        for start in range(0, paths.size, BLOCK):  # a million names at once would take more than their features' blocks
            "".join(paths.ravel()[start : start + BLOCK]).encode()
    except UnicodeEncodeError:
        found = (_HALVES.sub("\N{REPLACEMENT CHARACTER}", str(path)) for path in paths.ravel())
        return np.array([*map(walk.readable, found)]).reshape(paths.shape)
    return paths


def unit(rows, xp=np):
    """Rows [m, F] at length 1, float32; a row of zeros stays one. By way of the largest number: no square overflows."""
    rows = rows.astype(xp.float32)
    tiny = np.finfo(np.float32).tiny
    rows = rows / xp.maximum(xp.abs(rows).max(1, keepdims=True), tiny)
    return rows / xp.maximum(xp.sqrt((rows * rows).sum(1, keepdims=True)), tiny)


def on_sphere(features):
    """All rows at length 1, float32 [n, F], in memory."""
    return np.concatenate([unit(block) for _, block in blocks(features)])


def blocks(features):
    """(place of the first row, float32 [m, F]) of all rows in order."""
    for start in range(0, len(features), BLOCK):
        with np.errstate(over="ignore"):  # a float64 that is none of float32's is told of as what it becomes, inf
            block = np.asarray(features[start : start + BLOCK], np.float32)
        yield start, block


def _looked_through(path, features, paths):
    """Places of the rows of zeros; UserError for rows that are not finite."""
    bad, zeros = [], []
    for start, block in blocks(features):
        bad.append(start + np.flatnonzero(~np.isfinite(block).all(1)))
        zeros.append(start + np.flatnonzero(~block.any(1)))
    bad = np.concatenate(bad)
    if len(bad):
        raise UserError(
            f"{path} has {len(bad)} of {len(features)} rows that are not finite, {paths[bad[0]]} for one; make it anew "
            "from weights that are, or leave these rows out."
        )
    return np.concatenate(zeros)


def _of_npz(path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if "features.npy" not in names:
        held = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "nothing"
        raise UserError(f"{path} has no array features (it has {held}); {REMEDY}.")
    with open(path, "rb") as stream, np.load(stream) as file:
        small = {name: file[name] for name in ("paths", "labels", "class_names", "about") if name in file.files}
        features = _mapped(path)
        features = file["features"] if features is None else features
    names = tuple(str(name) for name in small.get("class_names", ()))
    about = json.loads(str(small["about"])) if "about" in small else {}
    return features, small.get("paths"), small.get("labels"), names, about


def _mapped(path):
    """The features of an .npz as a memory map, or None where they are packed."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("features.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(member) as stream:
            while stream.read(2**24):  # to its end, where zipfile compares the checksum
                pass
    with open(path, "rb") as stream:
        stream.seek(member.header_offset)
        name, extra = struct.unpack("<HH", stream.read(30)[26:])
        stream.seek(member.header_offset + 30 + name + extra)
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject or 0 in shape:
            return None
        return np.memmap(path, dtype, "r", stream.tell(), shape, "F" if fortran else "C")


def _of_parquet(path):
    pyarrow, parquet = embedding_files.parquet_library("give an .npz")
    try:
        names = parquet.read_schema(path).names
        if "features" not in names:
            raise UserError(f"{path} has no column features (it has {', '.join(names[:5])}); {REMEDY}.")
        wanted = [name for name in ("path", "features", "label", "class") if name in names]
        table = parquet.read_table(path, columns=wanted)
        rows = table["features"].combine_chunks()
        width = len(rows[0]) if len(rows) else 0
        features = rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), width)
    except pyarrow.ArrowException as error:
        raise ValueError(error) from None
    columns = {name: table[name] for name in wanted if name != "features"}
    paths = np.array(columns["path"].to_pylist(), np.str_) if "path" in columns else None
    labels = np.asarray(columns["label"].to_numpy(), np.int32) if "label" in columns else None
    known = (
        {} if labels is None or "class" not in columns else dict(zip(labels, columns["class"].to_pylist(), strict=True))
    )
    names = tuple(str(known.get(k, k)) for k in range(max(known, default=-1) + 1))
    kept = (table.schema.metadata or {}).get(embedding_files.METADATA.encode())
    return features, paths, labels, names, json.loads(kept) if kept else {}
