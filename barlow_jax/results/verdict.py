"""Does a run learn? A verdict on its metrics, with the measured numbers, the thresholds and what to change.

    lines = metric_writers.read(workdir / "metrics.jsonl")
    judge(lines, config).name       # "learning"

Pure functions of the lines of a metrics.jsonl and of a config.json. docs/watching.md derives every threshold: from N,
the images of a batch, from D, the dimensions of the embeddings, and from the run's own first step, before which
nothing was learnt. Where a measure is not there, as in older runs, the verdict says so and does without it.
"""

import math
from typing import NamedTuple

from barlow_jax import metrics
from barlow_jax.objectives import OBJECTIVES
from barlow_jax.results import measured

EARLY, LEARNING, COLLAPSED = "too early to say", "learning", "collapsed"
OVERFITTED, STARVED, ILL = "overfitted to augmentation", "data-starved", "numerically ill"
NAMES = (EARLY, LEARNING, COLLAPSED, OVERFITTED, STARVED, ILL)  # their places are what metrics.jsonl has
FAILED = (COLLAPSED, OVERFITTED, STARVED, ILL)

# Of the directions before the first step, the share that a run which learns keeps; chosen by looking at failing runs.
KEPT = 1 / 2
# Images of a batch from which on the agreement of an untrained network, 0.2 and more in the runs that were looked at,
# is twice the noise of an entry.
ENOUGH = 101
# Lines of metrics after the peak of the learning rate that are waited for; chosen.
LINES = 10
LOOK = "Look at views.png in the work folder and at config.data.path."
# Updates that float16's loss scale withholds by itself: from 2**16 down to 1, then one in 2000
SCALE_HALVINGS, SCALE_EVERY = 16, 2000
# Of the network's arithmetic: the spacing of numbers next to 1.
SPACING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


class Verdict(NamedTuple):
    """One of NAMES, with sentences: why (numbers and thresholds), and what to change (fields as config.X)."""

    name: str
    reasons: tuple[str, ...]
    remedies: tuple[str, ...]


def judge(lines, config):
    """The verdict on a run so far.

    Args:
      lines: of its metrics.jsonl, dicts with "step", None standing for what was not finite.
      config: nested dict, as in config.json; of older runs with fewer fields.
    """
    if not lines:
        return Verdict(EARLY, ("There are no metrics yet.",), ())
    found = measured.measures(lines, config)
    for rule in (
        _numbers,
        _images,
        _nothing_to_learn,
        _too_early,
        _unrelated,
        _dead,
        _apart,
        _few_directions,
        _labels,
        _learns,
    ):
        verdict = rule(found, lines, config)
        if verdict:
            return verdict
    return Verdict(EARLY, (_unknown(found),), ())


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
    newest = next((line for line in reversed(lines) if "loss" in line), {})  # an evaluation may stand behind it
    if any(name in newest and newest[name] is None for name in ("loss", "grad_norm")):
        said = f"The loss or its gradient at step {newest['step']} is not finite."
        return Verdict(ILL, (said,), (_slower(config), "Set config.precision to float32."))
    recent = measured.recent(lines, "z_mean")
    mean, std = measured.median(recent, "z_mean"), measured.median(recent, "z_std")
    precision = config.get("precision", "float32")
    spacing = SPACING[precision]
    if mean and std is not None and std < spacing * mean and not _all_dead_at_start(found):
        said = (
            f"Embeddings differ between images by {std:.3g} around a mean of {mean:.3g}, less than the spacing of "
            f"{precision} numbers there, {spacing * mean:.3g}."
        )
        return Verdict(ILL, (said,), ("Set config.precision to float32.", _slower(config)))
    return None


def _all_dead_at_start(found):
    return bool(found.d) and found.dead_at_start == found.d


def _images(found, lines, config):
    """Images that are all the same, or fewer than the rows of a batch."""
    if _all_dead_at_start(found):
        said = (
            f"At step 1, before anything was learnt, all {found.d} dimensions had the same value for every image: the "
            "images are all alike, black perhaps."
        )
        return Verdict(STARVED, (said,), (LOOK,))
    distinct = found.first.get("distinct_images")
    if distinct is not None and distinct < 2:
        return Verdict(
            STARVED, ("To the untrained network all images that were evaluated are one and the same.",), (LOOK,)
        )
    images = found.first.get("images")
    if images is not None and images < found.n:
        said = f"There are {images} images and a batch has {found.n} rows, so that it takes copies for other images."
        return Verdict(STARVED, (said,), (f"Lower config.batch_size to {images} or less, or give more images.",))
    return None


def _too_early(found, lines, config):
    """Inside the warm-up: what moves then may go the other way later."""
    rates = [line["learning_rate_weights"] for line in lines if line.get("learning_rate_weights") is not None]
    warmup, epochs = config.get("warmup_epochs", 0), config["epochs"]
    if found.now is None and found.dead is None:
        return Verdict(EARLY, (_unknown(found),), ())
    peak = config["optimizer"]["learning_rate_weights"] * found.n / 256
    if rates and 0 < warmup < epochs and rates[-1] >= max(rates) and rates[-1] < 0.99 * peak:
        said = (
            f"The learning rate still rises ({rates[-1]:.3g} of {peak:.3g}); measures of the warm-up say little about "
            f"the run (config.warmup_epochs is {warmup})."
        )
        return Verdict(EARLY, (said,), ())
    since = len(rates) - rates.index(max(rates)) if rates else 0
    if 0 < since < LINES:
        told = "1 line of metrics was" if since == 1 else f"{since} lines of metrics were"
        said = f"{told} written since the learning rate was at its peak; {LINES} are waited for."
        return Verdict(EARLY, (said,), ())
    return None


def _unrelated(found, lines, config):
    """Views that had nothing in common at the start and have nothing still; of smaller batches nobody can tell."""
    most = 1 - measured.entry(found.n)
    if found.n < ENOUGH or not all(one and one.miss > most for one in (found.start, found.now)):
        return None
    said = (
        f"Two views of an image were no more alike than views of different images at step 1, and are not now: c_ii "
        f"falls short of 1 by {found.start.miss:.2f} and {found.now.miss:.2f}, and below {most:.2f} would be more than "
        f"noise at {found.n} images. The images may all be one, or the views leave nothing of them."
    )
    return Verdict(
        STARVED, (said,), (LOOK, "Raise the lower end of config.views.crop_scale, or lower config.views.jitter.")
    )


def _dead(found, lines, config):
    if found.dead is None or not found.d:
        return None
    most = found.d * measured.entry(found.n)
    if found.dead <= most:
        return None
    said = (
        f"{found.dead:.0f} of {found.d} dimensions are dead (variance below {metrics.DEAD_VARIANCE:g}); more than "
        f"{most:.0f} lower the mean of c's diagonal by more than the noise of one entry at {found.n} images."
    )
    return Verdict(COLLAPSED, (said,), (_slower(config), "Raise config.warmup_epochs."))


def _apart(found, lines, config):
    """The views of an image are no more alike than when nothing was learnt."""
    if found.n < ENOUGH or not (found.start and found.now) or found.now.apart < found.start.apart:
        return None
    said = (
        f"The two views of an image are no more alike than before the first step: on_diag is {found.now.apart:.2f} of "
        f"what unrelated views give, and was {found.start.apart:.2f}."
    )
    # Where the noise of off_diag alone weighs more than all of on_diag, the network does best to give up on the views.
    weight = config["lambd"] * (found.d - 1) / found.n
    if weight > 1 and _reads_lambd(config):
        remedy = (
            f"Lower config.lambd: at {config['lambd']:g} the noise of off_diag weighs {weight:.2g} times what "
            "unrelated views give on the diagonal; as published that is 0.02."
        )
        return Verdict(COLLAPSED, (said,), (remedy,))
    return Verdict(COLLAPSED, (said,), (_slower(config), "Raise config.warmup_epochs."))


def _few_directions(found, lines, config):
    """The views agree on a fraction of the directions that the untrained network has, or its features do with less."""
    first, last = (scores.get("effective_rank") for scores in (found.first, found.last))
    if found.now and found.now.directions:
        before = found.start.directions if found.start else None
        # Of a start that was all noise nothing is known: then one direction is too few once the views half agree.
        least = KEPT * before if before else 2 * (found.now.miss < KEPT)
        if found.now.directions < least:
            said = (
                f"The views agree on {found.now.directions:.1f} directions of {found.d} dimensions, fewer than the "
                f"{least:.1f} that are left to a run that learns: the dimensions repeat each other."
            )
            weight = ("Raise config.lambd (0.0051 for 8192 dimensions, 0.03 for 512).",) if _reads_lambd(config) else ()
            return Verdict(COLLAPSED, (said,), (*weight, _slower(config)))
    if first is not None and last is not None and last < KEPT * first:
        said = (
            f"The features use {last:.1f} directions (effective rank), less than half of the {first:.1f} before the "
            "first step."
        )
        return Verdict(COLLAPSED, (said,), (_slower(config), "Raise config.warmup_epochs."))
    return None


def _nothing_to_learn(found, lines, config):
    """Views that agree before anything was learnt ask nothing of the network."""
    if not found.start or found.start.miss > measured.entry(found.n):
        return None
    said = (
        f"The two views of an image were the same to the network at step 1 already: c_ii fell short of 1 by "
        f"{found.start.miss:.2g}, less than the noise of one entry at {found.n} images, "
        f"{measured.entry(found.n):.2g}, so that there was nothing to learn."
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
        f"The nearest neighbours are right in {now:.1%} of {n} images and were in {before:.1%} before the first step; "
        f"chance explains {measured.BEYOND * error:.1%}"
    )
    if now < before - measured.BEYOND * error:
        said = f"The views agree better than at the start, on what the labels do not ask for. {told}."
        remedies = ("Let views differ in what labels do not depend on: config.views.jitter, config.views.crop_scale.",)
        return Verdict(OVERFITTED, (said,), remedies)
    if now <= before + measured.BEYOND * error:
        return Verdict(EARLY, (f"The loss falls, and labels do not show it yet. {told}.",), ())
    return Verdict(LEARNING, (_progress(found), f"{told}."), ())


def _better(found):
    return bool(found.start and found.now) and found.now.apart < found.start.apart


def _learns(found, lines, config):
    if not _better(found):
        return None
    if found.start.miss - found.now.miss <= measured.entry(found.n):
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
        f"The views agree no better than at the start, beyond chance: on_diag is {found.now.apart:.2f} of what "
        f"unrelated views give and was {found.start.apart:.2f}."
    )


def _reads_lambd(config):
    return "lambd" in OBJECTIVES[config.get("objective", "barlow_twins")].reads


def _slower(config):
    rate = config["optimizer"]["learning_rate_weights"]
    return f"Lower config.optimizer.learning_rate_weights, to {rate / 10:g} or less."
