"""How many directions features use, how many of them tell images apart, and how many images there are to a network."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

Rows = Array | np.ndarray  # on devices or on the host


def rank_sample(features: Rows) -> Rows:
    """Evenly spaced rows, from 25,600 on: as many as the paper of RankMe takes the effective rank of. A view."""
    return features[:: max(len(features) // 25_600, 1)]


@jax.jit
def effective_rank(features: Rows) -> Array:
    """RankMe: exp of the entropy of the singular values, from 1 (collapsed) to min(n, D) (isotropic).

    p_k = s_k / sum(s) + 1e-7 as in Garrido et al. 2023 (arXiv 2210.02885, equation 2), of the features as they are,
    neither centred nor normalised. The paper takes n = 25,600.

    Args:
      features: [n, D].
    Returns:
      float32 scalar.
    """
    values = jnp.linalg.svd(features.astype(jnp.float32), compute_uv=False)
    share = values / jnp.maximum(values.sum(), jnp.finfo(jnp.float32).tiny) + 1e-7
    return jnp.exp(-(share * jnp.log(share)).sum())


def lidar(features: ArrayLike, delta: float = 1e-4) -> float:
    """LiDAR of Thilak et al. 2023 (arXiv 2312.04000): the effective rank of what tells images apart, in float64.

    Linear discriminant analysis with each image as a class of its views: the eigenvalues of W^-1/2 B W^-1/2, B the
    scatter of the images' means and W that of the views about them plus delta on the diagonal, as shares of their sum;
    then exp of their entropy. A direction in which views differ as much as images counts for little, which an effective
    rank does not know. From 1 to min(images - 1, F). The paper takes 1000 images and 50 views.

    Args:
      features: [images, views, F], views of each image by the training augmentation, at least 2 of each.
    """
    features = np.asarray(features, np.float64)
    n, views, width = features.shape
    means = features.mean(1)
    about, between = features - means[:, None], means - means.mean(0)
    within = np.einsum("nvf,nvg->fg", about, about, optimize=True) / (n * (views - 1)) + delta * np.eye(width)
    values, vectors = np.linalg.eigh(within)
    whitened = between @ (vectors / np.sqrt(values))
    values = np.linalg.svd(whitened, compute_uv=False) ** 2
    share = values[values > 0] / max(values.sum(), np.finfo(np.float64).tiny)
    return float(np.exp(-(share * np.log(share)).sum()))


def distinct_rows(features: ArrayLike) -> int:
    """How many rows differ by more than rounding: images that are the same have the same features, to 1e-5 of them.

    By four directions, on a grid of a thousandth of the spread: it tells one image from several. features: [n, F].
    """
    features = np.asarray(features, np.float64)
    cell = max(1e-3 * features.std(0).max(), 1e-5 * np.abs(features).max(), np.finfo(np.float64).tiny)
    directions = np.random.RandomState(0).normal(size=(features.shape[1], 4)) / np.sqrt(features.shape[1])
    return len(np.unique(np.floor((features - features[0]) @ directions / cell + 0.5), axis=0))
