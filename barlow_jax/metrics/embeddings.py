"""What a training step says of its embeddings z1 and z2, and what they would say if nothing had been learnt."""

import jax.numpy as jnp
from jax import Array

# A dimension is dead when its variance is below the eps of the loss's batch norm (`loss.standardize`): there eps
# outweighs the signal, and c_ii stays below 0.71 (0.5 if dead in both views) however well the views agree.
DEAD_VARIANCE = 1e-5


def agreement(c: Array) -> dict[str, Array]:
    """ "alignment", the mean of c_ii, and "c_on_diag" and "c_off_diag", the terms of equation 1; c [D, D]."""
    diagonal = jnp.diagonal(c)
    on, off = jnp.square(1 - diagonal).sum(), jnp.square(c).sum() - jnp.square(diagonal).sum()
    return {"alignment": diagonal.mean(), "c_on_diag": on, "c_off_diag": off}


def embedding_stats(z1: Array, z2: Array) -> dict[str, Array]:
    """What collapse looks like before the loss shows it; made to be called inside the train step.

    Args:
      z1, z2: [N, D] embeddings of the two views, N the global batch, before the loss standardises them.
    Returns:
      float32 scalars, averaged over views: "z_mean", the mean over dimensions of |mean over the batch|; "z_std", the
      mean over dimensions of the standard deviation over the batch; "dead_dims", the number of dimensions whose
      variance is below `DEAD_VARIANCE` in either view.
    """
    z = jnp.stack([z1, z2]).astype(jnp.float32)
    mean = z.mean(1)
    variance = jnp.square(z - mean[:, None]).mean(1)
    dead = (variance < DEAD_VARIANCE).any(0).sum()
    return {"z_mean": jnp.abs(mean).mean(), "z_std": jnp.sqrt(variance).mean(), "dead_dims": dead.astype(jnp.float32)}


def expected_at_init(n: int, d: int, lambd: float) -> dict[str, float]:
    """What the loss is on average if the two views had nothing to do with each other.

    Assumption: the rows of z2 are in random order with respect to those of z1 (independent Gaussian embeddings are a
    special case; eps is neglected, and dimensions may be correlated). Then every c_ij is the sample correlation of two
    unrelated columns, for which E[c] = 0 and E[c^2] = 1 / (n - 1) exactly, whatever their distribution (Pitman 1937,
    J. R. Stat. Soc. Suppl. 4). So
        E[on_diag]  = sum_i E[(1 - c_ii)^2] = d (1 + 1 / (n - 1)) = d n / (n - 1)
        E[off_diag] = d (d - 1) / (n - 1)
    A fresh network starts below this on_diag, because it already maps two views of an image to similar embeddings, and
    above this off_diag, because its dimensions are correlated (ResNet-18, 256 CIFAR-10 images, d = 512: 196 and 4916
    against 514 and 1026).

    Args:
      n: global batch size, at least 2; d: dimensions; lambd: weight of off_diag.
    Returns:
      {"on_diag", "off_diag", "loss"}, floats.
    """
    on_diag, off_diag = d * n / (n - 1), d * (d - 1) / (n - 1)
    return {"on_diag": on_diag, "off_diag": off_diag, "loss": on_diag + lambd * off_diag}
