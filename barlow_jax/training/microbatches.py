"""The network's part of a train step, there and back: for a whole batch, or for one that comes in micro-batches.

The loss couples all images of a batch, so that the mean of the gradients of micro-batches is the gradient of another
loss. But the loss sees the batch only through its embeddings, which are small. So: the embeddings of all micro-batches,
without keeping activations; the loss and its gradient at the embeddings of the whole batch; then each micro-batch
forward once more, and back from its rows of that gradient. The sum over micro-batches is the gradient of the loss of
the whole batch, for one more forward pass.

What is left is BatchNorm. Either each micro-batch has statistics of its own ("micro", as each of N GPUs has without
SyncBatchNorm), or all share those of the batch ("batch"), which cost many passes, see `shared_statistics`.

The functions below that do so, `whole`, `own_statistics` and `shared_statistics`, are one to the train step:

    (graphdef, params, batch_stats, views [B, V, H, W, C]) -> features [B, V, F], z [B, V, D], batch_stats, pull_back

where pull_back(dz [B, V, D]) is the gradient with respect to the parameters. Views of several sizes come as a tuple,
see `model.embed_views`, and V is their number in all; `shared_statistics` takes one size.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from barlow_jax import model
from barlow_jax.model import Tree

STATISTICS = ("micro", "batch")

Embedded = tuple[Array, Array, Tree, Callable[[Array], Tree]]


def make_forward(microbatches: int = 1, statistics: str = "micro") -> Callable[..., Embedded]:
    """The network there and back, for so many micro-batches."""
    if microbatches == 1:
        return whole
    return functools.partial({"micro": own_statistics, "batch": shared_statistics}[statistics], microbatches)


Views = Array | tuple[Array, ...]


def whole(graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree, views: Views) -> Embedded:
    """The whole batch at once."""

    def encode(params):
        network = model.merge(graphdef, params, batch_stats)
        features, z = model.embed_views(network, views)
        return z, (features, model.batch_stats_of(network))

    z, pull_back, (features, batch_stats) = jax.vjp(encode, params, has_aux=True)
    return features, z, batch_stats, lambda dz: pull_back(dz)[0]


def own_statistics(n: int, graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree, views: Views) -> Embedded:
    """Micro-batches with batch statistics of their own.

    The running statistics move once a step, by the mean of the micro-batches' statistics: with the momentum of an
    undivided step, and in no order. Every micro-batch starts from those of the state, so that its two forward passes
    are the same.
    """

    def encode(params, k):
        network = model.merge(graphdef, params, batch_stats)
        features, z = model.embed_views(network, jax.tree.map(lambda one: part(one, n, k), views))
        return z, (features, model.batch_stats_of(network))

    z, (features, moved) = jax.lax.map(lambda k: encode(params, k), jnp.arange(n))
    z = joined(z)

    def pull_back(dz):
        def of_part(k):
            _, back, _ = jax.vjp(lambda params: encode(params, k), params, has_aux=True)
            return back(part(dz, n, k))[0]

        return total(of_part, n)

    return joined(features), z, with_bn_of(graphdef, params, batch_stats, moved, z), pull_back


def shared_statistics(n: int, graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree, views: Array) -> Embedded:
    """Micro-batches that share the batch statistics of the whole batch, in all BatchNorms and in the gradient.

    The statistics s of all layers solve s = G(s), where G is the mean over micro-batches of the statistics that they
    show while they are normalised by s. Those of a layer depend on the layers before it alone, so that each pass puts
    the statistics one BatchNorm deeper right, and after as many passes as there are BatchNorms in a row nothing moves
    any more: s is exact, whatever it started from. The gradient through the statistics solves the adjoint equation
    l = dL/ds + l dG/ds in the same way, from the last BatchNorm to the first. No activations are kept between passes.

    The price is passes: 21 forward and 21 forward and back for a ResNet-18 with the usual projector, 53 and 53 for a
    ResNet-50. `config.remat` is cheaper wherever it is enough.
    """

    def encode(params, moments, k):
        network = model.merge_with_moments(graphdef, params, batch_stats, moments, n)
        features, z = network(part(views, n, k), train=True)
        return (z, model.moments_of(network)), (features, model.batch_stats_of(network))

    def seen(moments):
        return jax.tree.map(lambda m: m / n, total(lambda k: encode(params, moments, k)[0][1], n))

    start = model.moments_at_start(graphdef, params, batch_stats, views.shape[1])
    moments = settled(seen, start)
    (z, _), (features, moved) = jax.lax.map(lambda k: encode(params, moments, k), jnp.arange(n))
    z = joined(z)

    def pull_back(dz):
        def of_part(argument, adjoint, k):
            # One argument at a time, as the gradient of the parameters is wanted once only.
            encoded = {"params": lambda p: encode(p, moments, k), "moments": lambda s: encode(params, s, k)}[argument]
            _, back, _ = jax.vjp(encoded, {"params": params, "moments": moments}[argument], has_aux=True)
            return back((part(dz, n, k), jax.tree.map(lambda a: a / n, adjoint)))[0]

        def summed(argument, adjoint):
            return total(functools.partial(of_part, argument, adjoint), n)

        adjoint = settled(functools.partial(summed, "moments"), jax.tree.map(jnp.zeros_like, moments))
        return summed("params", adjoint)

    return joined(features), z, with_bn_of(graphdef, params, batch_stats, moved, z), pull_back


def part(x: Array, n: int, k: Array | int) -> Array:
    """Micro-batch k of n: rows k, k + n, k + 2n, ... of [B, ...].

    Strided, so that a micro-batch is spread over the devices as the batch is, without communication, and holds the same
    images on any number of devices.
    """
    rows = x.reshape(x.shape[0] // n, n, *x.shape[1:])
    return jax.lax.dynamic_index_in_dim(rows, k, axis=1, keepdims=False)


def joined(parts: Array) -> Array:
    """[n, B / n, ...], micro-batches as `part` cuts them -> [B, ...]."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def total(of_part: Callable[[Array], Any], n: int) -> Any:
    """The sum of of_part(k), a pytree, over the micro-batches."""
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(of_part, jnp.zeros([], int)))
    return jax.lax.scan(lambda so_far, k: (jax.tree.map(jnp.add, so_far, of_part(k)), None), zeros, jnp.arange(n))[0]


def settled(function: Callable[[dict[str, Array]], dict[str, Array]], moments: dict[str, Array]) -> dict[str, Array]:
    """The fixed point of a function that puts one BatchNorm after the other right, {path: [...]}."""

    def moves(carry):
        passes, old, new = carry
        moved = jnp.stack([(old[path] != new[path]).any() for path in old]).any()
        return moved & (passes <= len(old))  # bounded, because nan is never equal

    def again(carry):
        passes, _, new = carry
        return passes + 1, new, function(new)

    return jax.lax.while_loop(moves, again, (1, moments, function(moments)))[2]


def with_bn_of(graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree, moved: Tree, z: Array) -> Tree:
    """The running statistics after the step: means over micro-batches, and of `bn`, which stands for the batch
    normalisation inside the loss, those of all embeddings."""
    network = model.merge(graphdef, params, batch_stats)
    network.bn(z, train=True)
    mean = jax.tree.map(lambda s: s.mean(0), moved)
    return mean | {"bn": model.batch_stats_of(network)["bn"]}
