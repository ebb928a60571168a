"""What the names in pickles of torch and numpy stand for here: tensors, arrays, dicts, numbers.

Functions take `pickle_machine.Limits` first, and pay for what they copy.
"""

import math
import pickle
import re
import weakref

import ml_dtypes
import numpy as np

from barlow_jax.weights import pickle_machine
from barlow_jax.weights.file_arrays import Array, checked_shape, reading
from barlow_jax.weights.pickle_machine import Foreign

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


class Storage:
    """The bytes that one or more tensors share, read once as long as one of them is in use.

    Args:
      path: of the file, for messages.
      dtype, count: of the numbers in it.
      read_into: fills an array of bytes with them.
    """

    def __init__(self, path, dtype, count, read_into):
        if type(count) is not int or count < 0:
            raise pickle.UnpicklingError("a tensor of a size that is none")
        self.path, self.dtype, self.count = path, np.dtype(dtype), count
        self.size = count * self.dtype.itemsize
        self._read_into, self._data = read_into, lambda: None

    def read(self):
        data = self._data()
        if data is None:
            data = np.empty(self.size, np.uint8)
            self._read_into(data)
            self._data = weakref.ref(data)
        return data.view(self.dtype)


def storage_of(reference, storages, make):
    """What a persistent id of torch stands for: a Storage, one for each key.

    Args:
      storages: {key: Storage} so far.
      make: (key, dtype, count) -> Storage.
    """
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise pickle.UnpicklingError("a reference to something else than a tensor's bytes")
    _, kind, key, _, count, *view = reference
    if isinstance(kind, Foreign):
        return kind
    if kind not in DTYPES or view not in ([], [None]) or not isinstance(key, str | int):
        raise pickle.UnpicklingError("bytes of another kind")
    key = str(key)
    if key not in storages:
        storages[key] = make(key, DTYPES[kind], count)
    if (storages[key].dtype, storages[key].count) != (DTYPES[kind], count):
        raise pickle.UnpicklingError(f"the bytes {key} are of two kinds")
    return storages[key]


class _Tensor(Array):
    """What torch._utils._rebuild_tensor_v2 would make: numbers of a Storage."""

    __slots__ = ("_offset", "_storage", "_strides")

    def __init__(self, storage, offset, shape, strides):
        self.shape, self.dtype = checked_shape(shape), storage.dtype
        self._storage, self._offset, self._strides = storage, offset, checked_shape(strides)

    def numpy(self):
        with reading(self._storage.path):
            count, size = math.prod(self.shape), self._storage.count
            reach = sum((n - 1) * stride for n, stride in zip(self.shape, self._strides, strict=True))
            # `count` keeps a few bytes from being repeated into more than memory holds.
            if type(self._offset) is not int or self._offset < 0 or count > size:
                raise ValueError(f"a tensor of shape {self.shape} in {size} numbers")
            if count and self._offset + reach >= size:
                raise ValueError(f"a tensor that ends at {self._offset + reach} of {size} numbers")
            flat = self._storage.read()
            strides = [stride * flat.itemsize for stride in self._strides]
            return np.lib.stride_tricks.as_strided(flat[self._offset :], self.shape, strides, writeable=False)


class _Dtype:
    """numpy.dtype of plain numbers."""

    __slots__ = ("dtype",)

    def __init__(self, code):
        self.dtype = np.dtype(code)

    def set_state(self, limits, state):
        del limits
        self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray(Array):
    """numpy.ndarray: made empty by _reconstruct, filled by its state."""

    __slots__ = ("_values",)

    def __init__(self):
        self.shape, self._values, self.dtype = (0,), None, np.dtype(np.float32)

    def set_state(self, limits, state):
        _, shape, dtype, fortran, data = state
        if isinstance(dtype, Foreign) or isinstance(data, list):
            return  # an array of objects; it cannot be read, and need not be
        self.fill(limits, data, dtype.dtype, checked_shape(shape), "F" if fortran else "C")

    def fill(self, limits, data, dtype, shape, order):
        if isinstance(data, str):  # pickles of Python 2
            limits.spend_bytes(len(data))
            data = data.encode("latin1")
        self.shape, self.dtype = shape, dtype
        self._values = np.frombuffer(data, dtype).reshape(shape, order=order)
        return self

    def numpy(self):
        if self._values is None:
            raise ValueError("an array of something else than numbers")
        return self._values


def _tensor(limits, storage, offset, shape, strides, *of_gradients):
    del limits, of_gradients
    if isinstance(storage, Foreign):  # of a type that is not known here
        return Foreign("torch._utils._rebuild_tensor_v2")
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without its bytes")
    return _Tensor(storage, offset, shape, strides)


def _dict(limits, entries=()):
    """collections.OrderedDict; Python 2 gives it its entries as a list of pairs."""
    if not isinstance(entries, list | tuple):
        raise pickle.UnpicklingError("a dict of something else than pairs")
    limits.spend(len(entries))
    made = {}
    for pair in entries:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise pickle.UnpicklingError("a dict of something else than pairs")
        pickle_machine.fill(made, [pair[0]], [pair[1]])
    return made


class _Namespace(dict):
    """argparse.Namespace, as a dict."""

    def set_state(self, limits, state):
        limits.spend(len(state))
        pickle_machine.fill(self, [*state], [*state.values()])


def _size(limits, items=()):
    """torch.Size."""
    limits.spend(len(items))
    return checked_shape(items)


def _list(limits, items=()):
    """set and frozenset."""
    limits.spend(len(items))
    return [*items]


def _dtype(limits, code, *more):
    del limits, more
    return _Dtype(code) if isinstance(code, str) and re.fullmatch(r"[fiub][1248]", code) else Foreign("numpy.dtype")


def _scalar(limits, dtype, data=b""):
    """numpy.core.multiarray.scalar: a plain number."""
    del limits
    if isinstance(dtype, Foreign) or not isinstance(data, bytes | str):
        return Foreign("numpy.core.multiarray.scalar", called=True)
    data = data.encode("latin1") if isinstance(data, str) else data
    if len(data) != dtype.dtype.itemsize:
        raise ValueError("a number of another size than its type")
    return np.frombuffer(data, dtype.dtype)[0].item()


def _encoded(limits, text, encoding="latin1"):
    """_codecs.encode, by which protocol 2 spells bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("bytes that are spelled another way")
    limits.spend_bytes(len(text))
    return text.encode("latin1")


def _from_buffer(limits, data, dtype, shape, order):
    """numpy.core.numeric._frombuffer, by which protocol 5 spells arrays."""
    if isinstance(dtype, Foreign) or order not in ("C", "F"):
        return Foreign("numpy.core.numeric._frombuffer", called=True)
    return _PickledArray().fill(limits, data, dtype.dtype, checked_shape(shape), order)


KNOWN = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda limits, *factory: {},
    "argparse.Namespace": lambda limits: _Namespace(),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda limits, data, *of_gradients: data,
    "torch.Size": _size,
    **{f"{module}.{name}": _list for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    **{f"{module}.bytes": lambda limits: b"" for module in ("builtins", "__builtin__")},  # so protocol 2 spells b""
    "numpy.dtype": _dtype,
    "_codecs.encode": _encoded,
    **{
        f"numpy.{core}.{name}": make
        for core in ("core", "_core")
        for name, make in (
            ("multiarray._reconstruct", lambda limits, *of_no_use: _PickledArray()),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _from_buffer),
        )
    },
    **{name: name for name in DTYPES},  # they stand beside the bytes that they describe
}
