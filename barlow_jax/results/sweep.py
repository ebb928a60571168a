"""What a sweep has found: one number a member and evaluation over its seeds, the table beside the paper's, pictures.

found = collect({"table6:both": {0: "runs/table6/table6_both/seed_0", 1: ...}})
print(markdown(found, ["table6:baseline", "table6:both"]))
"""

import math
import pathlib
from types import SimpleNamespace

from barlow_jax.results import plain, published
from barlow_jax.results.lines import FILE, line, read
from barlow_jax.run import pictures

RANK, TOP5 = "effective rank", "linear, top-5"
METRICS = {"top1": "top-1", "top5": "top-5"}  # as people write them
BASELINES = {"random": "not trained", "pixels": "pixels"}


def collect(folders):
    """{member: [its lines over seeds]}; of what was judged in a member's place, under the names in BASELINES.

    A number of several runs is their mean, and its spread their standard deviation (n - 1); what is left of a number
    that was written twice is the later. Runs that have no results yet are left out.

    Args:
      folders: {member: {seed of the pre-training: folder of the run}}.
    """
    found = {}
    for member, runs in folders.items():
        numbers = {}
        for seed, folder in runs.items():
            for one in _lines_of(folder):
                numbers.setdefault(_key(one), {})[seed] = one
        for by_seed in numbers.values():
            together = _together(member, pathlib.Path(next(iter(runs.values()))).parent, by_seed)
            found.setdefault(BASELINES.get(together["baseline"], member), []).append(together)
    last = [name for name in BASELINES.values() if name in found]
    return {name: found[name] for name in [*(n for n in found if n not in last), *last]}


def _lines_of(folder):
    files = sorted(pathlib.Path(folder).expanduser().glob(f"*/{FILE}"))  # not those of each seed of an evaluation
    return [one for file in files for one in read(file)]


def _key(one):
    """What tells a number from the others of its run."""
    told_by = ("protocol", "dataset", "n", "classes", "metric", "baseline")
    scalars = {name: value for name, value in one["settings"].items() if not isinstance(value, list)}
    return repr([one[name] for name in told_by] + sorted(scalars.items()))


def _together(member, folder, by_seed):
    """One line for a number of several seeds, {seed: its line}; a run that is not as far as the others is left out."""
    furthest = max(one["checkpoint_step"] for one in by_seed.values())
    by_seed = {seed: one for seed, one in by_seed.items() if one["checkpoint_step"] == furthest}
    first = next(iter(by_seed.values()))
    kept = {n: v for n, v in first["settings"].items() if not isinstance(v, list) or n == "departures"}
    return line(
        SimpleNamespace(path=str(folder), step=furthest, baseline=first["baseline"], ema=""),  # in `kept`
        **{name: first[name] for name in ("protocol", "dataset", "n", "classes", "metric")},
        values=[one["value"] for one in by_seed.values()],
        seeds=list(by_seed),
        **(kept | {"member": member}),
    )


def columns(found):
    """{title: what its lines have} of what has a column: of all k 20, or the largest where there is none.

    What was judged on several sets has a column for each.
    """
    every = [one for lines in found.values() for one in lines]
    ks = {one["settings"]["k"] for one in every if one["protocol"] == "knn"}
    k = 20 if 20 in ks else max(ks, default=20)
    usual = {
        f"{k}-NN": {"protocol": "knn", "metric": "top1", "k": k},
        "fast probe": {"protocol": "fast probe", "metric": "top1"},
        "linear, top-1": {"protocol": "linear", "metric": "top1", "result": "last"},
        TOP5: {"protocol": "linear", "metric": "top5", "result": "last"},
        RANK: {"protocol": "effective rank", "metric": "effective_rank"},
    }
    known = {"few-shot"} | {wanted["protocol"] for wanted in usual.values()}
    for one in every:
        if one["protocol"] not in known:  # semi-supervised, transfer and the like
            last = {"result": "last"} if "result" in one["settings"] else {}
            title = f"{one['protocol']}, {METRICS.get(one['metric'], one['metric'])}"
            usual[title] = {"protocol": one["protocol"], "metric": one["metric"]} | last
    shown = {}
    for title, wanted in usual.items():
        sets = dict.fromkeys(one["dataset"] for one in every if _fits(one, wanted))
        for dataset in sets if len(sets) > 1 else ():
            shown[f"{title}, {dataset}"] = wanted | {"dataset": dataset}
        if len(sets) <= 1:
            shown[title] = wanted
    return shown


def _fits(one, wanted):
    """Whether a line has what a column wants."""
    return all(one.get(key, one["settings"].get(key)) == value for key, value in wanted.items())


def cell(found, name, title):
    """(mean, spread or None, seeds) of a member in a column, or None where there is none."""
    wanted = columns(found)[title]
    for one in found.get(name, ()):
        if _fits(one, wanted):
            return one["value"], one["spread"], len(one["seeds"])
    return None


def titles(found):
    """The columns in which anybody has a number."""
    return [title for title in columns(found) if any(cell(found, name, title) for name in found)]


def markdown(found, members):
    """The table: a row a member, in this order, also of those without a number; below it what the numbers rest on.

    Args:
      found: as `collect` gives it.
      members: names of all.
    """
    shown = titles(found)
    theirs = any(name in published.ABLATIONS for name in members)
    head = ["", *shown, *(["paper, top-1", "paper, top-5"] if theirs else [])]
    most = max((cell(found, n, t)[2] for n in found for t in shown if cell(found, n, t)), default=1)
    rows = []
    for name in [*members, *(name for name in found if name not in members)]:
        mine = [_text(cell(found, name, title), title, most) for title in shown]
        paper = ["" if x is None else f"{100 * x:.1f}" for x in published.ABLATIONS.get(name, (None, None))]
        rows.append([name, *mine, *(paper if theirs else [])])
    return "\n".join([plain.markdown(head, rows), "", *_notes(found, most)]) + "\n"


def _text(value, title, most):
    if value is None:
        return ""
    scale = 1 if title.startswith(RANK) else 100
    mean, spread, seeds = value
    few = f" ({seeds} of {most} seeds)" if seeds < most else ""
    return f"{scale * mean:.1f}" + ("" if spread is None else f" +- {scale * spread:.1f}") + few


def _notes(found, most):
    """What the numbers rest on: seeds, test images, departures from the protocols."""
    every = [one for lines in found.values() for one in lines]
    notes = [f"Mean and standard deviation over {most} seeds of the pre-training."] if most > 1 else []
    for dataset, n in sorted({(one["dataset"], one["n"]) for one in every if one["metric"] == "top1"}):
        error = 50 / math.sqrt(n)
        notes.append(f"{dataset}: {n} images; a share of them has a standard error of up to {error:.1f} points.")
    departed = {(one["protocol"], tuple(one["settings"].get("departures", ()))) for one in every}
    return notes + [f"Not as {name} has it: {', '.join(what)}." for name, what in sorted(departed) if what]


def draw(found, members, folder):
    """The pictures, one for each table or figure among the members: the paths of what was written."""
    groups = {}
    for name in members:
        groups.setdefault(name.partition(":")[0] if ":" in name else "sweep", []).append(name)
    shown = [title for title in titles(found) if not title.startswith(RANK) and "top-5" not in title]
    written = []
    for group, names in groups.items():
        figure = published.FIGURES.get(group, published.Figure(""))
        series = {
            title: [
                None if (c := cell(found, name, title)) is None else (100 * c[0], 100 * (c[1] or 0)) for name in names
            ]
            for title in shown
        }
        paper = [100 * published.ABLATIONS[n][0] if n in published.ABLATIONS else None for n in names]
        if sum(value is not None for value in paper) > 1:
            series["paper, linear on ImageNet"] = [None if value is None else (value, 0) for value in paper]
        if any(value for values in series.values() for value in values):
            path = pathlib.Path(folder) / f"{group}.png"
            labels = [name.partition(":")[2] or name for name in names]
            pictures.sweep(labels, series, axis=figure.axis, less=figure.less, path=path)
            written.append(path)
    return written
