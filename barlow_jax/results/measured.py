"""What the metrics of a run say, in units that do not depend on the size of its batches and embeddings.

    found = measures(lines, config)
    found.now.apart         # 0.08: on_diag, beside what unrelated views would give

Pure functions of the lines of a metrics.jsonl and of a config.json. docs/watching.md derives the units: from N, the
images of a batch, from D, the dimensions of the embeddings, and from the run's own first step, when nothing was learnt.
"""

import math
import statistics
from typing import NamedTuple

from barlow_jax import metrics

MOST = 8192  # dimensions of c that `pretrain.make_inspect_step` looks at
MOST_LINES, NEWEST = 1000, 50  # that `thinned` keeps, the newest all of them
# Standard deviations that a number must be away from chance.
BEYOND = 2


class Look(NamedTuple):
    """c of one time of the run."""

    step: int
    apart: float  # on_diag beside what unrelated views would give: 1 is unrelated, 0 is the same
    noise: float  # off_diag beside its noise floor: 1 is what independent dimensions give at this N
    alignment: float  # mean c_ii, or if it is not
    measured: bool  # then, from on_diag, what it is at least
    directions: float | None  # on which the views agree, of D; None where they agree no more than chance

    @property
    def miss(self):
        """By how much c_ii falls short of 1, as a root mean square: 1 is unrelated, 0 is the same."""
        return math.sqrt(self.apart)


class Measures(NamedTuple):
    """What a verdict is made of; None is not measured."""

    step: int
    n: int
    d: int | None
    start: Look | None
    now: Look | None
    dead: float | None  # dimensions, now
    dead_at_start: float | None
    first: dict  # scores of the evaluation before the first step
    last: dict  # and of the newest one


def measures(lines, config):
    """The numbers of a run so far.

    Args:
      lines: of its metrics.jsonl, dicts with "step", None standing for what was not finite.
      config: nested dict, as in config.json.
    """
    step = max((line["step"] for line in lines), default=0)
    first = _merged([line for line in lines if "images" in line])
    evaluated = [line for line in lines if "effective_rank" in line and "images" not in line]
    n, d = config["batch_size"], (list(config["projector"]) or [first.get("dimensions")])[-1]
    at_start, now = (
        [line for line in lines if _is_of_start(line)],
        recent(lines, _terms(config)[0], "dead_dims"),
    )
    return Measures(
        step=step,
        n=n,
        d=d and int(d),
        start=_look(at_start, n, d, config),
        now=_look(now, n, d, config),
        dead=median(now, "dead_dims"),
        dead_at_start=median(at_start, "dead_dims"),
        first=first,
        last=_merged(evaluated[-1:]),
    )


def thinned(lines):
    """The lines, or of more than twice MOST_LINES about so many: for a run that asks for its verdict each epoch.

    A verdict looks at all lines, so that those of E epochs would cost E^2. What is kept is the first step, the newest
    lines and the newest that has each name, and of the others as many evenly spaced as are enough for medians of the
    last tenth. Lines that were thinned before are older, so that what is recent stays dense.
    """
    n = len(lines)
    if n <= 2 * MOST_LINES:
        return lines
    kept = {k for k, line in enumerate(lines) if _is_of_start(line)} | {*range(n - NEWEST, n)}
    kept |= {*range(0, n, -(-n // MOST_LINES)), *{name: k for k, line in enumerate(lines) for name in line}.values()}
    return [lines[k] for k in sorted(kept)]


def _is_of_start(line):
    """Whether a line is of the first step, or of the evaluation before it."""
    return line["step"] <= 1 or "images" in line


def entry(n):
    """The standard error of one entry of c, of two columns that have nothing to do with each other: the yardstick."""
    return 1 / math.sqrt(n - 1)


def recent(lines, *names):
    """The lines of the last tenth of the steps that were done, and the newest that has each name in any case."""
    step = max((line["step"] for line in lines), default=0)
    trained = [line for line in lines if not _is_of_start(line)]
    found = [line for line in trained if line["step"] > 0.9 * step]
    for name in names:
        if not any(name in line for line in found):
            found += [line for line in trained if name in line][-1:]
    return found


def median(lines, name):
    """Of the finite values under a name, or None."""
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.median(values) if values else None


def _merged(lines):
    return {name: value for line in lines for name, value in line.items() if value is not None}


def _terms(config):
    """The names of c's two terms: those of the loss in each step or, of another objective, as evaluations find them."""
    own = config.get("objective", "barlow_twins") == "barlow_twins"
    return ("on_diag", "off_diag") if own else ("c_on_diag", "c_off_diag")


def _look(lines, n, d, config):
    names = _terms(config)
    on, off = (median(lines, name) for name in names)
    if on is None or off is None or not d or d < 2 or n < 3:
        return None
    d = min(d, MOST) if names[0] == "c_on_diag" else d
    unrelated = metrics.expected_at_init(n, d, 0.0)
    # The mean of (1 - c_ii)^2 is at least the square of the mean: at least this is c_ii on average, and taken as this.
    least = 1 - math.sqrt(on / d)
    # (sum of c_ii)^2 / sum of c_ij^2, without the noise of c: of a covariance that has k equal eigenvalues it is k.
    squares = d * least**2 + max(off - unrelated["off_diag"], 0.0)
    directions = min(max((d * least) ** 2 / squares, 1.0), float(d)) if least > BEYOND * entry(n) else None
    alignment = median(lines, "alignment")
    return Look(
        step=max(line["step"] for line in lines),
        apart=on / unrelated["on_diag"],
        noise=off / unrelated["off_diag"],
        alignment=least if alignment is None else alignment,
        measured=alignment is not None,
        directions=directions,
    )
