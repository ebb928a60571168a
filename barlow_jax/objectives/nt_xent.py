"""SimCLR's NT-Xent (Chen et al. 2020, arXiv 2002.05709, equation 1).

u       [2N, D]  the embeddings of both views, each row of length 1
loss    the mean over all 2N rows of -log(exp(u_i . u_pair(i) / t) / sum_{k != i} exp(u_i . u_k / t))
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from barlow_jax.objectives.normalize import on_sphere


def nt_xent(
    z1: Array, z2: Array, *, temperature: float, mesh: Mesh | None = None, batch_size: int | None = None
) -> tuple[Array, dict[str, Array]]:
    """The loss; it has no terms of its own.

    With a mesh, each device compares its rows with all, which it gathers: every image is every other's negative, and
    2N x 2N similarities are more than the embeddings wherever N is above D / 2.

    Args:
      temperature: t; 0.1 for ImageNet and 0.5 for CIFAR-10 in the paper.
      batch_size: the mean is over the rows there are, whatever this is.
    """
    del batch_size
    u, rows = jnp.stack([on_sphere(z1), on_sphere(z2)]), z1.shape[0]
    of_rows = functools.partial(_cross_entropy, temperature=temperature)
    if mesh is None or rows % mesh.size:
        return of_rows(u, u, 0) / (2 * rows), {}

    def of_device(u):
        everything = jax.lax.all_gather(u, "data", axis=1, tiled=True)
        first = jax.lax.axis_index("data") * u.shape[1]
        return jax.lax.psum(of_rows(u, everything, first), "data")

    return jax.shard_map(of_device, mesh=mesh, in_specs=P(None, "data"), out_specs=P())(u) / (2 * rows), {}


def _cross_entropy(own, everything, first, *, temperature):
    """The sum over some rows of both views, from `first` on. own: [2, n, D]; everything: [2, N, D]."""
    logits = jnp.einsum("vnd,wmd->vnwm", own, everything, precision="highest") / temperature
    n, rows = own.shape[1], everything.shape[1]
    same_row = (first + jnp.arange(n))[:, None] == jnp.arange(rows)
    same_view = jnp.eye(2, dtype=bool)
    itself = same_view[:, None, :, None] & same_row[None, :, None, :]
    pair = ~same_view[:, None, :, None] & same_row[None, :, None, :]
    total = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), axis=(2, 3))
    return total.sum() - jnp.where(pair, logits, 0).sum()
