"""What the readers of files of weights share: arrays that are read when asked for, and damage in a sentence."""

import contextlib
import math
import pickle
import struct
import zipfile
import zlib

from barlow_jax.errors import UserError

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
    OSError,
)


class Unfit(Exception):
    """A file that is whole, as far as that was read, but larger or of another make than plain files of weights are."""


class Array:
    """A tensor of a file: its shape, its type, and its values when they are asked for.

    Attributes:
      shape: tuple of ints.
      dtype: numpy's.
    """

    __slots__ = ("dtype", "shape")

    @property
    def nbytes(self):
        """Of the values, as they are in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self):
        """The values as a numpy array, read-only."""
        raise NotImplementedError


@contextlib.contextmanager
def reading(path):
    """Says in a sentence where the bytes of a file are not what they should be."""
    try:
        yield
    except UserError:
        raise
    except Unfit as error:
        raise UserError(
            f"{path} is no plain file of weights ({error}); save its state_dict alone, by torch.save or as safetensors."
        ) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is damaged or cut off ({reason}); copy it again from where it came.") from error


def checked_shape(shape):
    """A shape as a tuple; raises ValueError unless it is a list or tuple of a few sizes."""
    if not isinstance(shape, list | tuple) or len(shape) > 16:
        raise ValueError(f"a shape that is a {type(shape).__name__} of another kind")
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**62:
            raise ValueError("a shape that holds something else than sizes")
    return tuple(shape)
