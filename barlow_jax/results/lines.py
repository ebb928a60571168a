"""The numbers of evaluations: results.jsonl, a line of JSON for each number, in the work folder of the evaluation.

    {"protocol": "linear", "dataset": "imagenet:val", "n": 50000, "classes": 1000, "metric": "top1", "value": 0.732,
     "spread": null, "seeds": [0], "checkpoint": "runs/r50", "checkpoint_step": 625000, "baseline": "",
     "settings": {"epochs": 100}, "command": "python linear_eval.py ..."}

A file is only appended to; the same number is not written twice, by whichever command it came.
"""

import contextlib
import json
import pathlib
import shlex
import sys

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.run import json_lines, writing

FILE = "results.jsonl"
NUMBER = (int, float)
NOT_SHARES = ("effective_rank",)  # metrics that are no percentages
KEYS = {  # of what type the value of each is
    "protocol": (str,),
    "dataset": (str,),
    "n": (int,),
    "classes": (int, type(None)),
    "metric": (str,),
    "value": NUMBER,
    "spread": (*NUMBER, type(None)),
    "seeds": (list,),
    "checkpoint": (str,),
    "checkpoint_step": (int,),
    "baseline": (str,),
    "settings": (dict,),
    "command": (str,),
}


def line(subject, *, protocol, dataset, n, classes, metric, values, seeds, **settings):
    """One number as it goes into the file.

    Args:
      subject: `evaluation.subject.Subject` of what was judged.
      protocol: by which rules, such as "linear" or "knn"; see published.RESULTS.
      dataset, n, classes: name of the test images, how many counted, of how many classes.
      metric: such as "top1".
      values: the number for each of `seeds`; several give their mean, and as spread their standard deviation (n - 1).
      settings: whatever else tells this number from others by the same protocol. Of a run with an average of its
        weights "ema" is there too, and says whether it or the last ones were judged.
    """
    values = np.asarray(values, np.float64)
    return {
        "protocol": protocol,
        "dataset": dataset,
        "n": n,
        "classes": classes,
        "metric": metric,
        "value": float(values.mean()),
        "spread": float(values.std(ddof=1)) if len(values) > 1 else None,
        "seeds": list(seeds),
        "checkpoint": subject.path,
        "checkpoint_step": subject.step,
        "baseline": subject.baseline,
        "settings": settings | ({"ema": subject.ema} if subject.ema else {}),
        "command": typed(),
    }


def append(workdir, lines):
    """Adds those of the lines to workdir/results.jsonl that it does not have; call it on process 0."""
    file = pathlib.Path(workdir) / FILE

    def fresh():
        there = [_without_command(line) for line in read(file)]
        return [json.dumps(new) for new in lines if _without_command(json.loads(json.dumps(new))) not in there]

    if fresh():  # else nothing is written, nor asked of the folder
        writing.append(file, fresh)


def read(file):
    """The lines of a results.jsonl, [] if there is none; UserError names a line that is none of ours."""
    found = []
    for number, (_, told) in enumerate(json_lines.read(file), 1):
        if not _is_ours(told):
            raise UserError(f"Line {number} of {file} is no result; remove it.")
        found.append(told)
    return found


def _is_ours(line):
    """Whether what stands in a line is of the types that `line` writes, to the depth that anybody reads."""
    if not (isinstance(line, dict) and line.keys() >= {*KEYS}):
        return False
    numbers = [x for x in (*line.values(), *line["seeds"]) if type(x) is int] if type(line["seeds"]) is list else []
    return (
        all(type(line[name]) in types for name, types in KEYS.items())
        and all(type(seed) is int for seed in line["seeds"])
        and all(type(text) is str for text in _departures(line))
        and all(abs(number) < 2**63 for number in numbers)
    )


def _departures(line):
    found = line["settings"].get("departures", [])
    return found if type(found) is list else [None]


def _without_command(line):
    return {name: value for name, value in line.items() if name != "command"}


def newest(lines):
    """One line for each number: the last one written, and of seeds alone and together those together."""
    numbers = {}
    for line in lines:
        settings = {k: v for k, v in line["settings"].items() if not isinstance(v, list) or k == "departures"}
        told_by = ("protocol", "dataset", "n", "classes", "metric", "checkpoint", "checkpoint_step", "baseline")
        key = repr([line[name] for name in told_by] + sorted(settings.items()))
        numbers.setdefault(key, {})[frozenset(line["seeds"])] = line
    return [
        line
        for by_seeds in numbers.values()
        for seeds, line in by_seeds.items()
        if not any(seeds < others for others in by_seeds)
    ]


def cells(line, mark=""):
    """(evaluation, test images, metric, value) of a line as texts, the value with its spread, shares in percent.

    Args:
      mark: of a note, behind the evaluation.
    """
    shown = {k: v for k, v in line["settings"].items() if isinstance(v, str | int | float) and "train" not in k}
    kind = shown.pop("result", "")
    details = [*([kind] if kind else []), *(f"{name} {value}" for name, value in shown.items())]
    seeds = [f"{len(line['seeds'])} seeds"] if len(line["seeds"]) > 1 else []
    evaluation = ", ".join([line["protocol"], *details, *seeds]) + mark
    classes = f" of {line['classes']} classes" if line["classes"] else ""
    value = number(line["value"], line["metric"])
    if line["spread"] is not None:
        value += f" +- {number(line['spread'], line['metric'])}"
    return evaluation, f"{line['dataset']}, {line['n']} images{classes}", line["metric"], value


def number(value, metric, digits=2):
    """Shares in percent, anything else as it is."""
    return f"{value:.{digits}f}" if metric in NOT_SHARES else f"{100 * value:.{digits}f}"


_told = []  # by `commanded`


@contextlib.contextmanager
def commanded(text):
    """Inside it lines name this text as their command, in place of what was typed: for a call in a notebook."""
    _told.append(text)
    try:
        yield
    finally:
        _told.pop()


def typed():
    """What was typed, or called: a module of ours as python -m barlow_jax.NAME."""
    if _told:
        return _told[-1]
    program = pathlib.Path(sys.argv[0])
    package = pathlib.Path(__file__).parents[1]
    if program.suffix != ".py":  # the installed command, a program of its own
        return shlex.join([program.name, *sys.argv[1:]])
    own = program.resolve().parent == package
    words = ["-m", f"{package.name}.{program.stem}", *sys.argv[1:]] if own else sys.argv
    return shlex.join(["python", *words])
