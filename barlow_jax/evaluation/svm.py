"""One linear SVM for each class on frozen features: the classification protocol of VOC2007.

After Goyal et al. 2019 (arXiv 1905.01235, section 6.1) and VISSL's svm_trainer.py, which the paper's numbers come from:
features divided by their length, squared hinge, weight 2 for positives, C chosen for every class by the mean average
precision of 3 folds, LIBLINEAR's dual solver (scikit-learn's LinearSVC), average precision on the test images.
"""

import os
import warnings
from typing import NamedTuple

import jax
import numpy as np

from barlow_jax import metrics
from barlow_jax.errors import UserError
from barlow_jax.run import cluster

FOLDS = 3
POSITIVE_WEIGHT = 2
MAX_ITER = 2000


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


def judge(train, targets, test, *, costs, class_names, track=lambda classes, total: classes, workers=None):
    """An SVM for every class, with the cost that is best for it.

    Several processes are given the same arrays, each is at work on some of the classes, and all return all.

    Args:
      train: [n, F] and test: [m, F], features from `normalize`.
      targets: int [n, C], 1 for positives, -1 for negatives, 0 for rows that do not count for the class.
      costs: values of C to choose from; of equal ones the first wins.
      class_names: C names, for messages.
      track: (results, number) -> results, around the loop over the classes of this process.
      workers: processes of this one's own, each at work on a class; None is one for each core.
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

    mine = np.asarray(targets).T[jax.process_index() :: jax.process_count()]

    def judged():
        if not len(mine):
            return []
        # Not threads: LIBLINEAR's random numbers are global, so what a thread draws would depend on the others.
        pool = Parallel(min(workers or os.cpu_count(), len(mine)), return_as="generator")
        return list(track(pool(delayed(_judge_one)(train, column, test, costs) for column in mine), len(mine)))

    return _of_all(cluster.long_on_all(judged), len(class_names), len(test))


def _of_all(mine, classes, images):
    """What every process found of its classes, in the order of the classes."""
    if jax.process_count() == 1:
        return mine
    rows = np.array([[one.cost, one.cross_validated, one.unfinished, *one.scores] for one in mine], np.float64)
    parts = [np.frombuffer(part).reshape(-1, 3 + images) for part in cluster.gathered(rows.tobytes())]
    # Those of process p are p, p + count, and so on.
    found = [parts[k % len(parts)][k // len(parts)] for k in range(classes)]
    return [Judged(float(row[0]), float(row[1]), row[3:], int(row[2])) for row in found]


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
