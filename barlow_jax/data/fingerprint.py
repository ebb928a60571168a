"""A short text that tells one state of a set of images from every other: what is kept of images goes by it."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

READERS = 32  # files asked about at a time, as on a network each answer takes long; on a local disk they cost nothing
PART = 1000  # files that a thread asks about in a row


def fingerprint(
    about: dict[str, Any],
    *,
    text: tuple[int, Iterable[bytes]] | None = None,
    arrays: Sequence[Any] = (),
    files: Sequence[str] = (),
) -> str:
    """SHA-256, as 64 hex digits, of plain values, of arrays to the byte, and of the state of files.

    about: what JSON can hold. text: the length and the pieces of a long one, which counts as a uint8 array of its bytes
    before the others would. arrays: of numpy, or with pieces(); None is one that is not there. files: paths, in an
    order that counts; of each the path, size and time of change are taken, not the content. A file that is not there
    is a state like any other: it is up to whoever reads it to complain.
    6 us a file on a local disk, 0.8 s a GB of arrays.
    """
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    if text is not None:
        size, pieces = text
        found.update(repr((np.dtype(np.uint8).str, (size,))).encode())
        for piece in pieces:
            found.update(piece)
    for array in arrays:
        found.update(repr(None if array is None else (array.dtype.str, array.shape)).encode())
        if isinstance(array, np.ndarray):
            found.update(np.ascontiguousarray(array).data)
        elif array is not None:
            for piece in array.pieces():
                found.update(piece)
    for states in _states(files):
        found.update(states)
    return found.hexdigest()


def _states(files: Sequence[str]) -> Iterator[bytes]:
    """What `_state` says of each file, in order, PART files at a time."""

    def of_part(start):
        return b"".join(map(_state, files[start : start + PART]))

    with concurrent.futures.ThreadPoolExecutor(READERS, "fingerprint") as pool:
        yield from pool.map(of_part, range(0, len(files), PART))


def _state(file: str) -> bytes:
    try:
        found = os.stat(file)
        size, changed = found.st_size, found.st_mtime_ns
    except OSError:  # a link to nothing, or deleted since the set was opened
        size, changed = -1, 0
    return os.fsencode(file) + f"\0{size}\0{changed}\0".encode()
