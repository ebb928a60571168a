"""Shards in buckets and on web servers: what shards.Folder and shards.Shard are for files of this machine."""

import io
from typing import BinaryIO, NamedTuple

from barlow_jax.data.remote import bucket
from barlow_jax.errors import UserError


class FarShard(NamedTuple):
    """One object of a set. name: below the address of the set; path: its address; store, one: where and what it is."""

    name: str
    path: str
    store: bucket.Bucket
    one: bucket.Object

    def state(self) -> list:
        """[size in bytes, time of change in s, ETag or generation], as the set was opened."""
        return [self.one.size, self.one.written, self.one.version]

    def read(self, start: int, length: int) -> bytes:
        """The bytes [start, start + length), fewer where it ends before. bucket.Gone where it is not what it was."""
        return self.store.read(self.one, start, max(0, min(length, self.one.size - start)))

    def stream(self) -> BinaryIO:
        """A file that can be read and sought in: each read is a request."""
        return Ranges(self, 0)

    def through(self) -> BinaryIO:
        """The same for one who reads most of it, from its beginning on: bucket.PART bytes a request, past the cache."""
        return Ranges(self, bucket.PART)


class FarFolder:
    """Objects below an address, which is one object where it ends as shards do.

    Attributes: root, the address; alone, the name of that object, or ""; store, the bucket; lists: whether it can say
    what is below, as web servers cannot.
    """

    def __init__(self, address, ending, cache=None):
        self.store, name = bucket.opened(address, cache)
        self._prefix, self.alone = name.strip("/"), ""
        if self._prefix.lower().endswith(ending):
            self._prefix, _, self.alone = self._prefix.rpartition("/")
        self.root = self.store.where(self._prefix).rstrip("/")
        self.lists, self._listed = not self.store.scheme.startswith("http"), None

    def names(self, ending: str) -> list[str]:
        """The names below the address of the objects of an ending, sorted; hidden ones are left out."""
        cut = len(self._prefix) + 1 if self._prefix else 0
        self._listed = {one.name[cut:]: one for one in self.store.list(self._prefix)}
        told = (name for name in self._listed if name.lower().endswith(ending))
        return sorted(name for name in told if not any(part.startswith(".") for part in name.split("/")))

    def files(self, names: list[str]) -> list[FarShard]:
        """These objects. UserError for one that is not there."""
        found = [self._listed.get(name) for name in names] if self._listed else self._heads(names)
        missing = [name for name, one in zip(names, found, strict=True) if one is None]
        if missing:
            raise UserError(
                f"{self.root}/{missing[0]} does not exist, nor do {len(missing) - 1} other of the {len(names)} shards "
                "that are named: correct config.data.path, config.data.train or config.data.val."
            )
        return [self._shard(name, one) for name, one in zip(names, found, strict=True)]

    def beside(self, name: str) -> FarShard | None:
        """A small object right below the address, or None."""
        one = self._listed.get(name) if self._listed else self._heads([name])[0]
        return one and self._shard(name, one)

    def _heads(self, names):
        return self.store.heads([f"{self._prefix}/{name}".lstrip("/") for name in names])

    def _shard(self, name, one):
        return FarShard(name, f"{self.root}/{name}", self.store, one)


def in_far_folder(address):
    """The names right below an address and in its folder data; [] where it has other folders, or lists none."""
    store, name = bucket.opened(address)
    if store.scheme.startswith("http"):
        return []
    objects, folders = store.top(name)
    folders = {folder.strip("/").rpartition("/")[2]: folder for folder in folders}
    if any(name != "data" and not name.startswith(".") for name in folders):
        return []
    below = [one for name, folder in folders.items() if name == "data" for one in store.top(folder)[0]]
    return [one.name for one in (*objects, *below) if not one.name.rpartition("/")[2].startswith(".")]


class Ranges(io.RawIOBase):
    """A FarShard as a file. at_once: bytes that are asked for at least, of which what is read next is kept; 0: none."""

    def __init__(self, shard, at_once):
        super().__init__()
        self._shard, self._at_once, self._place = shard, at_once, 0
        self._held, self._at = b"", 0  # the bytes from _at on

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._place

    def seek(self, offset, whence=io.SEEK_SET):
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._shard.one.size}[whence]
        return self._place

    def read(self, size=-1):
        left = max(0, self._shard.one.size - self._place)
        size = left if size is None or size < 0 else min(size, left)
        found = self._within(size) if self._at_once else self._shard.read(self._place, size)
        self._place += len(found)
        return found

    def readall(self):
        return self.read()

    def readinto(self, buffer):
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _within(self, size):
        """The bytes at the place, of what is held or is asked for now."""
        stop, end = self._place + size, self._at + len(self._held)
        if not self._at <= self._place <= stop <= end:
            kept = self._held[self._place - self._at :] if self._at <= self._place < end else b""
            start = self._place + len(kept)
            more = min(max(stop - start, self._at_once), self._shard.one.size - start)
            kept += self._shard.store.fetched(self._shard.one, start, more) if more else b""
            self._held, self._at = kept, self._place
        return self._held[self._place - self._at : stop - self._at]
