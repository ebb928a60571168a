"""Maps: two coordinates a row, so that a set can be looked at."""

import importlib

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.evaluation.embedded import blocks

SEED = 0


def principal(features, count: int = 2):
    """The first principal components of the rows, float32 [n, count]; in float64, exact, in blocks.

    The sign of a component is that for which its largest weight is positive.

    Args:
      features: [n, F], an array or a memory map.
    Raises:
      UserError: there are fewer columns than components.
    """
    n, width = features.shape
    if count > width:
        raise UserError(f"There are {width} columns of features, too few for {count} principal components.")
    total, products = np.zeros(width), np.zeros((width, width))
    for _, block in blocks(features):
        wide = block.astype(np.float64)
        total += wide.sum(0)
        products += wide.T @ wide
    mean = total / n
    directions = np.linalg.eigh(products / n - np.outer(mean, mean))[1][:, ::-1][:, :count]
    largest = np.abs(directions).argmax(0)
    directions *= np.sign(directions[largest, np.arange(count)])
    return np.concatenate([((block - mean) @ directions).astype(np.float32) for _, block in blocks(features)])


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
