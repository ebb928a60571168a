"""Curves of a run's metrics, and of a sweep's accuracies."""

import math
import pathlib

from barlow_jax.errors import UserError
from barlow_jax.run import metric_writers
from barlow_jax.run.pictures import paper

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


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
    figure = paper.figure(420 * columns, 280 * rows + 20, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, metrics, panel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    last = max(line["step"] for line in metrics)
    return paper.save(paper.titled(paper.pixels(figure), f"Metrics of the run, to step {last:,}"), path)


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
    figure = paper.figure(max(420, 60 * len(labels) + 180), 340, layout="constrained")
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
    title = f"Accuracy of {len(labels)} runs" + (f" over their {axis}" if axis else "")
    return paper.save(paper.titled(paper.pixels(figure), title), path)


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
