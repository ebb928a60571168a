"""One encoded image to pixels by Pillow and numpy: how large it may be, what its values mean, what is wrong with it.

window.py reads ordinary JPEGs and PNGs by TensorFlow and asks here for all others.
"""

import io
import math
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from barlow_jax.data import beginnings, levels, sensors
from barlow_jax.data.levels import BLOCK, Values, as_channels
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


class Reading(NamedTuple):
    """How image files become pixels; the same for all of a source."""

    channels: int = 3  # 3 reads as RGB, 1 as grey; any other number takes files that have as many
    # Of images of more than 8 bits: the (low, high) that become black and white, linearly; () is the range of their
    # type; one pair after the other is of each channel its own.
    value_range: tuple[float, ...] = ()
    max_pixels: int = MAX_PIXELS  # an image of more is unreadable
    bits: int = 8  # of a value on the canvas, 8 or 16
    exif: bool = False  # whether images are turned as the camera says

    @classmethod
    def of(cls, given, usual=3):
        """A Reading of some of its fields in a dict; channels of 0 are the usual ones."""
        given = {**given, "channels": given.get("channels", 0) or usual}
        return cls(**given | {"value_range": tuple(given.get("value_range", ()))})

    @property
    def plain(self):
        """Whether files become grey or RGB of 8 bits, as Pillow and TensorFlow give them."""
        return self.bits == 8 and self.channels in (1, 3)

    def told(self):
        """What is not as it was before there was a choice, as a plain dict, for fingerprints."""
        found = {"channels": self.channels}
        if self.value_range:
            found["value_range"] = list(self.value_range)
        if self.max_pixels != MAX_PIXELS:
            found["max_pixels"] = self.max_pixels
        if self.bits != 8:
            found["bits"] = self.bits
        if self.exif:
            found["exif"] = True
        return found


def check(value_range=(), max_pixels=MAX_PIXELS, **more):
    """Raises UserError unless images can be read by these two fields of config.data, see `Reading`."""
    fits = all(isinstance(value, (int, float)) and math.isfinite(value) for value in value_range)
    if not (fits and len(value_range) % 2 == 0 and all(np.subtract(value_range[1::2], value_range[0::2]) > 0)):
        raise UserError(
            f"config.data.value_range is {value_range}; it is (LOW, HIGH), black and white in images of more than 8 "
            "bits, or such a pair for each channel, (LOW, HIGH, LOW, HIGH, ...), or () for the range of their type."
        )
    channels = more.get("channels", 0)
    if channels and len(value_range) not in (0, 2, 2 * channels):
        raise UserError(
            f"config.data.value_range has {len(value_range)} numbers and config.data.channels is {channels}: give one "
            "pair, or one for each channel."
        )
    if more.get("bits", 8) not in (8, 16):
        raise UserError(f"config.data.bits is {more['bits']}; it is 8 or 16, of a value on the canvas.")
    if not 1 <= max_pixels <= PILLOWS_LIMIT:
        raise UserError(
            f"config.data.max_pixels is {max_pixels}; it must be from 1 to {PILLOWS_LIMIT}, the most that Pillow opens."
        )


def pillow_pixels(encoded, reading=Reading()):  # noqa: B008 - immutable
    """Any image that is read here -> uint8 or uint16 [h, w, channels], as reading has it.

    Ordinary files of 8 bits become what Pillow's convert("RGB") or ("L") gives. Of more than 8 bits, which Pillow would
    clip to 255 (it turns a radiograph into a white page), the range becomes black to white; without
    reading.value_range and with reading.bits of 8 these are the high bytes, as of every other 16-bit image here.
    DICOM, arrays of numpy, and TIFFs that Pillow does not read in full go through sensors.py.
    ValueError, in words for a person, where the image is too large, its range is not known or a library for it is
    missing; and whatever the parsers run into.
    """
    if kind := sensors.kind(encoded):
        return levels.of_values(sensors.read(kind, encoded, reading), reading)
    try:
        return _by_pillow(encoded, reading)
    except NotInFull as problem:
        if not sensors.is_tiff(encoded):
            raise
        return levels.of_values(sensors.read("TIFF", encoded, reading, problem), reading)


class NotInFull(ValueError):
    """Pillow does not read such an image, or not all of its bands and bits."""


def _by_pillow(encoded, reading):
    with opened(encoded) as image:
        levels.check_size(image.height, image.width, reading)
        turn = orientation_of(image) if reading.exif else 1
        grey = is_grey_of_more(image)  # of which a PGM without a range stays in Pillow's unit
        values = grey_values(image, bool(reading.value_range)) if grey else _colours_of_more(image, reading)
        bands = len(image.getbands()) if image.mode not in ("P", "1", "PA") else 0
        if reading.channels not in (1, 3) and bands != reading.channels:
            raise NotInFull(
                f"it has {bands or 'a palette and no'} bands, and it is read as {reading.channels} channels: set "
                "config.data.channels to what the files have"
            )
        if values is None:
            mode = {1: "L", 3: "RGB"}.get(reading.channels, image.mode)
            array = np.asarray(image if image.mode == mode else image.convert(mode))
            values = Values(array.reshape(image.height, image.width, reading.channels), (0, 255))
    return levels.turned(levels.of_values(values, reading), turn)


def opened(encoded):
    """A lazy PIL image: its header has been read. Raises ValueError where the file is no image that is read here."""
    try:
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # a warning where warnings are errors
        raise ValueError(f"it has more than the {PILLOWS_LIMIT} pixels that Pillow opens") from None
    except Image.UnidentifiedImageError:
        found = beginnings.begins_as(encoded)
        damaged = ", and is damaged" if found in beginnings.READ_HERE else ""
        kind = NotInFull if found == "TIFF" else ValueError
        raise kind(f"cannot identify image file: it begins as {found}{damaged}") from None


def of_png(values, reading):
    """uint16 [h, w, 1 to 4] of a PNG of 16 bits -> pixels as reading has them."""
    if reading.channels in (1, 3):  # grey and RGB after the range, as Pillow's convert has it
        colours = 1 if values.shape[2] <= 2 else 3
        own = reading._replace(channels=colours)
        return as_channels(levels.of_values(Values(values[..., :colours], (0, 65535)), own), reading.channels)
    return levels.of_values(Values(values, (0, 65535)), reading)


def stored_size(encoded, reading):
    """(height, width) of an encoded image as it is stored, or with reading.exif as it is turned, by its header."""
    if kind := sensors.kind(encoded):
        return sensors.size(kind, encoded)
    try:
        with opened(encoded) as image:
            turned = reading.exif and levels.TURNS[orientation_of(image) - 1][0]
            return (image.width, image.height) if turned else (image.height, image.width)
    except NotInFull:
        return sensors.size("TIFF", encoded)


def told_of(encoded):
    """(format, kind of pixels) of an encoded image, for people."""
    if kind := sensors.kind(encoded):
        return kind, "as a sensor gives it"
    try:
        with opened(encoded) as image:
            return image.format, image.mode
    except NotInFull:
        return "TIFF", "as a sensor gives it"


def stored_as(image):
    """The raw mode in which Pillow finds the values of an opened image, such as "L" or "I;16B"."""
    arguments = image.tile[0][3] if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def is_grey_of_16_bits(image):
    """As `is_grey_of_more`."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def is_grey_of_more(image):
    """Whether an opened image is grey and of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def bits_of(image):
    """How many bits a value takes in the file of an opened image."""
    deep = ";16" in stored_as(image) or is_grey_of_16_bits(image) or (image.format == "PPM" and _maxval(image) > 255)
    return 16 if deep else 32 if image.mode in ("I", "F") else 1 if image.mode == "1" else 8


def grey_values(image, as_stored=True):
    """A grey image of more than 8 bits (`is_grey_of_more`) as Values.

    as_stored: of a PGM, which says its largest value, the values of the file, and not what Pillow makes of them:
    65535 of the largest.
    """
    stored, white = stored_as(image), 65535
    of_pgm = image.format == "PPM" and image.mode == "I"
    maxval, array = _maxval(image) if of_pgm else white, np.asarray(image)[..., None]  # Pillow forgets it as it decodes
    if of_pgm and as_stored and maxval != white:
        array = (array.astype(np.uint32) * np.uint32(maxval) + np.uint32(32767)) // np.uint32(white)
        white = maxval
    if of_pgm:
        return Values(array.astype(np.uint16), (0, white))
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0  # which Pillow does in images of 8 bits alone
    if is_grey_of_16_bits(image):
        return Values(array, (0, 4095 if stored == "I;12" else white), inverted)
    return Values(array.astype(np.int16) if image.mode == "I" and "16" in stored else array, None, inverted)


def _colours_of_more(image, reading):
    """A colour image of 16 bits as Values where they count, of a PNG the upper 8 of them; None of others."""
    if bits_of(image) != 16 or not (reading.value_range or not reading.plain):
        return None
    if image.format != "PNG":  # which is read in full where it counts, see window.py
        raise NotInFull(
            "it is a colour image of 16 bits, of which only the upper 8 can be read from this format, so that "
            "config.data.value_range and config.data.bits cannot be applied: save it as PNG"
        )
    upper = np.asarray(image).astype(np.uint16) * np.uint16(257)
    return Values(as_channels(upper, reading.channels) if reading.channels in (1, 3) else upper, (0, 65535))


def _maxval(image):
    """The largest value of an opened PPM or PGM, as its header says."""
    arguments = image.tile[0][3]
    return arguments[1] if isinstance(arguments, tuple) else 65535 if arguments.startswith("I;16") else 255


def orientation_of(image):
    """1 to 8, what EXIF says of an opened image; 1 of TIFFs, which Pillow turns itself."""
    found = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)
    return found if found in range(1, 9) else 1


def orientation(encoded):
    """`orientation_of` of an encoded image; 1 where it cannot be told."""
    try:
        with opened(encoded) as image:
            return np.int64(orientation_of(image))
    except Exception:  # of Pillow's parsers: a file that cannot be read is told of when it is decoded
        return np.int64(1)


def largest_of_16_bits(encoded):
    """The largest high byte of an image of 16 bits that does not say how many of them are in use; None of others."""
    try:
        kind = sensors.kind(encoded)
        return _largest_of_a_sensor(kind, encoded) if kind else _largest_by_pillow(encoded)
    except Exception:  # of Pillow's parsers: a file that cannot be read is told of when it is its turn
        return None


def _largest_of_a_sensor(kind, encoded):
    values = sensors.read(kind, encoded, Reading(channels=0))
    return int(values.array.max()) >> 8 if values.low_high == (0, 65535) else None


def _largest_by_pillow(encoded):
    try:
        with opened(encoded) as image:
            grey, colours = is_grey_of_16_bits(image), ";16" in stored_as(image) and image.mode in ("RGB", "RGBA")
            if not (grey or colours) or stored_as(image) == "I;12" or image.width * image.height > MAX_PIXELS:
                return None
            if grey:  # before black and white are exchanged
                return int(grey_values(image).array.max()) >> 8
    except NotInFull:
        return _largest_of_a_sensor("TIFF", encoded)
    return int(pillow_pixels(encoded).max())


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
    """Mean of factor x factor cells, the last ones over repeated edge pixels: [ceil(h / f), ceil(w / f), C].

    In whole numbers and some rows at a time, so that it takes little besides the result; halves become even.
    """
    height, width, channels = pixels.shape
    factor = int(factor)
    rows, columns, area = -(-height // factor), -(-width // factor), factor * factor
    found = np.empty((rows, columns, channels), pixels.dtype)
    kind = np.uint32 if area * np.iinfo(pixels.dtype).max * 2 < 2**32 else np.uint64
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
