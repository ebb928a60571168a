"""Files that hold many images each, on a disk or in a bucket: which are a split, and the bytes at a place in one.

All that archives are read by passes through `Folder` and `Shard`, and for buckets remote/archives.py, with the same
members.
"""

import fnmatch
import itertools
import json
import os
import re
from typing import BinaryIO, NamedTuple

from barlow_jax.data import walk
from barlow_jax.data.remote.archives import FarFolder, FarShard, in_far_folder
from barlow_jax.errors import UserError

CLASSES = "classes.json"  # beside the shards: a list of the names of the classes, by number
CLASSNAMES = "classnames.txt"  # the same as lines, as open_clip and others leave it


class Shard(NamedTuple):
    """One file of a set. name: below the folder of the set, the same wherever that lies; path: of the file."""

    name: str
    path: str

    def state(self) -> list:
        """[size in bytes, time of change in ns]. OSError where it cannot be told."""
        found = os.stat(self.path)
        return [found.st_size, found.st_mtime_ns]

    def read(self, start: int, length: int) -> bytes:
        """The bytes [start, start + length), fewer where the file ends before. OSError where it cannot be read."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            parts = []
            while length > 0 and (part := os.pread(descriptor, length, start)):  # 2 GB at most at a time
                parts.append(part)
                start, length = start + len(part), length - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(descriptor)

    def stream(self) -> BinaryIO:
        """A file that can be read and sought in, for libraries that want one."""
        return open(self.path, "rb")

    through = stream  # the same for one who reads most of it, from its beginning on


class Folder:
    """Files below a folder of this machine.

    root: the folder. alone: the name of the one file that the path was of, or "". store: the bucket, here None.
    """

    store, lists = None, True

    def __init__(self, path):
        path = walk.local_path(path)
        self.alone = path.name if path.is_file() else ""
        self.root = str(path.parent if self.alone else path)

    def names(self, ending: str) -> list[str]:
        """The paths below the folder of its files of an ending, '/'-separated and sorted; hidden ones are left out."""
        return sorted(_below(self.root, ending))

    def files(self, names: list[str]) -> list[Shard]:
        """These files, whether or not they are there."""
        return [Shard(name, os.path.join(self.root, name)) for name in names]

    def beside(self, name: str) -> Shard | None:
        """A small file right in the folder, or None."""
        path = os.path.join(self.root, name)
        return Shard(name, path) if os.path.isfile(path) else None


def find(path: str, split: str, ending: str, cache=None) -> tuple[Folder | FarFolder, list[Shard] | list[FarShard]]:
    """(folder of the set, its shards in sorted order) of one split.

    path: a folder, or one file, which is the set whatever the split; or the address of such. split: "" or "." is all
      files of this ending below the folder, "train-*" those of this pattern by name or by path below it, and "train"
      those that have the word in their name or in that of a folder: train/0.tar, train-00000.tar,
      imagenet-train-00.tar, data/train-0-of-2.parquet. "train-{000..146}.tar" is so many names, which is the only way
      to name them on a web server.
    ending: ".tar" or ".parquet". cache: a remote.cache.Cache of what is read from afar.
    UserError names what is missing.
    """
    folder = FarFolder(path, ending, cache) if walk.is_remote(path) else Folder(path)
    if folder.store is None and not os.path.isdir(folder.root):
        raise UserError(f"{folder.root} is neither a folder nor a file: point config.data.path to the {ending} files.")
    if folder.alone:
        return folder, folder.files([folder.alone])
    wanted = in_braces(split)
    if not folder.lists:
        if not all(name.lower().endswith(ending) for name in wanted):
            raise UserError(
                f"{folder.root} is on a web server, which lists no folder: name its files in config.data.train and "
                f"config.data.val, as 'train-{{000..146}}{ending}'."
            )
        return folder, folder.files(wanted)
    names = folder.names(ending)
    if not names:
        raise UserError(f"{folder.root} holds no {ending} file: point config.data.path to the folder that does.")
    chosen = [name for name in names if any(_is_of(name, one) for one in wanted)]
    if not chosen:
        told = ", ".join(walk.readable(name) for name in names[:3])
        raise UserError(
            f"None of the {len(names)} {ending} files below {folder.root} is of the split {split!r} (they are {told}, "
            "...): name a split by a word of their names, by a pattern such as 'train-*', or '.' for all."
        )
    return folder, folder.files(chosen)


def in_braces(split: str) -> list[str]:
    """The names that a pattern with braces stands for, as WebDataset has it: "t-{00..02}.tar", "{a,b}.tar"."""
    parts = re.split(r"\{([^{}]*)\}", split)
    choices = [[part] if k % 2 == 0 else _in_one_brace(part) for k, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _in_one_brace(text):
    span = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", text)
    if span is None:
        return text.split(",")
    if int(span[2]) - int(span[1]) > 10**6:
        raise UserError(f"{{{text}}} names more than a million files of shards: correct config.data.train or val.")
    return [f"{k:0{len(span[1])}}" for k in range(int(span[1]), int(span[2]) + 1)]


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


def class_names(folder: Folder | FarFolder) -> tuple[str, ...] | None:
    """What classes.json or classnames.txt in the folder of a set says, or None. UserError where it is damaged."""
    for name in (CLASSES, CLASSNAMES):
        if (file := folder.beside(name)) is None:
            continue
        try:
            text = file.read(0, file.state()[0]).decode()
            found = json.loads(text) if name == CLASSES else text.splitlines()
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(f"{file.path} cannot be read ({reason}): write it again.") from None
        if not (isinstance(found, list) and found and all(isinstance(one, str) and one for one in found)):
            raise UserError(f"{file.path} is no list of names of classes: write it again, or remove it.")
        return tuple(found)
    return None


def kind_of(path: str | os.PathLike) -> str:
    """ "tar" or "parquet" of such a file, of a folder that holds such files and no image or other folder; else "".

    They may lie in the folder data below it, as the Hub has them. Both may be afar.
    """
    path = os.fspath(path)
    if walk.is_remote(path):
        names = [path] if path.lower().endswith((".tar", ".parquet")) else in_far_folder(path)
    else:
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
