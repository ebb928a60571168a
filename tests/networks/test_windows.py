"""Convolution and max-pool in the forms of the platforms, against plain loops in float64 and XLA's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from barlow_jax import sharding
from barlow_jax.networks import windows

RNG = np.random.default_rng(0)


def loops(x, kernel, stride, padding):
    """The definition, position by position."""
    k = len(kernel)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out = [(side - k) // stride + 1 for side in padded.shape[1:3]]
    y = np.empty((len(x), *out, kernel.shape[-1]))
    for i, j in np.ndindex(*out):
        seen = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
        y[:, i, j] = np.tensordot(seen, kernel, 3)
    return y


@pytest.mark.parametrize(
    "height,width,window,stride",
    [(1, 1, 3, 1), (2, 2, 3, 1), (3, 4, 3, 1), (4, 4, 3, 2), (1, 3, 3, 2), (4, 2, 7, 2), (5, 6, 1, 1), (6, 5, 1, 2)],
)
def test_convolution_and_gradients(x64, height, width, window, stride):
    x, kernel = RNG.normal(size=(3, height, width, 4)), RNG.normal(size=(window, window, 4, 5))
    y, back = jax.vjp(jax.jit(lambda x, kernel: windows.convolve(x, kernel, stride, window // 2)), x, kernel)
    np.testing.assert_allclose(y, loops(x, kernel, stride, window // 2), rtol=1e-12, atol=1e-12)
    dy = RNG.normal(size=y.shape)
    for got, at, other in zip(back(dy), (x, kernel), (kernel, x), strict=True):
        # Linear in each: <dy, y(at moved by e)> - <dy, y(at)> is the gradient at e, exactly.
        for place in [tuple(RNG.integers(side) for side in at.shape) for _ in range(12)]:
            unit = np.zeros_like(at)
            unit[place] = 1
            moved = (unit, other) if at is x else (other, unit)
            want = (dy * loops(*moved, stride, window // 2)).sum()
            np.testing.assert_allclose(got[place], want, rtol=1e-12, atol=1e-12)


def each_alone(x, kernel):
    """Every channel with the window of its own."""
    channels = range(x.shape[-1])
    return np.concatenate([loops(x[..., c : c + 1], kernel[..., c : c + 1], 1, len(kernel) // 2) for c in channels], 3)


@pytest.mark.parametrize("height,width,window", [(9, 8, 7), (4, 1, 7)])
def test_depthwise_convolution_and_gradients(x64, height, width, window):
    """In the form of CPUs and in XLA's own."""
    x, kernel = RNG.normal(size=(2, height, width, 3)), RNG.normal(size=(window, window, 1, 3))
    y, back = jax.vjp(jax.jit(windows.depthwise), x, kernel)
    np.testing.assert_allclose(y, each_alone(x, kernel), rtol=1e-12, atol=1e-12)
    dy = RNG.normal(size=y.shape)
    usual, usual_back = jax.vjp(jax.jit(lambda *both: windows._depthwise(*both, precision=None)), x, kernel)
    np.testing.assert_allclose(usual, y, rtol=1e-12, atol=1e-12)
    for got, want in zip(jax.jit(back)(dy), jax.jit(usual_back)(dy), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def scattered(x):
    """The pool whose gradient is XLA's own."""
    size = ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return lax.reduce_window(x, -jnp.inf, lax.max, *size)


@pytest.mark.parametrize("height,width", [(6, 6), (7, 4), (1, 1), (2, 3)])
def test_the_pools_gradient_is_that_of_a_scatter(x64, height, width):
    """Ties everywhere, as the values are few: the first of them takes it all."""
    x = jnp.asarray(RNG.integers(0, 3, (3, height, width, 2)), jnp.float64)
    y, back = jax.vjp(jax.jit(windows.max_pool), x)
    want, back_of_scatter = jax.vjp(scattered, x)
    np.testing.assert_array_equal(y, want)
    dy = jnp.asarray(RNG.normal(size=y.shape))
    np.testing.assert_allclose(back(dy)[0], back_of_scatter(dy)[0], rtol=1e-12, atol=1e-12)


def test_of_equal_values_the_first_takes_the_gradient():
    dx = jax.grad(lambda x: windows.max_pool(x).sum())(jnp.zeros((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(dx, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def gradient_programs():
    """Of a small map, of a 1x1 convolution, of the pool: a function and what it takes."""
    kernels = jnp.zeros((3, 3, 3, 4)), jnp.zeros((1, 1, 3, 4))
    small = jax.grad(lambda x, kernel: windows.convolve(x, kernel, 1, 1).sum(), argnums=(0, 1))
    point = jax.grad(lambda x, kernel: windows.convolve(x, kernel, 1, 0).sum(), argnums=(0, 1))
    depth = jax.grad(lambda x, kernel: windows.depthwise(x, kernel).sum(), argnums=(0, 1))
    pool = jax.grad(lambda x: windows.max_pool(x).sum())
    cases = (
        (small, (jnp.zeros((2, 2, 2, 3)), kernels[0])),
        (point, (jnp.zeros((2, 9, 9, 3)), kernels[1])),
        (pool, (jnp.zeros((2, 8, 8, 3)),)),
        (depth, (jnp.zeros((2, 8, 8, 3)), jnp.zeros((7, 7, 1, 3)))),
    )
    return [jax.jit(function).trace(*operands) for function, operands in cases]


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_the_form_is_chosen_when_lowering(platform):
    """By the platform that is compiled for, not by the one that traces."""
    lowered = (program.lower(lowering_platforms=(platform,)).as_text() for program in gradient_programs())
    small, point, pool, depth = lowered
    assert ("stablehlo.convolution" in small) == (platform != "cpu")
    assert ("stablehlo.dot_general" in small) == (platform == "cpu")
    assert ("stablehlo.dot_general" in point) == (platform == "cpu")
    assert ("select_and_scatter" in pool) == (platform == "tpu")
    assert ("stablehlo.convolution" in depth) == (platform != "cpu")


def test_no_branch_is_left_in_the_program():
    for program in gradient_programs():
        assert "conditional(" not in program.lower().compile().as_text()


def test_one_file_for_all_platforms_has_every_form():
    """As `barlow-jax export` writes it: the branch is there, and reading takes the one of its platform."""
    platforms = ("cpu", "cuda", "tpu")
    x, kernel = RNG.normal(size=(2, 2, 2, 3)).astype(np.float32), RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)
    exported = jax.export.export(jax.jit(lambda x: windows.convolve(x, kernel, 1, 1)), platforms=platforms)(x)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(x), loops(x, kernel, 1, 1), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_summed_in_float32():
    """576 products of nine taps in one sum: sums of bfloat16 would be off by more than the rounding of the result."""
    x = jnp.asarray(RNG.uniform(1, 2, (2, 3, 3, 64)), jnp.bfloat16)
    kernel = jnp.asarray(RNG.uniform(1, 2, (3, 3, 64, 2)), jnp.bfloat16)
    y = jax.jit(lambda x, kernel: windows.convolve(x, kernel, 1, 1))(x, kernel)
    want = loops(np.asarray(x, np.float64), np.asarray(kernel, np.float64), 1, 1)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=2**-8)


def test_gradients_inside_a_shard_map():
    """Whose types say what varies over the devices: every form has to say the same."""
    mesh, kernel = sharding.make_mesh(), jnp.ones((3, 3, 3, 4))
    x = jnp.asarray(RNG.normal(size=(jax.device_count(), 2, 2, 3)), jnp.float32)

    def total(x):
        return windows.max_pool(windows.convolve(x, kernel, 1, 1)).sum()

    split = jax.shard_map(lambda x: lax.psum(total(x), "data"), mesh=mesh, in_specs=P("data"), out_specs=P())
    np.testing.assert_allclose(jax.jit(jax.grad(split))(x), jax.jit(jax.grad(total))(x), rtol=1e-6)
