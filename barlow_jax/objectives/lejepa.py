"""LeJEPA with SIGReg (Balestriero and LeCun 2025, arXiv 2511.08544, algorithms 1 and 2), for any number of views.

    invariance  mean over views, images and dimensions of (z_v - mean over the views of full size)^2
    sigreg      mean over views and directions a of N int |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, from -5 to 5,
                phi(t) = mean over images of exp(i t a . z): the test of Epps and Pulley for a standard normal
    loss        (1 - lambd) invariance + lambd sigreg

The integral is the trapezoidal rule on 17 points. Its integrand is even and 0 at 0, so that 8 points do. Directions are
uniform on the sphere, drawn anew each step, the same for all views.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

LAST, POINTS = 5.0, 8  # of t > 0


def lejepa(
    *views: Array,
    lambd: float,
    slices: int,
    key: Array,
    large: int | None = None,
    mesh: Mesh | None = None,
    batch_size: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The loss and its two terms.

    Sums over the devices are of cosines and sines, 16 for each direction and view.

    Args:
      views: [N, D] embeddings of each, two or more.
      lambd: weight of sigreg; the paper recommends 0.05.
      slices: how many directions; the paper recommends 1024.
      key: of the directions.
      large: so many of the views, the first, are of full size, and the mean that all are compared with is theirs.
      batch_size: means are over the rows there are, whatever this is.
    """
    del mesh, batch_size
    z = jnp.stack(views)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    centre = z.mean(0) if large is None else z[:large].mean(0)
    invariance = jnp.square(z - centre).mean()
    along = jnp.matmul(z, directions(key, z.shape[-1], slices, z.dtype), precision="highest")  # [V, N, slices]
    sigreg = epps_pulley(along).mean()
    return (1 - lambd) * invariance + lambd * sigreg, {"invariance": invariance, "sigreg": sigreg}


def directions(key: Array, d: int, slices: int, dtype) -> Array:
    """[d, slices], columns of length 1, uniform on the sphere."""
    normal = jax.random.normal(key, (d, slices), dtype)
    return normal / jnp.sqrt(jnp.square(normal).sum(0))


def epps_pulley(x: Array) -> Array:
    """The statistic of each column: [..., N, slices] -> [..., slices]."""
    step = LAST / POINTS
    total = jnp.zeros([], x.dtype)
    for k in range(1, POINTS + 1):  # one after the other: x is [N, slices], and cosines of all t would be 8 times that
        t, weight = k * step, step if k == POINTS else 2 * step
        normal = jnp.exp(jnp.asarray(-t * t / 2, x.dtype))
        off = jnp.square(jnp.cos(t * x).mean(-2) - normal) + jnp.square(jnp.sin(t * x).mean(-2))
        total += weight * normal * off
    return x.shape[-2] * total
