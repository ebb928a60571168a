"""What a set of images is made of: sizes, formats, ranges of values, means, copies, and what cannot be read.

All images are looked at once; of as many as are asked for, evenly spaced, every pixel. Memory stays within a few
megabytes and 16 bytes an image, whatever the set.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import logging
import time

import numpy as np

from barlow_jax.data import levels, pixels, sensors
from barlow_jax.data.levels import Values
from barlow_jax.data.mapped import Levels
from barlow_jax.data.pack import read_ahead

logger = logging.getLogger(__name__)

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
RANGE = (0.1, 1, 50, 99, 99.9)  # percentiles of values, between the smallest and the largest
MOST_BANDS = 16  # whose every value is counted; of more bands a sample tells
VALUES = 1000  # of an image whose values are no whole numbers up to 65535: so many are kept, at evenly spaced places,
MOST_VALUES = 2 * 10**6  # or fewer, so that of all images there are not more
SHOWN = 3  # examples of each reason and of copies
TOLD_EVERY = 10.0  # seconds between lines of progress
BITS = {"1": 1, "L": 8, "LA": 8, "P": 8, "PA": 8, "RGB": 8, "RGBA": 8, "CMYK": 8, "YCbCr": 8, "LAB": 8, "HSV": 8}


class _Seen:
    """What was found in one image: sizes, and of its values, where they were looked at, histograms or a sample."""

    __slots__ = ("digest", "size", "bytes", "format", "channels", "bits", "levels", "deep", "values", "inverted", "why")

    def __init__(self):
        self.why, self.inverted = "", False
        self.levels = self.deep = self.values = self.size = self.channels = self.bits = None


@dataclasses.dataclass
class Stats:
    """Of a whole set. levels: float64 [C, 256], shares of 8-bit values, each image counting the same."""

    count: int = 0
    looked: int = 0  # images whose pixels were read
    bytes: int = 0
    levels: np.ndarray | None = None
    deep: np.ndarray | None = None  # float64 [bands, 65536], the same of images of 16 bits
    inverse: np.ndarray | None = None  # of those of them in which low is white
    formats: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    channels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict = dataclasses.field(default_factory=dict)  # reason: places
    values: list = dataclasses.field(default_factory=list)  # (samples [k, bands] of fractions and of 32 bits, inverted)
    sizes: np.ndarray | None = None  # int32 [m, 2], of those with a header, and where they are
    digests: np.ndarray | None = None  # uint8 [count, 16]


def measure(source, looked_at, threads):
    """The Stats of a source; looked_at: images whose pixels are read, evenly spaced, 0 for all."""
    n = len(source)
    every = n if not looked_at or looked_at >= n else looked_at
    rows, each = set(np.linspace(0, n - 1, every).astype(int).tolist()), max(1, min(VALUES, MOST_VALUES // every))
    found = Stats(count=n, digests=np.zeros((n, 16), np.uint8))
    sizes, began = np.zeros((n, 2), np.int32), time.monotonic()
    said = began
    look = _look_at_array if source.images is not None else _look_at_file
    with concurrent.futures.ThreadPoolExecutor(threads, "stats") as pool:
        for row, seen in enumerate(
            read_ahead(pool, lambda row: look(source, row, each * (row in rows)), range(n), 4 * threads)
        ):
            _add(found, row, seen)
            sizes[row] = seen.size or 0
            if time.monotonic() - said > TOLD_EVERY:
                said = time.monotonic()
                logger.info("%d of %d images, %.0f s left", row + 1, n, (said - began) * (n - row - 1) / (row + 1))
    found.sizes = sizes[sizes[:, 0] > 0]
    return found


def _add(found, row, seen):
    found.digests[row] = np.frombuffer(seen.digest, np.uint8)
    found.bytes += seen.bytes
    if seen.why:
        found.reasons[seen.why] += 1
        found.examples.setdefault(seen.why, [])
        if len(found.examples[seen.why]) < SHOWN:
            found.examples[seen.why].append(row)
        return
    found.formats[seen.format] += 1
    if seen.channels is not None:
        found.channels[seen.channels] += 1
        found.bits[seen.bits] += 1
    found.looked += any(part is not None for part in (seen.levels, seen.deep, seen.values))
    for name, part in (("levels", seen.levels), ("inverse" if seen.inverted else "deep", seen.deep)):
        so_far = getattr(found, name)
        if part is not None and (so_far is None or so_far.shape == part.shape):  # other numbers of bands: see channels
            part = part / part.sum(-1, keepdims=True)
            setattr(found, name, part if so_far is None else so_far + part)
    if seen.values is not None and (not found.values or found.values[0][0].shape[1] == seen.values.shape[1]):
        found.values.append((seen.values, seen.inverted))


def _look_at_array(source, row, whole):
    seen, (height, width) = _Seen(), source.stored_size(row)
    held = source.images
    stored = isinstance(held, Levels)
    image = (held.raw(row) if stored else held[row])[:height, :width]
    seen.digest, seen.bytes = _digest(np.ascontiguousarray(image).tobytes() + bytes(image.shape[:1])), image.nbytes
    seen.size, seen.format, seen.channels, seen.bits = (height, width), "array", image.shape[2], 8 * image.itemsize
    if whole and stored:
        _values(seen, Values(image, levels.of_type(image.dtype)), held.reading, whole)
    elif whole:
        seen.levels = _levels(image)
    return seen


def _look_at_file(source, row, whole):
    seen, reading = _Seen(), source.reading
    seen.digest, seen.bytes = bytes(16), 0
    try:
        encoded = source.encoded(row)
        seen.digest, seen.bytes = _digest(encoded), len(encoded)
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
        seen.format, seen.channels = image.format, len(image.getbands())
        # Pillow's mode "I" holds the 16 bits of a PNG, or 32; the raw mode of the file says which.
        stored = pixels.stored_as(image)
        seen.bits = 16 if "16" in stored or pixels.is_grey_of_16_bits(image) else BITS.get(image.mode, 32)
        seen.size = (image.height, image.width)
        if image.format == "TIFF" and reading.channels not in (1, 3, seen.channels):
            raise pixels.NotInFull("it has another number of bands")  # or pages, which are bands
        if whole:
            levels.check_size(image.height, image.width, reading)
            grey = image.mode in ("I", "F") or image.mode.startswith("I;16")
            if seen.bits == 16 and not grey and image.format == "PNG":
                from barlow_jax.data import decode  # here, as TensorFlow takes seconds to import

                every = decode.png_values(encoded).numpy()
                colours = every[..., : reading.channels] if reading.channels == 3 else every
                _values(seen, Values(colours, (0, 65535)), reading, whole)
            elif reading.value_range or not grey:
                plain = reading._replace(bits=8, exif=False)
                seen.levels = _levels(pixels.pillow_pixels(encoded, plain))
            else:
                values = np.asarray(image)[..., None]
                _values(
                    seen,
                    Values(values.astype(np.uint16) if seen.bits == 16 and values.min() >= 0 else values, None),
                    reading,
                    whole,
                )


def _values(seen, found, reading, kept):
    """Of Values [h, w, bands]: levels where what is black and white is known, else what tells it."""
    array, seen.inverted = found.array, found.inverted
    if reading.value_range and array.itemsize > 1 or array.itemsize == 1:
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


def _digest(content):
    return hashlib.blake2b(content, digest_size=16).digest()


def _reason(error):
    """In words that are the same for files that lack the same, so that they can be counted."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return "".join("#" if character.isdigit() else character for character in text)[:120] or type(error).__name__


def copies(found):
    """Groups of rows whose files are the same to the byte: list of int [k], k > 1. Empty files are none."""
    keys = found.digests.view("V16")[:, 0]
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
    groups = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    empty = {bytes(16), _digest(b"")}
    return [group for group in groups if found.digests[group[0]].tobytes() not in empty]


def percentiles(shares, wanted):
    """The values below which so many per cent of the shares (float [levels]) lie."""
    total = np.cumsum(shares)
    return [int(np.searchsorted(total, total[-1] * part / 100 - 1e-12 * total[-1])) for part in wanted]


def moments(levels):
    """(mean, deviation) of each channel on a scale of 0..1, of shares float [C, 256]."""
    shares, values = levels / levels.sum(-1, keepdims=True), np.arange(levels.shape[1]) / 255
    mean = shares @ values
    return mean, np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))


def _deep(found):
    """Shares of the values of all images of 16 bits, [bands, 65536], or None."""
    parts = [part for part in (found.deep, found.inverse) if part is not None]
    return sum(parts) if parts and len({part.shape for part in parts}) == 1 else None if not parts else parts[0]


def _samples(found):
    """Of fractions and the like, [k, bands], or None."""
    return np.concatenate([values for values, _ in found.values]) if found.values else None


def value_range(found):
    """(low, high) for config.data.value_range, of several bands a pair for each; None where the type says it."""
    samples, deep = _samples(found), _deep(found)
    if samples is not None:
        ends = np.nanpercentile(np.where(np.isfinite(samples), samples, np.nan), (0.1, 99.9), axis=0)
        pairs = [(float(f"{low:.6g}"), float(f"{high:.6g}")) for low, high in ends.T]
        pairs = [(low, high if high > low else low + 1.0) for low, high in pairs] if len(pairs) > 1 else pairs
        return tuple(end for pair in pairs for end in pair) if all(low < high for low, high in pairs) else None
    if deep is None:
        return None
    if len(deep) > 1:
        pairs = [percentiles(band, (0.1, 99.9)) for band in deep]
        return tuple(end for low, high in pairs for end in (low, max(high, low + 1)))
    bits = int(np.flatnonzero(deep[0])[-1]).bit_length()
    return (0, 2**bits - 1) if 8 < bits < 16 else (0, 255) if bits <= 8 else None


def rendered(found, channels):
    """Shares of the values that training sees, float64 [C, 256], more than 8 bits in the range of `value_range`."""
    parts, low_high = [] if found.levels is None else [found.levels], value_range(found)
    for held, inverted in ((found.deep, False), (found.inverse, True)):
        if held is not None:
            every = np.repeat(np.arange(65536)[:, None], len(held), 1)
            level = levels.scaled(every, *low_high) if low_high else every >> 8
            level = 255 - level if inverted else level
            counts = [np.bincount(level[:, k], held[k], 256) for k in range(len(held))]
            parts.append(np.tile(counts, (channels, 1)) if len(held) == 1 else np.stack(counts))
    if found.values and low_high:
        for values, inverted in found.values:
            level = levels.scaled(values, *low_high)
            counts = [np.bincount(255 - k if inverted else k, minlength=256) / len(level) for k in level.T]
            parts.append(np.tile(counts, (channels, 1)) if len(counts) == 1 else np.stack(counts))
    return sum(parts) if parts and len({part.shape for part in parts}) == 1 else None


def lines(found, source):
    """What a person is told, as lines."""
    held = f"{found.count:,} images, {found.bytes / 1e6:,.1f} MB"
    said = [f"{source.name}: {held}; pixels of {found.looked:,} of them looked at"]
    for name, counter in (("formats", found.formats), ("channels", found.channels), ("bits a value", found.bits)):
        told = ", ".join(f"{count:,} x {what}" for what, count in counter.most_common(8))
        said.append(f"  {name:14}{told or 'none'}")
    if len(found.sizes):
        said.append(f"  {'percentile':14}{''.join(f'{part:>7}' for part in PERCENTILES)}")
        for name, values in (("short side", found.sizes.min(1)), ("long side", found.sizes.max(1))):
            said.append(f"  {name:14}{''.join(f'{int(v):>7}' for v in np.percentile(values, PERCENTILES))}")
    if source.labels is not None and source.num_classes:
        counts = np.bincount(source.labels[source.labels >= 0], minlength=source.num_classes)
        said.append(f"  {'classes':14}{len(counts)}, of {counts.min():,} to {counts.max():,} images")
    groups = copies(found)
    if groups:
        pairs = "; ".join(" and ".join(source.where(int(row)) for row in group[:2]) for group in groups[:SHOWN])
        count = sum(len(group) - 1 for group in groups)
        said.append(f"  {'copies':14}{count:,} files are copies of others, to the byte: {pairs}")
    else:
        said.append(f"  {'copies':14}none to the byte")
    said.append(f"  {'unreadable':14}{sum(found.reasons.values()):,}")
    for why, count in found.reasons.most_common(10):
        said.append(f"    {count:,} x {why}: {', '.join(source.where(row) for row in found.examples[why])}")
    return [*said, *_of_values(found, source)]


def _of_values(found, source):
    said, deep, samples = [], _deep(found), _samples(found)
    heads = ("smallest", *(f"{part} %" for part in RANGE), "largest")
    for name, held in (("16 bits", deep), ("other values", None if samples is None else samples.T)):
        for band, of_band in enumerate([] if held is None else held):
            if name == "16 bits":
                there = np.flatnonzero(of_band)
                told = [int(there[0]), *percentiles(of_band, RANGE), int(there[-1])]
            else:
                finite = of_band[np.isfinite(of_band)]
                ends = (finite.min(), *np.percentile(finite, RANGE), finite.max()) if len(finite) else ()
                told = [f"{value:.6g}" for value in ends] or ["none finite"] * len(heads)
            told = ", ".join(f"{head} {value}" for head, value in zip(heads, told, strict=True))
            said.append(f"  {f'band {band + 1}' if len(held) > 1 else name:14}{told}")
    bands = {len(part) for part in (deep, None if samples is None else samples.T) if part is not None}
    grey = found.levels is None and bands == {1}
    low_high, shares = value_range(found), rendered(found, 1 if grey else source.channels)
    if shares is not None:
        mean, std = (tuple(round(float(value), 3) for value in part) for part in moments(shares))
        several = source.images is None and len(shares) != source.channels
        said += ["", "For these images:"]
        said += [f"  --config.data.channels={len(shares)}"] if several else []
        said += [f"  --config.data.value_range='{low_high}'"] if low_high else []
        said += ["  --config.data.bits=16"] if deep is not None or samples is not None else []
        said += [f"  --config.views.mean='{mean}'", f"  --config.views.std='{std}'"]
    return said
