"""Convolution and maximum over windows of maps [N, H, W, C], each backend by the form that it is good at.

Values and gradients are those of `lax.conv_general_dilated` and `lax.reduce_window`, up to rounding. The form is chosen
when a program is lowered for a platform (`lax.platform_dependent`), not by the machine that traces it, so that a
program compiled for elsewhere is the one that runs there; the branches not taken are never compiled. docs/programs.md
has the figures of what was tried.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

BY_WINNER = ("cpu", "cuda", "rocm")  # the platforms whose max-pool notes the winning tap
SMALL = 4  # side of the largest map that CPUs convolve tap by tap


class Tap(NamedTuple):
    """One place of a window along one axis, and the outputs, first to last (exclusive), that meet the map there.

    `start` is where the first of them meets it.
    """

    place: int
    first: int
    last: int
    start: int


def taps(side: int, window: int, stride: int, padding: int) -> list[Tap]:
    """The places of a window that meet a map of this side; the others see padding only."""
    found = []
    for place in range(window):
        first = max(0, -((place - padding) // stride))
        last = min(_out(side, window, stride, padding), (side - 1 + padding - place) // stride + 1)
        if first < last:
            found.append(Tap(place, first, last, first * stride + place - padding))
    return found


def _out(side, window, stride, padding):
    return (side + 2 * padding - window) // stride + 1


def _met(tap, stride):
    return slice(tap.start, tap.start + (tap.last - tap.first - 1) * stride + 1, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(x: Array, kernel: Array, stride: int, padding: int, precision: str | None = None) -> Array:
    """Convolution of maps x [N, H, W, C] with a kernel [k, k, C, K], padded by `padding` zeros on every side.

    Args:
      precision: what its products ask of an accelerator, see `resnet.precision_of`; backward too.
    """
    usual, by_taps = _forms(stride, padding, precision)
    return lax.platform_dependent(x, kernel, cpu=by_taps, default=usual) if _small(x) else usual(x, kernel)


def _convolve_forward(x, kernel, stride, padding, precision):
    return convolve(x, kernel, stride, padding, precision), (x, kernel)


def _convolve_backward(stride, padding, precision, kept, dy):
    usual, by_taps = (_gradients_of(form) for form in _forms(stride, padding, precision))
    x, kernel = kept
    if _small(x) or kernel.shape[:2] == (1, 1):
        return lax.platform_dependent(x, kernel, dy, cpu=by_taps, default=usual)
    return usual(x, kernel, dy)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _forms(stride, padding, precision):
    usual = functools.partial(_convolve, stride=stride, padding=padding, precision=precision)
    return usual, functools.partial(_convolve_by_taps, stride=stride, padding=padding)


def _gradients_of(form):
    def gradients(x, kernel, dy):
        # Linear in each of the two, so that nothing of the forward pass is computed again.
        (dx,) = jax.linear_transpose(lambda x: form(x, kernel), x)(dy)
        (d_kernel,) = jax.linear_transpose(lambda kernel: form(x, kernel), kernel)(dy)
        return dx, d_kernel

    return gradients


def _small(x):
    """Whether both sides of the maps are; those of symbolic size count as large."""
    return all(isinstance(side, int) and side <= SMALL for side in x.shape[1:3])


def _convolve(x, kernel, *, stride, padding, precision):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _convolve_by_taps(x, kernel, *, stride, padding):
    """A matrix product for each weight of the window, of the positions where it lies inside the map.

    For CPUs. XLA takes a plain loop there where a map, or that of the gradient, is smaller than the kernel (542 ms
    instead of 5 for 32 maps of 2 x 2 x 512), and its weight gradient of a 1x1 convolution takes 2 to 10 times as long
    as the product that it is. Where much of a window is padding, that is not multiplied here.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)  # products and their sum; XLA's CPU convolutions have it so too
    _, height, width, channels = x.shape
    size, features = kernel.shape[0], kernel.shape[-1]
    out = [_out(side, size, stride, padding) for side in (height, width)]
    parts = []
    for row, column in itertools.product(*(taps(side, size, stride, padding) for side in (height, width))):
        met = x[:, _met(row, stride), _met(column, stride)].astype(wide)
        # Of two axes: with more, XLA transposes one side of the weight gradient's product before it multiplies.
        weights = kernel[row.place, column.place].astype(wide)
        part = jnp.matmul(met.reshape(-1, channels), weights, precision="highest")  # as CPUs have it anyway
        around = [(tap.first, side - tap.last) for tap, side in zip((row, column), out, strict=True)]
        parts.append(jnp.pad(part.reshape(*met.shape[:-1], features), ((0, 0), *around, (0, 0))))
    return functools.reduce(jnp.add, parts).astype(x.dtype)


def patches(x: Array, side: int) -> Array:
    """Windows side by side: [..., H, W, C] -> [..., H // side, W // side, side * side * C].

    For a product of matrices on every backend: as a convolution, CPUs and its weight gradient do worse. What is left at
    the far edges is cut off.
    """
    *leading, height, width, channels = x.shape
    rows, columns = height // side, width // side
    x = x[..., : rows * side, : columns * side, :].reshape(*leading, rows, side, columns, side, channels)
    return x.swapaxes(-4, -3).reshape(*leading, rows, columns, side * side * channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, precision: str | None = None) -> Array:
    """Convolution of each channel of maps x [N, H, W, C] with a window of its own, kernel [k, k, 1, C], k odd.

    Padded by k // 2 zeros on every side, so that the maps keep their size.

    Args:
      precision: as of `convolve`.
    """
    usual = functools.partial(_depthwise, precision=precision)
    return lax.platform_dependent(x, kernel, cpu=_depthwise_by_taps, default=usual)


def _depthwise_forward(x, kernel, precision):
    return depthwise(x, kernel, precision), (x, kernel)


def _depthwise_backward(precision, kept, dy):
    usual = _gradients_of(functools.partial(_depthwise, precision=precision))
    return lax.platform_dependent(*kept, dy, cpu=_depthwise_gradients_by_taps, default=usual)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise(x, kernel, *, precision):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((kernel.shape[0] // 2,) * 2,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=precision,
    )


def _depthwise_by_taps(x, kernel):
    """A sum over the places of the window: the map as it lies there, times the weights. One loop over the outputs."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    _, height, width, _ = x.shape
    padded, weights = _padded(x.astype(wide), len(kernel)), kernel.astype(wide)
    parts = [
        padded[:, row : row + height, column : column + width] * weights[row, column, 0]
        for row, column in _seen(x, len(kernel))
    ]
    return functools.reduce(jnp.add, parts).astype(x.dtype)


def _depthwise_gradients_by_taps(x, kernel, dy):
    """Of the weights by a loop over the places, a product and its sum in each; unrolled it takes five times as long."""
    wide, side = jnp.promote_types(x.dtype, jnp.float32), len(kernel)
    padded, places = _padded(x.astype(wide), side), np.array(_seen(x, side))
    rows = jnp.ones((1, math.prod(x.shape[:3])), wide)

    def of(place):
        product = lax.dynamic_slice(padded, (0, *place, 0), x.shape) * dy
        return jnp.matmul(rows, product.reshape(-1, x.shape[-1]), precision="highest")

    sums = lax.map(of, jnp.asarray(places))
    d_kernel = jnp.zeros(kernel.shape, wide).at[places[:, 0], places[:, 1]].set(sums)
    return _depthwise_by_taps(dy, kernel[::-1, ::-1]), d_kernel.astype(kernel.dtype)


def _padded(x, side):
    """The map for a window of this side, behind a barrier: else the loop asks of each place whether it is padding."""
    around = (side // 2, side // 2)
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), around, around, (0, 0))))


def _seen(x, side):
    """The places (row, column) of a window that meet the map; the others see padding only."""
    along = [[tap.place for tap in taps(size, side, 1, side // 2)] for size in x.shape[1:3]]
    return [*itertools.product(*along)]


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """3x3 maximum with stride 2 and padding 1 of maps [N, H, W, C].

    The gradient goes to the first of equal values in the order of rows, as in PyTorch. On CPUs and GPUs the forward
    pass notes which of the nine taps won, one byte for each output, and the backward pass sums nine maps. XLA's own
    gradient is a scatter there: on GPUs with atomics, so that its sums depend on the order of the threads.
    """
    return _max_pool(x)


def _max_pool(x):
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 2, 2, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def _max_pool_forward(x):
    def unknown(x):
        y = _max_pool(x)
        return y, jnp.isnan(y).astype(jnp.int8)  # of y, so that it varies over devices as y does in a shard_map

    y, winner = lax.platform_dependent(x, **dict.fromkeys(BY_WINNER, _max_and_winner), default=unknown)
    return y, (x, winner)  # each platform needs one of the two; the other is dropped from the program


def _max_pool_backward(kept, dy):
    def from_map(x, winner, dy):
        del winner
        return jax.vjp(_max_pool, x)[1](dy)[0]

    def from_winner(x, winner, dy):
        return _to_winner(winner, dy, x.shape)

    return (lax.platform_dependent(*kept, dy, **dict.fromkeys(BY_WINNER, from_winner), default=from_map),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_and_winner(x):
    """The maximum, and the number, 0 to 8, of the first tap that has it, in int8."""
    around = [(1, side % 2) for side in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), *around, (0, 0)), constant_values=-jnp.inf)
    rows, columns = (side - 2 for side in padded.shape[1:3])

    def of(row, column):
        return padded[:, row : row + rows : 2, column : column + columns : 2]

    best = of(0, 0)
    winner = jnp.zeros(best.shape, jnp.int8)
    for number, place in list(enumerate(itertools.product(range(3), range(3))))[1:]:
        value = of(*place)
        winner = jnp.where(value > best, jnp.int8(number), winner)
        best = jnp.maximum(value, best)
    return best, winner


def _to_winner(winner, dy, shape):
    """Each gradient dy at the place in a map of this shape that the tap of its number stands for."""
    total = jnp.zeros(shape, jnp.promote_types(dy.dtype, jnp.float32))
    for row, column in itertools.product(*(taps(side, 3, 2, 1) for side in shape[1:3])):
        chosen = jnp.where(winner == 3 * row.place + column.place, dy, 0).astype(total.dtype)
        met = chosen[:, row.first : row.last, column.first : column.last]
        around = [(tap.start, side - _met(tap, 2).stop, 1) for tap, side in zip((row, column), shape[1:3], strict=True)]
        total += lax.pad(met, jnp.zeros((), total.dtype), ((0, 0, 0), *around, (0, 0, 0)))
    return total.astype(dy.dtype)
