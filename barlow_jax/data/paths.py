"""Paths of very many files, in as few bytes as their names have."""

import bisect
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

PART = 10_000  # paths that are strings at a time


class Paths(Sequence[str]):
    """A sequence of str that holds one text and the places where its lines end: of a path below `folder` 5 bytes more
    than its name has, where a str has 60 more.

    folder: what all paths begin with, as the operating system has it. names: the rest of each, followed by a NUL, which
    no name has. ends: [n], the place of each NUL.
    """

    def __init__(self, folder: bytes, names: bytearray, ends: NDArray[np.integer]):
        self._folder, self._names, self._ends = folder, names, ends

    @classmethod
    def joined(cls, pieces: Iterable[bytes]) -> Self:
        """Of pieces of the text, each of whole names with their NULs."""
        names, ends = bytearray(), [np.zeros(0, np.uint32)]
        for piece in pieces:
            found = np.flatnonzero(np.frombuffer(piece, np.uint8) == 0)
            found += len(names)
            names += piece
            ends.append(found.astype(np.uint32 if len(names) < 2**32 else np.int64))
        return cls(b"", names, np.concatenate(ends))

    @classmethod
    def of(cls, paths: Sequence[str]) -> Self:
        """Of paths that are strings; those of `Paths` as they are."""
        if isinstance(paths, cls):
            return paths
        start = os.path.commonprefix([min(paths), max(paths)]) if len(paths) else ""
        parts = (paths[first : first + PART] for first in range(0, len(paths), PART))
        pieces = (os.fsencode("".join([f"{path[len(start) :]}\0" for path in part])) for part in parts)
        return cls.joined(pieces).under(start)

    def under(self, folder: str) -> Self:
        """The same names behind another beginning, which share their bytes with these."""
        return type(self)(os.fsencode(folder), self._names, self._ends)

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, place):
        """The path at a place; of a slice a list."""
        places = range(len(self))[place]
        if isinstance(places, range):
            return [os.fsdecode(path) for path in self.encoded(places)]
        return os.fsdecode(self.encoded([places])[0])

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), PART):
            yield from self[first : first + PART]

    def __eq__(self, other):
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None

    def encoded(self, places: Iterable[int]) -> list[bytes]:
        """The paths at some places, as the operating system has them."""
        folder = self._folder
        return [folder + name for name in self._chosen(np.asarray(places, np.int64))]

    def _chosen(self, places) -> list[bytes]:
        ends, names = self._ends, self._names
        starts = np.where(places == 0, 0, ends[places - 1].astype(np.int64) + 1)
        return [bytes(names[start:end]) for start, end in zip(starts.tolist(), ends[places].tolist(), strict=True)]

    def take(self, places: ArrayLike) -> Self:
        """The paths at `places` (int [m]) as paths of their own."""
        places = np.asarray(places, np.int64)
        places = np.where(places < 0, places + len(self), places)
        parts = (self._chosen(places[first : first + PART]) for first in range(0, len(places), PART))
        return type(self).joined(b"\0".join([*part, b""]) for part in parts).under(os.fsdecode(self._folder))

    def below(self, name: str) -> range:
        """The places of what lies in a folder `name` here, where the paths are sorted and have no common beginning."""
        return range(bisect.bisect_left(self, f"{name}/"), bisect.bisect_left(self, f"{name}0"))  # "0" comes after "/"

    def shared(self) -> bytes:
        """The folder that all of them lie in, as os.path.commonpath tells it; of a single one, its own."""
        # What the first and the last by name share, all share; asking all of them takes 20 times as long.
        parts = [self._split(first) for first in range(0, len(self), PART)]
        first, last = (self._folder + bound(map(bound, parts)) for bound in (min, max))
        return os.path.commonpath([first, last]) if len(self) > 1 else os.path.dirname(first)

    def without(self, start: int) -> tuple[int, Iterator[bytes]]:
        """All paths without their first `start` bytes, with a NUL between two: (its length, its pieces)."""
        cut, kept = max(start - len(self._folder), 0), self._folder[start:]

        def pieces():
            for first in range(0, len(self), PART):
                yield b"\0" * (first > 0) + b"\0".join([kept + name[cut:] for name in self._split(first)])

        return len(self._names) - 1 + len(self) * (len(self._folder) - start), pieces()

    def _split(self, first) -> list[bytes]:
        """The names from one on, PART of them."""
        start = int(self._ends[first - 1]) + 1 if first else 0
        return bytes(self._names[start : int(self._ends[min(first + PART, len(self)) - 1])]).split(b"\0")
