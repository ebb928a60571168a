"""Views of batches on the devices: `augment` under a shard_map, each device on its own examples.

    make_views(recipe, seed, mesh)                  (step, batch) -> [B, V, S, S, C], of training
    make_one_view(recipe, seed, mesh)               (step, batch) -> [B, S, S, C], of training with one view
    make_eval_views(size=, mean=, std=, mesh=)      batch -> [B, S, S, C], the central view of evaluation

A shard_map, because the partitioner would gather the batch for some of the gathers in there. Each example has a key of
its own (`sharding.example_keys`), so that the views are the same on any number of devices.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from barlow_jax import augment
from barlow_jax.sharding import example_keys

Batch = Mapping[str, Array]


def make_views(
    recipe: augment.Recipe, seed: int, mesh: Mesh, *, microbatches: int = 1
) -> Callable[[Any, Batch], Array]:
    """(step, batch) -> a view for each box of every image, float32 [B, V, S, S, C], normalised.

    batch: {"canvas": uint8 [B, H, W, C], "boxes": float32 [B, V, 4]}, see `augment.random_views`. With
    micro-batches a device makes one after the other, in the memory of one.
    """

    whole = functools.partial(augment.random_views, recipe=recipe)

    def in_parts(*examples):
        rows = len(examples[0])
        parts = [x.reshape(microbatches, rows // microbatches, *x.shape[1:]) for x in examples]
        views = jax.lax.map(lambda part: whole(*part), tuple(parts))
        return views.reshape(rows, *views.shape[2:])

    local = whole if microbatches == 1 else in_parts

    def views(step, batch):
        keys = example_keys(seed, step, batch["canvas"].shape[0])
        return _by_example(local, mesh)(keys, batch["canvas"], batch["boxes"])

    return views


def make_one_view(recipe: augment.Recipe, seed: int, mesh: Mesh) -> Callable[[Any, Batch], Array]:
    """(step, batch) -> the view of every image, float32 [B, S, S, C], normalised; batch as in `make_views`, V of 1."""

    def local(keys, canvas, boxes):
        return augment.random_views(keys, canvas, boxes, recipe)[:, 0]

    def view(step, batch):
        keys = example_keys(seed, step, batch["canvas"].shape[0])
        return _by_example(local, mesh)(keys, batch["canvas"], batch["boxes"])

    return view


def make_eval_views(
    *, size: int, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh
) -> Callable[[Batch], Array]:
    """batch -> the central view of every image, float32 [B, size, size, C], normalised.

    batch: {"canvas": uint8 [B, H, W, C], "boxes": float32 [B, 1, 4], "extent": int32 [B, 2]}, see `augment.eval_views`.
    """
    local = functools.partial(augment.eval_views, size=size, mean=mean, std=std)
    return lambda batch: _by_example(local, mesh)(batch["canvas"], batch["boxes"], batch["extent"])


def _by_example(local, mesh):
    """A function of three arrays, split by example over the devices."""
    return jax.shard_map(local, mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P("data"))
