"""Files that PyTorch and detectron2 read, written without them; `pickle_reader` reads what is written here.

    pickle_writer.save("resnet50.pth", {"conv1.weight": array})            # torch.load(path, weights_only=True)
    pickle_writer.save_pickle("r50.pkl", {"model": {"stem.conv1.weight": array}})

A pickle is a program. Python's own pickler writes a call of a function only if it can import it, so the few calls that
are needed here are spelled out. Equal trees give equal files, byte for byte.
"""

import pathlib
import pickle
import zipfile

import numpy as np

from barlow_jax.weights import pickle_objects

_STORAGES = {np.dtype(dtype): name.split(".")[1] for name, dtype in pickle_objects.DTYPES.items()}


def save(path, tree):
    """Writes a tree of dicts, lists, tuples, numbers, strings and numpy arrays as torch.save would.

    torch.load(path, weights_only=True) reads it; arrays become tensors.
    """
    arrays = []

    def tensor(array):
        storage = (_global("torch", _STORAGES[array.dtype]), str(len(arrays)), "cpu", array.size)
        arrays.append(array)
        strides = tuple(stride // array.itemsize for stride in array.strides)
        reference = _encoded(("storage", *storage), tensor) + pickle.BINPERSID
        rest = (0, array.shape, strides, False)
        hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
        arguments = pickle.MARK + reference + b"".join(_encoded(r, tensor) for r in rest) + hooks + pickle.TUPLE
        return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE

    program = pickle.PROTO + b"\x02" + _encoded(tree, tensor) + pickle.STOP
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def member(name):
            # A ZipInfo of its own, dated 1980: equal trees give equal files.
            return archive.open(zipfile.ZipInfo(f"archive/{name}"), "w", force_zip64=True)

        for name, content in (("data.pkl", program), ("byteorder", b"little"), ("version", b"3\n")):
            with member(name) as file:
                file.write(content)
        for key, array in enumerate(arrays):
            with member(f"data/{key}") as file:
                file.write(array.tobytes())


def save_pickle(path, tree):
    """Writes such a tree as a plain pickle of numpy arrays, which any numpy reads, 1 or 2."""

    def array_state(array):
        # By hand, because numpy 2 would name modules that numpy 1 does not have; the old names work in both, and
        # without a warning.
        empty = _call("numpy.core.multiarray", "_reconstruct", (_global("numpy", "ndarray"), (0,), b"b"))
        dtype = _call("numpy", "dtype", (array.dtype.str[1:], False, True))
        dtype += _encoded((3, "<", None, None, None, -1, -1, 0)) + pickle.BUILD
        state = pickle.MARK + b"".join(map(_encoded, (1, array.shape)))
        return empty + state + dtype + _encoded(False) + _encoded(array.tobytes()) + pickle.TUPLE + pickle.BUILD

    pathlib.Path(path).write_bytes(pickle.PROTO + b"\x03" + _encoded(tree, array_state) + pickle.STOP)


class _Opcodes(bytes):
    """Of a pickle, complete in themselves; anything else that is bytes is data."""


def _global(module, name):
    return _Opcodes(pickle.GLOBAL + f"{module}\n{name}\n".encode())


def _call(module, name, arguments):
    return _Opcodes(_global(module, name) + _encoded(arguments) + pickle.REDUCE)


def _encoded(value, array=None):
    """The opcodes that make `value`; those for an array are what `array` returns."""
    if isinstance(value, _Opcodes):
        return value
    if isinstance(value, dict):
        items = b"".join(_encoded(key, array) + _encoded(item, array) for key, item in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list | tuple):
        items = b"".join(_encoded(item, array) for item in value)
        if isinstance(value, tuple):
            return pickle.MARK + items + pickle.TUPLE
        return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
    if isinstance(value, np.ndarray):
        return array(np.ascontiguousarray(value).reshape(value.shape))  # which makes [1] of a shape []
    # Strings, numbers, None, bytes: the usual opcodes without their frame, the protocol and STOP.
    return pickle.dumps(value, 3 if isinstance(value, bytes) else 2)[2:-1]
