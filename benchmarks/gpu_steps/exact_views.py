"""The views that the device makes against those of the host's CPU, which tests hold to Pillow's, value by value.

Both are steps of 8-bit arithmetic, so that a value is the same or a level off; a level is 1 / 255, before the colours
are normalised.
"""

import jax
import numpy as np

from .paths import ROOT  # noqa: F401

from barlow_jax import augment, sharding, views  # isort: skip

RECIPES = {
    "ImageNet's, 224 pixels": ({}, 512),
    "CIFAR-10's, 32 pixels": ({"size": 32, "blur": (0.0, 0.0)}, 32),
    "with rotation, 24 pixels": ({"size": 24, "rotation": 15.0, "interpolation": "linear"}, 24),
}


def measure(context):
    count = 2 if context.small else 64
    cpu = sharding.make_mesh(jax.devices("cpu")[:1])
    device = sharding.make_mesh(jax.devices()[:1])
    for name, (fields, side) in RECIPES.items():
        if context.small and side > 100:
            fields, side = fields | {"size": 48}, 64
        unit = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
        recipe = augment.Recipe(**(fields | unit))
        batch = images(count, side)
        made = [np.asarray(jax.jit(views.make_views(recipe, 0, mesh))(3, on(mesh, batch))) for mesh in (device, cpu)]
        difference = np.abs(np.round(made[0]) - np.round(made[1]))
        share, most = float((difference > 0).mean()), float(difference.max())
        touched = int((difference > 0).any((1, 2, 3, 4)).sum())
        figure = f"{share:.2g} of the values differ" if share else "all values equal"
        beside = f"by {most:.0f} levels at most, in {touched} of {count} images" if share else f"{count} images"
        context.row(name, figure, beside, share=share, levels=most, images=touched)


def images(count, side):
    """Smooth colours with noise on them, and boxes as train.py draws them."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 220, (count, -(-side // 8), -(-side // 8), 3)).repeat(8, 1).repeat(8, 2)[:, :side, :side]
    canvas = np.clip(coarse + rng.uniform(0, 35, (count, side, side, 3)), 0, 255).astype(np.uint8)
    with jax.default_device(jax.devices("cpu")[0]):
        keys = jax.random.split(jax.random.key(1), count)
        boxes = augment.random_boxes(keys, side, side, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    return {"canvas": canvas, "boxes": np.asarray(boxes)}


def on(mesh, batch):
    return jax.device_put(batch, sharding.by_example(mesh))
