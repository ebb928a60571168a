"""What a step says of its embeddings against numpy, and what unrelated views would give against simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax import loss, metrics


def test_embedding_stats():
    rng = np.random.default_rng(0)
    shape = (64, 10)
    z1 = (rng.standard_normal(shape) * np.linspace(0.5, 2, 10) + 100).astype(np.float32)
    z2 = (rng.standard_normal(shape) - 100).astype(np.float32)
    z2[:, 3] = 7  # dead in one view
    z1[:, 4] = z2[:, 4] = rng.standard_normal(64) * 1e-3  # alive to the eye, dead to the loss
    wide = np.stack([z1, z2]).astype(np.float64)
    split = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
    stats = jax.jit(metrics.embedding_stats)(*jax.device_put((z1, z2), split))
    np.testing.assert_allclose(stats["z_mean"], np.abs(wide.mean(1)).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["z_std"], wide.std(1).mean(), rtol=1e-5)
    assert stats["dead_dims"] == 2
    c = loss.cross_correlation(jnp.asarray(z1), jnp.asarray(z1))
    assert c[4, 4] < 0.5 and c[5, 5] > 0.999


@pytest.mark.parametrize("distribution", ["normal", "exponential"])
def test_expected_at_init_is_what_the_loss_is_for_unrelated_views(distribution, x64):
    """Also for embeddings that are neither Gaussian nor uncorrelated over dimensions."""
    n, d, lambd, trials = 12, 5, 0.0051, 4000
    draw = getattr(np.random.default_rng(0), distribution)
    mix = np.random.default_rng(1).standard_normal((d, d))
    z1, z2 = (jnp.asarray(draw(size=(trials, n, d)) @ mix) for _ in range(2))
    terms = jax.vmap(lambda a, b: loss.barlow_twins_loss(a, b, lambd=lambd, eps=0.0, form="direct"))
    total, parts = jax.jit(terms)(z1, z2)
    expected = metrics.expected_at_init(n, d, lambd)
    for observed, name in [(total, "loss"), (parts["on_diag"], "on_diag"), (parts["off_diag"], "off_diag")]:
        standard_error = float(observed.std()) / trials**0.5
        assert standard_error < 0.02 * expected[name]
        assert abs(float(observed.mean()) - expected[name]) < 3.5 * standard_error, name
