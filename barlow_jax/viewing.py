"""From config.views to what makes the views: the recipe of their augmentation and the boxes that they are cropped from.

A part of `experiment`, for its length; nothing else of a config is read but the sides of images.
"""

import dataclasses
import logging

from barlow_jax import augment
from barlow_jax.errors import UserError

log = logging.getLogger(__name__)

_OF_RECIPE = {field.name for field in dataclasses.fields(augment.Recipe)}


def recipe(config, channels):
    """The views as an augment.Recipe."""
    values = {name: value for name, value in config.views.items() if name in _OF_RECIPE}
    if channels != len(values["mean"]):
        raise UserError(
            f"The images have {channels} channels and config.views.mean {len(values['mean'])} values; "
            "give config.views.mean and config.views.std one value for each channel."
        )
    if channels != 3:
        log.info("images of %d channels: saturation, hue and grayscale are for 3 and are left out", channels)
    return augment.Recipe(size=config.image_size, **values)


def boxes(config):
    """Of the random boxes, as arguments of `feed.train_batches`."""
    return {
        "views": config.views.number,
        "crop_scale": tuple(config.views.crop_scale),
        "crop_ratio": tuple(config.views.crop_ratio),
    }
