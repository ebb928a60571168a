"""VICReg (Bardes, Ponce and LeCun 2022, arXiv 2105.04906), with the normalisations of its official code.

    invariance  mean over images and dimensions of (z1 - z2)^2
    variance    mean over dimensions and views of max(0, 1 - sqrt(var + 1e-4)), var over the batch, unbiased
    covariance  sum over views of sum_{i != j} cov_ij^2 / D, cov over the batch, divided by N - 1
    loss        25 invariance + 25 variance + 1 covariance

The coefficients belong to these. The paper's equations sum the first over dimensions and the second over the views.
"""

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from barlow_jax.loss import centred, diagonal_terms


def vicreg(
    z1: Array,
    z2: Array,
    *,
    invariance: float,
    variance: float,
    covariance: float,
    form: str = "auto",
    mesh: Mesh | None = None,
    batch_size: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The loss and its three terms, before they are weighted.

    Args:
      invariance, variance, covariance: the coefficients.
      form, mesh: as in `loss.barlow_twins_loss`, for the covariance matrix of each view.
      batch_size: of the covariances' divisor, batch_size - 1.
    """
    rows, d = z1.shape
    wide = jnp.promote_types(z1.dtype, jnp.float32)
    terms = {
        "invariance": jnp.square(z1.astype(wide) - z2.astype(wide)).mean(),
        "variance": jnp.zeros([], wide),
        "covariance": jnp.zeros([], wide),
    }
    for z in (centred(z1), centred(z2)):
        std = jnp.sqrt(jnp.square(z).sum(0) / (rows - 1) + 1e-4)
        terms["variance"] += jnp.maximum(0, 1 - std).mean() / 2
        terms["covariance"] += diagonal_terms(z, z, (batch_size or rows) - 1, form=form, mesh=mesh)[1] / d
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    return sum((weights[name] * term for name, term in terms.items()), jnp.zeros([], wide)), terms
