"""The loss functions of the paper's Table 5 (arXiv 2103.03230, section 4), and one of their form by others.

    c   [D, D]  the cross-correlation of `loss`, equation 2, where nothing else is said

What the paper leaves open, and what was chosen, stands at each and in docs/objectives.md.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from barlow_jax.loss import barlow_twins_loss, centred, standardize, towards_identity
from barlow_jax.objectives.normalize import on_sphere

Terms = dict[str, Array]


def invariance_only(
    z1: Array, z2: Array, *, mesh: Mesh | None = None, batch_size: int | None = None
) -> tuple[Array, Terms]:
    """sum_i (1 - c_ii)^2: "only invariance term (on-diag term)".

    The diagonal takes sums of D numbers over the devices, so that c is never made.
    """
    del mesh
    diagonal = (standardize(z1) * standardize(z2)).sum(0) / (batch_size or z1.shape[0])
    on_diag = jnp.square(1 - diagonal).sum()
    return on_diag, {"on_diag": on_diag}


def redundancy_only(z1: Array, z2: Array, *, lambd: float, **options) -> tuple[Array, Terms]:
    """lambd sum_{i != j} c_ij^2: "only redundancy reduction term (off-diag term)"; on_diag is shown and not minimised.

    Args:
      lambd, options: as in `loss.barlow_twins_loss`.
    """
    _, terms = barlow_twins_loss(z1, z2, lambd=lambd, **options)
    return lambd * terms["off_diag"], terms


def feature_normalized(z1: Array, z2: Array, *, batch_size: int | None = None, **options) -> tuple[Array, Terms]:
    """sum_i (1 - c_ii)^2 + lambd sum_{i != j} c_ij^2, c = sum_b u1_b u2_b': "normalization along feature dimension".

    u_b is z_b standardised over the batch ("with mean subtraction") and then divided by its length ("along the feature
    dimension, without mean subtraction"), a point of the unit sphere. c is the "(unnormalized) covariance matrix": read
    as equation 2 without its denominator, a sum over the batch. As a mean over it no c_ii could exceed 1 / D on
    average, and the second term would be N^2 times smaller beside the first. c_ii is then N / D at most on average,
    1/4 in the paper, so this objective is for batches that are no larger than the embedding is wide.

    Args:
      batch_size: nothing is divided by it.
      options: lambd, form, mesh, as in `loss.barlow_twins_loss`.
    """
    del batch_size
    return towards_identity(on_sphere(standardize(z1)), on_sphere(standardize(z2)), 1, **options)


def cross_covariance(z1: Array, z2: Array, *, batch_size: int | None = None, **options) -> tuple[Array, Terms]:
    """sum_i (1 - c_ii)^2 + lambd sum_{i != j} c_ij^2, c the cross-covariance: "no normalization".

    c = sum_b (z1_b - mean) (z2_b - mean)' / N. The paper has it together with a projector without BatchNorm
    (config.projector_batch_norm). Arguments as in `loss.barlow_twins_loss`.
    """
    return towards_identity(centred(z1), centred(z2), batch_size or z1.shape[0], **options)


def cross_entropy(
    z1: Array,
    z2: Array,
    *,
    temperature: float,
    lambd: float,
    mesh: Mesh | None = None,
    batch_size: int | None = None,
) -> tuple[Array, Terms]:
    """-log sum_i exp(c_ii / t) + lambd log sum_{i != j} exp(max(c_ij, 0) / t): "cross-entropy with temperature".

    Args:
      temperature, lambd: t, and the weight of the second term; the paper gives neither.
      mesh: with one, each device has a slab of c's rows, and takes the logarithm of its own sum.
      batch_size: as in `loss.cross_correlation`.
    Returns:
      loss; {"log_on_diag", "log_off_diag"}, the two logarithms.
    """
    (rows, d), n = z1.shape, batch_size or z1.shape[0]
    z1, z2 = standardize(z1), standardize(z2)
    log_on_diag = jax.nn.logsumexp((z1 * z2).sum(0) / n / temperature)

    def of_rows(z1, z2, first):
        """The logarithm of the sum over some rows of c, from `first` on. z1: their columns; z2: all [N, D]."""
        c = jnp.matmul(z1.T, z2, precision="highest") / n
        row, column = (jax.lax.broadcasted_iota(jnp.int32, c.shape, axis) for axis in (0, 1))
        logits = jnp.where(row + first == column, -jnp.inf, jnp.maximum(c, 0) / temperature)
        return jax.nn.logsumexp(logits)[None]

    def of_device(z1, z2):
        z1 = jax.lax.all_to_all(z1, "data", split_axis=1, concat_axis=0, tiled=True)  # [N, D / devices]
        z2 = jax.lax.all_gather(z2, "data", tiled=True)  # [N, D]
        return of_rows(z1, z2, jax.lax.axis_index("data") * z1.shape[1])

    if mesh is None or rows % mesh.size or d % mesh.size:
        slabs = of_rows(z1, z2, 0)
    else:
        slabs = jax.shard_map(of_device, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(z1, z2)
    log_off_diag = jax.nn.logsumexp(slabs)
    return lambd * log_off_diag - log_on_diag, {"log_on_diag": log_on_diag, "log_off_diag": log_off_diag}


def hsic(z1: Array, z2: Array, *, lambd: float, batch_size: int | None = None, **options) -> tuple[Array, Terms]:
    """sum_i (1 - c_ii)^2 + lambd sum_{i != j} (1 + c_ij)^2: off the diagonal the target is -1 instead of 0.

    Tsai et al. 2021 (arXiv 2104.13712), from the Hilbert-Schmidt independence criterion. Computed as off_diag of Barlow
    Twins + 2 sum_{i != j} c_ij + D (D - 1), where the sum of all c_ij is a product of two vectors over the batch.

    Args:
      lambd, batch_size, options: as in `loss.barlow_twins_loss`.
    """
    n, d = batch_size or z1.shape[0], z1.shape[1]
    _, terms = barlow_twins_loss(z1, z2, lambd=lambd, batch_size=batch_size, **options)
    z1, z2 = standardize(z1), standardize(z2)
    outside = ((z1.sum(1) * z2.sum(1)).sum() - (z1 * z2).sum()) / n
    terms["off_diag"] += 2 * outside + d * (d - 1)
    return terms["on_diag"] + lambd * terms["off_diag"], terms
