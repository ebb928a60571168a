"""From config.views to what makes the views: recipes of their augmentation, boxes, and the ramp of their size.

Nothing of a config is read but config.views and the sides of images.
"""

import bisect
import dataclasses
import logging

from barlow_jax import augment, views
from barlow_jax.errors import UserError

log = logging.getLogger(__name__)

_OF_RECIPE = {field.name for field in dataclasses.fields(augment.Recipe)}


def recipe(config, channels, *, told=False):
    """The views as an augment.Recipe. told: whether the log has said what is left out for so many channels."""
    values = {name: value for name, value in config.views.items() if name in _OF_RECIPE}
    if channels != len(values["mean"]):
        raise UserError(
            f"The images have {channels} channels and config.views.mean {len(values['mean'])} values; "
            "give config.views.mean and config.views.std one value for each channel (`barlow-jax data stats` prints "
            "them)."
        )
    if channels != 3 and not told:
        log.info("images of %d channels: saturation, hue and grayscale are for 3 and are left out", channels)
    return augment.Recipe(size=config.image_size, **values)


def small_recipe(config, channels):
    """Of the small views, the same at their size; None where there are none."""
    if not config.views.small:
        return None
    return dataclasses.replace(recipe(config, channels, told=True), size=config.views.small_size)


def boxes(config):
    """Of the random boxes, as arguments of `feed.train_batches`."""
    return {
        "views": config.views.number,
        "small": config.views.small,
        "small_scale": tuple(config.views.small_scale),
        "crop_scale": tuple(config.views.crop_scale),
        "crop_ratio": tuple(config.views.crop_ratio),
    }


def size_at(config, epoch):
    """The side of the views in an epoch, counted from 0: that of the first part of the ramp which has not ended."""
    sizes = (*config.views.ramp_sizes, config.image_size)
    return sizes[bisect.bisect_right(tuple(config.views.ramp_epochs), epoch)]


def ramped(batches, config, start_step, steps_per_epoch):
    """The batches from `start_step` on, each with the side of its views, a function of the step alone.

    As part of a batch's structure (`views.Size`), so that the train step has one program for each size.
    """
    side = None
    try:
        for step, batch in enumerate(batches, start_step):
            now = size_at(config, step // steps_per_epoch)
            if now != side:
                log.info("views of %d pixels from step %d on, by a program of their own", now, step)
            side = now
            yield batch | {"size": views.Size(side)}
    finally:
        batches.close()


def described(config):
    """One line on the views of an image, and how many a step has."""
    of = config.views
    ramp = [f"{size} until epoch {end}" for size, end in zip(of.ramp_sizes, of.ramp_epochs, strict=True)]
    ramp = f" ({', '.join(ramp)}; what is forecast is of {config.image_size})" if ramp else ""
    small = f" and {of.small} of {of.small_size}" if of.small else ""
    in_all = config.batch_size * (of.number + of.small)
    return f"{of.number} of {config.image_size} pixels{ramp}{small} of each image, {in_all:,} a step"
