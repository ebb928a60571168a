"""docs/fields.md, printed from the tables. To write it again, in the top folder of the project:

python -c "from barlow_jax.fields import page; page.write('docs/fields.md')"
"""

import pathlib

from barlow_jax.fields import tables
from barlow_jax.fields.rules import REQUIRED

HEAD = """# Every field

What a field may hold. What it is for, and what the official code has, says the comment beside it in the config. A value
that is none of these is refused before anything is opened, in one sentence. Whole numbers are at most 2**31 - 1 where
nothing else is said; no number is nan or infinite. A config file that was written before a field was there gets its
"if absent".

This page is printed from the table that the check reads (`barlow_jax/fields/tables.py`), and a test compares the two.
"""
READERS = {
    "PRETRAINING": "Pre-training: train.py, plan",
    "LINEAR": "Linear evaluation and fine-tuning: linear_eval.py",
    "FROZEN": "Frozen features: knn, probe",
    "VOC07": "VOC2007: transfer",
}
FLAGS = {"EMBED": "Flags of embed", "EXPLORE": "Flags of explore", "PLAN": "Flags of plan"}


def markdown():
    """The text of the page."""
    parts = [HEAD]
    for name, title in READERS.items():
        table = getattr(tables, name)
        parts.append(f"## {title}\n\n`configs/{table.page}.py`, and all that start from it.\n")
        parts.append(_rows("field", table.fields, "", table.may_be_open))
        if table.together:
            parts.append("What goes together; anything else is refused with the reason that stands here:\n")
            parts.append("".join(f"- {_names(one.names)}: {one.remedy}.\n" for one in table.together))
    for name, title in FLAGS.items():
        parts.append(f"## {title}\n")
        parts.append(_rows("flag", getattr(tables, name), "--"))
    return "\n".join(parts)


def write(file):
    """Writes the page."""
    pathlib.Path(file).write_text(markdown())


def _rows(what, rules, prefix, may_be_open=()):
    lines = [f"| {what} | values | special |", "|---|---|---|"]
    for name, rule in rules.items():
        special = [f"{value!r}: {meaning}" for value, meaning in rule.special.items()]
        special += [] if rule.default is REQUIRED else [f"if absent: {rule.default!r}"]
        special += ["None: [by the images](presets.md)"] * (name in may_be_open)
        lines.append(f"| `{prefix}{name}` | {rule.says} | {'; '.join(special)} |")
    return "\n".join(lines) + "\n"


def _names(names):
    return ", ".join(f"`{name}`" for name in names)
