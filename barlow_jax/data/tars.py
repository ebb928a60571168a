"""WebDataset's tar shards, addressed by index: one look at the headers says where each image lies.

What is found is kept for the next start: beside the shards in SPLIT.index.npz, and of shards afar in a folder of the
user. An index that lies beside shards afar, as where packed shards were copied to a bucket, saves the look.
"""

import concurrent.futures
import hashlib
import io
import json
import logging
import os
import re
import time
from typing import NamedTuple

import numpy as np

from barlow_jax.data import kept, tar, walk
from barlow_jax.data.archives import Archive
from barlow_jax.data.blocks import pieces_of, taken
from barlow_jax.data.remote.bucket import IN_FLIGHT
from barlow_jax.data.shards import class_names
from barlow_jax.data.tar import BLOCK
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

READERS = 8  # shards looked through at a time
TOLD_EVERY = 10.0  # seconds between lines of progress


class Tars(Archive):
    """The images of one split of tar shards, see `Archive`.

    Labels are those of .cls or .json, names of the classes those of `shards.class_names`.
    UserError names a shard that is damaged, cut off or compressed, with the remedy.
    """

    ending = ".tar"

    def _open(self, folder, split):
        self._index = index_of(folder, self._shards, split)
        self._shard = np.repeat(np.arange(len(self._shards), dtype=np.int32), self._index.samples)
        self._ends = np.flatnonzero(self._index.names == 0)
        return _texts(self._index.labels), class_names(folder)

    def _name(self, row):
        """The name of the member at a row of the index, as bytes."""
        start = self._ends[row - 1] + 1 if row else 0
        return self._index.names[start : self._ends[row]].tobytes()

    def _contents(self):
        if np.array_equal(self._rows, np.arange(len(self._ends))):
            return [self._index.names]
        return [np.frombuffer(b"".join(self._name(row) + b"\0" for row in self._rows), np.uint8)]

    def where(self, index):
        """The shard and the member, in characters that can be printed and stored, see `walk.readable`."""
        row = self._rows[index]
        return walk.readable(f"{self._shards[self._shard[row]].path}: {os.fsdecode(self._name(row))}")

    def encoded(self, index):
        """The image file of one example: bytes. OSError where the shard no longer holds it."""
        row = self._rows[index]
        start, size = int(self._index.starts[row]), int(self._index.sizes[row])
        shard = self._shards[self._shard[row]]
        return self._content(row, shard.read(start - BLOCK, BLOCK + size))

    def read_together(self, places):
        """The image files of some examples, or the OSError for one that cannot be read: list of bytes."""
        rows = self._rows[places]
        spans = self._shard[rows], self._index.starts[rows] - BLOCK, self._index.sizes[rows] + BLOCK
        found = pieces_of(*spans, lambda shard, *span: self._shards[shard].read(*span))
        return taken(self._content, rows, pieces=found)

    def _content(self, row, found):
        """The image file at a row, of what stands from its header on, which tells whether the index fits."""
        size = int(self._index.sizes[row])
        if len(found) != BLOCK + size or not tar.says(found, size):
            path = walk.readable(self._shards[self._shard[row]].path)
            raise OSError(0, f"{path} has changed since it was opened")
        return found[BLOCK:]


class Index(NamedTuple):
    """Where the images of some shards lie.

    samples: int64 [shards]. Of all samples, one shard after the other: names and labels (text, "" without), uint8, each
    with a zero byte behind it; starts and sizes of the image files in their shards, int64 [n].
    """

    samples: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def index_of(folder, found, split):
    """The Index of shards: the kept one where it is of these files, else made and kept.

    folder: shards.Folder or the like from afar. found: its shards.
    """
    states, name = [_state(shard) for shard in found], _name_of(split)
    path = os.path.join(folder.root, name) if folder.store is None else _kept_here(folder, name)
    about, index = _read(path) or ([], None)
    if about and about == [[shard.name, state] for shard, state in zip(found, states, strict=True)]:
        return index
    known = _by_shard(about, index)
    if folder.store and not all(known.get(shard.name, (0,))[0] == s for shard, s in zip(found, states, strict=True)):
        known |= _copied(folder, name, found)
    parts = [
        known[shard.name][1] if shard.name in known and known[shard.name][0] == state else None
        for shard, state in zip(found, states, strict=True)
    ]
    index = _joined(_looked_at(folder, found, parts))
    _keep(path, [[shard.name, state] for shard, state in zip(found, states, strict=True)], index)
    return index


def _name_of(split):
    return f"{re.sub('[^A-Za-z0-9._-]', '_', split.strip('.')) or 'all'}.index.npz"


def _kept_here(folder, name):
    """The file of this machine that keeps the index of shards afar, or None."""
    place = kept.place()
    if place is None and folder.store.cache:
        place = str(folder.store.cache.folder)
    key = hashlib.sha256(os.fsencode(f"{folder.root}\0{folder.alone}\0{name}")).hexdigest()[:32]
    return place and os.path.join(place, "indexes", f"{key}.npz")


def _by_shard(about, index):
    """{name of a shard: (its state, what `tar.look` has found in it)} of an index."""
    return {name: (state, part) for (name, state), part in zip(about, _parts(index), strict=True)} if about else {}


def _copied(folder, name, found):
    """`_by_shard` of an index that lies beside shards afar, with their states there, as far as it is of these shards.

    Copies have other times than what they are of. So a shard is taken for the same where it has the size, and where
    its last image's header stands where it should: one small request each, and each read looks at the header again.
    """
    file = folder.beside(name)
    told = _by_shard(*(_read(file) or ([], None))) if file else {}

    def same(shard):
        state, part = told.get(shard.name, (None, None))
        if state is None or state[0] != shard.one.size:
            return False
        names, _, starts, sizes = part
        if not names:
            return False
        block = shard.read(int(starts[-1]) - BLOCK, BLOCK)
        return tar.says(block, sizes[-1]) and os.fsdecode(tar.name_in(block)).removeprefix("./")[:90] == names[-1][:90]

    with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT, "tar") as pool:
        return {
            shard.name: (shard.state(), told[shard.name][1])
            for shard, fits in zip(found, pool.map(same, found), strict=True)
            if fits
        }


def _looked_at(folder, found, parts):
    """What `tar.look` finds in each shard, but where `parts` has it already."""
    began = said = time.monotonic()
    read, new = [], [shard for shard, part in zip(found, parts, strict=True) if part is None]
    if folder.store and new:
        logger.info(
            "%s: reading %d tar shards through once, to know where the images lie (%.1f GB); an index beside them, as "
            "barlow-jax pack leaves it, saves that",
            *(walk.readable(folder.root), len(new), sum(shard.one.size for shard in new) / 1e9),
        )
    with concurrent.futures.ThreadPoolExecutor(READERS, "tar") as pool:
        for part in pool.map(lambda pair: pair[1] or tar.look(pair[0]), zip(found, parts, strict=True)):
            read.append(part)
            if time.monotonic() - said > TOLD_EVERY:
                said = time.monotonic()
                told = walk.readable(folder.root), len(read), len(found)
                logger.info("%s: the headers of %d of %d shards are read", *told)
    logger.info(
        "%s: %d images in %d tar shards, found in %.1f s",
        *(walk.readable(folder.root), sum(len(part[0]) for part in read), len(found), time.monotonic() - began),
    )
    return read


def _state(shard):
    try:
        return shard.state()
    except OSError as error:
        raise UserError(f"{walk.readable(shard.path)} cannot be read ({error.strerror}): see to it.") from None


def _texts(blob):
    return [os.fsdecode(text) for text in blob.tobytes().split(b"\0")[:-1]]


def _blob(texts):
    return np.frombuffer(b"".join(os.fsencode(text) + b"\0" for text in texts), np.uint8)


def _parts(index):
    """What `look` has found in each shard."""
    names, labels, ends = _texts(index.names), _texts(index.labels), np.cumsum(index.samples)
    spans = [slice(end - count, end) for end, count in zip(ends.tolist(), index.samples.tolist(), strict=True)]
    return [(names[span], labels[span], index.starts[span], index.sizes[span]) for span in spans]


def _joined(parts):
    names, labels, starts, sizes = zip(*parts, strict=True)
    return Index(
        np.asarray([len(part) for part in names], np.int64),
        _blob(name for part in names for name in part),
        _blob(label for part in labels for label in part),
        np.concatenate([np.asarray(part, np.int64) for part in starts]),
        np.concatenate([np.asarray(part, np.int64) for part in sizes]),
    )


def _read(file):
    """([[name of a shard, its state], ...], Index) as it was kept, or None where there is no whole one.

    file: a path, a shard such as `shards.Shard`, or None.
    """
    try:
        if file is None:
            return None
        stream = open(file, "rb") if isinstance(file, str) else io.BytesIO(file.read(0, file.state()[0]))
        with stream, np.load(stream) as held:
            if "look" not in held or held["look"] != tar.LOOK:  # of a version that found other things
                return None
            index = Index(*(held[name] for name in Index._fields))
            about = json.loads(held["shards"].tobytes())
        n = len(index.starts)
        sound = len(index.sizes) == index.samples.sum() == n and len(about) == len(index.samples)
        sound = sound and (index.names == 0).sum() == (index.labels == 0).sum() == n
        sound = sound and all(array.dtype == np.int64 for array in (index.samples, index.starts, index.sizes))
        return (about, index) if sound and (index.starts >= BLOCK).all() and (index.sizes >= 0).all() else None
    except (FileNotFoundError, UserError):  # the latter of a bucket; whoever reads on is told the same
        return None
    except Exception as error:  # numpy and zipfile raise whatever a damaged file makes them run into
        told = getattr(file, "path", file)
        logger.info("%s cannot be read (%s) and is made again", told, type(error).__name__)
        return None


def _keep(path, about, index):
    """Writes the index whole or not at all; a folder that cannot be written to is no fault."""
    if path is None:
        return
    unfinished = f"{path}.{os.getpid()}.unfinished"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(unfinished, "wb") as stream:
            told = np.frombuffer(json.dumps(about).encode(), np.uint8)
            np.savez(stream, look=np.int64(tar.LOOK), shards=told, **index._asdict())
        os.replace(unfinished, path)
    except OSError as error:
        logger.info("%s cannot be kept (%s), so the next start reads the headers again", path, error.strerror)
