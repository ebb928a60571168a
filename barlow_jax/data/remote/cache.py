"""What was read from a bucket, kept in a local folder: whole or not there, no more than so many bytes.

One file a read (an image, a record), named by a hash of its address, version and range, with a checksum behind the
content. It is written beside and renamed, so a kill leaves it whole or not there; one that the disk has damaged is
read again from the bucket. Full is full: nothing is thrown out, because each epoch wants every image once in another
order, where a fixed part of the set is met as often as it is large, and what makes room for others is met less.
"""

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import struct
import threading
import weakref
import zlib

from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

PORTION = 2**26  # bytes that a process reserves at a time, and at most loses when it is killed
BLOCK = 4096  # what a file takes on a disk is a multiple


class Cache:
    """A folder of kept reads, for any number of threads and processes of one host.

    folder: is made. max_bytes: of what is kept, as the disk counts it.
    The processes share `used`, a count behind a lock; who opens the folder alone counts anew what is there.
    UserError where the folder cannot be written.
    """

    def __init__(self, folder, max_bytes):
        self.folder, self.max_bytes = pathlib.Path(folder).expanduser(), max_bytes
        self._mine, self._full, self._lock = 0, False, threading.Lock()
        try:
            for name in ("partial", "locks", *(f"{k:02x}" for k in range(256))):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._shared = os.open(self.folder / "open", os.O_RDWR | os.O_CREAT, 0o666)
            weakref.finalize(self, os.close, self._shared)  # its lock is held for as long as the cache is open
            self._begin()
        except OSError as error:
            raise UserError(
                f"config.data.cache {self.folder} cannot be written ({error.strerror}): give another folder."
            ) from None

    def _begin(self):
        """Alone: removes what a kill has left half written, and counts what is there."""
        try:
            fcntl.flock(self._shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._shared, fcntl.LOCK_SH)
            return
        shutil.rmtree(self.folder / "partial")
        (self.folder / "partial").mkdir(exist_ok=True)  # one that opens it too may have made it just now
        with self._used() as used:
            if used.value > self.max_bytes - PORTION:  # what killed processes had reserved is free again
                used.value = _taken(self.folder)
        fcntl.flock(self._shared, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def _used(self):
        """The count that all processes share, locked: an object with .value, which is stored at the end."""
        descriptor = os.open(self.folder / "used", os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            held = file.read(8)
            used = _Count(struct.unpack("<q", held)[0] if len(held) == 8 else _taken(self.folder))
            yield used
            os.pwrite(file.fileno(), struct.pack("<q", used.value), 0)

    def path(self, key):
        """The file of a key, whether or not it is there."""
        name = hashlib.sha256(os.fsencode(key)).hexdigest()[:40]
        return self.folder / name[:2] / name[2:]

    def get(self, key, length):
        """The `length` bytes kept under a key (text), or None."""
        try:
            with open(self.path(key), "rb", buffering=0) as file:
                found = file.read()
        except OSError:
            return None
        content = found[:-4]
        if len(content) != length or struct.pack("<I", zlib.crc32(content)) != found[-4:]:
            return None  # cut off by a power failure, or damaged; it is written anew
        return content

    def put(self, key, content, beyond=False):
        """Keeps bytes under a key, if there is room; `beyond`: in any case, for what takes next to nothing.

        A disk that is full ends the keeping, not the run.
        """
        size = -(-(len(content) + 4) // BLOCK) * BLOCK
        if not self._reserve(size) and not beyond:
            return
        path = self.path(key)
        beside = self.folder / "partial" / f"{path.parent.name}{path.name}-{os.getpid()}-{threading.get_ident()}"
        try:
            with open(beside, "wb", buffering=0) as file:
                if file.write(content + struct.pack("<I", zlib.crc32(content))) != len(content) + 4:
                    raise OSError(28, "No space left on device")
            os.replace(beside, path)
        except OSError as error:
            self._full = True
            logger.warning("%s takes no more (%s); what is not in it is read from afar", self.folder, error.strerror)
            beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self, key):
        """Lets one thread of all processes at a time do what belongs to a key."""
        path = self.path(key)
        descriptor = os.open(self.folder / "locks" / f"{path.parent.name}{path.name}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _reserve(self, size):
        with self._lock:
            if self._full or size <= self._mine:
                self._mine -= 0 if self._full else size
                return not self._full
            with self._used() as used:
                portion = min(max(PORTION, size), self.max_bytes - used.value)
                if portion + self._mine < size:
                    self._full = True
                else:
                    used.value += portion
            if not self._full:
                self._mine += portion - size
                return True
        logger.info(
            "%s holds config.data.cache_bytes (%.1f GB); what is not in it is read from afar",
            self.folder,
            self.max_bytes / 1e9,
        )
        return False


@functools.cache
def kept(folder, max_bytes):
    """The Cache of a folder, one in a process."""
    return Cache(folder, max_bytes)


class _Count:
    def __init__(self, value):
        self.value = value


def _taken(folder):
    """Bytes of all kept files, in whole blocks."""
    return sum(
        -(-entry.stat().st_size // BLOCK) * BLOCK
        for part in os.scandir(folder)
        if part.is_dir() and len(part.name) == 2
        for entry in os.scandir(part.path)
    )
