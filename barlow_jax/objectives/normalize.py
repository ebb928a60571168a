"""The normalisation of embeddings, beside those of `loss`, that several objectives take."""

import jax
import jax.numpy as jnp
from jax import Array


def on_sphere(z: Array) -> Array:
    """[N, D] with rows of length 1, float32 or wider; a row of zeros stays one."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return z * jax.lax.rsqrt(jnp.maximum(jnp.square(z).sum(1, keepdims=True), 1e-24))
