"""WebDataset's tar shards, addressed by index: one look at the headers says where each image lies.

A sample is the members that follow each other with the same name up to the first dot of its last part: 000017.jpg,
000017.cls. Of a tar only the headers are read when it is opened, and the small files that hold labels; what is found is
kept beside the shards in SPLIT.index.npz, for the next start.
"""

import concurrent.futures
import json
import logging
import os
import re
import time
from typing import NamedTuple

import numpy as np

from barlow_jax.data import shards, walk
from barlow_jax.data.archives import Archive
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

BLOCK = 512
IMAGES = tuple(ending[1:] for ending in walk.EXTENSIONS)
LABELS = ("cls", "json")  # what holds a label, the first that is there
IN_JSON = ("label", "cls")  # the key of the label in a .json, the first that is there
LONGEST = 2**20  # bytes of a name, of a pax header, of a file with a label
READERS = 8  # shards looked through at a time
TOLD_EVERY = 10.0  # seconds between lines of progress


class Tars(Archive):
    """The images of one split of tar shards, see `Archive`.

    Labels are those of .cls or .json, names of the classes those of `shards.class_names`.
    UserError names a shard that is damaged, cut off or compressed, with the remedy.
    """

    ending = ".tar"

    def _open(self, root, split):
        self._index = index_of(root, self._shards, split)
        self._shard = np.repeat(np.arange(len(self._shards), dtype=np.int32), self._index.samples)
        self._ends = np.flatnonzero(self._index.names == 0)
        return _texts(self._index.labels), shards.class_names(root)

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
        path = self._shards[self._shard[row]].path
        found = shards.read(path, start - BLOCK, BLOCK + size)  # with its header, which tells whether the index fits
        if len(found) != BLOCK + size or _number(found[124:136]) != size:
            raise OSError(0, f"{walk.readable(path)} has changed since it was opened")
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


def index_of(root, found, split):
    """The Index of shards (`shards.Shard`) below root: the kept one where it is of these files, else made and kept."""
    states = [_state(shard) for shard in found]
    path = os.path.join(root, f"{re.sub('[^A-Za-z0-9._-]', '_', split.strip('.')) or 'all'}.index.npz")
    kept = _kept(path)
    told = {name: (state, k) for k, (name, state) in enumerate(kept[0])} if kept else {}
    if kept and [shard.name for shard in found] == [name for name, _ in kept[0]]:
        if all(told[shard.name][0] == state for shard, state in zip(found, states, strict=True)):
            return kept[1]
    parts = _parts(kept[1]) if kept else []
    jobs = [
        (shard.path, told[shard.name][1] if shard.name in told and told[shard.name][0] == state else None)
        for shard, state in zip(found, states, strict=True)
    ]
    began = said = time.monotonic()
    read = []
    with concurrent.futures.ThreadPoolExecutor(READERS, "tar") as pool:
        for part in pool.map(lambda job: look(job[0]) if job[1] is None else parts[job[1]], jobs):
            read.append(part)
            if time.monotonic() - said > TOLD_EVERY:
                said = time.monotonic()
                logger.info("%s: the headers of %d of %d shards are read", walk.readable(root), len(read), len(found))
    index = _joined(read)
    _keep(path, [[shard.name, state] for shard, state in zip(found, states, strict=True)], index)
    logger.info(
        "%s: %d images in %d tar shards, found in %.1f s",
        *(walk.readable(root), len(index.starts), len(found), time.monotonic() - began),
    )
    return index


def _state(shard):
    try:
        return [*shards.state(shard.path)]
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


def _kept(path):
    """([[name of a shard, [size, time of change]], ...], Index) as it was kept, or None where there is no whole one."""
    try:
        with open(path, "rb") as stream, np.load(stream) as file:
            index = Index(*(file[name] for name in Index._fields))
            about = json.loads(file["shards"].tobytes())
        n = len(index.starts)
        sound = len(index.sizes) == index.samples.sum() == n and len(about) == len(index.samples)
        sound = sound and (index.names == 0).sum() == (index.labels == 0).sum() == n
        sound = sound and all(array.dtype == np.int64 for array in (index.samples, index.starts, index.sizes))
        return (about, index) if sound and (index.starts >= BLOCK).all() and (index.sizes >= 0).all() else None
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy and zipfile raise whatever a damaged file makes them run into
        logger.info("%s cannot be read (%s) and is made again", path, type(error).__name__)
        return None


def _keep(path, about, index):
    """Writes the index whole or not at all; a folder that cannot be written to is no fault."""
    unfinished = f"{path}.{os.getpid()}.unfinished"
    try:
        with open(unfinished, "wb") as stream:
            np.savez(stream, shards=np.frombuffer(json.dumps(about).encode(), np.uint8), **index._asdict())
        os.replace(unfinished, path)
    except OSError as error:
        logger.info("%s cannot be kept (%s), so the next start reads the headers again", path, error.strerror)


def look(path):
    """(names of the image files, label of each as text or "", starts, sizes) of the samples of one tar.

    UserError where it is no whole tar.
    """
    names, labels, starts, sizes = [], [], [], []
    spare = 0
    try:
        size, _ = shards.state(path)
        with shards.stream(path) as file:
            key, image, label = None, None, {}
            for name, start, length in members(file, size):
                folder, _, base = name.rpartition("/")
                first, dot, ending = base.partition(".")
                if not first or not dot:  # hidden, or without an ending
                    continue
                if (folder, first) != key:
                    _add(names, labels, starts, sizes, image, label)
                    key, image, label = (folder, first), None, {}
                ending = ending.lower()
                if ending in LABELS:
                    label[ending] = _label(file, start, length, ending, name)
                elif ending in IMAGES or ending.rpartition(".")[2] in IMAGES:
                    # 7.seg.png is no other image of the sample than 7.jpg, but it is one where there is nothing else.
                    better = image is None or (ending in IMAGES and image[3] not in IMAGES)
                    spare += image is not None
                    image = (name, start, length, ending) if better else image
            _add(names, labels, starts, sizes, image, label)
    except OSError as error:
        raise UserError(f"{walk.readable(path)} cannot be read ({error.strerror or error}): see to it.") from None
    except Damaged as error:
        raise UserError(f"{walk.readable(path)} {error}") from None
    if spare:
        logger.info("%s: %d images left out, as their samples have another one", walk.readable(path), spare)
    return names, labels, starts, sizes


def _add(names, labels, starts, sizes, image, label):
    if image is not None:
        names.append(image[0])
        starts.append(image[1])
        sizes.append(image[2])
        labels.append(next((label[ending] for ending in LABELS if label.get(ending)), ""))


def _label(file, start, length, ending, name):
    """The label that a small member holds, as text; "" where it says none."""
    if length > LONGEST:
        raise Damaged(f"has a label of {length} bytes ({name[:80]!r}): write it anew.")
    file.seek(start)
    try:
        text = file.read(length).decode()
        if ending == "json":
            held = json.loads(text)
            held = next((held[key] for key in IN_JSON if key in held), "") if isinstance(held, dict) else ""
            text = str(held) if isinstance(held, int | str) and not isinstance(held, bool) else ""
    except (ValueError, RecursionError):
        raise Damaged(f"has a label that cannot be read ({name[:80]!r}): write it anew.") from None
    return " ".join(text.replace("\0", " ").split())


class Damaged(Exception):
    """What is wrong with a tar and the remedy, as a sentence that lacks its name."""


def members(file, size):
    """(name, start of the content, its length) of each regular file in an open tar of `size` bytes, in order.

    ustar, GNU and pax, as tarfile reads them. Damaged where a header is none, or a member goes beyond the end.
    """
    place, longer = 0, {}
    while True:
        file.seek(place)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            begins = "is empty" if not size else f"ends at byte {size} without the zeros that end a tar"
            raise Damaged(f"{begins}: it was cut off, so fetch it again.")
        if block == bytes(BLOCK):
            return
        length, kind = _header(block, place), block[156:157]
        start = place + BLOCK
        if kind in b"0\0007":
            length = longer.get("size", length)
        holds = kind not in b"123456"  # links, devices and folders have no content
        if holds and start + length > size:
            raise Damaged(f"ends within a member that begins at byte {place}: it was cut off, so fetch it again.")
        place = start + (-(-length // BLOCK) * BLOCK if holds else 0)
        if kind in b"xL":
            if length > LONGEST:
                raise Damaged(
                    f"has a header of {length} bytes at byte {start - BLOCK}: it is damaged, so fetch it again."
                )
            file.seek(start)
            longer |= _pax(file.read(length)) if kind == b"x" else {"path": _text(file.read(length))}
            continue
        if kind in b"gK":
            continue
        if kind == b"S" or any(key.startswith("GNU.sparse") for key in longer):
            raise Damaged("has a sparse member, which cannot be read by its place: pack it without holes.")
        if kind in b"0\0007":
            name = longer.get("path") or _name(block)
            yield name.removeprefix("./").replace("\0", ""), start, length
        longer = {}


def _header(block, place):
    """The length that a header says. Damaged where it is none."""
    try:
        said, length = _number(block[148:156]), _number(block[124:136])
    except ValueError:
        said = length = -1
    if length < 0 or said != 256 + sum(block[:148]) + sum(block[156:]):
        if place == 0:
            begins = "gzip" if block[:2] == b"\x1f\x8b" else "zstd" if block[:4] == b"\x28\xb5\x2f\xfd" else ""
            if begins:
                raise Damaged(f"is compressed by {begins}, so nothing in it can be read by its place: unpack it once.")
            raise Damaged("is no tar: fetch it again, or remove it.")
        raise Damaged(f"has no header at byte {place}, where one must be: it is damaged, so fetch it again.")
    return length


def _number(field):
    """A number of a header: octal, or beyond 8 GB base 256. ValueError where it is none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _text(field):
    return os.fsdecode(field.partition(b"\0")[0])


def _name(block):
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])


def _pax(content):
    """What a pax header says of the member behind it: {"path": str, "size": int, ...}."""
    found, place = {}, 0
    while place < len(content) and content[place : place + 1] != b"\0":
        digits, space, _ = content[place : place + 20].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(content) - place:
            raise Damaged("has a pax header that cannot be read: it is damaged, so fetch it again.")
        key, _, value = content[place + len(digits) + 1 : place + int(digits) - 1].partition(b"=")
        found[os.fsdecode(key)] = os.fsdecode(value)
        place += int(digits)
    if "size" in found:
        if not re.fullmatch("[0-9]{1,18}", found["size"]):
            raise Damaged("has a pax header that cannot be read: it is damaged, so fetch it again.")
        found["size"] = int(found["size"])
    return found
