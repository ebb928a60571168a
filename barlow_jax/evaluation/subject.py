"""The network that an evaluation judges: the backbone of a run or of a file, or a baseline to compare it with."""

import logging
from typing import Any, NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from barlow_jax import experiment, model, sharding
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classify, features
from barlow_jax.run.buckets import reading
from barlow_jax.run.checkpoint import WEIGHTS, restore_params
from barlow_jax.weights import as_run, finite

BASELINES = ("random", "pixels")

log = logging.getLogger(__name__)


class Subject(NamedTuple):
    """What is judged, as it was when the evaluation began."""

    params: Any  # of the backbone
    batch_stats: Any
    config: dict  # of the pre-training run
    channels: int  # of the images
    path: str  # as given by --checkpoint
    step: int  # of the pre-training run
    sha256: str  # of the backbone
    baseline: str = ""  # or one of BASELINES
    ema: str = ""  # of a run that has an average of its weights, one of checkpoint.WEIGHTS

    def __str__(self):
        """For people."""
        if self.baseline:
            return f"{self.baseline} in place of {self.path}"
        return f"{self.path}, step {self.step}" + (f", its {self.ema} weights" if self.ema else "")


def load(checkpoint, baseline="", ema="average"):
    """The backbone of a checkpoint, or what stands in its place.

    Args:
      checkpoint: work folder of a run of train.py, one of its checkpoints, or a file of weights, see `as_run`.
      baseline: "" for the checkpoint itself. "random": its architecture as initialised from the run's seed. "pixels":
        the normalised pixels of the images, as they are. Both see the images as the checkpoint's network does.
      ema: of a run with config.ema, whether its "average" is judged or its "last" weights.
    Raises:
      UserError: there is no such checkpoint, it is not of pre-training, or holds values that are not finite.
    """
    if not checkpoint:
        raise UserError("--checkpoint is missing; give the work folder of a run of train.py, or a file of weights.")
    if baseline not in ("", *BASELINES):
        raise UserError(f"--baseline is {baseline!r}; it is one of {', '.join(BASELINES)}, or left out.")
    if ema not in WEIGHTS:
        raise UserError(f"--ema is {ema!r}; it is one of {', '.join(WEIGHTS)}.")
    folder = reading.named(checkpoint)
    if as_run.is_file(folder):
        weights, config, channels = as_run.restore(folder)
        found, step, ema = as_run.single((weights.params, weights.batch_stats)), weights.step, ""
    else:
        params, batch_stats, meta = restore_params(folder, ema=ema)
        if "backbone" not in params or "arch" not in meta.get("config", {}) or "classifier" in meta:
            raise UserError(
                f"{folder} is no checkpoint of a pre-training run; give the --workdir of a run of train.py."
            )
        if not baseline:
            finite.check(folder, params["backbone"], batch_stats.get("backbone", {}))
        found = params, batch_stats
        config, channels, step = meta["config"], meta["channels"], meta["step"]
        ema = ema if "averaged" in meta and not baseline else ""
    params, batch_stats = (tree.get("backbone", {}) for tree in found)
    if baseline == "random":
        backbone = experiment.backbone(ConfigDict(config), channels)
        _, params, batch_stats = model.split(backbone(rngs=nnx.Rngs(config["seed"])))
        step = 0
    elif baseline == "pixels":
        config, params, batch_stats, step = config | {"arch": "pixels"}, {}, {}, 0
    sha256 = classify.fingerprint({"backbone": params}, {"backbone": batch_stats})
    judged = Subject(params, batch_stats, config, channels, str(folder), step, sha256, baseline, ema)
    log.info("judging %s", judged)
    return judged


def of_evaluation(params, batch_stats, meta):
    """What an evaluation of linear_eval.py judges, as its checkpoint has it.

    Args:
      params, batch_stats, meta: as `restore_params` reads them.
    """
    parts = params.get("backbone", {}), batch_stats.get("backbone", {})
    return Subject(*parts, meta["config"], meta["channels"], **meta["origin"])


def on_devices(judged, config, mesh):
    """The backbone by itself: its graphdef, and (params, batch_stats) on every device, for `features`.

    Args:
      config: of the pre-training run, with the image size and the precision to compute with.
    """
    graphdef = features.encoder(experiment.backbone(config, judged.channels))
    trees = {"backbone": judged.params}, {"backbone": judged.batch_stats}
    return graphdef, jax.device_put(trees, sharding.replicated(mesh))
