"""Files that hold many images each: which of them are a split, and the bytes at a place in one.

All that archives are read by passes through `state`, `read` and `stream`.
"""

import fnmatch
import json
import os
import re
from typing import BinaryIO, NamedTuple

from barlow_jax.data import walk
from barlow_jax.errors import UserError

CLASSES = "classes.json"  # beside the shards: a list of the names of the classes, by number
CLASSNAMES = "classnames.txt"  # the same as lines, as open_clip and others leave it


class Shard(NamedTuple):
    """One file of a set. name: below the folder of the set, the same wherever that lies; path: of the file."""

    name: str
    path: str


def state(path: str) -> tuple[int, int]:
    """(size in bytes, time of change in ns) of a file. OSError where it cannot be told."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def read(path: str, start: int, length: int) -> bytes:
    """The bytes [start, start + length) of a file, fewer where it ends before. OSError where it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while length > 0 and (part := os.pread(descriptor, length, start)):  # 2 GB at most at a time
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)


def stream(path: str) -> BinaryIO:
    """A file that can be read and sought in, for libraries that want one."""
    return open(path, "rb")


def find(path: str, split: str, ending: str) -> tuple[str, list[Shard]]:
    """(folder of the set, its shards in sorted order) of one split.

    path: a folder, or one file, which is the set whatever the split. split: "" or "." is all files of this ending below
      the folder, "train-*" those of this pattern by name or by path below it, and "train" those that have the word in
      their name or in that of a folder: train/0.tar, train-00000.tar, imagenet-train-00.tar, data/train-0-of-2.parquet.
    ending: ".tar" or ".parquet".
    UserError names what is missing.
    """
    root = walk.local_path(path)
    if root.is_file():
        return str(root.parent), [Shard(root.name, str(root))]
    if not root.is_dir():
        raise UserError(f"{root} is neither a folder nor a file: point config.data.path to the {ending} files.")
    names = sorted(_below(str(root), ending))
    if not names:
        raise UserError(f"{root} holds no {ending} file: point config.data.path to the folder that does.")
    chosen = [name for name in names if _is_of(name, split)]
    if not chosen:
        told = ", ".join(walk.readable(name) for name in names[:3])
        raise UserError(
            f"None of the {len(names)} {ending} files below {root} is of the split {split!r} (they are {told}, ...): "
            "name a split by a word of their names, by a pattern such as 'train-*', or '.' for all."
        )
    return str(root), [Shard(name, os.path.join(root, name)) for name in chosen]


def _below(root, ending):
    """The paths below a folder of the files of an ending, '/'-separated; hidden ones are left out."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        depth = os.path.relpath(folder, root)
        if depth.count(os.sep) > 20:  # a link to a folder above has no end
            folders.clear()
        for name in files:
            if name.lower().endswith(ending) and not name.startswith("."):
                yield name if depth == "." else f"{depth}/{name}"


def _is_of(name, split):
    if split in ("", "."):
        return True
    if any(sign in split for sign in "*?["):
        return fnmatch.fnmatchcase(name, split) or fnmatch.fnmatchcase(name.rpartition("/")[2], split)
    return re.search(rf"(^|[-._ /]){re.escape(split)}([-._ /]|[0-9]|$)", name) is not None


def class_names(root: str) -> tuple[str, ...] | None:
    """What classes.json or classnames.txt in the folder of a set says, or None. UserError where it is damaged."""
    for name in (CLASSES, CLASSNAMES):
        path = os.path.join(root, name)
        try:
            size, _ = state(path)
        except OSError:
            continue
        try:
            text = read(path, 0, size).decode()
            found = json.loads(text) if name == CLASSES else text.splitlines()
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:100]}): write it again.") from None
        if not (isinstance(found, list) and found and all(isinstance(one, str) and one for one in found)):
            raise UserError(f"{path} is no list of names of classes: write it again, or remove it.")
        return tuple(found)
    return None


def kind_of(path: str | os.PathLike) -> str:
    """ "tar" or "parquet" of such a file, and of a folder that holds such files and no image or other folder; else "".

    They may lie in the folder data below it, as the Hub has them.
    """
    path = os.fspath(path)
    try:
        names = [path] if os.path.isfile(path) else _in(path)
    except OSError:
        return ""
    if any(name.lower().endswith(walk.EXTENSIONS) for name in names):
        return ""
    return next((kind for kind in ("tar", "parquet") if any(name.lower().endswith(f".{kind}") for name in names)), "")


def _in(folder):
    """The files in a folder and in its folder data; [] where it is none, or has other folders."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        seen = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    if any(is_folder and name != "data" for name, is_folder in seen):
        return []
    below = os.path.join(folder, "data")
    return [name for name, is_folder in seen if not is_folder] + (os.listdir(below) if os.path.isdir(below) else [])
