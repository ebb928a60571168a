"""Batch normalisation that knows about views, and the ReLU behind it.

In training every array has a *view axis*: images are [B, V, H, W, C] and one pass serves all V views of the B images,
while BatchNorm keeps its statistics per view. That gives what V separate passes give, at fewer bytes. In evaluation
there is no such axis: [B, H, W, C].

A step of a ResNet is bound by the memory that it reads and writes, most of it by BatchNorm and ReLU. So their backward
pass is written down here: it keeps the convolution's output alone, in the compute dtype, and makes the rest from it.
docs/programs.md has the figures.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax


class BatchNorm(nnx.Module):
    """Batch normalisation with PyTorch's conventions and one set of batch statistics per view.

    Normalises with the biased variance (eps 1e-5); the running variance takes the unbiased one, with the global count
    (SyncBatchNorm). The running statistics move by `momentum` 0.1 for view 1, then for view 2, as two calls would.
    Statistics are in float32 or wider; the result has the dtype of the input.

    A batch may come in parts that share their statistics, see `microbatches`. Then `moments` holds those of the whole
    batch before a call, [2, V, C] as `_moments` gives them, and those of the part after it; `parts` is how many parts
    there are, all of one size.

    Args:
      features: size C of the last axis.
      affine: learn a scale and an offset.
    """

    momentum = 0.1
    eps = 1e-5

    def __init__(self, features: int, *, affine: bool = True):
        self.scale: Any = nnx.Param(jnp.ones(features)) if affine else None
        self.bias: Any = nnx.Param(jnp.zeros(features)) if affine else None
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.moments: Any = nnx.data(None)  # a Variable while a batch comes in parts
        self.parts = 1

    def __call__(self, x: Array, *, train: bool) -> Array:
        """x: [B, V, ..., C] in training, any [..., C] in evaluation."""
        return value(self.normalised(x, train=train)).astype(x.dtype)

    def normalised(self, x: Array, *, train: bool) -> "Normalised":
        """The same, not yet computed: for `relu` and `relu_of_sum`."""
        if train:
            mean, var = self._batch_statistics(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
            spatial = tuple(range(1, x.ndim - 2))
            mean, var = jnp.expand_dims(mean, spatial), jnp.expand_dims(var, spatial)  # [V, 1, 1, C]
        else:
            mean, var = self.mean[...], self.var[...]
        gain = jax.lax.rsqrt(var + self.eps)
        if self.scale is None:
            return Normalised(x, mean, gain, jnp.zeros_like(gain))
        gain = gain * self.scale[...]
        return Normalised(x, mean, gain, jnp.broadcast_to(self.bias[...], gain.shape))

    def _batch_statistics(self, x):
        """Mean and biased variance of each view, [V, C]; moves the running statistics."""
        mean, square = self._moments(x)
        if self.moments is not None:
            own = jnp.stack([mean, square])
            mean, square = self.moments[...]
            self.moments.set_value(own)
        var = jnp.maximum(square - jnp.square(mean), 0)
        mean = mean + jax.lax.stop_gradient(self.mean[...])
        count = self.parts * (x.size // (x.shape[1] * x.shape[-1]))
        unbiased = var * (count / max(count - 1, 1))
        for running, batch in ((self.mean, mean), (self.var, unbiased)):
            value = running[...]
            for view in range(x.shape[1]):
                value += self.momentum * (jax.lax.stop_gradient(batch[view]) - value)
            running.set_value(value)
        return mean, var

    def _moments(self, x):
        """Mean and mean square of x - s for each view, each [V, C], with s the running mean."""
        # One pass over x: E[(x - s)^2] - E[x - s]^2 is exact for any s, and keeps its digits for an s near the mean,
        # where the usual s = 0 loses them. The running mean is near, and costs nothing.
        axes = (0, *range(2, x.ndim - 1))
        centred = x - jax.lax.stop_gradient(self.mean[...])
        return centred.mean(axes), jnp.square(centred).mean(axes)


class Normalised(NamedTuple):
    """(x - mean) * gain + bias, the output of a BatchNorm that is not computed yet.

    x [B, V, ..., C] in the compute dtype; the others broadcast against it, in float32 or wider.
    """

    x: Array
    mean: Array
    gain: Array
    bias: Array


def value(term: "Normalised | Array") -> Array:
    """A term computed: [B, V, ..., C], float32 or wider."""
    if isinstance(term, Normalised):
        return (term.x.astype(term.mean.dtype) - term.mean) * term.gain + term.bias
    return term.astype(jnp.promote_types(term.dtype, jnp.float32))


def _pullback(term, dz):
    """The gradient with respect to a term, of dz with respect to its value: two sums over dz and dz (x - mean)."""
    if not isinstance(term, Normalised):
        return dz.astype(term.dtype)
    wide = dz.astype(term.mean.dtype)
    sides = (1,) * (dz.ndim - term.mean.ndim) + term.mean.shape  # of 1 where the statistics are broadcast
    axes = [axis for axis, side in enumerate(sides) if side == 1]
    total = wide.sum(axes, keepdims=True).reshape(term.mean.shape)
    along = (wide * (term.x.astype(wide.dtype) - term.mean)).sum(axes, keepdims=True).reshape(term.mean.shape)
    return Normalised((wide * term.gain).astype(term.x.dtype), -total * term.gain, along, total)


@jax.custom_vjp
def relu(term: Normalised) -> Array:
    """max(value, 0) [B, V, ..., C] in the compute dtype; backward, what was positive is seen again in the input."""
    return jnp.maximum(value(term), 0).astype(term.x.dtype)


def _relu_forward(term):
    return relu(term), term


def _relu_backward(term, dy):
    return (_pullback(term, jnp.where(value(term) > 0, dy, 0)),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def relu_of_sum(term: Normalised, shortcut: Normalised | Array) -> Array:
    """The end of a residual block: max(value + shortcut, 0) [B, V, ..., C], rounded once, to the compute dtype.

    Backward, what was positive is seen in the output, which is kept anyway: the next convolution reads it.
    """
    return jnp.maximum(value(term) + value(shortcut), 0).astype(term.x.dtype)


def _relu_of_sum_forward(term, shortcut):
    y = relu_of_sum(term, shortcut)
    # On a GPU the output is written once, where XLA would compute it again from up to four maps for each of its users.
    y = lax.platform_dependent(y, cuda=lax.optimization_barrier, rocm=lax.optimization_barrier, default=lambda y: y)
    return y, (term, shortcut, y)


def _relu_of_sum_backward(kept, dy):
    term, shortcut, y = kept
    dz = jnp.where(y > 0, dy, 0)
    return _pullback(term, dz), _pullback(shortcut, dz)


relu_of_sum.defvjp(_relu_of_sum_forward, _relu_of_sum_backward)
