"""The weighted vote of the nearest neighbours, and the search behind it, a block of rows at a time."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax.errors import UserError

Rows = Array | np.ndarray  # on devices or on the host

QUERY_BLOCK = 512  # test rows that the nearest-neighbour search takes at a time


def knn_accuracy(
    train_features: Rows, train_labels: Rows, test_features: Rows, test_labels: Rows, **options: Any
) -> float | dict[int, float]:
    """Share of the test rows that `knn_predict` gets right: a float, or {k: float} for several k.

    Args:
      test_labels: int [m]; the others and `options` as in `knn_predict`.
    """
    predicted = np.asarray(knn_predict(train_features, train_labels, test_features, **options))
    rates = (predicted == np.asarray(test_labels)).mean(-1)
    k = options.get("k", 20)
    return float(rates) if isinstance(k, int) else dict(zip(k, rates.tolist(), strict=True))


def knn_predict(
    train_features: Rows,
    train_labels: Rows,
    test_features: Rows,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    block: int = 4096,
    mesh: Mesh | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = lambda starts: starts,
) -> np.ndarray:
    """Classes by a weighted vote of the k nearest training rows, exactly.

    Each of the k rows of largest cosine similarity s votes for its class with weight exp(s / temperature): the protocol
    of Wu et al. 2018 (arXiv 1805.01978), with k = 200 and 0.07 there and k = 20 in most later work. The training rows
    pass over the devices once, a block at a time. The test rows are split over the devices, and each remembers only its
    best k. So a device needs room for its test rows, three blocks of training rows and QUERY_BLOCK x block
    similarities, however many training rows there are. All blocks have one shape, so that the result is the same on any
    number of devices.

    Args:
      train_features: [n, F], on the host or on devices; need not be normalised.
      train_labels: int [n], in [0, num_classes).
      test_features: [m, F].
      k: one k, or a tuple for several from one search.
      num_classes: of the vote; None is the largest label + 1.
      block: training rows at a time; test rows are taken at most QUERY_BLOCK at a time.
      mesh: with the axis "data", whose devices share the work; every process then gives the same arrays. None is one
        device of this process.
      track: starts -> starts, around the loop over blocks of training rows.
    Returns:
      int32 [m], or [len(k), m] for a tuple, numpy. Of equal votes the lowest class wins.
    Raises:
      UserError: k exceeds the number of training rows.
    """
    ks = (k,) if isinstance(k, int) else tuple(k)
    n, m = len(train_features), len(test_features)
    if not 0 < max(ks) <= n:
        raise UserError(f"k is {max(ks)}, but there are {n} training rows; take a k from 1 to {n}.")
    classes = num_classes or int(np.max(train_labels)) + 1
    mesh = mesh or jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1])
    rows, columns = min(block, QUERY_BLOCK, m), min(block, n)
    blocks = -(-m // (rows * mesh.size)) * mesh.size
    # In parts along the first axis, each made on its own device.
    shape, sharding = (blocks, rows, max(ks)), NamedSharding(mesh, P("data"))
    queries = _pad(np.asarray(test_features, np.float32), blocks * rows).reshape(blocks, rows, -1)
    queries = _placed(queries, sharding)
    best = jax.jit(
        lambda: (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)), out_shardings=(sharding, sharding)
    )()
    whole, merge = NamedSharding(mesh, P()), merger(mesh, _merge_block)
    for start in track(range(0, n, columns)):
        stop = min(start + columns, n)
        features = _pad(np.asarray(train_features[start:stop], np.float32), columns)
        labels = _pad(np.asarray(train_labels[start:stop], np.int32), columns, fill=-1)
        before, best = best, merge(*best, queries, _placed(features, whole), _placed(labels, whole))
        jax.block_until_ready(before)  # else the host would send block after block to a device that is still busy
    predicted = np.asarray(_voter(mesh, ks, classes)(*best, temperature)).reshape(len(ks), -1)[:, :m]
    return predicted[0] if isinstance(k, int) else predicted


def _placed(x, sharding):
    """An array that every process holds, on the devices."""
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


@functools.cache
def merger(mesh, merge):
    """merge(similarity, kept, queries, rows, told), jitted, each device on its own queries; the rows are on all."""
    mine, whole = P("data"), P()
    in_specs = (mine, mine, mine, whole, whole)
    # check_vma: a scan inside lax.map would want the block of rows marked as varying.
    return jax.jit(jax.shard_map(merge, mesh=mesh, in_specs=in_specs, out_specs=(mine, mine), check_vma=False))


def _merge_block(similarities, classes, queries, features, labels):
    """The best of what each test row remembers, [blocks, rows, k], and a block of training rows, [columns, F]."""
    features = _unit(features)

    def merge(block):
        similarity, label, query = block
        return keep_best(similarity, label, _unit(query), features, labels)

    return jax.lax.map(merge, (similarities, classes, queries))


def keep_best(similarity: Array, kept: Array, queries: Array, rows: Array, told: Array) -> tuple[Array, Array]:
    """The k best of what each query remembers and of a block of rows; of equal similarities what came first.

    Args:
      similarity: [m, k] of what is remembered, -inf where nothing is; kept: int [m, k], what is known of it.
      queries: [m, F] and rows: [r, F], of length 1.
      told: [r], what is known of the rows, such as their class or place; a negative one is a row that fills up a block.
    Returns:
      similarity and kept, [m, k] each, the largest first.
    """
    # The default precision of a GPU or TPU (TF32, bfloat16) is off by 1e-3 and more, enough to swap neighbours.
    new = jnp.matmul(queries, rows.T, precision="highest")
    new = jnp.where(told >= 0, new, -jnp.inf)
    # The remembered ones come first: of equal similarities top_k prefers the lower place.
    everything = jnp.concatenate([kept, jnp.broadcast_to(told.astype(kept.dtype), new.shape)], axis=1)
    similarity, chosen = jax.lax.top_k(jnp.concatenate([similarity, new], axis=1), similarity.shape[1])
    return similarity, jnp.take_along_axis(everything, chosen, axis=1)


@functools.cache
def _voter(mesh, ks, classes):
    """`_vote`, each device for its own test rows; the result is whole on every device."""
    local = jax.shard_map(
        functools.partial(_vote, ks=ks, classes=classes),
        mesh=mesh,
        in_specs=(P("data"), P("data"), P()),
        out_specs=P(None, "data"),
    )
    return jax.jit(local, out_shardings=NamedSharding(mesh, P()))


def _vote(similarities, labels, temperature, *, ks, classes):
    """[blocks, rows, k] -> [len(ks), blocks, rows] classes."""

    def vote(block):
        similarity, label = block
        # Relative to the nearest, so that no temperature overflows.
        weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
        row = jnp.arange(len(label))[:, None]
        empty = jnp.zeros((len(label), classes))
        return jnp.stack([empty.at[row, label[:, :k]].add(weight[:, :k]).argmax(1) for k in ks])

    return jax.lax.map(vote, (similarities, labels)).swapaxes(0, 1).astype(jnp.int32)


def _unit(x):
    x = x.astype(jnp.float32)
    # The floor only keeps a row of zeros from becoming nan.
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _pad(x, length, fill=0):
    if len(x) == length:
        return x
    return np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
