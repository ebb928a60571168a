"""One linear SVM for each class on frozen features: the classification protocol of VOC2007.

After Goyal et al. 2019 (arXiv 1905.01235, section 6.1) and VISSL's svm_trainer.py, which the paper's numbers come from:
features divided by their length, squared hinge, weight 2 for positives, C chosen for every class by the mean average
precision of 3 folds, LIBLINEAR's dual solver (scikit-learn's LinearSVC), average precision on the test images.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import warnings
from typing import NamedTuple

import jax
import numpy as np

from barlow_jax import metrics
from barlow_jax.errors import UserError
from barlow_jax.evaluation import embedding_files
from barlow_jax.run import cluster, writing

FOLDS = 3
POSITIVE_WEIGHT = 2
MAX_ITER = 2000

log = logging.getLogger(__name__)


class Judged(NamedTuple):
    """How one class went."""

    cost: float
    cross_validated: float  # mean average precision of the folds at this cost
    scores: np.ndarray  # float64 [m], of the test images
    unfinished: int  # fits that came to MAX_ITER before they converged


def normalize(features):
    """Rows of length 1, but for the 1e-5 that VISSL adds, in float64."""
    features = np.asarray(features, np.float64)
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)


def judge(train, targets, test, *, costs, class_names, track=lambda classes, total: classes, workers=None, kept=None):
    """An SVM for every class, with the cost that is best for it.

    Several processes are given the same arrays, each is at work on some of the classes, and all return all.

    Args:
      train: [n, F] and test: [m, F], features from `normalize`.
      targets: int [n, C], 1 for positives, -1 for negatives, 0 for rows that do not count for the class.
      costs: values of C to choose from; of equal ones the first wins.
      class_names: C names, for messages.
      track: (results, number) -> results, around the loop over the classes of this process.
      workers: processes of this one's own, each at work on a class; None is one for each core.
      kept: a folder that all processes see, in which each class is kept once it is done: a call that is killed goes on
        there, on another number of processes too. None: nothing is kept.
    Returns:
      List of C `Judged`.
    Raises:
      UserError: a class has fewer positives or negatives than folds.
    """
    for name, column in zip(class_names, np.asarray(targets).T, strict=True):
        fewest = min((column > 0).sum(), (column < 0).sum())
        if fewest < FOLDS:
            raise UserError(
                f"Class {name} has {(column > 0).sum()} positive and {(column < 0).sum()} negative images, and {FOLDS} "
                f"folds need {FOLDS} of each: give more images, or leave the class out."
            )

    from joblib import Parallel, delayed  # comes with scikit-learn, which takes a second to import

    columns = np.asarray(targets).T
    files = _files(kept, train, columns, test, costs) if kept else None
    done = _done(files) if files else {}
    missing = [k for k in range(len(columns)) if k not in done]
    missing = json.loads(cluster.gathered(json.dumps(missing).encode())[0])  # as process 0 found it
    mine = missing[jax.process_index() :: jax.process_count()]
    if done:
        log.info("%d of %d classes are there already", len(done), len(columns))

    def judged():
        if not mine:
            return {}
        # Not threads: LIBLINEAR's random numbers are global, so what a thread draws would depend on the others.
        pool = Parallel(min(workers or os.cpu_count(), len(mine)), return_as="generator")
        found, results = {}, pool(delayed(_judge_one)(train, columns[k], test, costs) for k in mine)
        for k, one in zip(mine, track(results, len(mine)), strict=True):
            found[k] = one
            if files:
                writing.arrays(files[k], one._asdict())
        return found

    found = cluster.long_on_all(judged)
    return _of_all(found | done if jax.process_index() == 0 else found, len(test))


def _of_all(mine, images):
    """What all processes have, {number of a class: Judged} of each, as a list in the order of the classes."""
    rows = [[k, one.cost, one.cross_validated, one.unfinished, *one.scores] for k, one in mine.items()]
    parts = [np.frombuffer(part).reshape(-1, 4 + images) for part in cluster.gathered(np.array(rows).tobytes())]
    rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
    return [Judged(float(row[1]), float(row[2]), row[4:], int(row[3])) for row in rows]


def _files(folder, train, columns, test, costs):
    """The file of each class in a folder, by all that it depends on: the solver, and every number that it is given."""
    about = [costs, importlib.metadata.version("scikit-learn"), FOLDS, POSITIVE_WEIGHT, MAX_ITER]
    found = hashlib.sha256(json.dumps(about).encode())
    for array in (train, test):
        found.update(repr((array.shape, array.dtype.str)).encode())
        found.update(np.ascontiguousarray(array))
    names = []
    for column in columns:
        digest = found.copy()
        digest.update(np.ascontiguousarray(column, np.int64))
        names.append(pathlib.Path(folder) / f"svm_{digest.hexdigest()[:16]}.npz")
    return names


def _done(files):
    """{number of a class: Judged} of those that are kept; a file that cannot be read counts for none."""
    found = {}
    for k, file in enumerate(files):
        try:
            with open(file, "rb") as stream, np.load(stream) as held:
                one = Judged(*(held[name] for name in Judged._fields))
        except FileNotFoundError:
            continue
        except embedding_files.DAMAGE as error:
            log.warning("%s cannot be read (%s); its class is judged again", file, error)
            continue
        found[k] = Judged(float(one.cost), float(one.cross_validated), one.scores, int(one.unfinished))
    return found


def fit(features, targets, cost):
    """(decision, converged): features -> scores, of an SVM trained on these rows; targets 1 and -1."""
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(
        C=cost,
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        class_weight={1: POSITIVE_WEIGHT, -1: 1},
        tol=1e-4,
        max_iter=MAX_ITER,
        random_state=0,
    ).fit(features, targets)
    return classifier.decision_function, classifier.n_iter_ < MAX_ITER


def cross_validate(features, targets, cost):
    """(mean average precision over the folds, fits that did not converge): stratified, in stored order."""
    from sklearn.model_selection import StratifiedKFold

    found, unfinished = [], 0
    for kept, left in StratifiedKFold(FOLDS).split(features, targets):
        decision, converged = fit(features[kept], targets[kept], cost)
        found.append(metrics.average_precision(decision(features[left]), targets[left]))
        unfinished += not converged
    return float(np.mean(found)), unfinished


def _judge_one(train, targets, test, costs):
    from sklearn.exceptions import ConvergenceWarning

    features, targets = train[targets != 0], np.sign(targets[targets != 0])
    with warnings.catch_warnings():  # what it says is counted, see `Judged.unfinished`
        warnings.simplefilter("ignore", ConvergenceWarning)
        precisions, unfinished = zip(*(cross_validate(features, targets, cost) for cost in costs), strict=True)
        best = int(np.argmax(precisions))
        decision, converged = fit(features, targets, costs[best])
    return Judged(costs[best], precisions[best], decision(test), sum(unfinished) + (not converged))
