"""One encoded image to pixels by Pillow and numpy: how large it may be, what its values mean, what is wrong with it.

decode.py reads ordinary JPEGs and PNGs by TensorFlow and asks here for all others.
"""

import io
import math
import re
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from barlow_jax.errors import UserError

# 8192 x 8192: every camera of 35 mm format (61 million) and nearly every phone lies below. At 25 bytes a pixel, the
# most that decoding takes (WebP by Pillow, see docs/data.md), it is 1.6 GB for each thread.
MAX_PIXELS = 2**26
# What Pillow opens at all, see PIL.Image.MAX_IMAGE_PIXELS; above half of it Pillow warns, and we have been asked.
PILLOWS_LIMIT = 2 * 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what cannot be read we name ourselves

# What a file may be, whatever its name. Pillow knows more, some of which start programs (EPS) or hold images larger
# than they say (ICO). AVIF and JPEG 2000 may be missing in a build of Pillow.
Image.init()
FORMATS = [
    name
    for name in ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
    if name in Image.OPEN
]
BLOCK = 2**20  # values that are worked on at a time, in a precision wider than their own

# What files that are no image begin with, and what to call it.
BEGINNINGS = (
    (rb"\0{8}", "zero bytes"),
    (rb"version https://git-lfs", "a pointer of Git LFS (fetch the file with git lfs pull)"),
    (rb"\s*<(!doctype html|html|head|body|script)", "HTML, a web page"),
    (rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!--)", "XML or SVG"),
    (rb"PK(\x03\x04|\x05\x06)", "a ZIP archive"),
    (rb"\x1f\x8b", "gzip"),
    (rb"....ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", "HEIC"),
    (rb"....ftyp(avif|avis)", "AVIF"),
    (rb"....ftyp", "a video (MP4)"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\xff\n|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"GIF8", "GIF"),
    (rb"BM", "BMP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"P[1-7]\s", "PPM"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\0\0[\x01\x02]\0", "an icon"),
    (rb".{128}DICM", "DICOM"),
    (rb"SIMPLE  =", "FITS"),
    (rb"\x93NUMPY", "an array of numpy"),
    (rb"\x89HDF", "HDF5"),
    (rb"[\t\n\r -~]{16}|[\t\n\r -~]*$", "text"),
)


READ_HERE = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PPM")


class Reading(NamedTuple):
    """How image files become pixels; the same for all of a source."""

    channels: int = 3  # 3 reads as RGB, 1 as grey
    # Of images of more than 8 bits: the (low, high) that become 0 and 255, linearly; () is the range of their type.
    value_range: tuple[float, ...] = ()
    max_pixels: int = MAX_PIXELS  # an image of more is unreadable

    def told(self):
        """What is not as it was before there was a choice, as a plain dict, for fingerprints."""
        found = {"channels": self.channels}
        if self.value_range:
            found["value_range"] = list(self.value_range)
        if self.max_pixels != MAX_PIXELS:
            found["max_pixels"] = self.max_pixels
        return found


def check(value_range, max_pixels):
    """Raises UserError unless images can be read by these two fields of config.data, see `Reading`."""
    numbers = [value for value in value_range if isinstance(value, (int, float)) and math.isfinite(value)]
    if value_range and not (len(numbers) == len(value_range) == 2 and numbers[0] < numbers[1]):
        raise UserError(
            f"config.data.value_range is {value_range}; it is (LOW, HIGH), black and white in images of more than 8 "
            "bits, or () for the range of their type."
        )
    if not 1 <= max_pixels <= PILLOWS_LIMIT:
        raise UserError(
            f"config.data.max_pixels is {max_pixels}; it must be from 1 to {PILLOWS_LIMIT}, the most that Pillow opens."
        )


def pillow_pixels(encoded, reading=Reading()):  # noqa: B008 - immutable
    """Any image Pillow reads -> uint8 [h, w, channels], as its convert("RGB") or ("L"), without EXIF rotation.

    One exception: of more than 8 bits, which Pillow would clip to 255 (it turns a radiograph into a white page), the
    range becomes 0 to 255; without reading.value_range these are the high bytes, as of every other 16-bit image here.
    ValueError, in words for a person, where the image is too large or its range is not known; and whatever Pillow's
    parsers run into.
    """
    with opened(encoded) as image:
        width, height = image.size
        if width * height > reading.max_pixels:
            raise ValueError(
                f"it has {height} x {width} pixels, more than config.data.max_pixels = {reading.max_pixels} allows"
            )
        values = _deep_values(image, reading.value_range)
        mode = "L" if reading.channels == 1 else "RGB"
        if values is not None:
            image = Image.fromarray(values)
        if image.mode != mode:
            image = image.convert(mode)
        pixels = np.asarray(image)
    return pixels.reshape(height, width, reading.channels)


def opened(encoded):
    """A lazy PIL image: its header has been read. Raises ValueError where the file is no image that is read here."""
    try:
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # a warning where warnings are errors
        raise ValueError(f"it has more than the {PILLOWS_LIMIT} pixels that Pillow opens") from None
    except Image.UnidentifiedImageError:
        found = begins_as(encoded)
        damaged = ", and is damaged" if found in READ_HERE else ""
        raise ValueError(f"cannot identify image file: it begins as {found}{damaged}") from None


def begins_as(encoded):
    """What a file that is no image seems to be, for a person."""
    for pattern, name in BEGINNINGS:
        if re.match(pattern, encoded, re.DOTALL | re.IGNORECASE):
            return name
    return f"the bytes {encoded[:8].hex(' ')}"


def stored_as(image):
    """The raw mode in which Pillow finds the values of an opened image, such as "L" or "I;16B"."""
    arguments = image.tile[0][3] if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def is_grey_of_16_bits(image):
    """Whether an opened image is one."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _deep_values(image, value_range):
    """A grey image of more than 8 bits as uint8 [h, w]; None of others."""
    stored = stored_as(image)
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        if value_range and (";16" in stored or (image.format == "PPM" and _maxval(image) > 255)):
            raise ValueError(
                "it is a colour image of 16 bits, of which only the upper 8 can be read from this format, so that "
                "config.data.value_range cannot be applied: save it as PNG"
            )
        return None
    of_ppm = image.mode == "I" and image.format == "PPM"  # which says its largest value; Pillow makes that 65535
    if value_range:
        maxval, values = _maxval(image) if of_ppm else 65535, np.asarray(image)
        if maxval != 65535:
            values = (values.astype(np.uint32) * np.uint32(maxval) + np.uint32(32767)) // np.uint32(65535)
        return scaled(values, *value_range)
    if of_ppm or is_grey_of_16_bits(image):
        return (np.asarray(image) >> (4 if stored == "I;12" else 8)).astype(np.uint8)
    kind = "fractions" if image.mode == "F" else "whole numbers of 16 bits with a sign" if "16" in stored else ""
    raise ValueError(
        f"its values are {kind or 'whole numbers of 32 bits'}, and which of them are black and white is not known: set "
        "config.data.value_range=(LOW, HIGH)"
    )


def _maxval(image):
    """The largest value of an opened PPM or PGM, as its header says."""
    arguments = image.tile[0][3]
    return arguments[1] if isinstance(arguments, tuple) else 65535 if arguments.startswith("I;16") else 255


def scaled(values, low, high):
    """Numbers of any type -> uint8 of the same shape: low and below become 0, high and above 255, NaN 0."""
    found = np.empty(values.shape, np.uint8)
    rows = max(1, BLOCK // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        part = (values[start : start + rows].astype(np.float64) - low) * 255 / (high - low)
        part = np.clip(np.nan_to_num(part, nan=0.0, posinf=255.0, neginf=0.0), 0, 255)
        found[start : start + rows] = np.rint(part)
    return found


def as_channels(pixels, channels):
    """uint8 [h, w, 1 to 4], grey or RGB with or without alpha -> [h, w, channels] without it."""
    colours = 1 if pixels.shape[2] <= 2 else 3
    pixels = pixels[..., :colours]
    if colours == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]


def largest_of_16_bits(encoded):
    """The largest high byte of an image of 16 bits that does not say how many of them are in use; None of others."""
    try:
        with opened(encoded) as image:
            stored, width_height = stored_as(image), image.size
            deep = is_grey_of_16_bits(image) or (";16" in stored and image.mode in ("RGB", "RGBA"))
            if not deep or stored == "I;12" or width_height[0] * width_height[1] > MAX_PIXELS:
                return None
        return int(pillow_pixels(encoded).max())
    except Exception:  # of Pillow's parsers: a file that cannot be read is told of when it is its turn
        return None


def why_unreadable(encoded, reading):
    """A few words on what is wrong with an image that could not be read."""
    if not encoded:
        return "the file is empty"
    try:
        pillow_pixels(encoded, reading)
    except Exception as error:  # Pillow's plugins raise whatever their parsers run into; all of it is the answer
        return " ".join(str(error).split())[:300] or type(error).__name__
    return "TensorFlow cannot decode it, though Pillow can: save it anew"


def reduced(pixels, factor):
    """Mean of factor x factor cells, the last ones over repeated edge pixels: uint8 [ceil(h / f), ceil(w / f), C].

    In whole numbers and some rows at a time, so that it takes little besides the result; halves become even.
    """
    height, width, channels = pixels.shape
    factor = int(factor)
    rows, columns, area = -(-height // factor), -(-width // factor), factor * factor
    found = np.empty((rows, columns, channels), np.uint8)
    kind = np.uint32 if area * 255 * 2 < 2**32 else np.uint64
    area = kind(area)
    starts = np.arange(0, width, factor)
    at_once = max(1, BLOCK // (factor * width * channels))
    for row in range(0, rows, at_once):
        part = pixels[row * factor : (row + at_once) * factor]
        sums = np.add.reduceat(part, np.arange(0, len(part), factor), axis=0, dtype=kind)
        if row + at_once >= rows:
            sums[-1] += kind(rows * factor - height) * part[-1].astype(kind)
        edge = kind(columns * factor - width) * sums[:, -1]
        sums = np.add.reduceat(sums, starts, axis=1)
        sums[:, -1] += edge
        whole, rest = np.divmod(sums, area)
        found[row : row + at_once] = whole + ((2 * rest > area) | ((2 * rest == area) & (whole % 2 == 1)))
    return found
