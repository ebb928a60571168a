"""Maps: two coordinates a row, so that a set can be looked at."""

import importlib

import numpy as np

from barlow_jax.errors import UserError

SEED = 0


def principal(blocks, count=2):
    """Coordinates along the first principal components, exactly, in float64.

    Each component points where its largest weight is positive, so that the same features make the same map.

    Args:
      blocks: () -> blocks of rows [m, F], which need not fit in memory together; it is asked three times.
      count: of components; zeros where the features have fewer dimensions.
    Returns:
      points float64 [n, count]; shares [count] of the variance, 0 where there is none.
    Raises:
      UserError: there are fewer than two rows, or a feature is not finite.
    """
    total, n = 0.0, 0
    for features in blocks():
        total, n = total + features.sum(0, dtype=np.float64), n + len(features)
    if n < 2:
        raise UserError("There are too few images for a map; it takes two or more.")
    if not np.isfinite(total).all():
        raise UserError("Features hold values that are not finite, and have no map.")
    mean = total / n
    scatter = np.zeros((len(mean), len(mean)))
    for features in blocks():
        centred = features - mean
        scatter += centred.T @ centred
    variances, axes = np.linalg.eigh(scatter)
    count_there = min(count, len(mean))
    axes = axes[:, ::-1][:, :count_there]
    axes *= np.where(axes[np.abs(axes).argmax(0), np.arange(count_there)] < 0, -1, 1)
    axes = np.pad(axes, ((0, 0), (0, count - count_there)))
    whole = np.trace(scatter)
    shares = np.pad(np.maximum(variances[::-1][:count_there], 0), (0, count - count_there))
    points = np.concatenate([(features - mean) @ axes for features in blocks()])
    return points, shares / whole if whole > 0 else np.zeros(count)


def umap(rows):
    """UMAP's two coordinates by cosine, float32 [n, 2], by umap-learn; the same at each run.

    Raises:
      UserError: umap-learn is not installed, or there are too few rows for it.
    """
    try:
        library = importlib.import_module("umap")
    except ImportError:
        raise UserError("--map=umap needs umap-learn; pip install umap-learn, or take --map=pca.") from None
    if len(rows) < 5:
        raise UserError(f"There are {len(rows)} rows, too few for --map=umap; take --map=pca.")
    neighbours = min(15, len(rows) - 1)
    return library.UMAP(neighbours, metric="cosine", random_state=SEED, n_jobs=1).fit_transform(np.asarray(rows))
