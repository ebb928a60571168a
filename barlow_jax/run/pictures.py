"""Pictures of a run: the augmented views, the cross-correlation matrix, nearest neighbours, curves; and of a sweep.

Every function returns the picture as uint8 [height, width, 3] and, if given a path, saves it there as a PNG. Images
may have any number of channels: one is shown as grey, two as red and green, of more than three the first three.
"""

import math
import pathlib

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.run import metric_writers, writing

PAPER = (255, 255, 255)
# Okabe and Ito's bluish green and vermillion, which colour-blind readers tell apart, and a grey for "not known".
RIGHT, WRONG, UNKNOWN = (0, 158, 115), (213, 94, 0), (187, 187, 187)
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SMALLEST = 96  # pixels of a side; smaller images are enlarged by a whole factor, without smoothing
MOST_CELLS = 512  # of a side of the correlation matrix


def views_grid(views, mean, std, path=None):
    """The views of n images, those of one side by side: a look at what the augmentation really does.

    Args:
      views: float [n, V, S, S, C], normalised with mean and std, as the network gets them; of several sizes a tuple of
        such, the largest first.
      mean, std: of each channel, on the scale 0 to 1.
      path: where to save it.
    """
    sizes, tiles = views if isinstance(views, tuple) else (views,), []
    for of_one_size in sizes:
        scaled = np.asarray(of_one_size, np.float32) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
        levels = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
        tiles.extend(_tiles(levels, like=sizes[0].shape[-2]).swapaxes(0, 1))
    n, side = tiles[0].shape[:2]
    gap = max(4, side // 24)
    width = sum(tile.shape[2] for tile in tiles)
    rows, left = np.full((n, side + 2 * gap, width + (len(tiles) + 1) * gap, 3), PAPER, np.uint8), gap
    for tile in tiles:
        rows[:, gap : gap + tile.shape[1], left : left + tile.shape[2]] = tile
        left += tile.shape[2] + gap
    # About as wide as high, with a wider gap between images than between their views.
    return _save(_arrange(rows, columns=math.ceil(math.sqrt(n * side / width)), gap=3 * gap), path)


def neighbours_grid(queries, neighbours, correct=None, path=None):
    """Each query, then its nearest neighbours, framed in green where they are of its class and in orange where not.

    Args:
      queries: uint8 [n, S, S, C].
      neighbours: uint8 [n, k, S, S, C], the nearest first.
      correct: bool [n, k]; None (no labels) makes every frame grey.
      path: where to save it.
    """
    tiles = _tiles(np.concatenate([np.asarray(queries)[:, None], np.asarray(neighbours)], axis=1))
    n, k, side = tiles.shape[0], tiles.shape[1] - 1, tiles.shape[2]
    frame = max(3, side // 24)
    cell = side + 2 * frame
    cells = np.full((n, k + 1, cell, cell, 3), PAPER, np.uint8)
    if correct is None:
        cells[:, 1:] = UNKNOWN
    else:
        cells[:, 1:] = np.where(np.asarray(correct)[..., None, None, None], np.uint8(RIGHT), np.uint8(WRONG))
    cells[:, :, frame : frame + side, frame : frame + side] = tiles
    rows = []
    for row in cells:
        found = _arrange(row[1:], columns=k, gap=2 * frame)
        apart = np.full((len(found), 2 * frame, 3), PAPER, np.uint8)
        rows.append(np.concatenate([_arrange(row[:1], columns=1, gap=2 * frame), apart, found], axis=1))
    return _save(np.concatenate(rows), path)


def cross_correlation_picture(c, path=None, *, title="cross-correlation of the two views"):
    """The matrix c in blue (-1), white (0) and red (1); the scale never changes, so that pictures can be compared.

    A matrix wider than 512 is shown in blocks, by the entry of each block that is furthest from 0. The mean would
    dilute a perfect diagonal to 1/16 at D = 8192; the price is that noise looks larger than it is (the largest of 256
    entries of standard deviation s is about 3 s).

    Args:
      c: [D, D], entries in [-1, 1].
      path: where to save it.
      title: printed above it.
    """
    c = np.asarray(c, np.float32)
    d = len(c)
    cells, block = _strongest(c)
    zoom = max(1, MOST_CELLS // len(cells))
    side = zoom * len(cells)
    left, right, bottom, top = 76, 80, 52, 44
    figure = _figure(left + side + right, bottom + side + top)
    width, height = figure.get_size_inches() * figure.dpi
    # The axes are a whole number of pixels per cell, so that no cell is drawn thicker than another.
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    edges = (0, len(cells) * block, len(cells) * block, 0)
    drawn = axes.imshow(cells, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest", extent=edges)
    axes.set(xlabel="dimension of view 2", ylabel="dimension of view 1")
    axes.set_title(title + (f"\nstrongest of each {block} x {block} block" if block > 1 else ""), fontsize=10)
    ticks = np.unique(np.linspace(0, d, 5).astype(int))
    axes.set(xticks=ticks, yticks=ticks)
    scale = figure.add_axes(((left + side + 16) / width, bottom / height, 14 / width, side / height))
    figure.colorbar(drawn, cax=scale, ticks=(-1, -0.5, 0, 0.5, 1))
    return _save(_pixels(figure), path)


def curves(metrics, keys=None, path=None):
    """Metrics over the steps, one panel for each of `keys`.

    Args:
      metrics: path of a `metrics.jsonl`, or its lines as dicts with "step".
      keys: names, or tuples of names that share a panel; None is every name, each in its own.
      path: where to save it.
    Raises:
      UserError: no line has one of the names.
    """
    if isinstance(metrics, str | pathlib.Path):
        metrics = metric_writers.read(pathlib.Path(metrics))
    known = sorted({name for line in metrics for name in line} - {"step"})
    panels = [(key,) if isinstance(key, str) else tuple(key) for key in (known if keys is None else keys)]
    if not panels:
        raise UserError("There are no metrics to draw; let the run write some first.")
    for name in (name for panel in panels for name in panel):
        if name not in known:
            raise UserError(f'No line of the metrics has "{name}"; there are {", ".join(known)}.')
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = _figure(420 * columns, 280 * rows + 20, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, metrics, panel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return _save(_pixels(figure), path)


def sweep(labels, series, *, axis="", less="", path=None):
    """Accuracies of several runs side by side, over their numbers where their labels are some, by name otherwise.

    Args:
      labels: of the runs.
      series: {name: [(percent, spread) or None, one a run]}; a spread of 0 has no bar.
      axis: what the labels are.
      less: "first" or "best": drawn is the difference to that run of the same series, whose own spread is left out.
      path: where to save it.
    """
    numbers = _numbers(labels)
    figure = _figure(max(420, 60 * len(labels) + 180), 340, layout="constrained")
    axes = figure.subplots()
    for k, (name, values) in enumerate(series.items()):
        drawn = [(x, *value) for x, value in zip(numbers or range(len(labels)), values, strict=True) if value]
        if less and drawn:
            zero = drawn[0][1] if less == "first" and values[0] else max(mean for _, mean, _ in drawn)
            drawn = [(x, mean - zero, spread) for x, mean, spread in drawn]
        x, mean, spread = zip(*drawn, strict=True) if drawn else ((), (), ())
        style = {
            "linestyle": "-" if numbers or less else "none",
            "marker": "os^Dv"[k % 5],
            "markersize": 5,
            "capsize": 3,
        }
        bars = spread if any(spread) else None
        axes.errorbar(x, mean, bars, color=LINES[k % len(LINES)], linewidth=1.3, label=name, **style)
    if numbers:
        if numbers[0] > 0 and numbers[-1] > 4 * numbers[0]:
            axes.set_xscale("log")
        axes.set_xticks(numbers, labels)
        axes.minorticks_off()
    else:
        axes.set_xticks(range(len(labels)), [label.replace("_", "\n") for label in labels])
    axes.set_ylabel(f"accuracy less the {less}, points" if less else "accuracy, %", fontsize=9)
    axes.set_xlabel(axis, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return _save(_pixels(figure), path)


def _numbers(labels):
    """The labels as numbers, if they are that and grow; else None."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return None
    grow = len(numbers) > 1 and all(a < b for a, b in zip(numbers, numbers[1:], strict=False))
    return numbers if grow and all(map(math.isfinite, numbers)) else None


def _panel(axes, metrics, names):
    for name, colour in zip(names, LINES * len(names), strict=False):
        points = sorted(((line["step"], line[name]) for line in metrics if name in line), key=lambda point: point[0])
        # null stands for what was not finite, and leaves a gap.
        steps, values = zip(*((s, math.nan if v is None else v) for s, v in points), strict=True)
        few = {"marker": "o", "markersize": 3} if len(steps) < 30 else {}
        axes.plot(steps, values, color=colour, linewidth=1.3, label=name, **few)
    axes.set_title(", ".join(names), fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False)


def _strongest(c):
    """c in at most MOST_CELLS blocks a side, each shown by its entry furthest from 0; and the side of a block."""
    block = math.ceil(len(c) / MOST_CELLS)
    cells = math.ceil(len(c) / block)
    c = np.pad(c, [(0, cells * block - len(c))] * 2).reshape(cells, block, cells, block)
    high, low = c.max((1, 3)), c.min((1, 3))
    return np.where(-low > high, low, high), block


def _tiles(images, like=None):
    """uint8 [..., S, S, C] -> [..., S', S', 3], S' = S or the first multiple of it from SMALLEST on.

    like: side of larger images, beside which these are enlarged by the same factor.
    """
    channels = images.shape[-1]
    if channels == 1:
        images = np.repeat(images, 3, -1)
    elif channels == 2:
        images = np.concatenate([images, np.zeros_like(images[..., :1])], -1)
    images = images[..., :3]
    zoom = max(1, math.ceil(SMALLEST / (like or images.shape[-2])))
    return images.repeat(zoom, -3).repeat(zoom, -2)


def _arrange(tiles, *, columns, gap):
    """uint8 [n, h, w, 3] -> one picture, row by row, with a gap between tiles and half a gap around all."""
    n, height, width, _ = tiles.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * columns, height + gap, width + gap, 3), PAPER, np.uint8)
    sheet[:n, gap // 2 : gap // 2 + height, gap // 2 : gap // 2 + width] = tiles
    sheet = sheet.reshape(rows, columns, height + gap, width + gap, 3).swapaxes(1, 2)
    return sheet.reshape(rows * (height + gap), columns * (width + gap), 3)


def _figure(width, height, **options):
    # Figures of their own, without pyplot: no display, no global state, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure):
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def _save(picture, path):
    if path is not None:
        from PIL import Image

        path = pathlib.Path(path)
        with writing.told(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with writing.whole(path) as unfinished:
            Image.fromarray(picture).save(unfinished, format="PNG")
    return picture
