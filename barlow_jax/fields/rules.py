"""What one field may hold: a Rule, and the functions that make one; Together, what several fields have to agree on.

All rules take `special`, {value: its meaning} of values that mean something of their own, in the range or not, and
`default`, what a config gets that was written before the field was there.
"""

import math
import os
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

INT32 = 2**31 - 1  # the largest number of steps, images or pixels that a program counts to
SEEDS = 2**32  # numpy's generators take seeds below

REQUIRED = object()  # in place of a default


class Rule(NamedTuple):
    """What a field may hold.

    Attributes:
      says: for people, such as "number, 0 to 1".
      problem: value -> "", or what the value should be as the end of a sentence: "must be at least 1".
      special: {value: what it means}; hashable values, tuples for lists.
      default: of configs that do not have the field, or REQUIRED.
    """

    says: str
    problem: Callable[[Any], str]
    special: dict = {}
    default: Any = REQUIRED

    def fault(self, value):
        """ "" where the value may stand, else what is to be put right: "it must be at least 1"."""
        value = tuple(value) if isinstance(value, list) else value
        if any(type(one) is type(value) and one == value for one in self.special):
            return ""
        problem = self.problem(value)
        if not problem:
            return ""
        problem = problem if problem.startswith("each ") else f"it {problem}"
        beside = {one: meaning for one, meaning in self.special.items() if self.problem(one)}
        return problem + "".join(f", or {shown(one)} ({meaning})" for one, meaning in beside.items())


class Together(NamedTuple):
    """What several fields have to agree on.

    Attributes:
      names: of the fields.
      fits: their values -> whether they do.
      remedy: the end of the sentence.
    """

    names: tuple[str, ...]
    fits: Callable[..., bool]
    remedy: str


class Table(NamedTuple):
    """All fields of a config; page: the config that comes along and has them all.

    may_be_open: names of fields that may be None until something is known which the config does not say.
    """

    page: str
    fields: dict[str, Rule]
    together: tuple[Together, ...] = ()
    may_be_open: tuple[str, ...] = ()


def number(low=None, high=None, *, above=None, below=None, special=None, default=REQUIRED):
    """A finite number in a range: low and high belong to it, above and below do not."""
    low_said = f"above {_bound(above)}" if low is None else f"at least {_bound(low)}"
    high_said = f"below {_bound(below)}" if high is None else f"at most {_bound(high)}"

    def problem(value):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a number"
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if value < low if low is not None else value <= above:
            return f"must be {low_said}"
        if value > high if high is not None else value >= below:
            return f"must be {high_said}"
        return ""

    return Rule(f"number, {low_said}, {high_said}", problem, special or {}, default)


def integer(low, high=INT32, *, special=None, default=REQUIRED):
    """A whole number from low to high."""

    def problem(value):
        if isinstance(value, bool) or not isinstance(value, int):
            return "must be a whole number"
        if value < low:
            return f"must be at least {_bound(low)}"
        return f"must be at most {_bound(high)}" if value > high else ""

    said = f"at least {low}" if high == INT32 else f"{_bound(low)} to {_bound(high)}"
    return Rule(f"whole number, {said}", problem, special or {}, default)


def choice(*values, special=None, default=REQUIRED):
    """One of some words or numbers."""

    def problem(value):
        known = any(type(one) is type(value) and one == value for one in values)
        return "" if known else f"is one of {', '.join(map(str, values))}"

    return Rule(", ".join(map(repr, values)), problem, special or {}, default)


def switch(*, default=REQUIRED):
    """True or False."""
    return Rule("True or False", lambda value: "" if isinstance(value, bool) else "must be True or False", {}, default)


def text(longest=200, *, special=None, default=REQUIRED):
    """A name in one line."""

    def problem(value):
        if not isinstance(value, str):
            return "must be text, in quotes"
        if not value.isprintable():
            return "must be one line of characters that can be printed"
        return f"must have at most {longest} characters" if len(value) > longest else ""

    return Rule("text", problem, special or {}, default)


def path(*, empty=True, special=None, default=REQUIRED):
    """The name of a file, a folder or a split; bounds are those of Linux's file systems."""

    def problem(value):
        if not isinstance(value, str):
            return "must be text, in quotes"
        if not value and not empty:
            return "must not be empty"
        try:
            encoded = os.fsencode(value)
        except UnicodeEncodeError:
            encoded = b"\0"
        if b"\0" in encoded:
            return "must be characters that the name of a file can have"
        if len(encoded) > 4095 or max(map(len, encoded.split(b"/"))) > 255:
            return "must have at most 4095 bytes, and 255 between two slashes"
        return ""

    return Rule("text" if empty else "text, not empty", problem, special or {}, default)


def several(each, low=1, high=1000, *, ascending=False, special=None, default=REQUIRED):
    """A tuple of low to high values, each by a rule."""
    count = f"{low} value{'s' * (low > 1)}" if low == high else f"{low} to {high} values"

    def problem(values):
        if not isinstance(values, tuple):
            return f"must be a tuple of {count}"
        if not low <= len(values) <= high:
            return f"must have {count}"
        wrong = next(filter(None, map(each.problem, values)), "")
        if wrong:
            return f"each {wrong}"
        if ascending and list(values) != sorted(values):
            return "must be in ascending order, (lowest, highest)"
        return ""

    return Rule(f"{count}: {each.says}{', ascending' * ascending}", problem, special or {}, default)


def pair(each, *, ascending=False, special=None, default=REQUIRED):
    """Two values; ascending: (lowest, highest)."""
    return several(each, 2, 2, ascending=ascending, special=special, default=default)


def pairs(each, *, special=None, default=REQUIRED):
    """One or more of (lowest, highest), one after the other in one tuple."""

    def problem(values):
        if not isinstance(values, tuple) or not values or len(values) % 2 or len(values) > 2000:
            return "must be a tuple of 2 values, or of 2 for each channel"
        wrong = next(filter(None, map(each.problem, values)), "")
        if wrong:
            return f"each {wrong}"
        if any(low >= high for low, high in zip(values[::2], values[1::2], strict=True)):
            return "must be in ascending order, (lowest, highest)"
        return ""

    return Rule(f"2 values, or 2 for each channel: {each.says}, ascending", problem, special or {}, default)


def shown(value):
    """A value in a sentence: one line, and not long."""
    try:
        told = _SHORT.repr(value)
    except Exception as error:  # somebody else's object, or a number of more digits than Python prints
        told = f"a {type(value).__name__} ({type(error).__name__})"
    return " ".join(told.split())


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxtuple = _SHORT.maxlist = 20


def _bound(value):
    """A bound for people: powers of two as such."""
    for power in (31, 32, 40, 50):
        if value in (2**power, 2**power - 1):
            return f"2**{power}{' - 1' * (value % 2)}"
    return f"{value:g}" if isinstance(value, float) else str(value)
