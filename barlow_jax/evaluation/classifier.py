"""A classifier that linear_eval.py has trained, ready to use.

from barlow_jax.evaluation import classifier

trained = classifier.load("runs/r50/linear")  # the work folder of the evaluation, or of one seed
logits = trained(images)                      # uint8 [n, S, S, C], S = trained.size -> float32 [n, classes]
names = [trained.class_names[k] for k in logits.argmax(1)]
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from barlow_jax import model
from barlow_jax.errors import UserError
from barlow_jax.evaluation import linear_experiment
from barlow_jax.ops import color as color_ops
from barlow_jax.run.checkpoint import restore_params


@dataclasses.dataclass(frozen=True)
class Trained:
    """A classifier and what it needs to know of its images.

    Attributes:
      graphdef, params, batch_stats: of the `model.Classifier`, for `model.merge`; arrays of numpy.
      class_names: a tuple, or None where the training images had no names for their classes.
      size, channels: of the images it takes.
      resize: their short side before the central crop of `size` that validation saw.
      mean, std: of each channel, on the scale 0 to 1.
      step: of the evaluation.
      results: {"last": ..., "best": ...}, the scores up to that step; see linear_eval.with_scores.
    """

    graphdef: Any
    params: dict
    batch_stats: dict
    class_names: tuple | None
    size: int
    channels: int
    resize: int
    mean: tuple
    std: tuple
    step: int
    results: dict

    def __call__(self, images):
        """uint8, or uint16, whose white is 65535, [n, size, size, channels] -> logits, float32 [n, classes]."""
        expected = (self.size, self.size, self.channels)
        if np.shape(images)[1:] != expected or images.dtype not in (np.uint8, np.uint16):
            raise UserError(
                f"The images are {images.dtype} {list(np.shape(images))}; the classifier takes uint8 or uint16 [n, "
                f"{', '.join(map(str, expected))}], short side {self.resize} and central crop."
            )
        return self._logits(self.params, self.batch_stats, jnp.asarray(images))

    @functools.cached_property
    def _logits(self):
        @jax.jit
        def logits(params, batch_stats, images):
            images = color_ops.normalize(color_ops.levels(images), self.mean, self.std)
            return model.merge(self.graphdef, params, batch_stats)(images, train=False)

        return logits


def load(workdir, *, step=None):
    """The classifier of an evaluation.

    Args:
      workdir: of linear_eval.py, or one of its checkpoints.
      step: which of those kept; None is the last one. The best by top-1 is kept too.
    Raises:
      UserError: there is none, or it is no evaluation's.
    """
    params, batch_stats, meta = restore_params(workdir, step=step)
    if "classifier" not in meta:
        raise UserError(f"{workdir} holds no trained classifier; give the --workdir of linear_eval.py.")
    return of(params, batch_stats, meta)


def of(params, batch_stats, meta):
    """The classifier in a checkpoint of linear_eval.py, as `restore_params` reads it."""
    trained, pretrained = meta["classifier"], ConfigDict(meta["config"])
    config = linear_experiment.filled_in(ConfigDict(trained["config"]), pretrained)
    classifier = linear_experiment.classifier(config, pretrained, meta["channels"], trained["num_classes"])
    return Trained(
        graphdef=model.split(nnx.eval_shape(classifier))[0],
        params=params,
        # A backbone without BatchNorm has no statistics, and what is empty is not stored.
        batch_stats=batch_stats,
        class_names=tuple(trained["class_names"]) if trained["class_names"] else None,
        size=config.eval.crop,
        channels=meta["channels"],
        resize=config.eval.resize,
        mean=tuple(pretrained.views.mean),
        std=tuple(pretrained.views.std),
        step=meta["step"],
        results=meta["results"],
    )
