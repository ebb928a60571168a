"""What is found in all images of a set: sizes, formats, values, copies, and what cannot be read.

All images are looked at once; of as many as are asked for, evenly spaced, every pixel. Memory stays within a few
megabytes and 16 bytes an image, whatever the set.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import time

import numpy as np

from barlow_jax.data.pack import read_ahead
from barlow_jax.data.stats import of_image

logger = logging.getLogger(__name__)

VALUES = 1000  # of an image whose values are no whole numbers up to 65535: so many are kept, at evenly spaced places,
MOST_VALUES = 2 * 10**6  # or fewer, so that of all images there are not more
SHOWN = 3  # examples of each reason and of copies
TOLD_EVERY = 10.0  # seconds between lines of progress


@dataclasses.dataclass
class Stats:
    """Of a whole set. levels: float64 [C, 256], shares of 8-bit values, each image counting the same."""

    count: int = 0
    looked: int = 0  # images whose pixels were read
    bytes: int = 0
    levels: np.ndarray | None = None
    deep: np.ndarray | None = None  # float64 [bands, 65536], the same of images of 16 bits
    inverse: np.ndarray | None = None  # of those of them in which low is white
    white: float = 0  # the largest value that their files say there can be
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
    look = of_image.of_array if source.images is not None else of_image.of_file
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
    if seen.deep is not None:
        found.white = max(found.white, seen.white)
    if seen.values is not None and (not found.values or found.values[0][0].shape[1] == seen.values.shape[1]):
        found.values.append((seen.values, seen.inverted))


def copies(found):
    """Groups of rows whose files are the same to the byte: list of int [k], k > 1. Empty files are none."""
    keys = found.digests.view("V16")[:, 0]
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
    groups = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    empty = {bytes(16), of_image.digest(b"")}
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
