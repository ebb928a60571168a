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

from barlow_jax.data import levels, pixels
from barlow_jax.data.pack import read_ahead

logger = logging.getLogger(__name__)

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
RANGE = (0.1, 1, 50, 99, 99.9)  # percentiles of values, between the smallest and the largest
VALUES = 1000  # of an image whose values are no whole numbers up to 65535: so many are kept, at evenly spaced places,
MOST_VALUES = 2 * 10**6  # or fewer, so that of all images there are not more
SHOWN = 3  # examples of each reason and of copies
TOLD_EVERY = 10.0  # seconds between lines of progress
BITS = {"1": 1, "L": 8, "LA": 8, "P": 8, "PA": 8, "RGB": 8, "RGBA": 8, "CMYK": 8, "YCbCr": 8, "LAB": 8, "HSV": 8}


class _Seen:
    """What was found in one image: sizes, and of its values, where they were looked at, histograms or a sample."""

    __slots__ = ("digest", "size", "bytes", "format", "channels", "bits", "levels", "deep", "values", "why")

    def __init__(self):
        self.why, self.levels, self.deep, self.values, self.size = "", None, None, None, None


@dataclasses.dataclass
class Stats:
    """Of a whole set. levels: float64 [C, 256], shares of 8-bit values, each image counting the same."""

    count: int = 0
    looked: int = 0  # images whose pixels were read
    bytes: int = 0
    levels: np.ndarray | None = None
    deep: np.ndarray | None = None  # float64 [65536], the same of grey images of 16 bits
    formats: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    channels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict = dataclasses.field(default_factory=dict)  # reason: places
    values: list = dataclasses.field(default_factory=list)  # samples of fractions and of 32 bits
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
    found.channels[seen.channels] += 1
    found.bits[seen.bits] += 1
    found.looked += any(part is not None for part in (seen.levels, seen.deep, seen.values))
    for name in ("levels", "deep"):
        part = getattr(seen, name)
        if part is not None:
            part = part / part.sum(-1, keepdims=True)
            setattr(found, name, part if getattr(found, name) is None else getattr(found, name) + part)
    if seen.values is not None:
        found.values.append(seen.values)


def _look_at_array(source, row, whole):
    seen, (height, width) = _Seen(), source.stored_size(row)
    image = source.images[row][:height, :width]
    seen.digest, seen.bytes = _digest(np.ascontiguousarray(image).tobytes() + bytes(image.shape[:1])), image.nbytes
    seen.size, seen.format, seen.channels, seen.bits = (height, width), "array", image.shape[2], 8
    seen.levels = _levels(image) if whole else None
    return seen


def _look_at_file(source, row, whole):
    seen = _Seen()
    seen.digest, seen.bytes = bytes(16), 0
    try:
        encoded = source.encoded(row)
        seen.digest, seen.bytes = _digest(encoded), len(encoded)
        if not encoded:
            raise ValueError("the file is empty")
        with pixels.opened(encoded) as image:
            seen.format, seen.channels = image.format, len(image.getbands())
            # Pillow's mode "I" holds the 16 bits of a PNG, or 32; the raw mode of the file says which.
            stored = pixels.stored_as(image)
            seen.bits = 16 if "16" in stored or pixels.is_grey_of_16_bits(image) else BITS.get(image.mode, 32)
            seen.size = (image.height, image.width)
            if whole:
                _values(seen, image, encoded, source.reading, whole)
    except Exception as error:  # Pillow's plugins raise whatever their parsers run into; all of it is the answer
        seen.size, seen.why = None, _reason(error)
    return seen


def _values(seen, image, encoded, reading, kept):
    width, height = image.size
    if width * height > reading.max_pixels:
        raise ValueError("it has more pixels than config.data.max_pixels allows")
    if reading.value_range or not (image.mode in ("I", "F") or image.mode.startswith("I;16")):
        seen.levels = _levels(pixels.pillow_pixels(encoded, reading))
        return
    values = np.asarray(image)
    if seen.bits == 16 and values.min() >= 0:
        seen.deep = np.bincount(values.ravel(), minlength=65536)[:65536].astype(np.float64)
        return
    flat = values.ravel()
    seen.values = flat[np.linspace(0, flat.size - 1, min(kept, flat.size)).astype(int)].astype(np.float64)


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


def value_range(found):
    """(low, high) for config.data.value_range, or None where the range of 8 or 16 bits is the right one."""
    if found.values:
        low, high = np.percentile(np.concatenate(found.values), (0.1, 99.9))
        return (float(f"{low:.6g}"), float(f"{high:.6g}")) if low < high else None
    if found.deep is None:
        return None
    bits = int(np.flatnonzero(found.deep)[-1]).bit_length()
    return (0, 2**bits - 1) if 8 < bits < 16 else (0, 255) if bits <= 8 else None


def rendered(found, channels):
    """Shares of the values that training sees, float64 [C, 256], more than 8 bits in the range of `value_range`."""
    parts = [] if found.levels is None else [found.levels]
    if found.deep is not None:
        low_high = value_range(found)
        level = levels.scaled(np.arange(65536)[None], *low_high)[0] if low_high else np.arange(65536) >> 8
        parts.append(np.tile(np.bincount(level, found.deep, 256), (channels, 1)))
    if found.values and (low_high := value_range(found)):
        level = levels.scaled(np.concatenate(found.values)[None], *low_high)[0]
        parts.append(np.tile(np.bincount(level, minlength=256) * (len(found.values) / len(level)), (channels, 1)))
    return sum(parts) if parts else None


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
    said = []
    for name, held in (("16 bits", found.deep), ("other values", found.values or None)):
        if held is None:
            continue
        if name == "16 bits":
            told = [int(np.flatnonzero(held)[0]), *percentiles(held, RANGE), int(np.flatnonzero(held)[-1])]
        else:
            every = np.concatenate(held)
            told = [f"{value:.6g}" for value in (every.min(), *np.percentile(every, RANGE), every.max())]
        heads = ("smallest", *(f"{part} %" for part in RANGE), "largest")
        said.append(f"  {name:14}" + ", ".join(f"{head} {value}" for head, value in zip(heads, told, strict=True)))
    low_high = value_range(found)
    levels = rendered(found, source.channels)
    if levels is not None:
        mean, std = (tuple(round(float(value), 3) for value in part) for part in moments(levels))
        said += ["", "For these images:"]
        said += [f"  --config.data.value_range='({low_high[0]}, {low_high[1]})'"] if low_high else []
        said += [f"  --config.views.mean='{mean}'", f"  --config.views.std='{std}'"]
    return said
