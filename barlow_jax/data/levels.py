"""Numbers of any type to levels of 8 or 16 bits: which of them are black and white, and what each channel is.

What pixels.py (by Pillow) and sensors.py (all else) find in a file is a `Values`; `of_values` makes pixels of it.
"""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

BLOCK = 2**20  # values that are worked on at a time, in a precision wider than their own
INSTALL = "pip install 'barlow-jax[sensors]'"


# What EXIF's orientations do: rows and columns exchanged, then left and right, then top and bottom.
TURNS = ((0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1))
_UPPER = {(0, 2**bits - 1): bits - 8 for bits in range(9, 17)}  # ranges of whole numbers: by how much they are shifted


class Values(NamedTuple):
    """What an image file holds, as it is stored."""

    array: Any  # numbers [h, w, bands]
    low_high: tuple[float, float] | None  # the smallest and largest that can be there; None: not known
    inverted: bool = False  # whether the lowest is white


def dtype_of(bits):
    """The type of the canvas: uint8 or uint16."""
    return np.uint16 if bits == 16 else np.uint8


def of_type(dtype):
    """(low, high) that a type of numbers stands for as an image, or None where that is not known.

    Only unsigned whole numbers of 8 and 16 bits, and truth values, are known; sensors do not use more than a small part
    of what 32 bits, signed numbers or fractions can hold, so of these all would come out as one grey.
    """
    dtype = np.dtype(dtype)
    known = {"u1": (0, 255), "u2": (0, 65535), "b1": (0, 1)}
    return known.get(dtype.str[1:])


def in_a_range(dtype):
    """Whether config.data.value_range applies to a type: bytes and truth values stand for what they are."""
    return np.dtype(dtype).str[1:] not in ("u1", "b1")


def unknown(array):
    """The ValueError for values whose range is not known."""
    kind = {"f": "fractions", "i": f"whole numbers of {array.dtype.itemsize * 8} bits with a sign"}.get(
        array.dtype.kind, f"whole numbers of {array.dtype.itemsize * 8} bits"
    )
    return ValueError(
        f"its values are {kind}, and which of them are black and white is not known: set "
        "config.data.value_range=(LOW, HIGH)"
    )


def of_values(values, reading):
    """Values -> uint8 or uint16 [h, w, reading.channels], by reading.value_range or the range that the values have.

    reading.value_range applies to all but bytes and truth values, see `in_a_range`. ValueError, in words for a person,
    where the range is not known or the bands are not the channels.
    """
    array, low_high = values.array, values.low_high
    check_bands(array.shape[2], reading.channels)
    if reading.value_range and in_a_range(array.dtype):
        low_high = reading.value_range
    if low_high is None:
        raise unknown(array)
    if len(low_high) > 2:
        array = matched(array, reading.channels)  # a range for each; else grey is repeated once it takes fewer bytes
    if array.dtype == np.uint8 and low_high == (0, 255):
        found = array.astype(np.uint16) * np.uint16(257) if reading.bits == 16 else array
    elif array.dtype.kind in "ui" and reading.bits == 8 and not reading.value_range and low_high in _UPPER:
        found = (array >> _UPPER[low_high]).astype(np.uint8)  # as of every 16-bit image: the upper 8 bits
    else:
        found = scaled(array, *low_high, bits=reading.bits)
    return matched(np.iinfo(found.dtype).max - found if values.inverted else found, reading.channels)


def matched(array, channels):
    """[h, w, bands] -> [h, w, channels]: a grey image is repeated for three; else there are as many, or ValueError."""
    check_bands(array.shape[2], channels)
    return array if array.shape[2] == channels else np.repeat(array, 3, axis=2)


def check_size(height, width, reading):
    """Raises ValueError for an image that is too large."""
    if height * width > reading.max_pixels:
        raise ValueError(
            f"it has {height} x {width} pixels, more than config.data.max_pixels = {reading.max_pixels} allows"
        )


def check_bands(bands, channels):
    """Raises ValueError unless images of so many bands can be read as so many channels."""
    if bands != channels and (bands, channels) != (1, 3):
        raise ValueError(
            f"it has {bands} band{'s' * (bands > 1)}, and it is read as {channels} channel{'s' * (channels > 1)}: set "
            f"config.data.channels={bands}"
        )


def scaled(values, *low_high, bits=8):
    """Numbers of any type -> uint8 or uint16 of the same shape: low and below become 0, high and above the largest.

    low_high: low and high, or one such pair for each channel, the last axis, one after the other. NaN becomes 0.
    """
    low, high = low_high if len(low_high) == 2 else (np.asarray(low_high[0::2]), np.asarray(low_high[1::2]))
    top = 2**bits - 1
    found = np.empty(values.shape, dtype_of(bits))
    rows = max(1, BLOCK // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        part = (values[start : start + rows].astype(np.float64) - low) * top / (high - low)
        part = np.clip(np.nan_to_num(part, nan=0.0, posinf=float(top), neginf=0.0), 0, top)
        found[start : start + rows] = np.rint(part)
    return found


def as_channels(pixels, channels):
    """uint8 or uint16 [h, w, 1 to 4], grey or RGB with or without alpha -> [h, w, channels], 1 or 3, without it."""
    colours = 1 if pixels.shape[2] <= 2 else 3
    pixels = pixels[..., :colours]
    if colours == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    weights = np.array([19595, 38470, 7471]) / 65536  # of Pillow's convert("L")
    return np.rint(pixels @ weights).astype(pixels.dtype)[..., None]


def turned(pixels, orientation):
    """[h, w, C] as an image of an EXIF orientation is shown, as PIL.ImageOps.exif_transpose has it."""
    swapped, mirrored, flipped = TURNS[orientation - 1]
    pixels = pixels.swapaxes(0, 1) if swapped else pixels
    return pixels[:: -1 if flipped else 1, :: -1 if mirrored else 1]
