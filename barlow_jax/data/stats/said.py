"""What a person is told of a set: how its images are to be read, and the lines of `barlow-jax data stats`."""

import numpy as np

from barlow_jax.data import levels
from barlow_jax.data.stats.of_set import SHOWN, copies, moments, percentiles

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
RANGE = (0.1, 1, 50, 99, 99.9)  # percentiles of values, between the smallest and the largest


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
    bits = max(8, int(np.flatnonzero(deep[0])[-1]).bit_length())
    white = min(2**bits - 1, int(found.white))
    return None if white == 65535 else (0, white)


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
