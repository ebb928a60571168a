"""What is found in one image: size, format, bits, and how its values are distributed."""

import hashlib

import numpy as np

from barlow_jax.data import levels, pixels, sensors
from barlow_jax.data.levels import Values
from barlow_jax.data.mapped import Levels

MOST_BANDS = 16  # whose every value is counted; of more bands a sample tells


class Seen:
    """What was found in one image: sizes, and of its values, where they were looked at, histograms or a sample."""

    __slots__ = ("digest", "size", "bytes", "format", "channels", "bits", "levels", "deep", "values", "inverted")
    __slots__ += ("white", "why")  # the largest value that there can be; why it cannot be read

    def __init__(self):
        self.why, self.inverted, self.white = "", False, 65535
        self.levels = self.deep = self.values = self.size = self.channels = self.bits = None


def of_array(source, row, whole):
    """Of one image of a source of arrays; whole: of how many of its values a sample is taken, 0 for its size alone."""
    seen, (height, width) = Seen(), source.stored_size(row)
    held = source.images
    stored = isinstance(held, Levels)
    image = (held.raw(row) if stored else held[row])[:height, :width]
    seen.digest, seen.bytes = digest(np.ascontiguousarray(image).tobytes() + str(image.shape).encode()), image.nbytes
    seen.size, seen.format, seen.channels, seen.bits = (height, width), "array", image.shape[2], 8 * image.itemsize
    if whole and stored:
        _values(seen, Values(image, levels.of_type(image.dtype)), held.reading, whole)
    elif whole:
        seen.levels = _levels(image)
    return seen


def of_file(source, row, whole):
    """Of one image of a source of files, see `of_array`."""
    seen, reading = Seen(), source.reading
    seen.digest, seen.bytes = bytes(16), 0
    try:
        encoded = source.encoded(row)
        seen.digest, seen.bytes = digest(encoded), len(encoded)
        if not encoded:
            raise ValueError("the file is empty")
        if kind := sensors.kind(encoded):
            _look_at_sensors(seen, kind, encoded, reading, whole)
        else:
            try:
                _look_at_image(seen, encoded, reading, whole)
            except pixels.NotInFull as problem:
                if not sensors.is_tiff(encoded):
                    raise
                _look_at_sensors(seen, "TIFF", encoded, reading, whole, problem)
    except Exception as error:  # Pillow's plugins raise whatever their parsers run into; all of it is the answer
        seen.size, seen.why = None, _reason(error)
    return seen


def _look_at_sensors(seen, kind, encoded, reading, whole, problem=None):
    """Of a file that sensors.py reads."""
    seen.format, seen.size = kind, sensors.size(kind, encoded)
    if whole:
        # As many bands as there are, but for pages, of which it has to be said how many make an image.
        wanted = reading if reading.channels not in (1, 3) else reading._replace(channels=0)
        found = sensors.read(kind, encoded, wanted, problem)
        seen.channels, seen.bits = found.array.shape[2], 8 * found.array.itemsize
        _values(seen, found, reading, whole)


def _look_at_image(seen, encoded, reading, whole):
    """Of a file that Pillow reads. pixels.NotInFull where it does not, or not all of it."""
    with pixels.opened(encoded) as image:
        seen.format, seen.channels, seen.bits = image.format, len(image.getbands()), pixels.bits_of(image)
        seen.size = (image.height, image.width)
        if image.format == "TIFF" and reading.channels not in (1, 3, seen.channels):
            raise pixels.NotInFull("it has another number of bands")  # or pages, which are bands
        if whole:
            levels.check_size(image.height, image.width, reading)
            grey, as_shown = pixels.is_grey_of_more(image), reading._replace(bits=8, exif=False)
            if seen.bits == 16 and not grey and image.format == "PNG":
                from barlow_jax.data import window  # here, as TensorFlow takes seconds to import

                every = window.png_values(encoded).numpy()
                seen.channels = every.shape[2]  # of grey with alpha Pillow makes RGBA
                if reading.value_range:
                    seen.levels = _levels(pixels.of_png(every, as_shown))
                else:
                    colours = every[..., : 1 if every.shape[2] <= 2 else 3] if reading.channels in (1, 3) else every
                    _values(seen, Values(colours, (0, 65535)), reading, whole)
            elif grey and not reading.value_range:
                _values(seen, pixels.grey_values(image), reading, whole)
            else:
                seen.levels = _levels(pixels.pillow_pixels(encoded, as_shown))


def _values(seen, found, reading, kept):
    """Of Values [h, w, bands]: levels where what is black and white is known, else what tells it."""
    array, seen.inverted = found.array, found.inverted
    seen.white = found.low_high[1] if found.low_high else 65535
    if reading.value_range or not levels.in_a_range(array.dtype):
        own = reading._replace(channels=array.shape[2], bits=8)
        seen.levels = _levels(levels.of_values(found, own))
    elif array.dtype.kind in "ui" and array.itemsize == 2 and array.min() >= 0 and array.shape[2] <= MOST_BANDS:
        counts = [np.bincount(array[..., k].ravel(), minlength=65536)[:65536] for k in range(array.shape[2])]
        seen.deep = np.stack(counts).astype(np.float64)
    else:
        flat = array.reshape(-1, array.shape[2])
        seen.values = flat[np.linspace(0, len(flat) - 1, min(kept, len(flat))).astype(int)].astype(np.float64)


def _levels(image):
    """Counts of the values of each channel, float64 [C, 256], of uint8 [h, w, C]."""
    return np.stack([np.bincount(image[..., k].ravel(), minlength=256) for k in range(image.shape[2])]).astype(float)


def digest(content):
    """Of bytes, 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _reason(error):
    """In words that are the same for files that lack the same, so that they can be counted."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return "".join("#" if character.isdigit() else character for character in text)[:200] or type(error).__name__
