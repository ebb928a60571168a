"""What was drawn for the views of a batch's first images, in words: their boxes and the operations on them."""

import dataclasses

import jax
import numpy as np

from barlow_jax import augment
from barlow_jax.data import boxes as crops
from barlow_jax.data import order
from barlow_jax.ops import color
from barlow_jax.training import feed, viewing

NAMES = {"flip": "mirrored", "grayscale": "grey", "solarize": "solarized", "invert": "inverted"}
FACTORS = ("brightness", "contrast", "saturation", "hue")  # by color's numbers of the steps


def captions(config, source, look, step):
    """Of each view of the first images of a batch, the large ones first: [n][views] lists of words.

    Args:
      config: of the run. source: its training images.
      look: {"index", "boxes", "small_boxes", "draws"} of `pretrain.make_inspect_step`, on the host.
      step: of the batch.
    """
    recipe, shares = viewing.recipe(config, source.channels, told=True), _shares(config, source, look, step)
    told = [[] for _ in look["boxes"]]
    for name, numbers in look["draws"].items():
        for i, of_one in enumerate(told):
            for v, share in enumerate(shares[name][i]):
                of_one.append(in_words(jax.tree.map(lambda x, i=i, v=v: x[i, v], numbers), recipe, share))
    return told


def _shares(config, source, look, step):
    """Boxes as shares of their images, (top, left, height, width): {"boxes": [n, views, 4], "small_boxes"}.

    A set on the devices has boxes in pixels of its images. What the host reads has them in pixels of the canvas, which
    holds what they show, reduced perhaps; there they are drawn again, as `pipeline.train_batches` drew them.
    """
    found = {name: look[name] for name in ("boxes", "small_boxes") if name in look}
    index = look["index"][: len(look["boxes"])]
    sizes = np.array([source.stored_size(int(row)) for row in index], np.float64)
    if not feed.fits_on_devices(source, config.data.resident_bytes):
        options = viewing.boxes(config)
        ratio = options.pop("crop_ratio")
        options |= {"scale": options.pop("crop_scale"), "ratio": ratio}
        ending = {"last": config.data.last, "reference_world_size": config.reference_world_size}
        ending["blocks"] = order.mixing(len(source), config.data.block, config.data.window, source.groups)
        epoch, planned = order.batch_indices(len(source), config.batch_size, config.seed, step, **ending)
        draws = crops.draws_of_sizes(config.seed, epoch, planned[: len(index)], **options)
        height, width = sizes.T[..., None, None]
        both = crops.random_crop(draws, height, width, ratio)
        views = config.views.number
        found = {"boxes": both[:, :views], "small_boxes": both[:, views:]}
    return {name: of / np.tile(sizes, 2)[:, None] for name, of in found.items()}


def in_words(numbers: augment.Draw, recipe: augment.Recipe, share) -> list[str]:
    """The operations that acted on one view, in their order.

    Args:
      numbers: of the view, scalars of numpy.
      share: its box, (top, left, height, width) as shares of the image's sides.
    """
    colour = len(recipe.mean) == 3
    parts = [f"crop {100 * share[3]:.0f} x {100 * share[2]:.0f} %"]
    if recipe.rotation > 0:
        parts.append(f"turned {round(float(numbers.angle)):+d}°")
    for field in dataclasses.fields(numbers):
        value = getattr(numbers, field.name)
        if field.name == "order":
            parts += _jitter(value, numbers.factors, recipe, colour)
        elif field.name == "sigma" and value > 0:
            parts.append(f"blur σ {value:.1f}")
        elif value.dtype == bool and value and (colour or field.name != "grayscale"):
            parts.append(NAMES.get(field.name, field.name))
    return parts


def _jitter(steps, factors, recipe, colour):
    """The steps of the colour jitter that act, with their factors; of the hue a shift in turns."""
    parts = []
    for step in steps:
        if step == color.NOTHING or (step in (color.SATURATION, color.HUE) and not colour):
            continue
        name = FACTORS[step]
        if getattr(recipe, name):
            parts.append(f"{name} {factors[step]:+.2f}" if step == color.HUE else f"{name} ×{factors[step]:.2f}")
    return parts
