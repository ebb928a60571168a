"""Mixed Barlow Twins (Bandara, De Melo and Patel 2023, arXiv 2312.02151): a third view, mixed of two images.

    xm      a x1 + (1 - a) s(x2)    of the views' images; s shifts the rows of the batch, a is uniform on [0, 1]
    r       zm - a z1 - (1 - a) s(z2)    of the standardised embeddings: what mixing images does to them beyond mixing
    mixed   (|r' z1 / N|^2 + |r' z2 / N|^2) / 2, of all elements
    loss    Barlow Twins of z1 and z2 + weight lambd mixed

r' z1 / N is the paper's difference of two cross-correlations, C^MA - C^MA_gt. One a for the batch and step, Beta(1, 1).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from barlow_jax.loss import barlow_twins_loss, diagonal_terms, standardize


def mixed_barlow_twins(
    z1: Array,
    z2: Array,
    zm: Array,
    *,
    lambd: float,
    weight: float,
    key: Array,
    form: str = "auto",
    mesh: Mesh | None = None,
    batch_size: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The loss, the terms of Barlow Twins, and "mixed" before it is weighted.

    Args:
      zm: [N, D] embeddings of the views that `with_mixture` adds.
      lambd, form, mesh, batch_size: as in `loss.barlow_twins_loss`.
      weight: the paper's weight of the regularisation, beside lambd.
      key: of `share`.
    """
    options = {"form": form, "mesh": mesh}
    n, a = batch_size or z1.shape[0], share(key)
    loss, terms = barlow_twins_loss(z1, z2, lambd=lambd, batch_size=batch_size, **options)
    z1, z2, zm = standardize(z1), standardize(z2), standardize(zm)
    r = zm - a * z1 - (1 - a) * shifted(z2)
    mixed = (_squares(r, z1, n, options) + _squares(r, z2, n, options)) / 2
    return loss + weight * lambd * mixed, terms | {"mixed": mixed}


def _squares(r, z, n, options):
    """|r' z / n|^2."""
    _, off_diag = diagonal_terms(r, z, n, **options)
    return off_diag + jnp.square((r * z).sum(0) / n).sum()


def with_mixture(views_of: Callable[..., Array], keys: Callable[[Array], Array]) -> Callable[..., Array]:
    """The two views of `views_of`, [B, 2, S, S, C], with the mixed one behind them: [B, 3, S, S, C].

    Args:
      keys: step -> the key that the loss gets.
    """

    def three_views(step, batch):
        views = views_of(step, batch)
        a = share(keys(step)).astype(views.dtype)
        mixture = a * views[:, 0] + (1 - a) * shifted(views[:, 1])
        return jnp.concatenate([views, mixture[:, None]], 1)

    return three_views


def share(key: Array) -> Array:
    """a of this step, float32: 24 bits, the same for images and for embeddings of any dtype."""
    return jax.random.uniform(key, dtype=jnp.float32)


def shifted(x: Array) -> Array:
    """Each row's partner: the row before it.

    The paper's code permutes the batch at random. Its order is random already, so that a shift pairs images as well,
    none with itself, and moves one row between neighbouring devices instead of nearly all of them.
    """
    return jnp.roll(x, 1, axis=0)
