"""Principal components of features that need not fit in memory."""

import numpy as np

from barlow_jax.errors import UserError


def principal(parts, count=2):
    """Coordinates along the first principal components, exactly, in float64.

    Each component points where its largest weight is positive, so that the same features make the same map.

    Args:
      parts: iterable, more than once, of (index, labels, features [m, F]), as `embedding_files.Parts`; of features in
        memory a list of one.
      count: of components; zeros where the features have fewer dimensions.
    Returns:
      points float64 [n, count]; shares [count] of the variance, 0 where there is none.
    Raises:
      UserError: there are fewer than two rows, or a feature is not finite.
    """
    total, n = 0.0, 0
    for _, _, features in parts:
        total, n = total + features.sum(0, dtype=np.float64), n + len(features)
    if n < 2:
        raise UserError("There are too few images for a map; it takes two or more.")
    if not np.isfinite(total).all():
        raise UserError("Features hold values that are not finite, and have no map.")
    mean = total / n
    scatter = np.zeros((len(mean), len(mean)))
    for _, _, features in parts:
        centred = features - mean
        scatter += centred.T @ centred
    variances, axes = np.linalg.eigh(scatter)
    count_there = min(count, len(mean))
    axes = axes[:, ::-1][:, :count_there]
    axes *= np.where(axes[np.abs(axes).argmax(0), np.arange(count_there)] < 0, -1, 1)
    axes = np.pad(axes, ((0, 0), (0, count - count_there)))
    whole = np.trace(scatter)
    shares = np.pad(np.maximum(variances[::-1][:count_there], 0), (0, count - count_there))
    points = np.concatenate([(features - mean) @ axes for _, _, features in parts])
    return points, shares / whole if whole > 0 else np.zeros(count)
