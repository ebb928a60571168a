"""What lies in folders that were looked through before, kept on the disk, so that only what changed is looked through.

A folder is taken from its list if it is, to the nanosecond, what it was then: its inode, and the times at which its
entries (mtime) and anything about it (ctime) last changed. So a file that came, went or was renamed is seen, and so is
a folder that may be read since. Not kept is what these times do not tell:

- a folder with links, as what they lead to may change; the folders that they lead to have lists of their own
- one that changed within RECENT seconds before it was looked through: it may change again at the same tick of the clock
- one with more than ASKED files that had to be opened to tell whether they are images; of fewer the states are kept too
- one on a file system whose folders have no such times (FUSE, so mounted buckets; SMB), or none that is known

The lists are in $BARLOW_JAX_LISTS, or in $XDG_CACHE_HOME/barlow-jax/lists, or ~/.cache/barlow-jax/lists, a file for
each folder that was opened; BARLOW_JAX_LISTS=off keeps none. A file that is damaged, of another version, or may be
written by others than the user is not believed, and written anew. Where none can be written nothing else is different.
"""

import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import time
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

FORM = 1  # of the files; another one when the same folder may give another list
WORTH = 10_000  # images from which on a list is written: fewer are found in the time that reading it takes
RECENT = 60  # s; clocks tick every 4 ms, of some file servers every second, and are rarely a minute wrong
ASKED = 100
MOST = 32  # files; those that were used longest ago go
# File systems that give a folder the time of its last change. Of the others some do, too.
WITH_TIMES = {
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs", "tmpfs", "ramfs"),
    *("overlay", "nfs", "nfs4", "lustre", "ceph", "gpfs", "beegfs", "squashfs", "erofs", "iso9660", "udf"),
}

State = tuple[int, int, int]  # inode, mtime, ctime


class Contents(NamedTuple):
    """What is in one folder."""

    images: bytes | memoryview | range  # their names, sorted, with a NUL between two; or where they stand in a text
    folders: tuple[str, ...]
    left_out: dict[str, int]  # how many of each kind, in words
    asked: dict[str, State] | None  # files that were opened, and what they were; None: not to be kept

    def names(self) -> list[str]:
        """Of the images."""
        return os.fsdecode(bytes(self.images)).split("\0") if self.images else []


def state_of(found: os.stat_result) -> State:
    """What tells a folder or file from itself after a change."""
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


class Lists:
    """The lists of all folders below a root: those that were kept, and those of this look.

    rules: by which images are told; lists made by others are not taken.
    """

    def __init__(self, root: str, rules: str):
        self._root, self._rules, self._file = root, f"{FORM} {rules}", None
        self._found, self._changed, self._with_times = {}, False, {}
        self._new = bytearray()  # the images of all folders that were looked through
        if folder := place():
            name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
            self._file = os.path.join(folder, f"{name}.npz")
        self._kept = self._read() if self._file else {}

    def of(self, relative: str, found: os.stat_result) -> Contents | None:
        """What is in a folder by its list; None where there is none that holds."""
        state, contents = self._kept.get(relative, (None, None))
        if state != state_of(found) or not self._tells_times(relative, found):
            return None
        try:
            for name, before in contents.asked.items():
                if state_of(os.lstat(os.path.join(self._root, relative, name))) != before:
                    return None
        except OSError:
            return None
        self._found[relative] = state, contents
        return contents

    def told(self, relative: str, found: os.stat_result, contents: Contents) -> Contents:
        """What was found in a folder, which was in the state `found` before; it is kept if that can be."""
        if self._file and contents.asked is not None and self._tells_times(relative, found):
            states = [state_of(found), *contents.asked.values()]
            if max(map(max, (state[1:] for state in states))) < (time.time() - RECENT) * 1e9:
                start, self._changed = len(self._new), True
                self._new += contents.images
                place = range(start, len(self._new))  # bytes of each would leave holes in the heap, a third of all
                self._found[relative] = states[0], contents._replace(images=place)
        return contents

    def keep(self, count: int):
        """Writes the lists, if anything is new and there are enough images."""
        if self._file and count >= WORTH and (self._changed or self._found.keys() != self._kept.keys()):
            try:
                _write(self._file, self._rules, self._found, self._new)
            except OSError as error:
                reason = error.strerror or error
                logger.info("the list of the images in %s is not kept (%s: %s)", self._root, self._file, reason)

    def _read(self):
        """{relative path: (state, Contents)} of the file; empty where there is none, or none that is believed."""
        try:
            found = os.lstat(self._file)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise ValueError("others may have written it")
            with open(self._file, "rb") as file:
                kept = _parsed(np.load(file, allow_pickle=False), self._rules)
            os.utime(self._file)
        except FileNotFoundError:
            return {}
        except Exception as error:  # numpy and zipfile raise whatever a damaged file makes them run into
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            logger.info("%s, a kept list of images, is not used (%s)", self._file, reason)
            return {}
        return kept

    def _tells_times(self, relative, found):
        device = found.st_dev
        if device not in self._with_times:
            self._with_times[device] = _file_system(os.path.join(self._root, relative)) in WITH_TIMES
        return self._with_times[device]


def place() -> str | None:
    """The folder of the lists, which may be missing; None where there is to be none."""
    asked = os.environ.get("BARLOW_JAX_LISTS")
    if asked is not None:
        return None if asked in ("", "off") else os.path.abspath(os.path.expanduser(asked))
    caches = os.environ.get("XDG_CACHE_HOME", "")
    caches = caches if os.path.isabs(caches) else os.path.expanduser("~/.cache")
    return os.path.join(caches, "barlow-jax", "lists") if os.path.isabs(caches) else None  # else: no home


def _file_system(path):
    """The type of the file system that a path is on; None where the system does not say."""
    path, best, found = os.path.realpath(path), -1, None
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            lines = [line.split(" ") for line in file]
    except OSError:
        return None
    for words in lines:
        mount = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4])
        if len(mount) >= best and f"{path}/".startswith(f"{mount.rstrip('/')}/"):  # of two in one place the later
            best, found = len(mount), words[words.index("-") + 1]
    return found


def _parsed(file, rules):
    about = json.loads(file["about"].tobytes())
    if about["rules"] != rules:
        raise ValueError("it is of another version")
    # Views of one array: what a folder each had would stay behind in the heap.
    images, ends = memoryview(file["images"]), np.cumsum(file["sizes"]).tolist()
    kept, start = {}, 0
    for (relative, folders, left_out, asked), state, end in zip(
        about["folders"], file["states"].tolist(), ends, strict=True
    ):
        asked = {name: tuple(before) for name, before in asked.items()}
        kept[relative] = tuple(state), Contents(images[start:end], tuple(folders), left_out, asked)
        start = end
    if start != len(images):
        raise ValueError("its parts do not belong together")
    return kept


def _write(path, rules, found, new):
    """The file, whole or not at all; whoever replaces it last, it is one process's."""
    folders = [[relative, c.folders, c.left_out, c.asked] for relative, (_, c) in found.items()]
    about = json.dumps({"rules": rules, "folders": folders}).encode()
    lists = [contents.images for _, contents in found.values()]
    lists = [memoryview(new)[part.start : part.stop] if isinstance(part, range) else part for part in lists]
    arrays = {
        "about": np.frombuffer(about, np.uint8),
        "states": np.asarray([state for state, _ in found.values()], np.int64).reshape(-1, 3),
        "sizes": np.asarray([len(images) for images in lists], np.int64),
        "images": np.frombuffer(b"".join(lists), np.uint8),
    }
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    _tidy(folder)
    handle, unfinished = tempfile.mkstemp(".unfinished", ".", folder)  # for the user alone
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def _tidy(folder):
    """Takes away lists beyond MOST, and what processes that were killed have left for a day."""
    files = {}
    for entry in os.scandir(folder):
        if entry.name.endswith((".npz", ".unfinished")) and entry.is_file(follow_symlinks=False):
            files[entry.path] = entry.stat(follow_symlinks=False).st_mtime
    lists = sorted((path for path in files if path.endswith(".npz")), key=files.__getitem__)
    dead = [path for path in files if path.endswith(".unfinished") and files[path] < time.time() - 86400]
    for path in [*lists[: max(len(lists) + 1 - MOST, 0)], *dead]:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue  # another process was first
