"""Does a run learn? A verdict on its metrics, with the measured numbers, the thresholds and what to change.

    lines = metric_writers.read(workdir / "metrics.jsonl")
    judge(lines, config).name       # "learning"

Pure functions of the lines of a metrics.jsonl and of a config.json. docs/watching.md derives every threshold: from N, the
images of a batch, from D, the dimensions of the embeddings, and from the run's own first step, when nothing was learnt.
Where a measure is not there, as in older runs, the verdict says so and does without it.
"""

import math
import statistics
from typing import NamedTuple

from barlow_jax import metrics

EARLY, LEARNING, COLLAPSED = "too early to say", "learning", "collapsed"
OVERFITTED, STARVED, ILL = "overfitted to augmentation", "data-starved", "numerically ill"
NAMES = (EARLY, LEARNING, COLLAPSED, OVERFITTED, STARVED, ILL)  # their places are what metrics.jsonl has
FAILED = (COLLAPSED, OVERFITTED, STARVED, ILL)

# Standard deviations that a number must be beyond chance.
BEYOND = 2
# float16's loss scale by itself withholds so many updates: from 2**16 down to 1, then one in 2000 (training/loss_scale).
SCALE_HALVINGS, SCALE_EVERY = 16, 2000
# Of the network's arithmetic: the spacing of numbers next to 1.
SPACING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


class Verdict(NamedTuple):
    """One of NAMES, with sentences: why (numbers and thresholds), and what to change (fields as config.X)."""

    name: str
    reasons: tuple[str, ...]
    remedies: tuple[str, ...]


class Look(NamedTuple):
    """The loss's two terms at one time of the run, in units that do not depend on N and D; see docs/watching.md."""

    step: int
    apart: float  # mean (1 - c_ii)^2 beside what unrelated views would give: 1 is unrelated, 0 the same
    noise: float  # off_diag beside its noise floor: 1 is what independent dimensions give at this N
    alignment: float  # mean c_ii, as measured or, from on_diag, what it is at least
    directions: float | None  # how many directions the views share, of D; None where they share nothing


class Measures(NamedTuple):
    """What `judge` looks at; None is not measured."""

    step: int
    n: int
    d: int | None
    start: Look | None
    now: Look | None
    dead: float | None  # dimensions that are dead now
    dead_at_start: float | None
    first: dict  # scores of the evaluation before the first step
    last: dict  # of the newest one


def judge(lines, config):
    """The verdict on a run so far.

    Args:
      lines: of its metrics.jsonl, dicts with "step", None standing for what was not finite.
      config: nested dict, as in config.json; of older runs with fewer fields.
    """
    found = measures(lines, config)
    for rule in (_numbers, _images, _too_early, _dead, _apart, _few_directions, _nothing_to_learn, _labels, _learns):
        verdict = rule(found, lines, config)
        if verdict:
            return verdict
    return Verdict(EARLY, (_unknown(found),), ())


def measures(lines, config):
    """The numbers of a run that its verdict is made of, as `Measures`; arguments as in `judge`."""
    step = max((line["step"] for line in lines), default=0)
    first = _merged([line for line in lines if line["step"] == 0])
    last = _merged([line for line in lines if line["step"] > 0 and "effective_rank" in line][-1:])
    n, d = config["batch_size"], (list(config["projector"]) or [first.get("dimensions")])[-1]
    at_start, recent = [line for line in lines if line["step"] <= 1], _recent(lines, step)
    return Measures(
        step=step,
        n=n,
        d=d and int(d),
        start=_look(at_start, n, d, config),
        now=_look(recent, n, d, config) if step > 1 else None,
        dead=_median(recent, "dead_dims"),
        dead_at_start=_median(at_start, "dead_dims"),
        first=first,
        last=last,
    )


def _merged(lines):
    return {name: value for line in lines for name, value in line.items() if value is not None}


def _recent(lines, step):
    """The lines of the last tenth of the steps that were done, and the newest of each kind in any case."""
    recent = [line for line in lines if line["step"] > max(1, 0.9 * step)]
    for name in ("on_diag", "c_on_diag", "dead_dims"):
        if not any(name in line for line in recent):
            recent += [line for line in lines if name in line and line["step"] > 1][-1:]
    return recent


def _median(lines, name):
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.median(values) if values else None


def _look(lines, n, d, config):
    """The terms as the loss of each step has them, or of another objective as the evaluations measured them."""
    own = config.get("objective", "barlow_twins") == "barlow_twins"
    on, off = (_median(lines, name if own else f"c_{name}") for name in ("on_diag", "off_diag"))
    if on is None or off is None or not d or n < 3:
        return None
    d = d if own else min(d, 8192)  # what is measured of c, see pretrain.make_inspect_step
    expected = metrics.expected_at_init(n, d, 0.0)
    alignment = _median(lines, "alignment")
    if alignment is None:
        # The mean of (1 - c_ii)^2 is at least the square of the mean.
        alignment = 1 - math.sqrt(on / d)
    floor = max(expected["off_diag"], 1e-9)
    shared = on - d + 2 * d * alignment + max(off - floor, 0)  # sum of c_ij^2, less noise
    clear = alignment > BEYOND / math.sqrt(n - 1)
    directions = (d * alignment) ** 2 / shared if clear and shared > 0 else None
    step = max(line["step"] for line in lines)
    return Look(step, on / expected["on_diag"], off / floor, alignment, directions and min(max(directions, 1.0), d))


# Rules, in the order in which they are asked: (Measures, lines, config) -> Verdict or None.


def _numbers(found, lines, config):
    """Steps that were not finite, and embeddings whose differences drown in their mean."""
    half = [line for line in lines if line["step"] >= found.step / 2 and line.get("skipped") is not None]
    if half:
        steps = half[-1]["step"] - half[0]["step"]
        skipped, most = half[-1]["skipped"] - half[0]["skipped"], SCALE_HALVINGS + steps / SCALE_EVERY
        if skipped > most:
            said = (
                f"{skipped:.0f} of the last {steps} updates were not finite and were left out; a healthy float16 run "
                f"leaves out {most:.0f} at most."
            )
            return Verdict(ILL, (said,), (_slower(config), "Set config.precision to float32."))
    if any(name in lines[-1] and lines[-1][name] is None for name in ("loss", "grad_norm")):
        said = f"The loss or its gradient at step {lines[-1]['step']} is not finite."
        return Verdict(ILL, (said,), (_slower(config), "Set config.precision to float32."))
    recent = _recent(lines, found.step)
    mean, std = _median(recent, "z_mean"), _median(recent, "z_std")
    spacing = SPACING[config.get("precision", "float32")]
    if mean and std is not None and std < spacing * mean and not _all_dead_at_start(found):
        said = (
            f"Embeddings differ between images by {std:.3g} around a mean of {mean:.3g}, which is less than the spacing "
            f"of {config['precision']} numbers there, {spacing * mean:.3g}."
        )
        return Verdict(ILL, (said,), ("Set config.precision to float32.", _slower(config)))
    return None


def _all_dead_at_start(found):
    return bool(found.d) and found.dead_at_start == found.d


def _images(found, lines, config):
    """Images that are all the same, or fewer than the rows of a batch."""
    look = "Look at views.png in the work folder and at config.data.path."
    if _all_dead_at_start(found):
        said = (
            f"At step 1, before anything was learnt, all {found.d} dimensions had the same value for every image: the "
            "images are all alike, black perhaps."
        )
        return Verdict(STARVED, (said,), (look,))
    distinct = found.first.get("distinct_images", found.last.get("distinct_images"))
    if distinct is not None and distinct < 2:
        return Verdict(STARVED, ("All images that were evaluated are one and the same image.",), (look,))
    images = found.first.get("images")
    if images is not None and images < found.n:
        said = f"There are {images} images and a batch has {found.n} rows, so that it takes copies for other images."
        return Verdict(STARVED, (said,), (f"Lower config.batch_size to {images} or less, or give more images.",))
    chance = _chance(found.n)
    unrelated = [one and one.apart > 1 - chance for one in (found.start, found.now)]
    if distinct is None and all(unrelated):
        said = (
            f"Two views of an image were no more alike than views of different images at step 1 and are not now "
            f"(on_diag {found.start.apart:.2f} and {found.now.apart:.2f} of what unrelated views give; below "
            f"{1 - chance:.2f} would be more than chance for {found.n} images): all images may be one, or the views "
            "leave nothing of them. How many differ was not measured."
        )
        remedy = "Raise the lower end of config.views.crop_scale, or lower config.views.jitter."
        return Verdict(STARVED, (said,), (look, remedy))
    return None


def _chance(n):
    """By how much on_diag over its expectation can be off by chance; see docs/watching.md."""
    return BEYOND / math.sqrt(n - 1)


def _too_early(found, lines, config):
    """Inside the warm-up, or as long again after it: what moves then goes the other way later."""
    rates = [line["learning_rate_weights"] for line in lines if line.get("learning_rate_weights") is not None]
    warmup, epochs = config.get("warmup_epochs", 0), config["epochs"]
    if found.now is None and found.dead is None:
        return Verdict(EARLY, (_unknown(found),), ())
    if not rates or not warmup or warmup >= epochs:
        return None
    peak = config["optimizer"]["learning_rate_weights"] * found.n / 256
    if rates[-1] >= max(rates) and rates[-1] < 0.99 * peak:
        said = (
            f"The learning rate still rises ({rates[-1]:.3g} of {peak:.3g}); measures of the warm-up say little about "
            f"the run (config.warmup_epochs is {warmup})."
        )
        return Verdict(EARLY, (said,), ())
    return None


def _dead(found, lines, config):
    if found.dead is None or not found.d:
        return None
    most = found.d / math.sqrt(found.n - 1)
    if found.dead <= most:
        return None
    said = (
        f"{found.dead:.0f} of {found.d} dimensions are dead (variance below {metrics.DEAD_VARIANCE:g}); more than "
        f"{most:.0f} lower the mean of c's diagonal by more than the noise of one entry at {found.n} images."
    )
    return Verdict(COLLAPSED, (said,), (_slower(config), "Raise config.warmup_epochs."))


def _apart(found, lines, config):
    """The views of an image are no more alike than when nothing was learnt."""
    if not (found.start and found.now) or found.now.apart < found.start.apart:
        return None
    said = (
        f"The two views of an image are no more alike than before the first step: on_diag is {found.now.apart:.2f} of "
        f"what unrelated views give, and was {found.start.apart:.2f}."
    )
    # Where the noise of off_diag alone weighs more than all of on_diag, the network does best to give up on the views.
    weight = config["lambd"] * (found.d - 1) / found.n
    if weight > 1:
        remedy = (
            f"Lower config.lambd: at {config['lambd']:g} the noise of off_diag weighs {weight:.2g} times what unrelated "
            f"views give on the diagonal; 0.0051 at 8192 dimensions and batches of 2048 is 0.02."
        )
        return Verdict(COLLAPSED, (said,), (remedy,))
    return Verdict(COLLAPSED, (said,), (_slower(config), "Raise config.warmup_epochs."))


def _few_directions(found, lines, config):
    """The views agree, on fewer directions than the untrained network has."""
    if not (found.start and found.now and found.start.directions and found.now.directions):
        return None
    if found.now.directions >= found.start.directions:
        return None
    said = (
        f"The views agree on {found.now.directions:.1f} directions of {found.d} dimensions, fewer than the "
        f"{found.start.directions:.1f} of the network before the first step: the dimensions repeat each other."
    )
    return Verdict(COLLAPSED, (said,), ("Raise config.lambd (0.0051 for 8192 dimensions, 0.03 for 512).",))


def _nothing_to_learn(found, lines, config):
    """Views that agree before anything was learnt ask nothing of the network."""
    if not found.start or found.start.apart > 1 / (found.n - 1):
        return None
    said = (
        f"The two views of an image were the same to the network at step 1 already: on_diag was "
        f"{found.start.apart:.2g} of what unrelated views give, below the noise {1 / (found.n - 1):.2g} of one entry of "
        f"c at {found.n} images, so that there was nothing to learn."
    )
    remedies = (
        "Make the views differ: config.views.crop_scale from (0.08, 1.0), config.views.jitter 0.8, "
        "config.views.grayscale 0.2, config.views.blur (1.0, 0.1), as published.",
    )
    return Verdict(OVERFITTED, (said,), remedies)


def _labels(found, lines, config):
    """What the views agree on, labels say whether it is worth anything."""
    before, now, n = found.first.get("knn"), found.last.get("knn"), found.first.get("judged_images")
    if None in (before, now, n) or n < 2 or not _better(found):
        return None
    error = math.sqrt((before * (1 - before) + now * (1 - now)) / n)
    told = (
        f"The {config['eval']['knn_k']} nearest neighbours give {now:.1%} of {n} labels and gave {before:.1%} before the "
        f"first step; chance explains {BEYOND * error:.1%}"
    )
    if now < before - BEYOND * error:
        said = f"The views agree better than at the start, on what the labels do not ask for. {told}."
        remedies = ("Let views differ in what labels do not depend on: config.views.jitter, config.views.crop_scale.",)
        return Verdict(OVERFITTED, (said,), remedies)
    if now <= before + BEYOND * error:
        return Verdict(EARLY, (f"The loss falls, and labels do not show it yet. {told}.",), ())
    return Verdict(LEARNING, (_progress(found), f"{told}."), ())


def _better(found):
    return bool(found.start and found.now) and found.now.apart < found.start.apart


def _learns(found, lines, config):
    if not _better(found):
        return None
    by = found.start.apart - found.now.apart
    if by <= _chance(found.n) * found.start.apart:
        return None
    known = "" if "knn" in found.last else " There are no labels to say what it is worth."
    if "knn" in found.last and "knn" not in found.first:
        known = " kNN of the untrained network was not measured in this run, so labels say nothing here."
    return Verdict(LEARNING, (_progress(found) + known,), ())


def _progress(found):
    now, start = found.now, found.start
    on = "" if now.directions is None else f", on {now.directions:.0f} directions of {found.d} dimensions"
    was = "" if start.directions is None else f", on {start.directions:.0f}"
    return (
        f"The two views of an image agree better than before the first step: on_diag is {now.apart:.2f} of what "
        f"unrelated views give{on}, and was {start.apart:.2f}{was}."
    )


def _unknown(found):
    if found.step == 0:
        return "No step is done."
    if not found.d:
        return "How many dimensions the embeddings have is not known of this run, so nothing can be compared."
    if found.start is None:
        return "The metrics have no first step, or no c of the loss, to compare with."
    if found.now is None:
        return f"There is nothing to compare the first step with yet (step {found.step})."
    return (
        f"The views agree no better than at the start beyond chance: on_diag is {found.now.apart:.2f} of what unrelated "
        f"views give and was {found.start.apart:.2f}."
    )


def _slower(config):
    rate = config["optimizer"]["learning_rate_weights"]
    return f"Lower config.optimizer.learning_rate_weights, to {rate / 10:g} or less."
