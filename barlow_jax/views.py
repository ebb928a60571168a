"""Views of batches on the devices: `augment` under a shard_map, each device on its own examples.

    make_views(recipe, seed, mesh)                  (step, batch) -> [B, V, S, S, C], of training; of two sizes a tuple
    make_one_view(recipe, seed, mesh)               (step, batch) -> [B, S, S, C], of training with one view
    make_eval_views(size=, mean=, std=, mesh=)      batch -> [B, S, S, C], the central view of evaluation

A shard_map, because the partitioner would gather the batch for some of the gathers in there. Each example has a key of
its own (`sharding.example_keys`), so that the views are the same on any number of devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from barlow_jax import augment
from barlow_jax.sharding import example_keys

Batch = Mapping[str, Any]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Size:
    """The side of a batch's views in pixels, where it is not the recipe's.

    It has no value on the devices and is part of the batch's structure, so that jit makes one program for each size.
    """

    pixels: int


def make_views(
    recipe: augment.Recipe,
    seed: int,
    mesh: Mesh,
    *,
    microbatches: int = 1,
    small: augment.Recipe | None = None,
    told: bool = False,
) -> Callable[[Any, Batch], Any]:
    """(step, batch) -> a view for each box of every image, float32 [B, V, S, S, C], normalised.

    batch: {"canvas": uint8 [B, H, W, C], "boxes": float32 [B, V, 4]}, see `augment.random_views`, and perhaps "size", a
    `Size` in place of the recipe's. With micro-batches a device makes one after the other, in the memory of one.

    With `small`, the recipe of small views, the batch has "small_boxes" [B, V2, 4] too, and the result is a tuple of
    the views and of the small ones [B, V2, s, s, C]. Those have draws of their own, and the others stay what they are.

    told: the result is (views, {"boxes": what was drawn for them, "small_boxes"}), `augment.Draw`s of [B, V, ...].
    """

    def views(step, batch):
        side = batch["size"].pixels if "size" in batch else recipe.size
        local = functools.partial(_of_sizes, recipe=dataclasses.replace(recipe, size=side), small=small, told=told)
        boxes = [batch["boxes"]] if small is None else [batch["boxes"], batch["small_boxes"]]
        keys = example_keys(seed, step, batch["canvas"].shape[0])
        return _by_example(_in_parts(local, microbatches), mesh)(keys, batch["canvas"], *boxes)

    return views


def _of_sizes(keys, canvas, boxes, *small_boxes, recipe, small, told):
    views, draws = augment.views_and_draws(keys, canvas, boxes, recipe)
    if small is None:
        return (views, {"boxes": draws}) if told else views
    few, draws_of_few = augment.views_and_draws(augment.keys_of_small(keys), canvas, small_boxes[0], small)
    return ((views, few), {"boxes": draws, "small_boxes": draws_of_few}) if told else (views, few)


def _in_parts(whole, n):
    """A function of examples, which takes n parts of them one after the other."""

    def in_parts(*examples):
        rows = len(examples[0])
        parts = [x.reshape(n, rows // n, *x.shape[1:]) for x in examples]
        views = jax.lax.map(lambda part: whole(*part), tuple(parts))
        return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), views)

    return whole if n == 1 else in_parts


def with_more_told(told: Callable[..., Any], more: Callable[..., Any]) -> Callable[..., Any]:
    """`told`, of `make_views`, with the views that `more`, a function of (step, batch) -> views, makes of them."""

    def views(step, batch):
        made, draws = told(step, batch)
        return more(lambda step, batch: made)(step, batch), draws

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
    """A function of arrays, split by example over the devices."""
    return jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
