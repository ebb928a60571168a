"""Files of weights in the place of runs: judged as a run is, and gone on from by train.py."""

import json
import logging
import math
import pathlib
import re

import jax
import numpy as np
from ml_collections import ConfigDict

from barlow_jax import experiment, fields, model, pretrain
from barlow_jax.errors import UserError
from barlow_jax.networks import resnet
from barlow_jax.run import config_files
from barlow_jax.run.buckets import reading
from barlow_jax.run.checkpoint import FOLDER
from barlow_jax.weights import architecture, files, peers

log = logging.getLogger(__name__)


def restore(path, *, whole=False, only_finite=True):
    """The weights of a file, and what a run would have remembered beside them.

    A file of ours says which config it comes from. For any other the architecture is what its arrays tell, and the
    images are taken to be normalised and sized as in configs/barlow_twins.py, or as in configs/cifar10.py where the
    stem is the one for small images or a ViT is for at most 64 pixels. Of a ViT for another size than 224 it is that.

    Args:
      path: .pth, .pkl or .safetensors, or a folder with model.safetensors.
      whole: with projector and momentum, where the file has them.
      only_finite: False takes values that are nan or infinite too.
    Returns:
      files.Weights, config (plain nested dict), channels of the images.
    """
    weights = files.load(path, whole=whole, only_finite=only_finite)
    if "config" in weights.about:
        config, channels = _told(path, weights.about)
        make = experiment.backbone(ConfigDict(config), channels)
        architecture.check_fit(path, config["arch"], make, *files.backbone(weights))
        return weights, config, channels
    found = architecture.of(weights, path)
    small = found.stem == "cifar" or found.own.get("image_size", 224) <= 64
    config = config_files.load("cifar10" if small else "barlow_twins").unlock()
    config.arch, config.stem = found.arch, found.stem
    config.update_from_flattened_dict(found.own)
    if "image_size" in found.own:
        side = found.own["image_size"]
        config.eval.crop, config.eval.resize = side, side if small else round(side * 256 / 224)
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


# The fields of a config without which nothing can be computed, and what they may be; the rest has the values of
# configs/barlow_twins.py where a file is older than a field.
_SIDE = 8192  # pixels


def _is_side(value):
    return isinstance(value, int) and 0 < value <= _SIDE


_NEEDED = {
    "arch": lambda value: value in model.BACKBONES,
    "stem": lambda value: value in resnet.STEMS,
    "precision": lambda value: value in experiment.PRECISIONS,
    "seed": lambda value: isinstance(value, int) and 0 <= value < 2**63,
    "image_size": _is_side,
    "eval.resize": _is_side,
    "eval.crop": _is_side,
    "views.mean": lambda value: all(map(math.isfinite, value)),
    "views.std": lambda value: all(0 < x < math.inf for x in value),
}


def _told(path, about):
    """The config and the channels that a file of ours says it is of.

    Args:
      about: {string: string}.
    Raises:
      UserError: they are not what such a file says; the sentence names the field.
    """

    def damaged(what):
        return UserError(f"{path} has damaged metadata ({what}); export it again.")

    try:
        given = json.loads(about["config"])
    except (ValueError, RecursionError) as error:
        raise damaged(f"config: {error}") from None
    channels = about.get("channels", "")
    if not re.fullmatch("[0-9]{1,3}", channels) or int(channels) < 1:
        raise damaged(f"channels is {peers.shown(channels)!r}")
    ours = config_files.load("barlow_twins").to_dict()
    wrong = _wrong(given, ours, "config")
    if wrong:
        raise damaged(wrong)
    for field, is_right in _NEEDED.items():
        value = given
        for part in field.split("."):
            value = value.get(part, {})
        if value == {} or not is_right(value):
            raise damaged(f"config.{field} is {peers.shown(str(value or 'missing'))}")
    for field in [field for field in fields.PRETRAINING.fields if field.startswith(("vit.", "resnet."))]:
        group, name = field.split(".")
        value = given.get(group, {}).get(name, ours[group][name])
        if fields.PRETRAINING.fields[field].fault(tuple(value) if isinstance(value, list) else value):
            raise damaged(f"config.{field} is {peers.shown(str(value))}")
    if not len(given["views"]["mean"]) == len(given["views"]["std"]) == int(channels):
        raise damaged(f"config.views.mean and std are not of {channels} channels")
    return _filled(given, ours), int(channels)


def _wrong(given, ours, name):
    """What is wrong with the types of a config, or None."""
    if not isinstance(given, dict):
        return f"{name} is a {type(given).__name__}"
    for field in given.keys() & ours.keys():
        value, like, where = given[field], ours[field], f"{name}.{field}"
        wrong = _wrong(value, like, where) if isinstance(like, dict) else None
        if wrong or not (isinstance(like, dict) or _is_like(value, like)):
            return wrong or f"{where} is a {type(value).__name__}"
    return None


def _is_like(value, like):
    """Whether a value of JSON can stand for one of a config."""
    if isinstance(like, tuple | list):
        return isinstance(value, list) and len(value) <= 64 and all(_is_like(x, y) for x in value for y in like[:1])
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(like, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(like, int | float) else type(like))


def _filled(given, ours):
    """A config with the fields that are younger than the file."""
    found = {
        name: _filled(value, ours[name]) if isinstance(ours.get(name), dict) else value for name, value in given.items()
    }
    return found | {name: value for name, value in ours.items() if name not in given}


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
    found = _architecture(weights, path)
    told = (architecture.OF_NAMED if found.arch in model.RESNETS else {}) | found.own
    own = [(field, fields.flat(config)[field], there) for field, there in told.items()]
    for field, here, there in (("arch", config.arch, found.arch), ("stem", config.stem, found.stem), *own):
        if here != there:
            raise UserError(f"config.{field} is {here!r} and {path} holds {there!r}; set --config.{field}={there}.")
    if found.channels != channels:
        raise UserError(f"{path} is for images of {found.channels} channels, and those of this run have {channels}.")
    if weights.kind != "pretraining":
        log.info("the backbone is that of %s; projector and optimiser begin afresh", path)
        params, batch_stats = files.backbone(weights)
        params = state.params | {"backbone": params}
        batch_stats = state.batch_stats | ({"backbone": batch_stats} if batch_stats else {})
        return pretrain.going_on(state, params, batch_stats, None, 0)
    linears = weights.params.get("projector", {}).get("linears", {})
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


def _architecture(weights, path):
    """`architecture.of`, and of a convnet what its file says: no array tells for images of which size it is."""
    arrays = files.backbone(weights)
    if "convs" not in arrays[0] or "config" not in weights.about:
        return architecture.of(weights, path)
    config, channels = _told(path, weights.about)
    architecture.check_fit(path, config["arch"], experiment.backbone(ConfigDict(config), channels), *arrays)
    return architecture.Architecture(config["arch"], config["stem"], channels, {"image_size": config["image_size"]})


def is_file(checkpoint):
    """Whether --checkpoint names a file of weights, or a folder with one (`files.file_of`), and not that of a run."""
    if reading.is_address(checkpoint):
        if checkpoint.endswith(files.ENDINGS):
            return True
        names = reading.right_in(checkpoint)
        return files.HUB_FILE in names and FOLDER not in names
    path = pathlib.Path(checkpoint).expanduser()
    if path.is_dir():
        return files.file_of(path) != path and not (path / FOLDER).is_dir()
    return path.is_file() or path.suffix in files.ENDINGS


def single(tree):
    """Arrays in float32, or in float64 where JAX computes in it."""
    return jax.tree.map(lambda array: np.asarray(array, jax.dtypes.canonicalize_dtype(float)), tree)
