"""Transfer to VOC2007: a linear SVM for each class on the frozen features of a run.

    python -m barlow_jax.transfer --config=configs/voc07.py --checkpoint=runs/r50 --config.data.path=VOCdevkit/VOC2007

Mean average precision by three definitions (`metrics.average_precision`): the 11 points of VOC2007, the area below the
curve, and the area below the interpolated curve, which VISSL reports. What is chosen for each class goes to the table,
the scores of all test images to voc_scores.npz.
"""

import logging

import jax
import numpy as np

from barlow_jax import experiment, fields, metrics, results
from barlow_jax.data import pixels
from barlow_jax.data.voc import ABSENT, DIFFICULT, VOC
from barlow_jax.errors import UserError
from barlow_jax.evaluation import feature_cache, frozen, svm
from barlow_jax.run import launch, writing
from barlow_jax.run.progress import tracked

CONFIG = "voc07"  # taken if none is named
FIELDS = ("costs", "difficult")
MEASURES = ("voc07", "area", "voc10")

log = logging.getLogger("transfer")


def define_flags(flag):
    frozen.define_flags(flag, CONFIG)


def main(wanted):
    judge(wanted)


def judge(wanted):
    """Evaluates what the flags name; the lines of results."""
    with frozen.opened(wanted, fields.VOC07, FIELDS) as judged:
        return frozen.publish(judged, *evaluate(judged))


def evaluate(judged):
    """(lines of results, rows of the table) of one backbone, a `frozen.Judged`."""
    config = judged.config
    pixels.check(**experiment.reading(config.data))
    reading = {"channels": judged.subject.channels, "max_pixels": experiment.reading(config.data)["max_pixels"]}
    train, test = (VOC(config.data.path, split, **reading) for split in splits_of(config))
    if train.target_names != test.target_names:
        odd = sorted(set(train.target_names) ^ set(test.target_names))[0]
        raise UserError(f"There is a list of class {odd} for one of {train.name} and {test.name} only; add the other.")
    bank, queries = (feature_cache.features_of(judged, source, fit=config.eval.fit) for source in (train, test))
    targets, truth = train.targets[bank.index], test.targets[queries.index]
    if config.difficult == "negative":
        targets = np.where(targets == DIFFICULT, ABSENT, targets)

    names = train.target_names
    found = svm.judge(
        svm.normalize(bank.features),
        targets,
        svm.normalize(queries.features),
        costs=tuple(config.costs),
        class_names=names,
        workers=config.data.threads or None,
        kept=judged.workdir,
        track=lambda classes, total: tracked(classes, total, "classes"),
    )
    unfinished, fits = sum(one.unfinished for one in found), len(names) * (svm.FOLDS * len(config.costs) + 1)
    if unfinished:
        log.warning("%d of %d SVMs came to %d iterations before they converged", unfinished, fits, svm.MAX_ITER)
    scores = np.stack([one.scores for one in found], axis=1)
    precision = {
        measure: metrics.average_precision(scores, truth, method=measure, mask=truth != DIFFICULT)
        for measure in MEASURES
    }
    absent = [name for name, value in zip(names, precision["area"], strict=True) if np.isnan(value)]
    if absent:
        raise UserError(f"No image of {test.name} shows {absent[0]}, so it has no average precision; give more images.")

    if jax.process_index() == 0:
        judgement = {"scores": scores, "targets": truth, "classes": np.asarray(names)}
        writing.arrays(judged.workdir / "voc_scores.npz", judgement)
    lines = [
        results.line(
            judged.subject,
            protocol="voc07 svm",
            dataset=test.name,
            n=len(truth),
            classes=len(names),
            metric=f"map_{measure}",
            values=[precision[measure].mean()],
            seeds=[],
            difficult=config.difficult,
            fit=config.eval.fit,
            crop=config.eval.crop,
        )
        for measure in MEASURES
    ]
    images = f"{len(targets)} images of {train.name}, {len(truth)} of {test.name}"
    return lines, table(judged, images, names, found, precision)


def splits_of(config):
    return config.data.train, config.data.val


def table(judged, images, names, found, precision):
    head = f"{'class':14}{'C':>8}{'folds %':>9}" + "".join(f"{f'{measure} %':>9}" for measure in MEASURES)
    rows = [frozen.title(judged, images), "", head]
    for k, (name, one) in enumerate(zip(names, found, strict=True)):
        values = (one.cross_validated, *(precision[measure][k] for measure in MEASURES))
        rows.append(f"{name:14}{one.cost:8g}" + "".join(f"{100 * value:9.2f}" for value in values))
    means = (np.mean([one.cross_validated for one in found]), *(precision[measure].mean() for measure in MEASURES))
    rows.append(f"{'mean':22}" + "".join(f"{100 * value:9.2f}" for value in means))
    return rows


if __name__ == "__main__":
    launch.run(main, define_flags)
