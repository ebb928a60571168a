"""The fast probe: how well do linear classifiers tell the frozen features of a run apart? Minutes instead of days.

    python -m barlow_jax.probe --checkpoint=runs/r50
    python -m barlow_jax.probe --checkpoint=runs/r50 --config.passes=4 --config.seeds=3

Features are computed once, and 40 heads are trained on them together, one for each pair of a learning rate and a weight
decay in configs/frozen.py. The head that is best on a held-out part of train is the one that is judged, as it is.

This is another protocol than the paper's: features of one view (or of `passes` augmented ones) instead of a new crop in
every epoch, no image of the held-out part to train on, rates that are chosen. Use linear_eval.py to compare with the
paper. The head is kept in fast_probe.npz (fast_probe_random.npz for --baseline=random); `heads.load` gives it back.
"""

import itertools
import logging

import jax
import numpy as np

from barlow_jax import experiment, fields, results, sharding
from barlow_jax.data import order
from barlow_jax.errors import UserError
from barlow_jax.evaluation import feature_cache, frozen, heads
from barlow_jax.run import launch
from barlow_jax.run.progress import tracked

CONFIG = "frozen"  # taken if none is named
FIELDS = (
    "seed",
    "seeds",
    "learning_rates",
    "weight_decays",
    "momentum",
    "epochs",
    "batch_size",
    "standardize",
    "held_out",
    "passes",
    "image_size",
    "crop_scale",
    "crop_ratio",
    "interpolation",
    "flip",
)

log = logging.getLogger("probe")


def define_flags(flag):
    frozen.define_flags(flag, CONFIG)


def main(wanted):
    judge(wanted)


def judge(wanted):
    """Evaluates what the flags name; the lines of results."""
    with frozen.opened(wanted, fields.FROZEN, FIELDS) as judged:
        return frozen.publish(judged, *evaluate(judged))


def evaluate(judged):
    """(lines of results, rows of the table) of one backbone, a `frozen.Judged`."""
    config = judged.config
    if config.passes:
        sharding.check_batch_size(config.batch_size, judged.mesh)
    train, val = frozen.splits(judged)
    frozen.require_labels(train, val)
    central, labels = frozen.known(feature_cache.features_of(judged, train))
    queries, targets = frozen.known(feature_cache.features_of(judged, val))
    if not len(queries):
        raise UserError(f"No image of {val.name} has a label; name another split with --config.data.val.")
    passes = augmented(judged, train, labels) or [central]
    experiment.check_steps(config, order.steps_per_epoch(len(labels), config.batch_size, "wrap"))

    grid = list(itertools.product(config.learning_rates, config.weight_decays))
    outcomes = []
    for seed in range(config.seed, config.seed + config.seeds):
        aside = heads.held_out(labels, config.held_out, seed)
        if not aside.any():
            raise UserError(f"No class of {train.name} has two labelled images, one to train on and one to choose by.")
        trained = heads.fit(
            passes,
            labels,
            np.flatnonzero(~aside),
            num_classes=train.num_classes,
            grid=grid,
            epochs=config.epochs,
            batch_size=config.batch_size,
            momentum=config.momentum,
            standardize=config.standardize,
            seed=seed,
            mesh=judged.mesh,
            track=lambda epochs: tracked(epochs, len(epochs), f"epochs of {len(grid)} heads"),
        )
        options = {"batch_size": config.batch_size, "mesh": judged.mesh}
        on_aside = heads.count_hits(trained, central, labels, np.flatnonzero(aside), **options) / aside.sum()
        top1 = heads.count_hits(trained, queries, targets, **options) / len(targets)
        best = int(on_aside[: len(grid)].argmax())
        outcomes.append({"seed": seed, "grid": grid[best], "held_out": on_aside[best], "top1": top1[best]})
        if seed == config.seed:
            keep(judged, heads.chosen(trained, best, judged.mesh, train.class_names), train, outcomes[0])
        log.info("seed %d: head %d of %d is best on %d held-out images", seed, best + 1, len(grid), aside.sum())

    top1, seeds = [outcome["top1"] for outcome in outcomes], [outcome["seed"] for outcome in outcomes]
    line = results.line(
        judged.subject,
        protocol="fast probe",
        dataset=val.name,
        n=len(targets),
        classes=train.num_classes,
        metric="top1",
        values=top1,
        seeds=seeds,
        heads=len(grid),
        epochs=config.epochs,
        passes=config.passes,
        chosen=[outcome["grid"] for outcome in outcomes],
    )
    images = f"{len(labels)} images of {train.name}, {len(targets)} of {val.name}"
    return [line], table(judged, outcomes, line, images)


def augmented(judged, train, labels):
    """The features of config.passes augmented passes over the training images, a list of float32 [n, F]."""
    draws = range(1, judged.config.passes + 1)
    passes = [frozen.known(feature_cache.features_of(judged, train, draw=draw)) for draw in draws]
    if any(not np.array_equal(given, labels) for _, given in passes):
        raise UserError(f"Some images of {train.name} cannot be read; repair or delete them, or set config.passes=0.")
    return [features for features, _ in passes]


def keep(judged, head, train, outcome):
    """Writes the head beside the results, on process 0."""
    baseline = judged.subject.baseline
    file = judged.workdir / f"fast_probe{'_' * bool(baseline)}{baseline}.npz"
    if jax.process_index() == 0:
        heads.save(
            file,
            head,
            backbone=judged.subject.sha256,
            checkpoint=judged.subject.path,
            step=judged.subject.step,
            train=train.name,
            seed=outcome["seed"],
            grid=outcome["grid"],
        )
    log.info("the head of seed %d is in %s", outcome["seed"], file)


def table(judged, outcomes, line, images):
    rows = [
        frozen.title(judged, images),
        "Fast probe: not the paper's protocol, see linear_eval.py for that.",
        "",
        f"{'seed':>4}{'rate':>10}{'decay':>10}{'held out %':>12}{'top-1 %':>10}",
    ]
    for outcome in outcomes:
        rate, decay = outcome["grid"]
        rows.append(
            f"{outcome['seed']:4}{rate:10g}{decay:10g}{100 * outcome['held_out']:12.2f}{100 * outcome['top1']:10.2f}"
        )
    if len(outcomes) > 1:
        rows.append(f"{'mean and standard deviation':36}{100 * line['value']:10.2f} +- {100 * line['spread']:.2f}")
    return rows


if __name__ == "__main__":
    launch.run(main, define_flags)
