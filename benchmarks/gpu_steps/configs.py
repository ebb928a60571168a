"""The configs of the steps: those of train.py, with another network or batch."""

import numpy as np

from . import paths  # noqa: F401

import barlow_jax  # isort: skip

IMAGENET = 1_281_167  # images, for the length of the schedule


def of_step(arch, side, batch_size, precision, small=False):
    """configs/barlow_twins.py with this backbone, at 32 pixels with the stem for them and solo-learn's projector."""
    config = barlow_jax.config("barlow_twins").unlock()
    tiny = side < 64
    width = 64 if small else 2048 if tiny else 8192
    config.update({"arch": arch, "image_size": side, "batch_size": batch_size, "projector": (width,) * 3})
    config.stem = "cifar" if tiny else "imagenet"
    config.data.canvas = side if tiny else 512
    config.precision = precision
    return config.lock()


def words(arch, side, batch_size, precision, small=False):
    """The arguments of `of_step` as words of a command, which `of_words` reads."""
    return [arch, str(side), str(batch_size), precision, str(small)]


def of_words(arch, side, batch_size, precision, small):
    return of_step(arch, int(side), int(batch_size), precision, small == "True")


def shapes(config):
    """plan.Images of a config of `of_step`."""
    from barlow_jax import plan

    return plan.Images(IMAGENET, 3, 1000, config.data.canvas, "assumed")


def batch(config):
    """Canvases of noise, with boxes as RandomResizedCrop draws them: arrays of the host."""
    import jax

    from barlow_jax import augment

    n, side = config.batch_size, config.data.canvas
    keys = jax.random.split(jax.random.key(1), n)
    boxes = augment.random_boxes(keys, side, side, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    return {
        "canvas": np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8),
        "boxes": np.asarray(boxes),
        "index": np.arange(n, dtype=np.int32),
        "label": np.arange(n, dtype=np.int32) % 1000,
    }


def programs(config, mesh):
    """(the train step that makes its views, the one that is handed them, TrainState on the mesh, what makes views)."""
    import dataclasses

    import jax

    from barlow_jax import experiment, pretrain

    method, state = experiment.method(config, channels=3, num_classes=1000, steps_per_epoch=626, mesh=mesh)
    ready = dataclasses.replace(method, views_of=lambda _, batch: batch["views"])
    state = jax.device_put(state, method.state_sharding)
    return pretrain.make_train_step(method), pretrain.make_train_step(ready), state, method.views_of
