"""The Barlow Twins objective (arXiv 2103.03230, equations 1 and 2).

    z1, z2    [N, D]  embeddings of the two views of N images
    c         [D, D]  their cross-correlation over the batch, c_ij in [-1, 1]
    loss      sum_i (1 - c_ii)^2  +  lambd * sum_{i != j} c_ij^2
               on_diag (invariance)          off_diag (redundancy)

Everything here is computed in float32 or wider whatever the network computes in: c in bfloat16 puts errors of 1e-2
into the gradient. N is the global batch: under `jax.jit` with sharded embeddings the means below are global means.

Products ask for "highest". "high" would halve what is 1.6 % of a step on a TPU, and is TF32 on a GPU: gradients would
be off by 3e-4 and 2e-2 where c is the identity to 1e-4, and float32 by itself is off by 5e-5 (docs/precision.md).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

FORMS = ("auto", "direct", "dual")


def centred(z: Array) -> Array:
    """[N, D] of zero mean per dimension, float32 or wider."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return z - z.mean(0)


def standardize(z: Array, eps: float = 1e-5) -> Array:
    """Zero mean and unit variance per dimension: the affine-free BatchNorm of the official code.

    The variance is the biased one and eps is added to it, as `torch.nn.BatchNorm1d(D, affine=False)` does and the
    paper's pseudo-code does not. Two passes over z, because E[z^2] - E[z]^2 loses the digits when |mean| >> std.

    Args:
      z: [N, D] embeddings of one view, N the global batch.
    Returns:
      [N, D], float32 or wider.
    """
    z = centred(z)
    return z * jax.lax.rsqrt(jnp.square(z).mean(0) + eps)


def cross_correlation(z1: Array, z2: Array, *, batch_size: int | None = None, eps: float = 1e-5) -> Array:
    """Cross-correlation matrix of two batches of embeddings, equation 2.

    Args:
      z1, z2: [N, D] embeddings of the two views.
      batch_size: what the sum over the batch is divided by; N if None. The official code divides by the nominal batch
        size also where the last batch of an epoch is smaller, which shrinks c there.
    Returns:
      c: [D, D]; c[i, j] correlates dimension i of view 1 with dimension j of view 2.
    """
    n = batch_size or z1.shape[0]
    return jnp.matmul(standardize(z1, eps).T, standardize(z2, eps), precision="highest") / n


def barlow_twins_loss(
    z1: Array,
    z2: Array,
    *,
    lambd: float,
    form: str = "auto",
    mesh: Mesh | None = None,
    batch_size: int | None = None,
    eps: float = 1e-5,
) -> tuple[Array, dict[str, Array]]:
    """The loss and its two terms.

    "direct" builds c. With a mesh, each device builds a slab of c's rows from its columns of z1 and all of z2, so that
    nothing of size D x D is ever held or reduced by one device. "dual" never builds c: the sum of its squares is
    <z1 z1^T, z2 z2^T> / N^2, two N x N matrices, which is exact and smaller when the embedding is wider than the batch.
    "auto" takes the dual form where N < D / 2. The forms agree to rounding.

    Args:
      z1, z2: [N, D] embeddings of the two views, N the global batch.
      lambd: weight of off_diag (0.0051 in the official code, 0.005 in the paper).
      form: "auto", "direct" or "dual".
      mesh: the device mesh whose axis "data" shards N, or None on one device.
      batch_size: as in `cross_correlation`.
    Returns:
      loss: scalar; and {"on_diag", "off_diag"}, both before lambd is applied.
    """
    n = batch_size or z1.shape[0]
    return towards_identity(standardize(z1, eps), standardize(z2, eps), n, lambd=lambd, form=form, mesh=mesh)


def towards_identity(
    z1: Array, z2: Array, n: float, *, lambd: float, form: str = "auto", mesh: Mesh | None = None
) -> tuple[Array, dict[str, Array]]:
    """sum_i (1 - c_ii)^2 + lambd sum_{i != j} c_ij^2, and the two sums; arguments as of `diagonal_terms`."""
    on_diag, off_diag = diagonal_terms(z1, z2, n, form=form, mesh=mesh)
    return on_diag + lambd * off_diag, {"on_diag": on_diag, "off_diag": off_diag}


def diagonal_terms(
    z1: Array, z2: Array, n: float, *, form: str = "auto", mesh: Mesh | None = None
) -> tuple[Array, Array]:
    """sum_i (1 - c_ii)^2 and sum_{i != j} c_ij^2 of c = z1' z2 / n, of embeddings as they are.

    Args:
      z1, z2: [N, D], float32 or wider.
      n: what the sum over the batch is divided by.
      form, mesh: as in `barlow_twins_loss`.
    """
    if form not in FORMS:
        raise ValueError(f"loss form is {form!r}; it is one of {', '.join(FORMS)}.")
    rows, d = z1.shape
    if form == "auto":
        form = "dual" if rows < d / 2 else "direct"
    return (_dual_terms if form == "dual" else _direct_terms)(z1, z2, n, mesh)


def _direct_terms(z1, z2, n, mesh):
    rows, d = z1.shape
    if mesh is None or rows % mesh.size or d % mesh.size:
        return _slab_terms(z1, z2, n, 0)

    def slab(z1, z2):
        # Spelled out, because the partitioner gathers z1 as well, and all-reduces the N x D gradients of what it
        # gathered where a reduce-scatter is enough: 134 MB more of all-reduce a step at N = 2048, D = 8192.
        z1 = jax.lax.all_to_all(z1, "data", split_axis=1, concat_axis=0, tiled=True)  # [N, D / devices]
        z2 = jax.lax.all_gather(z2, "data", tiled=True)  # [N, D]
        return jax.lax.psum(_slab_terms(z1, z2, n, jax.lax.axis_index("data") * z1.shape[1]), "data")

    return jax.shard_map(slab, mesh=mesh, in_specs=P("data"), out_specs=P())(z1, z2)


def _slab_terms(z1, z2, n, first):
    """on_diag and off_diag of the rows of c from `first` on. z1: their columns [N, rows]; z2: all columns [N, D]."""
    c = jnp.matmul(z1.T, z2, precision="highest") / n
    row, column = (jax.lax.broadcasted_iota(jnp.int32, c.shape, axis) for axis in (0, 1))
    on_diagonal = row + first == column
    on_diag = jnp.where(on_diagonal, jnp.square(1 - c), 0).sum()
    # Masked rather than sum(c^2) - sum(c_ii^2), which cancels once c is close to the identity.
    off_diag = jnp.where(on_diagonal, 0, jnp.square(c)).sum()
    return on_diag, off_diag


def _dual_terms(z1, z2, n, mesh):
    diagonal = (z1 * z2).sum(0) / n
    on_diag = jnp.square(1 - diagonal).sum()
    rows, d = z1.shape
    if mesh is None or rows % mesh.size or d % mesh.size:
        squares = (_gram(z1) * _gram(z2)).sum()
    else:

        def columns(z1, z2):
            # Each device has some columns of the embeddings, and with them a summand of both matrices; of the sums it
            # takes some rows. Gathering z1 and z2 instead would move, and hold, N x D twice.
            grams = (jax.lax.psum_scatter(_gram(z), "data", tiled=True) for z in (z1, z2))
            return jax.lax.psum(jnp.multiply(*grams).sum(), "data")

        squares = jax.shard_map(columns, mesh=mesh, in_specs=P(None, "data"), out_specs=P())(z1, z2)
    off_diag = squares / n**2 - jnp.square(diagonal).sum()
    return on_diag, off_diag


def _gram(z):
    """z z^T, for a symmetric gradient G of it, as the other view's matrix is: then z's is 2 G z, one product of two."""
    half = jnp.matmul(z, jax.lax.stop_gradient(z).T, precision="highest")
    return 2 * half - jax.lax.stop_gradient(half)
