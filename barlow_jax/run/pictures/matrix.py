"""The cross-correlation matrix, and beside it how its entries are distributed, against what chance would give.

A matrix of D = 8192 is 256 MB and goes through here by a few rows at a time: no second copy of it is made.
"""

import math
from typing import NamedTuple

import numpy as np

from barlow_jax.run.pictures import paper

AS_IT_IS = 512  # dimensions, of which each entry is a cell
CELLS = 256  # of a side, of more dimensions
SIDE = 512  # pixels of the matrix, as nearly as whole pixels a cell allow
STEPS = 101  # of colour from -1 to 1: 0.02 each, which no eye tells apart; of 256 the file is a quarter larger
BINS, COARSE = 400, 50  # of [-1, 1]: off the diagonal and on it
LEFT, TOP, BOTTOM, BAR, PANEL, RIGHT = 76, 28, 52, 164, 330, 18  # pixels around the matrix; PANEL of the histograms
WHOLE, DIAGONAL, EXPECTED, BAND = "#56788f", "#c44536", "#222222", "#e2e2e2"


class Summary(NamedTuple):
    """What is drawn of a matrix c [D, D].

    Attributes:
      cells: float32 [m, m]: c itself, or the root mean square of each block, see `summarised`.
      block: entries of a side of a block; 1 where cells are c.
      diagonal: float32 [D].
      counts: int [BINS], how many finite entries off the diagonal lie in each bin of [-1, 1].
      within: share of these that are no larger than twice the noise.
      not_finite: entries that are nan or inf.
    """

    cells: np.ndarray
    block: int
    diagonal: np.ndarray
    counts: np.ndarray
    within: float
    not_finite: int


def noise(images):
    """The standard deviation of the correlation of two columns of so many rows that have nothing to do with each other.

    1 / sqrt(N - 1), exactly, for columns of independent rows of any distribution, one of them shuffled at random.
    """
    return 1 / math.sqrt(max(images - 1, 1))


def summarised(c, images):
    """`Summary` of c [D, D], of so many images.

    Up to 512 dimensions its cells are c. Beyond, the dimensions are sorted by their diagonal value, the largest first,
    and a cell is the root mean square of a block of entries, of a diagonal block that of its diagonal entries alone:
    the off-diagonal ones would drown them. The mean would lose what has no common sign, and the largest of a thousand
    entries of noise is far from the noise.
    """
    d = len(c)
    block = math.ceil(d / CELLS) if d > AS_IT_IS else 1
    diagonal = np.array(np.diagonal(c), np.float32)
    order = np.argsort(-diagonal, kind="stable") if block > 1 else np.arange(d)
    starts = np.arange(0, d, block)
    sizes = np.diff(np.append(starts, d))
    squares = np.zeros((len(starts), len(starts)), np.float32)
    counts, within, not_finite, limit = np.zeros(BINS, np.int64), 0, 0, 2 * noise(images)
    rows = block if block > 1 else 32
    for first in range(0, d, rows):
        chosen = order[first : first + rows]
        part = np.array(c[chosen], np.float32)
        part[np.arange(len(chosen)), chosen] = 0  # the diagonal, counted apart
        if block > 1:
            squares[first // block] = np.add.reduceat(np.square(part).sum(0)[order], starts)
        values = part.ravel()
        if not math.isfinite(float(values.sum(dtype=np.float64))):
            values = values[np.isfinite(values)]
        counts += _counts(values, BINS)
        within += int(np.count_nonzero(np.abs(values) <= limit))
        not_finite += part.size - len(values)
    counts[BINS // 2] -= d  # the zeros in the diagonal's place
    cells = np.asarray(c, np.float32)
    if block > 1:
        of_diagonal = np.add.reduceat(np.square(diagonal[order]), starts) / sizes
        cells = np.sqrt(squares / np.outer(sizes, sizes))
        np.fill_diagonal(cells, np.sqrt(of_diagonal))
    share = (within - d) / max(int(counts.sum()), 1)
    return Summary(cells, block, diagonal, counts, share, not_finite + int((~np.isfinite(diagonal)).sum()))


def _counts(values, bins):
    """How many of these lie in each of so many bins of [-1, 1]; what rounding puts outside, in the outermost."""
    place = np.floor((values + np.float32(1)) * np.float32(bins / 2)).astype(np.int32)
    return np.bincount(np.clip(place, 0, bins - 1), minlength=bins)


def cross_correlation_picture(c, images, path=None, *, step=None, width=None):
    """The matrix c, and beside it the histograms of its diagonal and of the rest, with the noise.

    Up to 512 dimensions in blue (-1), white (0) and red (1). Beyond, see `summarised`, from white (the noise or less)
    to red (1), on a scale of logarithms. The scales do not change during a run, so that its pictures can be compared.

    Args:
      c: [D, D], entries in [-1, 1].
      images: N, of which the correlations are.
      path: where to save it.
      step: of the run, for the title.
      width: of the embeddings, where c is of their first D dimensions alone.
    """
    found = summarised(c, images)
    m, level = len(found.cells), noise(images)
    zoom = max(1, round(SIDE / m))
    side = zoom * m
    figure = paper.figure(LEFT + side + BAR + PANEL + RIGHT, TOP + side + BOTTOM)
    _matrix(figure, found, len(c), side, level)
    over, between = figure.get_size_inches() * figure.dpi, 64
    height = (side - between) // 2
    place = ((LEFT + side + BAR) / over[0], PANEL / over[0], height / over[1])
    left, panel, high = place
    upper = figure.add_axes((left, (BOTTOM + height + between) / over[1], panel, high))
    _diagonal(upper, found)
    _rest(figure.add_axes((left, BOTTOM / over[1], panel, high), sharex=upper), found, level)
    return paper.save(paper.titled(paper.pixels(figure), *_titles(found, images, step, width)), path, noise=True)


def _matrix(figure, found, d, side, level):
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    over = figure.get_size_inches() * figure.dpi
    # The axes are a whole number of pixels per cell, so that no cell is drawn thicker than another.
    axes = figure.add_axes((LEFT / over[0], BOTTOM / over[1], side / over[0], side / over[1]))
    cells, colours, low = found.cells, colormaps["RdBu_r"], min(level, 0.5)
    if found.block > 1:
        colours = ListedColormap(colours(np.linspace(0.5, 1, 256)))
        cells, scale = np.maximum(cells, low), {"norm": LogNorm(low, 1)}
        ticks = [low, *(tick for tick in (0.1, 0.3, 1) if tick > 1.5 * low)]
        named = [f"{low:.2g} noise", *(f"{tick:g}" for tick in ticks[1:])]
    else:
        colours = colours.resampled(STEPS)
        scale, ticks = {"vmin": -1, "vmax": 1}, (-1, -0.5, 0, 0.5, 1)
        named = [f"{tick:g}" for tick in ticks]
    colours = colours.with_extremes(bad="#444444")
    end = len(cells) * found.block
    drawn = axes.imshow(cells, cmap=colours, interpolation="nearest", extent=(0, end, end, 0), **scale)
    sorted_by = ", by falling diagonal value" if found.block > 1 else ""
    axes.set_xlabel(f"dimension of view 2{sorted_by}", fontsize=9)
    axes.set_ylabel(f"dimension of view 1{sorted_by}", fontsize=9)
    places = np.unique(np.linspace(0, d, 5).astype(int))
    axes.set(xticks=places, yticks=places)
    bar = figure.add_axes(((LEFT + side + 16) / over[0], BOTTOM / over[1], 14 / over[0], side / over[1]))
    figure.colorbar(drawn, cax=bar, ticks=ticks)
    bar.minorticks_off()
    bar.set_yticks(ticks, named)
    for one in (axes, bar):
        one.tick_params(labelsize=9)


def _diagonal(axes, found):
    values = found.diagonal[np.isfinite(found.diagonal)]
    axes.stairs(_counts(values, COARSE), np.linspace(-1, 1, COARSE + 1), fill=True, color=DIAGONAL)
    if len(values):
        axes.axvline(float(values.mean()), color=EXPECTED, linewidth=1, linestyle="--", label="mean")
        axes.legend(fontsize=9, frameon=False, loc="upper left")
    _dress(axes, "on the diagonal", f"of {len(found.diagonal):,} dimensions")


def _rest(axes, found, level):
    edges = np.linspace(-1, 1, BINS + 1)
    below = np.array([0.5 * (1 + math.erf(edge / (level * math.sqrt(2)))) for edge in edges])
    chance = np.diff(below) * found.counts.sum()
    limit = min(2 * level, 1)
    highest = max(found.counts.max(), chance.max(), 1)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set(ylim=(0.5, 60 * highest), yticks=10.0 ** np.arange(0, math.log10(60 * highest), 2))  # room for the legend
    axes.axvspan(-limit, limit, color=BAND, label=f"within twice the noise, ± {2 * level:.2g}")
    axes.stairs(found.counts, edges, baseline=0.5, fill=True, color=WHOLE)
    seen = chance >= 0.5
    middles = (edges[1:] + edges[:-1]) / 2
    axes.plot(middles[seen], chance[seen], color=EXPECTED, linewidth=1.2, label="unrelated columns")
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    _dress(axes, "off the diagonal", "entries, of each bin")
    axes.set_xlabel("correlation", fontsize=9)


def _dress(axes, title, counted):
    axes.set_title(title, fontsize=10, loc="left", y=1)  # a place of its own spares a third of the time
    axes.set_ylabel(counted, fontsize=9)
    axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1))
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _titles(found, images, step, width):
    d, level = len(found.diagonal), noise(images)
    title = "Cross-correlation of the two views" + ("" if step is None else f", step {step:,}")
    dimensions = f"D = {d:,}" + (f", the first of {width:,}" if width and width > d else "")
    mean = found.diagonal.mean() if d else 0
    numbers = (
        f"N = {images:,} images, {dimensions}. Diagonal: mean {mean:.3f}. Off the diagonal: {100 * found.within:.1f} % "
        "of the entries are within twice the noise (of unrelated columns, 95 %)."
    )
    chance = f"The noise: unrelated columns correlate with a standard deviation of 1/√(N − 1) = {level:.3g}."
    cell = ""
    if found.block > 1:
        b = found.block
        cell = (
            f"A square of the matrix: root mean square of {b} x {b} entries; on the diagonal, of the {b} diagonal "
            "entries there. White: the noise or less."
        )
    bad = f"{found.not_finite:,} entries are not finite." if found.not_finite else ""
    return title, numbers, chance, cell, bad
