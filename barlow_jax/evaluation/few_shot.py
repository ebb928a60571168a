"""Classification from a few labelled images of each class: features in, predicted classes out. numpy, float64.

    rows = draw(labels, shots=5, seed=0)
    predicted = nearest_mean(features[rows], labels[rows], queries)

Two classifiers without anything to tune, both on features of length 1: the nearest class mean by cosine (as in
SimpleShot, Wang et al. 2019, arXiv 1911.04623, "L2N"), and ridge regression to the classes (as the few-shot evaluation
of Dosovitskiy et al. 2021, arXiv 2010.11929, section 4.1, fits a linear classifier, in closed form).
"""

import numpy as np

RIDGE = 1.0  # weight of |kernel|^2, as scikit-learn's RidgeClassifier has it
CLASSIFIERS = ("nearest mean", "ridge")


def most_shots(labels):
    """How many images every class that occurs has at least."""
    return int(np.unique(labels, return_counts=True)[1].min())


def draw(labels, shots, seed):
    """`shots` rows of each class that occurs, at random and without repetition: int64 [classes * shots]."""
    rng = np.random.default_rng((seed, shots))
    return np.concatenate([rng.choice(np.flatnonzero(labels == c), shots, replace=False) for c in np.unique(labels)])


def predict(classifier, features, labels, queries):
    """Classes of the queries by one of CLASSIFIERS: int [m]. features [n, F], labels [n], queries [m, F]."""
    return {"nearest mean": nearest_mean, "ridge": ridge}[classifier](features, labels, queries)


def nearest_mean(features, labels, queries):
    """The class whose mean of unit features has the largest cosine similarity."""
    classes, one_hot = _classes(labels)
    means = _unit(one_hot.T @ _unit(features))
    return classes[(_unit(queries) @ means.T).argmax(1)]


def ridge(features, labels, queries):
    """Least squares from unit features to one-hot classes, with a free intercept and RIDGE on the kernel."""
    classes, one_hot = _classes(labels)
    x = _unit(features)
    mean, target_mean = x.mean(0), one_hot.mean(0)
    x, y = x - mean, one_hot - target_mean
    if len(x) < x.shape[1]:  # the same solution by the smaller of two systems
        kernel = x.T @ np.linalg.solve(x @ x.T + RIDGE * np.eye(len(x)), y)
    else:
        kernel = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    return classes[((_unit(queries) - mean) @ kernel + target_mean).argmax(1)]


def _classes(labels):
    classes, place = np.unique(labels, return_inverse=True)
    return classes, np.eye(len(classes))[place]


def _unit(x):
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
