"""PyTorch's files, read without PyTorch and never executed.

A file of `torch.save` is a pickle and the bytes of every tensor, in a zip archive since torch 1.6 and one after the
other before. `pickle_machine` makes plain data of the pickle and calls nothing; a dozen names, below, it is given.

    with pickle_reader.opened("checkpoint.pth") as tree:      # dicts, lists, tuples, numbers, strings, Arrays
        weight = tree["model"]["module.backbone.conv1.weight"].numpy()

Tensors are read when they are asked for, while the file is open. Nothing takes memory before the file was seen to hold
as much: the pickle of an archive at most `PICKLE_BYTES`, its directory `DIRECTORY_BYTES`, its tensors their own bytes.
"""

import contextlib
import io
import os
import pathlib
import struct
import zipfile

from barlow_jax.errors import UserError
from barlow_jax.weights import pickle_machine
from barlow_jax.weights.file_arrays import Unfit, reading
from barlow_jax.weights.pickle_objects import KNOWN, Storage, storage_of

# What a file before torch 1.6 begins with, and the version of that format (torch/serialization.py).
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

PICKLE_BYTES = 2**24  # data.pkl of a full checkpoint has 70 KB
DIRECTORY_BYTES = 2**21  # of an archive: some 20,000 members; a full checkpoint has 500
CHUNK = 2**20


@contextlib.contextmanager
def opened(path):
    """What a file of torch.save, or a pickle of numpy arrays, holds.

    Yields:
      dicts (OrderedDict and argparse.Namespace too), lists (sets too), tuples, numbers, strings, and an `Array` for
      each tensor, which can be read while the file is open. Anything else is a `pickle_machine.Foreign`: inert.
    Raises:
      UserError: there is no such file, it is damaged or of another kind, or larger than files of weights are.
    """
    path = pathlib.Path(path).expanduser()
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of weights.") from None
    with stream, contextlib.ExitStack() as stack:
        with reading(path):
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(8)
            stream.seek(0)
            if head.startswith(b"PK\x03\x04"):
                archive = stack.enter_context(_archive(stream))
                tree = _unzipped(archive, path, size)
            elif head.startswith(b"\x80"):
                tree = _unpickled(stream, path, size)
            else:
                raise UserError(f"{path} is no file of weights; give one of torch.save or safetensors.")
        yield tree


class _Measured:
    """A stream for zipfile to find the directory of an archive with, which it reads at once, however long.

    Args:
      stream: of the archive.
    """

    def __init__(self, stream):
        self.stream, self.limit = stream, DIRECTORY_BYTES
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, count=-1):
        if self.limit is not None and count > self.limit:
            raise Unfit(f"its directory is of {count} bytes, and {self.limit} is the most")
        return self.stream.read(count)


def _archive(stream):
    """The archive in a stream, its directory no larger than DIRECTORY_BYTES."""
    measured = _Measured(stream)
    archive = zipfile.ZipFile(measured)
    measured.limit = None
    return archive


def _unzipped(archive, path, size):
    """The tree of an archive of torch.save, of so many bytes."""
    members = {member.filename: member for member in archive.infolist()}
    if len(members) < len(archive.infolist()) or sum(member.file_size for member in members.values()) > size:
        # Nothing is compressed, so members that are larger than the file lie upon each other.
        packed = next((m for m in members.values() if m.compress_type != zipfile.ZIP_STORED), None)
        raise Unfit(f"{packed.filename} is compressed" if packed else "its members lie upon each other")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in members):
        what = "a program of TorchScript" if pickles else "an archive of other things"
        raise UserError(f"{path} is {what}, not of torch.save; give a file with a state_dict.")
    root = pickles[0].removesuffix("data.pkl")

    def stored(name, limit=size):
        member = members[name]
        if member.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing, and what is packed may be endless
            raise Unfit(f"{member.filename} is compressed")
        if member.file_size > limit or member.compress_size != member.file_size:
            raise Unfit(f"{member.filename} is of {member.file_size} bytes, and {limit} is the most")
        return member

    if f"{root}byteorder" in members and archive.read(stored(f"{root}byteorder", 16)) != b"little":
        raise UserError(f"{path} was written on a big-endian machine; save it again on another one.")
    storages = {}

    def make(key, dtype, count):
        member = stored(f"{root}data/{key}")
        made = Storage(path, dtype, count, lambda data: _fill(member, data))
        if made.size != member.file_size:
            raise ValueError(f"{member.file_size} bytes in place of {made.size}")
        return made

    def _fill(member, data):
        with archive.open(member) as file:
            for first in range(0, len(data), CHUNK):
                part = memoryview(data)[first : first + CHUNK]
                if file.readinto(part) != len(part):
                    raise EOFError("it ends early")
            file.read(1)  # looks at the checksum

    program = archive.read(stored(pickles[0], PICKLE_BYTES))
    source = pickle_machine.Bytes(io.BytesIO(program), len(program))
    return pickle_machine.load(
        source, KNOWN, lambda given: storage_of(given, storages, make), pickle_machine.Limits(len(program))
    )


def _unpickled(stream, path, size):
    """The tree of a file of torch.save before 1.6, or of a pickle of numpy arrays; of so many bytes."""
    storages, places = {}, {}
    source, limits = pickle_machine.Bytes(stream, size), pickle_machine.Limits(size)

    def make(key, dtype, count):
        def fill(data):
            stream.seek(places[key])
            if stream.readinto(data) != len(data):
                raise EOFError("it ends early")

        return Storage(path, dtype, count, fill)

    def load():
        return pickle_machine.load(source, KNOWN, lambda given: storage_of(given, storages, make), limits)

    tree = load()
    if type(tree) is not int or tree != LEGACY_MAGIC:
        return tree
    if load() != LEGACY_VERSION or not load()["little_endian"]:
        raise UserError(f"{path} is of a version of torch.save that is not known; save it again with a newer torch.")
    tree, keys = load(), load()
    place = stream.tell()
    for key in keys:  # each storage: how many numbers, and their bytes
        if not isinstance(key, str):
            raise ValueError("a key that is no string")
        stream.seek(place)
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storages[key].count or place + 8 + storages[key].size > size:
            raise EOFError(f"{count} numbers in place of {storages[key].count}")
        places[key] = place + 8
        place += 8 + storages[key].size
    return tree
