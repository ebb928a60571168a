"""BatchNorm and the ReLU behind it against their formulas, backward passes against autodiff's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from barlow_jax.networks import batch_norm


def test_statistics_of_bfloat16_are_those_of_its_values():
    """Mean 3, deviation 1/2, 3,200 values of each: bfloat16 sums would be off in the second or third digit."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 0.5 * rng.normal(size=(32, 2, 10, 10, 7)), jnp.bfloat16)
    norm = batch_norm.BatchNorm(7)
    y = norm(x, train=True)
    exact = np.asarray(x, np.float64)
    mean, var = exact.mean((0, 2, 3)), exact.var((0, 2, 3))
    moved_mean, moved_var = np.zeros(7), np.ones(7)
    for view in range(2):
        moved_mean += 0.1 * (mean[view] - moved_mean)
        moved_var += 0.1 * (var[view] * 3200 / 3199 - moved_var)
    np.testing.assert_allclose(norm.mean[...], moved_mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], moved_var, rtol=1e-5)
    want = (exact - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=2**-8, atol=1e-5)  # rounded once, at the end
    shown = norm(x[:, 0], train=False)
    want = (exact[:, 0] - moved_mean) / np.sqrt(moved_var + 1e-5)
    np.testing.assert_allclose(np.asarray(shown, np.float64), want, rtol=2**-8, atol=1e-5)


def test_a_variance_that_rounding_makes_negative_is_zero():
    """Constant channels far from the running mean: E[x^2] - E[x]^2 is rounding, of either sign."""
    x = jnp.asarray(np.random.default_rng(0).uniform(100, 5000, 512), jnp.float32) + jnp.zeros((24, 1, 512))
    norm = batch_norm.BatchNorm(512)
    mean, square = norm._moments(x)
    assert (square - jnp.square(mean)).min() < -1e-5  # so it happens
    y = norm(x, train=True)
    assert jnp.isfinite(y).all() and norm.var[...].min() >= 0.9


def test_the_gradient_of_a_relu_at_zero_is_zero():
    """As autodiff's and PyTorch's: of a channel with one value everywhere, which is exactly 0 behind BatchNorm."""
    x = jnp.stack([jnp.ones((4, 2, 3, 3)), jnp.arange(72.0).reshape(4, 2, 3, 3)], -1)
    norm = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    bias = jax.grad(lambda norm: batch_norm.relu(ours(norm, x)).sum())(norm)["bias"]
    assert bias[0] == 0 and bias[1] > 0


def by_formula(norm, x):
    """The normalised x [B, V, H, W, C], as anybody would write it."""
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]


def ours(norm, x):
    module = batch_norm.BatchNorm(x.shape[-1])
    module.scale[...], module.bias[...] = norm["scale"], norm["bias"]
    return module.normalised(x, train=True)


@pytest.mark.parametrize("kind", ["alone", "with the input", "with another normalised one"])
def test_gradients_equal_those_of_autodiff(x64, kind):
    rng = np.random.default_rng(0)
    x, other, dy = (jnp.asarray(rng.normal(1, 2, (6, 2, 3, 4, 5))) for _ in range(3))
    norm, second = ({"scale": jnp.asarray(rng.normal(size=5)), "bias": jnp.asarray(rng.normal(size=5))} for _ in "ab")

    def here(norm, second, x, other):
        if kind == "alone":
            return batch_norm.relu(ours(norm, x))
        return batch_norm.relu_of_sum(ours(norm, x), other if kind == "with the input" else ours(second, other))

    def there(norm, second, x, other):
        shortcut = {"alone": 0, "with the input": other}.get(kind, by_formula(second, other))
        return jnp.maximum(by_formula(norm, x) + shortcut, 0)

    (got, pull), (want, pull_there) = (jax.vjp(f, norm, second, x, other) for f in (jax.jit(here), there))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    for a, b in zip(jax.tree.leaves(jax.jit(pull)(dy)), jax.tree.leaves(pull_there(dy)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_evaluation_has_a_gradient_too(x64):
    """What is trained behind running statistics: they are constants, and broadcast over all axes but the last."""
    rng = np.random.default_rng(0)
    x, dy = jnp.asarray(rng.normal(size=(4, 3, 3, 5))), jnp.asarray(rng.normal(size=(4, 3, 3, 5)))
    norm = batch_norm.BatchNorm(5)
    norm.mean[...], norm.var[...] = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.uniform(1, 2, 5))
    gain = 1 / np.sqrt(np.asarray(norm.var[...]) + 1e-5)
    value = (np.asarray(x) - np.asarray(norm.mean[...])) * gain
    y, pull = jax.vjp(lambda x: batch_norm.relu(norm.normalised(x, train=False)), x)
    np.testing.assert_allclose(y, np.maximum(value, 0), rtol=1e-12)
    np.testing.assert_allclose(pull(dy)[0], np.where(value > 0, dy, 0) * gain, rtol=1e-12)


@pytest.mark.parametrize("end", [False, True])
def test_the_backward_pass_keeps_maps_of_the_compute_dtype_alone(end):
    """The input; at a block's end the shortcut and the output too, which the next convolution keeps anyway."""
    x = jnp.ones((4, 2, 8, 8, 16), jnp.bfloat16)
    term = ours({"scale": jnp.ones(16), "bias": jnp.zeros(16)}, x)
    y, pull = jax.vjp(batch_norm.relu_of_sum, term, x) if end else jax.vjp(batch_norm.relu, term)
    kept = [leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert kept == [jnp.bfloat16] * (3 if end else 1) and y.dtype == jnp.bfloat16
