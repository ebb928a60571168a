"""Arrays of images that stay on the disk: .npy files and the members of an .npz that are stored as they are.

What lies there may be larger than memory and of any type of numbers: a batch is read and brought to levels when it is
asked for.
"""

import os
import pathlib
import zipfile

import numpy as np

from barlow_jax.data import levels, sensors
from barlow_jax.data.levels import Values
from barlow_jax.data.pixels import Reading
from barlow_jax.errors import UserError

MAPPED_FROM = 2**30  # bytes of an array from which on it is left on the disk; smaller ones are read and checked at once
SAMPLED_FROM = 2**36  # bytes from which on a fingerprint is of SAMPLED images and no longer of all
SAMPLED = 2_000
PIECE = 2**26  # bytes that are worked on at a time


class Levels:
    """Images [n, h, w, C] of any type as what training sees of them, made when rows are asked for.

    Behaves as the array of them that it stands for where one is asked for its shape, type, bytes and rows.

    Args:
      stored: an array or map of numbers. reading: pixels.Reading, of which value_range and bits count.
      rows: int [m], which of the stored images; None for all.
    """

    ndim = 4

    def __init__(self, stored, reading, rows=None):
        self.stored, self.reading, self._rows = stored, reading, rows
        self.shape = (len(stored) if rows is None else len(rows), *stored.shape[1:])
        self.dtype = np.dtype(levels.dtype_of(reading.bits))
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        return self.raw(rows, levels.of_values)

    def raw(self, rows, made=lambda values, reading: values.array):
        """The values of one image or of several as they are stored."""
        stored = np.asarray(self.stored[rows if self._rows is None else self._rows[rows]])
        flat = stored.reshape(-1, *stored.shape[-2:])  # images below each other
        found = made(Values(flat, levels.of_type(stored.dtype)), self.reading._replace(channels=flat.shape[2]))
        return found.reshape(stored.shape)

    def __array__(self, dtype=None, copy=None):
        found = np.empty(self.shape, self.dtype)
        for start, stop in self._parts():
            found[start:stop] = self[np.arange(start, stop)]
        return found if dtype is None else found.astype(dtype)

    def take(self, rows):
        """Those of some rows (int [m]), which stay where they are."""
        return Levels(self.stored, self.reading, rows if self._rows is None else self._rows[rows])

    def about(self):
        """What a fingerprint has to tell besides the stored values: {} of bytes that are taken as they are."""
        wide = {"bits": self.reading.bits} if self.reading.bits != 8 else {}
        if self.stored.dtype == np.uint8:
            return wide
        return wide | {"stored": self.stored.dtype.str, "value_range": list(self.reading.value_range)}

    def pieces(self):
        """The stored bytes, some images at a time; of very large arrays those of evenly spaced images."""
        if self.nbytes > SAMPLED_FROM:
            for row in np.linspace(0, len(self) - 1, min(SAMPLED, len(self))).astype(int):
                yield np.ascontiguousarray(self.raw(row)).data
            return
        for start, stop in self._parts():
            yield np.ascontiguousarray(self.raw(np.arange(start, stop))).data

    def _parts(self):
        step = max(1, PIECE * len(self) // max(1, self.nbytes))
        return ((start, min(start + step, len(self))) for start in range(0, len(self), step))


def array_or_levels(held):
    """Levels as they are, else an array of numpy."""
    return held if isinstance(held, Levels) else np.asarray(held)


def taken(held, rows):
    """Those of some rows (int [m]); of Levels they stay on the disk."""
    return held.take(rows) if isinstance(held, Levels) else held[rows]


def about(held):
    """What a fingerprint has to tell besides the bytes."""
    return held.about() if isinstance(held, Levels) else {}


def images_of(array, name, reading, *, any_range=False):
    """An array of images as `sources.Arrays` takes it: itself where it is uint8 in memory, else its Levels.

    reading: fields of pixels.Reading. any_range: takes values whose range is not known, to be looked at.
    UserError where they are no numbers, or black and white are not known.
    """
    reading = Reading.of(reading)
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype.kind not in "uifb" or array.ndim != 4:  # sources.Arrays says what is wrong
        return array
    if array.dtype == np.uint8 and reading.bits == 8 and not isinstance(array, np.memmap):
        return array
    pairs = len(reading.value_range) // 2
    if pairs > 1 and pairs != array.shape[3]:
        raise UserError(
            f"config.data.value_range has {pairs} pairs and {name} {array.shape[3]} channels: give one pair, or "
            "one for each channel."
        )
    if not reading.value_range and levels.of_type(array.dtype) is None and not any_range:
        raise UserError(f"{name}: {levels.unknown(array)}; `barlow-jax data stats` finds them.")
    return Levels(array, reading)


def load(path, wanted):
    """The names of all arrays in a file or folder on a disk, and those among `wanted` as a dict.

    path: pathlib.Path of an .npz, of one .npy, whose array goes by the name images, or of a folder of .npy files.
    Arrays from MAPPED_FROM bytes on are mapped; a compressed member cannot be. UserError where memory
    cannot hold one; and whatever numpy and zipfile run into.
    """
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        return [*files], {name: _npy(files[name]) for name in wanted if name in files}
    if path.suffix == ".npy":
        return ["images"], {"images": _npy(path)} if "images" in wanted else {}
    with zipfile.ZipFile(path) as archive:
        members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
        large = {name for name in wanted if name in members and members[name].file_size >= MAPPED_FROM}
    found = {name: _member(path, members[name]) for name in large}
    with open(path, "rb") as stream, np.load(stream) as file:  # numpy leaves a damaged file open
        found |= {name: file[name] for name in wanted if name in file.files and name not in found}
        return sorted(file.files), {name: found[name] for name in wanted if name in found}


def _npy(path):
    mode = "r" if os.stat(path).st_size >= MAPPED_FROM else None
    return np.load(path, mmap_mode=mode, allow_pickle=False)


def _member(path, member):
    """A large member of an .npz, mapped at its place."""
    if member.compress_type != zipfile.ZIP_STORED:
        size = f"{member.file_size / 1e9:.1f} GB"
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if member.file_size > 0.9 * memory:
            raise UserError(
                f"{member.filename} in {path} is compressed, so that it has to be read whole, and takes {size} of the "
                f"{memory / 1e9:.1f} GB of memory: store it by numpy.savez, or as an .npy file, which stay on the disk."
            )
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    with open(path, "rb") as stream:
        stream.seek(member.header_offset)
        head = stream.read(30)  # of the member: the lengths of its name and of what else stands before it
        if head[:4] != b"PK\3\4":
            raise ValueError(f"{member.filename} is not where the table of contents says")
        start = (
            member.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        )
        stream.seek(start)
        shape, fortran, dtype = sensors.npy_header(stream)
        offset = stream.tell()
    held = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dtype.hasobject or offset - start + held != member.file_size:
        raise ValueError(f"{member.filename} has {member.file_size} bytes and describes an array of {held}")
    return np.memmap(pathlib.Path(path), dtype, "r", offset, shape, "F" if fortran else "C")
