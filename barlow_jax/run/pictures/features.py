"""A map of features: every image a point, and some of them themselves."""

import numpy as np

from barlow_jax.run.pictures import paper

CELLS, CELL, FRAME = 12, 52, 2  # of a side of the map, each of so many pixels, the frame among them
LEFT, RIGHT, TOP, BOTTOM, BETWEEN = 92, 16, 26, 52, 28  # pixels around and between the two panels
NAMED = 20  # classes that get a colour and a name each; of more, colours run through the rainbow
# Okabe and Ito's colours but for the yellow, too pale for points on white, and Tol's muted ones behind them.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255"),
    *("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#F0E442", "#AA4499"),
    *("#661100", "#6699CC", "#888888"),
)
UNKNOWN = "#bbbbbb"


def spread(points):
    """Images to show on a map, one of each of its cells that holds any: the one nearest to the cell's middle.

    Args:
      points: float [n, 2].
    Returns:
      rows int [m], and their cells int [m, 2], column and row from the lower left; m is at most 144.
    """
    low, high = _limits(points)
    places = (np.asarray(points, np.float64) - low) / (high - low) * CELLS
    cells = np.clip(np.floor(places), 0, CELLS - 1).astype(int)
    distance = np.square(places - cells - 0.5).sum(1)
    order = np.lexsort((distance, cells[:, 1], cells[:, 0]))
    _, first = np.unique(cells[order] @ (1, CELLS), return_index=True)
    rows = order[first]
    return rows, cells[rows]


def features_map(points, shares, images, *, labels=None, class_names=None, width=None, path=None):
    """All images as points, and beside them those that `spread` chooses, in their cells; both on the same axes.

    Args:
      points: float [n, 2], along the principal components.
      shares: of the variance, of each of the two components.
      images: uint8 [m, S, S, C], of the rows that `spread` gives.
      labels: int [n], -1 where there is none; None: no labels.
      class_names: by number.
      width: of the features.
      path: where to save it.
    """
    from matplotlib.ticker import MaxNLocator

    points = np.asarray(points, np.float64)
    n, side = len(points), CELLS * CELL
    labels = np.full(n, -1) if labels is None else np.asarray(labels)
    classes = np.unique(labels[labels >= 0])
    colours = _colours(labels, classes)
    entries = len(classes) if 0 < len(classes) <= NAMED else 0
    lines = -(-entries // 7)  # of the legend
    legend = paper.height_of(lines) + 16 if entries else 0
    figure = paper.figure(LEFT + 2 * side + BETWEEN + RIGHT, TOP + side + BOTTOM + legend)
    over, (low, high) = figure.get_size_inches() * figure.dpi, _limits(points)
    panels = []
    for left in (LEFT, LEFT + side + BETWEEN):
        place = (left / over[0], (BOTTOM + legend) / over[1], side / over[0], side / over[1])
        axes = figure.add_axes(place, xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.set_xlabel(f"principal component 1, {100 * shares[0]:.1f} % of the variance", fontsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6))
            axis.set_major_formatter("{x:.4g}")  # of any size within the margin
        axes.tick_params(labelsize=9, labelleft=not panels)
        panels.append(axes)
    panels[0].set_ylabel(f"principal component 2, {100 * shares[1]:.1f} % of the variance", fontsize=9)
    # In an order of its own, or the last class would cover the others.
    order = np.random.default_rng(0).permutation(n)
    size, strength = np.clip(20000 / n, 2, 30), np.clip(300 / np.sqrt(n), 0.25, 0.9)
    panels[0].scatter(*points[order].T, s=size, c=colours[order], alpha=strength, linewidths=0)
    panels[0].set_title("every image a point", fontsize=10, loc="left")
    rows, cells = spread(points)
    sheet = _sheet(images, cells, colours[rows] if len(classes) else None)
    panels[1].imshow(sheet, extent=(low[0], high[0], low[1], high[1]), interpolation="nearest", aspect="auto")
    panels[1].set_title(f"{len(rows)} of them, each the nearest to the middle of its cell", fontsize=10, loc="left")
    if entries:
        _legend(figure, panels[0], labels, classes, class_names, -(-entries // lines))
    picture = paper.titled(paper.pixels(figure), *_titles(n, width, classes, labels, np.asarray(images).shape[-1]))
    return paper.save(picture, path)


def _limits(points):
    """Lower left and upper right corner of a square around all points: a unit is as long on both axes."""
    points = np.asarray(points, np.float64)
    low, high = points.min(0), points.max(0)
    half = max(float((high - low).max()) / 2, 1e-12) * 1.03
    return (low + high) / 2 - half, (low + high) / 2 + half


def _colours(labels, classes):
    """Of each image, float [n, 4]."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgba_array

    if len(classes) > NAMED:
        known = colormaps["turbo"](np.linspace(0.03, 0.97, len(classes)))
    else:
        known = to_rgba_array(COLOURS if len(classes) else [COLOURS[0]])  # without labels one colour for all
    found = np.tile(to_rgba_array(UNKNOWN if len(classes) else COLOURS[0]), (len(labels), 1))
    labelled = labels >= 0
    found[labelled] = known[np.searchsorted(classes, labels[labelled])]
    return found


def _sheet(images, cells, colours):
    """The chosen images in their cells, framed in their colours: uint8 [side, side, 3]."""
    sheet = np.full((CELLS * CELL, CELLS * CELL, 3), paper.PAPER, np.uint8)
    inside = CELL - 2 * FRAME
    for k, (image, (column, row)) in enumerate(zip(paper.tiles(images, exactly=inside), cells, strict=True)):
        top, left = (CELLS - 1 - row) * CELL, column * CELL
        if colours is not None:
            sheet[top : top + CELL, left : left + CELL] = np.rint(255 * colours[k, :3])
        sheet[top + FRAME : top + FRAME + inside, left + FRAME : left + FRAME + inside] = image
    return sheet


def _legend(figure, axes, labels, classes, names, columns):
    for k, number in enumerate(classes):
        name = names[number] if names and number < len(names) else f"class {number}"
        name = paper.shortened(name, lambda text: len(text) <= 18)
        axes.scatter([], [], s=40, color=COLOURS[k], linewidths=0, label=f"{name} ({(labels == number).sum():,})")
    found = figure.legend(
        loc="lower center", ncols=columns, fontsize=9, frameon=False, columnspacing=1.2, handletextpad=0.2
    )
    for text in found.get_texts():
        text.set_parse_math(False)  # a name may hold a dollar


def _titles(n, width, classes, labels, channels):
    of = f" of {width:,} dimensions" if width else ""
    title = f"Map of {n:,} images: the first two principal components of their features{of}"
    near = "Images that are near each other in all dimensions are near here; what is near here may be far in others."
    coloured = ""
    if len(classes) > NAMED:
        coloured = f"Colours: {len(classes):,} classes, in the order of their numbers."
    if len(classes) and np.any(labels < 0):
        coloured += " Grey: no label."
    return title, near, coloured.strip(), paper.of_channels(channels)
