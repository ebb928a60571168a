"""Curves as data for the page: which measures share a chart, few points that keep every extreme, few digits.

A curve of any length has at most POINTS points, and all curves of a page TOTAL: its steps fall into equal parts, and of
each the least and the greatest value stay, with the first and the last of all. So no peak is lost, and nothing is
smoothed.
"""

import math

from barlow_jax import metrics
from barlow_jax.objectives import OBJECTIVES

POINTS, TOTAL, DIGITS = 1000, 30_000, 5

TERMS = tuple(dict.fromkeys(term for objective in OBJECTIVES.values() for term in objective.terms))
ACCURACIES = ("knn", "probe", "probe_accuracy", "top1", "top5")
# Section: charts, each of measures that are of one kind. What lines have beyond these has a chart of its own.
SECTIONS = {
    "Loss": (("loss",), *((term,) for term in TERMS), ("val_loss",)),
    "What it has learned": (("knn", "probe"), ("top1", "top5"), ("effective_rank", "lidar"), ("probe_accuracy",)),
    "Embeddings": (("alignment",), ("z_std",), ("z_mean",), ("dead_dims",)),
    "Optimisation": (
        ("learning_rate_weights", "learning_rate_biases"),
        *(("grad_norm",), ("probe_loss",), ("loss_scale",), ("skipped",)),
    ),
    "Speed": (("images_per_second",), ("data_wait",)),
}
OTHERS = "More measures"
# What a line has of where it was written, or of the run as a whole.
NOT_DRAWN = ("step", "epoch", "verdict", "images", "features", "dimensions", "distinct_images", "judged_images")
TITLES = {
    "loss": "loss",
    ("knn", "probe"): "accuracy of neighbours and probe",
    ("top1", "top5"): "top-1 and top-5 accuracy",
    ("learning_rate_weights", "learning_rate_biases"): "learning rates of weights and biases",
    "knn": "accuracy of nearest neighbours",
    "probe": "accuracy of the online probe",
    "probe_accuracy": "accuracy of the probe in training",
    "probe_loss": "loss of the probe",
    ("effective_rank", "lidar"): "effective rank and LiDAR",
    "effective_rank": "effective rank",
    "lidar": "LiDAR",
    "alignment": "correlation of the two views",
    "grad_norm": "norm of the gradient",
    "learning_rate_weights": "learning rate of weights",
    "learning_rate_biases": "learning rate of biases",
    "images_per_second": "images a second",
    "data_wait": "share of time spent waiting for data",
    "dead_dims": "dead dimensions",
    "z_std": "standard deviation of the embeddings",
    "z_mean": "mean of the embeddings",
    "skipped": "steps skipped so far",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "val_loss": "loss on validation images",
}


def charts(runs):
    """The charts of runs, [{"title", "section", "kind", "names", "series", "lines"}], for web/curves.js.

    Args:
      runs: `folders.Run`s; pre-training and evaluations do not share charts.
    Returns:
      series: [{"run": its place in runs, "name", "x": differences of steps, "y": values or None}]; lines: [(name,
      value)] that are the same for all steps.
    """
    measures = [_points(run.lines) for run in runs]
    number = sum(len(of_one) for of_one in measures)
    most = max(20, min(POINTS, TOTAL // max(number, 1)))
    found = []
    for kind in dict.fromkeys(run.kind for run in runs):
        mine = {place: measures[place] for place, run in enumerate(runs) if run.kind == kind}
        for section, names in _grouped([name for of_one in mine.values() for name in of_one]):
            series = [
                {"run": place, "name": name} | coded(*reduced(*of_one[name], most))
                for place, of_one in mine.items()
                for name in names
                if name in of_one
            ]
            found.append(
                {
                    "title": TITLES.get(tuple(names)) or " and ".join(TITLES.get(name, name) for name in names),
                    "section": section,
                    "kind": kind,
                    "names": names,
                    "series": series,
                    "lines": _of_unrelated_views(names, [runs[place] for place in mine]),
                }
            )
    return found


def is_flat(chart):
    """Whether nothing in a chart ever moved, so that a sentence says as much."""
    values = {value for one in chart["series"] for value in one["y"]}
    return len(values) == 1 and all(len(one["y"]) > 1 for one in chart["series"]) and None not in values


def _points(lines):
    """{name: (steps, values)}, steps growing; of a step that is there twice the last value."""
    found = {}
    for line in lines:
        for name, value in line.items():
            if name not in NOT_DRAWN:
                found.setdefault(name, {})[line["step"]] = value
    return {name: tuple(zip(*sorted(by_step.items()), strict=True)) for name, by_step in found.items()}


def _grouped(names):
    """[(section, names of a chart)] of those that are there."""
    left = dict.fromkeys(names)
    found = []
    for section, groups in SECTIONS.items():
        for group in groups:
            there = [name for name in group if name in left]
            if there:
                found.append((section, there))
                for name in there:
                    del left[name]
    return found + [(OTHERS, [name]) for name in left]


def unrelated(config):
    """[(term, value)] of the loss if the two views had nothing to do with each other; [] where no formula says it."""
    try:
        if config.get("objective", "barlow_twins") != "barlow_twins":  # older runs had no other
            return []
        shape = config["batch_size"], config["projector"][-1], config["lambd"]
        return [*metrics.expected_at_init(*shape).items()]
    except (KeyError, IndexError, TypeError, ZeroDivisionError):  # of a config that is damaged, or not there
        return []


def _of_unrelated_views(names, runs):
    """[(what, value)] of unrelated views, where it is the same for all runs."""
    expected = {tuple(unrelated(run.config)) for run in runs}
    values = dict(expected.pop()) if len(expected) == 1 else {}
    return [("unrelated views", rounded(values[name])) for name in names if name in values]


def reduced(steps, values, most=POINTS):
    """(steps, values) with at most that many points: see above. None, of what was not finite, stays as a gap.

    Args:
      steps: growing integers; values: numbers or None; most: at least 5.
    """
    n = len(steps)
    if n > most:
        gaps = None in values
        parts = (most - 2) // (3 if gaps else 2)
        kept = {0, n - 1}
        for part in range(parts):
            inside = range(part * n // parts, (part + 1) * n // parts)
            finite = [k for k in inside if values[k] is not None]
            if finite:
                kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
            if len(finite) < len(inside):
                kept.add(next(k for k in inside if values[k] is None))
        steps, values = [steps[k] for k in sorted(kept)], [values[k] for k in sorted(kept)]
    return _without_repeats(steps, values)


def _without_repeats(steps, values):
    """Without points between two that have their value: the line is the same."""
    last = len(values) - 1
    kept = [k for k in range(len(values)) if k in (0, last) or not values[k - 1] == values[k] == values[k + 1]]
    return [steps[k] for k in kept], [values[k] for k in kept]


def coded(steps, values):
    """{"x": the first step and the differences that follow, "y": values of DIGITS digits}."""
    differences = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    return {"x": differences, "y": [rounded(value) for value in values]}


def rounded(value):
    """With DIGITS digits; whole numbers as integers, None as it is."""
    if value is None:
        return None
    value = float(f"{value:.{DIGITS}g}")
    return int(value) if value.is_integer() and math.fabs(value) < 2**53 else value
