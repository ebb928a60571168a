"""PyTorch's files, read without PyTorch and never executed.

A file of `torch.save` is a pickle and the bytes of every tensor, in a zip archive since torch 1.6 and one after the
other before. A pickle is a program: the usual unpickler calls whatever function it names. Ours knows a dozen names,
each of which makes plain data. Any other name becomes a class that refuses to be called: a file which merely mentions a
function of its authors can be read, and one which wants it run cannot.

    with torch_files.opened("checkpoint.pth") as tree:      # dicts, lists, tuples, numbers, strings, Arrays
        weight = tree["model"]["module.backbone.conv1.weight"].numpy()

Tensors are read when they are asked for, while the file is open.
"""

import contextlib
import io
import math
import os
import pathlib
import pickle
import re
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np

from barlow_jax.errors import UserError

DTYPES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}

# What a file before torch 1.6 begins with, and the version of that format (torch/serialization.py).
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

# All that Python raises where a file's bytes are not what they should be.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    ImportError,
)


@contextlib.contextmanager
def opened(path):
    """What a file of torch.save, or a pickle of numpy arrays, holds.

    Yields:
      dicts (OrderedDict and argparse.Namespace too), lists, tuples, numbers, strings, and an `Array` for each tensor,
      which can be read while the file is open. Functions and classes are classes that cannot be called.
    Raises:
      UserError: there is no such file, it is damaged or of another kind, or it wants something called.
    """
    path = pathlib.Path(path).expanduser()
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of weights.") from None
    with stream, contextlib.ExitStack() as stack:
        with _reading(path):
            head = stream.read(8)
            stream.seek(0)
            if head.startswith(b"PK\x03\x04"):
                archive = stack.enter_context(zipfile.ZipFile(stream))
                tree = _unzipped(archive, path)
            elif head.startswith(b"\x80"):
                tree = _unpickled(stream, path)
            else:
                raise UserError(f"{path} is no file of weights; give one of torch.save or safetensors.")
        yield tree


@contextlib.contextmanager
def _reading(path):
    """Says in a sentence where the bytes are not what they should be."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path} is damaged or cut off ({reason}); copy it again from where it came.") from error


class _Sealed(type):
    """Of classes that a pickle can name: it must not be able to change them."""

    def __setattr__(cls, name, value):
        raise AttributeError(f"{cls.__name__} cannot be changed")


class Array(metaclass=_Sealed):
    """A tensor of a file: its shape, and its values when they are asked for."""

    shape: tuple[int, ...]

    def numpy(self):
        """The values as a numpy array, read-only."""
        raise NotImplementedError


class _Tensor(Array):
    """Made where a pickle calls torch._utils._rebuild_tensor_v2; further arguments are about gradients."""

    def __init__(self, storage, offset, shape, strides, *more):
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without its bytes")
        self.shape, self._storage, self._offset, self._strides = tuple(shape), storage, offset, tuple(strides)

    def numpy(self):
        with _reading(self._storage.path):
            flat = np.frombuffer(self._storage.read(), self._storage.dtype)
            count = math.prod(self.shape)
            reach = sum((n - 1) * stride for n, stride in zip(self.shape, self._strides, strict=True))
            # `count` keeps a few bytes from being repeated into more than memory holds.
            if min(self._offset, *self.shape, *self._strides, 0) < 0 or count > flat.size:
                raise ValueError(f"a tensor of shape {self.shape} in {flat.size} numbers")
            if count and self._offset + reach >= flat.size:
                raise ValueError(f"a tensor that ends at {self._offset + reach} of {flat.size} numbers")
            strides = [stride * flat.itemsize for stride in self._strides]
            return np.lib.stride_tricks.as_strided(flat[self._offset :], self.shape, strides, writeable=False)


class _Parameter(metaclass=_Sealed):
    """torch._utils._rebuild_parameter: the tensor itself."""

    def __new__(cls, data, *more):
        return data


class _Dict(dict, metaclass=_Sealed):
    """collections.OrderedDict; the attribute _metadata that torch gives a state_dict is left out."""

    def __setstate__(self, state):
        pass


class _Namespace(dict, metaclass=_Sealed):
    """argparse.Namespace, as a dict."""

    def __setstate__(self, state):
        self.update(state)


class _Dtype(metaclass=_Sealed):
    """numpy.dtype of plain numbers."""

    def __init__(self, code, *more):
        if not re.fullmatch(r"[fiub][1248]", code):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray(Array):
    """numpy.ndarray: made empty by _reconstruct, filled by its state."""

    def __init__(self, *of_no_use):
        self.shape, self._values = (0,), np.zeros(0)

    def __setstate__(self, state):
        _, self.shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # pickles of Python 2
        self._values = np.frombuffer(data, dtype.dtype).reshape(self.shape, order="F" if fortran else "C")

    def numpy(self):
        return self._values


class _Scalar(metaclass=_Sealed):
    """numpy.core.multiarray.scalar: a plain number."""

    def __new__(cls, dtype, data):
        return np.frombuffer(data, dtype.dtype)[0].item()


class _Encoded(metaclass=_Sealed):
    """_codecs.encode, by which protocol 2 spells bytes."""

    def __new__(cls, text, encoding="latin1"):
        return text.encode("latin1")


class _Foreign(metaclass=_Sealed):
    """Stands for a function or class that is not known here: it may be mentioned and never called."""

    name, path = "", ""

    def __new__(cls, *args, **kwargs):
        raise UserError(
            f"{cls.path} wants {cls.name} called, and nothing in a file is; save its state_dict alone, by torch.save "
            "or as safetensors."
        )


_KNOWN = {
    "collections.OrderedDict": _Dict,
    "argparse.Namespace": _Namespace,
    "torch._utils._rebuild_tensor": _Tensor,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch.Size": tuple,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _Encoded,
    **{f"numpy.{core}.multiarray._reconstruct": _PickledArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _Scalar for core in ("core", "_core")},
    **{name: name for name in DTYPES},  # they stand beside the bytes that they describe
}


class _Storage:
    """The bytes that one or more tensors share.

    Args:
      path: of the file, for messages.
      dtype, count: of the numbers in it.
      read_bytes: () -> the bytes.
    """

    def __init__(self, path, dtype, count, read_bytes):
        self.path, self.dtype, self.size = path, np.dtype(dtype), count * np.dtype(dtype).itemsize
        self.read_bytes = read_bytes

    def read(self):
        data = self.read_bytes()
        if len(data) != self.size:
            raise ValueError(f"{len(data)} bytes in place of {self.size}")
        return data


class _Unpickler(pickle.Unpickler):
    """Makes plain data, and nothing else.

    Args:
      storage: (key, dtype, count) -> _Storage.
    """

    def __init__(self, stream, path, storage):
        super().__init__(stream, encoding="latin1")
        self._path, self._storage = path, storage

    def find_class(self, module, name):
        full = f"{module}.{name}"
        return _KNOWN.get(full) or _Sealed("_Foreign", (_Foreign,), {"name": full, "path": self._path})

    def persistent_load(self, reference):
        kind, storage, key, _, count, *view = reference
        if kind != "storage" or storage not in DTYPES or view not in ([], [None]):
            raise pickle.UnpicklingError(f"{kind} of kind {storage}")
        return self._storage(str(key), DTYPES[storage], count)


def _unzipped(archive, path):
    """The tree of an archive of torch.save."""
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in names):
        what = "a program of TorchScript" if pickles else "an archive of other things"
        raise UserError(f"{path} is {what}, not of torch.save; give a file with a state_dict.")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine; save it again on another one.")

    def storage(key, dtype, count):
        member = archive.getinfo(f"{root}data/{key}")
        if member.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing, and what is packed may be endless
            raise zipfile.BadZipFile(f"{member.filename} is compressed")
        return _Storage(path, dtype, count, lambda: archive.read(member))

    return _Unpickler(io.BytesIO(archive.read(pickles[0])), path, storage).load()


def _unpickled(stream, path):
    """The tree of a file of torch.save before 1.6, or of a pickle of numpy arrays."""
    storages, places = {}, {}

    def read_bytes(key):
        stream.seek(places[key])
        return stream.read(storages[key].size)

    def storage(key, dtype, count):
        return storages.setdefault(key, _Storage(path, dtype, count, lambda: read_bytes(key)))

    def load():
        return _Unpickler(stream, path, storage).load()

    tree = load()
    if tree != LEGACY_MAGIC:
        return tree
    if load() != LEGACY_VERSION or not load()["little_endian"]:
        raise UserError(f"{path} is of a version of torch.save that is not known; save it again with a newer torch.")
    tree, keys = load(), load()
    for key in keys:  # each storage: how many numbers, and their bytes
        stream.seek(8, os.SEEK_CUR)
        places[key] = stream.tell()
        stream.seek(storages[key].size, os.SEEK_CUR)
    return tree
