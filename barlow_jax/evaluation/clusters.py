"""Clusters of rows by their direction, and which rows are in their middle or far from all others."""

import warnings
from collections.abc import Callable, Iterable

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.evaluation.embedded import unit
from barlow_jax.evaluation.nearest import nearest_rows


def k_means(rows, count: int, seed: int = 0):
    """scikit-learn's k-means of rows at length 1, from a k-means++ start.

    Args:
      rows: float32 [n, F], as `embedded.on_sphere` gives them; worked on in place, and put right again up to rounding.
    Returns:
      The cluster of each row, int64 [n], from 0 on, the largest first; and its cosine similarity to the mean direction
      of its cluster, float32 [n]. Where fewer than `count` rows differ there are fewer clusters.
    Raises:
      UserError: there are fewer rows than clusters.
    """
    from sklearn.cluster import KMeans  # here, as it takes seconds to import
    from sklearn.exceptions import ConvergenceWarning

    if count > len(rows):
        raise UserError(f"--clusters is {count}, but there are {len(rows)} rows; take at most as many.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters: the caller sees it
        found = KMeans(count, n_init=1, random_state=seed, copy_x=False).fit(rows).labels_
    sizes = np.bincount(found, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    number = np.argsort(order)[found]
    means = np.zeros((count, rows.shape[1]), np.float32)
    for k in range(count):
        means[k] = rows[number == k].sum(0)
    return number, (rows * unit(means)[number]).sum(1)


def central(number, similarity, each: int):
    """The places of the `each` most central rows of each cluster, the most central first: a list of int [<= each]."""
    found = []
    for k in range(number.max() + 1):
        members = np.flatnonzero(number == k)
        found.append(members[np.argsort(-similarity[members], kind="stable")[:each]])
    return found


def loneliness(
    features,
    k: int,
    *,
    mesh,
    rows: int = 2**16,
    track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
):
    """How far off each row is: the mean cosine distance, 1 - similarity, to its k nearest others: float32 [n].

    Args:
      features: [n, F], an array or a memory map.
      rows: as many are searched for at a time.
    Raises:
      UserError: there are no k others.
    """
    n = len(features)
    if k >= n:
        raise UserError(f"--nearest is {k}, but there are {n} rows, so {n - 1} others; take at most as many.")
    found, starts = np.zeros(n, np.float32), range(0, n, rows)
    for start in track(starts, len(starts)):
        queries = np.asarray(features[start : start + rows], np.float32)
        similarity, places = nearest_rows(features, queries, k + 1, mesh=mesh)
        # Itself goes; where so many are equal to it that it is not among them, the last one in its place.
        own = places == np.arange(start, start + len(queries))[:, None]
        own[~own.any(1), -1] = True
        found[start : start + rows] = 1 - similarity[~own].reshape(-1, k).mean(1)
    return found
