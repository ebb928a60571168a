"""Files of weights in the place of runs: judged as a run is, and gone on from by train.py."""

import json
import logging
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from barlow_jax import experiment, pretrain
from barlow_jax.errors import UserError
from barlow_jax.run import config_files
from barlow_jax.weights import files

log = logging.getLogger(__name__)


def restore(path, *, whole=False):
    """The weights of a file, and what a run would have remembered beside them.

    A file of ours says which config it comes from. For any other the architecture is what its arrays tell, and the
    images are taken to be normalised and sized as in configs/barlow_twins.py, or as in configs/cifar10.py where the
    stem is the one for small images.

    Args:
      path: .pth, .pkl or .safetensors.
      whole: with projector and momentum, where the file has them.
    Returns:
      torch_weights.Weights, config (plain nested dict), channels of the images.
    """
    weights = files.load(path, whole=whole)
    if "config" in weights.about:
        try:
            config, channels = json.loads(weights.about["config"]), int(weights.about["channels"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} has damaged metadata ({error!r}); export it again.") from None
        backbone = weights.params["backbone"], weights.batch_stats["backbone"]
        files.check_fit(path, config["arch"], experiment.backbone(ConfigDict(config), channels), *backbone)
        return weights, config, channels
    found = files.architecture(weights, path)
    config = config_files.load("cifar10" if found.stem == "cifar" else "barlow_twins").unlock()
    config.arch, config.stem = found.arch, found.stem
    config.precision = "float32"
    if found.channels != len(config.views.mean):
        raise UserError(
            f"{path} is for images of {found.channels} channels and does not say how they were normalised; "
            "give a .safetensors file of barlow_jax.export, which does."
        )
    log.info(
        "%s: %s, a %s with the %s stem; images of %d pixels, mean %s, std %s are taken for granted",
        path,
        files.KINDS[weights.kind],
        found.arch,
        found.stem,
        config.image_size,
        config.views.mean,
        config.views.std,
    )
    return weights, config.to_dict(), found.channels


def begin(path, state, config, channels, steps_per_epoch):
    """The state of a run that goes on from a file.

    A full checkpoint of the official code gives parameters, running statistics, momentum and the step; any other file
    the backbone alone, and the run is at step 0.

    Args:
      state: of the run, fresh; pretrain.TrainState.
      config, channels: of the run, and of its images.
    Raises:
      UserError: the file is of another architecture, or has gone further than the run is to go.
    """
    weights = files.load(path)
    found = files.architecture(weights, path)
    for field, here, there in (("arch", config.arch, found.arch), ("stem", config.stem, found.stem)):
        if here != there:
            raise UserError(f"config.{field} is {here!r} and {path} holds {there!r}; set --config.{field}={there}.")
    if found.channels != channels:
        raise UserError(f"{path} is for images of {found.channels} channels, and those of this run have {channels}.")
    if weights.kind != "pretraining":
        log.info("the backbone is that of %s; projector and optimiser begin afresh", path)
        params = state.params | {"backbone": weights.params["backbone"]}
        batch_stats = state.batch_stats | {"backbone": weights.batch_stats["backbone"]}
        return pretrain.going_on(state, params, batch_stats, None, 0)
    linears = weights.params["projector"].get("linears", {})
    widths = tuple(linears[k]["kernel"].shape[-1] for k in sorted(linears, key=int))
    if widths != tuple(config.projector):
        raise UserError(
            f'config.projector is {tuple(config.projector)} and {path} has {widths}; set --config.projector="{widths}".'
        )
    if weights.epoch >= config.epochs:
        raise UserError(
            f"{path} has finished {weights.epoch} epochs and config.epochs is {config.epochs}; set it higher."
        )
    step = weights.epoch * steps_per_epoch
    log.info(
        "going on from %s: %d epochs are finished, %d steps, momentum %s",
        path,
        weights.epoch,
        step,
        "of the file" if weights.momentum else "at 0",
    )
    return pretrain.going_on(state, weights.params, weights.batch_stats, weights.momentum, step)


def is_file(checkpoint):
    """Whether --checkpoint names a file of weights and not the folder of a run."""
    path = pathlib.Path(checkpoint).expanduser()
    return path.is_file() or (path.suffix in (".pth", ".pt", ".pkl", ".safetensors") and not path.is_dir())


def single(tree):
    """Arrays in float32, or in float64 where JAX computes in it."""
    return jax.tree.map(lambda array: np.asarray(array, jax.dtypes.canonicalize_dtype(float)), tree)
