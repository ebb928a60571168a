"""The configs of runs beside those that come along: what differs, and the line that gives the same again."""

import json
import shlex

from barlow_jax.fields import flat
from barlow_jax.results import folders, published
from barlow_jax.results.markup import DASH, table, text
from barlow_jax.run import config_files


def compared(runs):
    """What differs from the config as published, and the rest folded; evaluations beside configs/linear.py."""
    shown = ""
    for kind, base in ((folders.TRAINING, "barlow_twins"), (folders.EVALUATION, "linear")):
        mine = [run for run in runs if run.kind == kind and run.config]
        if mine:
            title = "" if kind == folders.TRAINING else "<h3>Of evaluations</h3>"
            shown += title + _beside(mine, base)
    return shown


def _beside(runs, base):
    """The table of fields that some run has otherwise than a config that comes along, and that of all others."""
    given = flat(json.loads(json.dumps(config_files.load(base).to_dict())))
    mine = [flat(run.config) for run in runs]
    # What was published first, in its order; then what has no counterpart there.
    names = dict.fromkeys([*given, *(name for fields in mine for name in fields)])
    names = [*(name for name in published.VALUES if name in names), *(n for n in names if n not in published.VALUES)]
    changed = [name for name in names if any(name in fields and _differs(name, fields, given) for fields in mine)]
    same = [name for name in names if name not in changed]

    def row(name):
        cells = [_value(fields[name]) if name in fields else DASH for fields in mine]
        marked = [
            f"<b>{cell}</b>" if name in fields and _differs(name, fields, given) else cell
            for cell, fields in zip(cells, mine, strict=True)
        ]
        field = text(name).replace("_", "_<wbr>")  # where a narrow screen may break it
        return [f"<code>{field}</code>", _value(given[name]) if name in given else DASH, *marked]

    head = ["field", "published" if base == "barlow_twins" else text(base)]
    head += [text(run.name) for run in runs] if len(runs) > 1 else ["here"]
    rest = (
        f"<details><summary>{len(same)} fields as in configs/{text(base)}.py</summary>"
        f"{table(head, map(row, same), 'fields')}</details>"
    )
    half = (len(changed) + 1) // 2 if len(runs) == 1 else len(changed)  # of one run two columns of fields
    columns = "".join(table(head, map(row, some), "fields") for some in (changed[:half], changed[half:]) if some)
    arranged = f'<div class="{"pair" if len(runs) == 1 else "wide"}">{columns}</div>'
    return (arranged if changed else "<p>Nothing differs.</p>") + rest


def _differs(name, fields, given):
    return name not in given or fields[name] != given[name]


def _value(value):
    """A value of a config.json for the eye: lists are tuples, of numbers six digits."""
    if isinstance(value, list):
        shown = f"({', '.join(map(_one, value))}{',' if len(value) == 1 else ''})"
    else:
        shown = _one(value)
    return f"<code>{text(shown)}</code>"


def _one(value):
    return f"{value:.6g}" if isinstance(value, float) else str(value) if value != "" else "''"


def _typed(value):
    """As one would type it behind --config.FIELD=."""
    return value if isinstance(value, str) else repr(tuple(value) if isinstance(value, list) else value)


def reproduced(run):
    """Of a run that kept no line: one with every field that differs from the published config."""
    if run.kind != folders.TRAINING or not run.config:
        return []
    given = flat(json.loads(json.dumps(config_files.load("barlow_twins").to_dict())))
    fields = {name: value for name, value in flat(run.config).items() if given.get(name) != value}
    words = [f"--config.{name}={_typed(value)}" for name, value in fields.items()]
    return [shlex.join(["python", "train.py", "--config=barlow_twins", *words, f"--workdir={run.folder}"])]
