"""Files of safetensors: a length, a header of JSON, and the bytes of every array.

    with safetensors_reader.opened("x.safetensors") as (arrays, about):     # {name: Array}, {string: string}
        weight = arrays["conv1.weight"].numpy()

The format promises that the arrays fill the file from end to end and lie beside each other; a header that says
otherwise is refused before anything is read.
"""

import contextlib
import json
import os
import struct

import ml_dtypes
import numpy as np

from barlow_jax.weights.file_arrays import Array, Unfit, checked_shape, reading

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
HEADER_BYTES = 2**20  # that of a ResNet-152 has 100 KB


@contextlib.contextmanager
def opened(path):
    """Arrays, and what the file says about itself.

    Yields:
      {name: Array}, which can be read while the file is open; {string: string}.
    Raises:
      UserError: it is damaged, cut off, or holds arrays of types that no weights have.
    """
    with contextlib.ExitStack() as stack:
        with reading(path):
            stream = stack.enter_context(path.open("rb"))
            size = os.fstat(stream.fileno()).st_size
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise EOFError(f"a header of {length} bytes in a file of {size}")
            if length > HEADER_BYTES:
                raise Unfit(f"its header is of {length} bytes, and {HEADER_BYTES} is the most")
            header = json.loads(stream.read(length), object_pairs_hook=_without_twins)
            about = header.pop("__metadata__", {})
            if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
                raise ValueError("metadata that are no strings")
            arrays = {name: _Array(path, stream, 8 + length, name, entry) for name, entry in header.items()}
            place = 8 + length
            for array in sorted(arrays.values(), key=lambda array: (array.place, array.nbytes)):
                if array.place != place:
                    raise ValueError(f"{array.name[:100]} begins at byte {array.place} and not at {place}")
                place += array.nbytes
            if place != size:
                raise EOFError(f"arrays of {place} bytes in a file of {size}")
        yield arrays, about


def _without_twins(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two entries of one name")
    return found


class _Array(Array):
    """An entry of the header, all of it checked."""

    __slots__ = ("_path", "_stream", "name", "place")

    def __init__(self, path, stream, begin, name, entry):
        kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if kind not in DTYPES:
            raise Unfit(f"{name[:100]} is of type {str(kind)[:20]}")
        self.shape, self.dtype, self.name = checked_shape(shape), np.dtype(DTYPES[kind]), name
        if type(first) is not int or type(last) is not int or last - first != self.nbytes or first < 0:
            raise ValueError(f"{name[:100]} has other bytes than its shape")
        self._path, self._stream, self.place = path, stream, begin + first

    def numpy(self):
        with reading(self._path):
            values = np.empty(self.shape, self.dtype)
            self._stream.seek(self.place)
            if self._stream.readinto(values.reshape(-1).view(np.uint8)) != values.nbytes:
                raise EOFError("it ends early")
            return values
