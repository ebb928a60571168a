"""Every field of every config: its type, its range, what its special values mean, and what it goes with.

fields.check(config, fields.PRETRAINING)    # UserError at the first value that cannot work; nothing has been opened
fields.check_flags(wanted, fields.EMBED)    # the same of a command's flags

docs/fields.md is printed from the same tables. Plain Python; a config is anything that behaves like a nested dict.
"""

from barlow_jax.fields.checks import check, check_flags, check_together, fill_in, flat, nearest
from barlow_jax.fields.rules import INT32, SEEDS, Table, Together
from barlow_jax.fields.tables import EMBED, EXPLORE, FROZEN, LINEAR, PLAN, PRETRAINING, VOC07
from barlow_jax.fields.together import DATA, VIEW

__all__ = [
    "DATA",
    "EMBED",
    "EXPLORE",
    "FROZEN",
    "INT32",
    "LINEAR",
    "PLAN",
    "PRETRAINING",
    "SEEDS",
    "VIEW",
    "VOC07",
    "Table",
    "Together",
    "check",
    "check_flags",
    "check_together",
    "fill_in",
    "flat",
    "nearest",
]
