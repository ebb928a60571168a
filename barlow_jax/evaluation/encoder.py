"""A trained network, ready to use: images of any size in, features or classes out.

    network = encoder.load("runs/photos")           # a run, a checkpoint, weights, an evaluation
    features = network.features(images)             # uint8 [n, h, w, C] -> float32 [n, F]
    shares = network.classify(images)               # of an evaluation of linear_eval.py: float32 [n, classes]

Images are seen as evaluations see them: short side resized, the centre cropped.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from barlow_jax import augment, model
from barlow_jax.data import boxes
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classifier, subject
from barlow_jax.run.buckets import reading
from barlow_jax.run.checkpoint import restore_params
from barlow_jax.weights import as_run, finite

ROWS = 64  # images at a time
DTYPES = (np.uint8, np.uint16)  # of images

Images = np.ndarray | Sequence[np.ndarray]


def make_features(config, channels):
    """(params, batch_stats, normalised images [b, H, W, C]) -> features float32 [b, F] of a backbone, jitted.

    Args:
      config: of the pre-training run, a plain nested dict.
    """
    groups = (config.get(name, {}) for name in ("vit", "resnet"))  # absent: of older runs, which had none
    own = tuple((name, tuple(x) if isinstance(x, list) else x) for group in groups for name, x in sorted(group.items()))
    return _features(config["arch"], config["stem"], config["image_size"], channels, own)


@functools.lru_cache
def _features(arch, stem, image_size, channels, own):
    make = model.make_backbone(arch, image_size=image_size, channels=channels, stem=stem, **dict(own))
    graphdef, *_ = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))

    def features(params, batch_stats, images):
        return model.merge(graphdef, params, batch_stats)(images, train=False)

    return jax.jit(features)


def make_encode(config, channels, params, batch_stats):
    """uint8 or uint16 [b, h, w, C] -> features float32 [b, F], jitted, with the weights in it."""
    features, eval_ = make_features(config, channels), config["eval"]
    view = {"resize": eval_["resize"], "crop": eval_["crop"], **_normalisation(config)}
    return jax.jit(lambda images: features(params, batch_stats, central_view(images, **view)))


def central_view(images, *, resize, crop, mean, std):
    """Resize and CenterCrop as one resampling, for whatever size the images have.

    Args:
      images: uint8 [b, h, w, C], or uint16, whose white is 65535.
      resize, crop: pixels of the short side, and of the side of the central square.
      mean, std: of each channel, on the scale 0 to 1.
    Returns:
      float32 [b, crop, crop, C], normalised.
    """
    batch, shown = images.shape[0], jnp.asarray(images.shape[1:3], jnp.int32)
    box = jnp.broadcast_to(boxes.center_crop(shown[:1], shown[1:], resize, crop, xp=jnp), (batch, 1, 4))
    extent = jnp.broadcast_to(shown, (batch, 2))
    return augment.eval_views(images, box, extent, size=crop, mean=mean, std=std)


def _normalisation(config):
    return {name: tuple(config["views"][name]) for name in ("mean", "std")}


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone, and the classifier on it where one was trained.

    Attributes:
      subject: `subject.Subject`: parameters, config of the pre-training run, channels of the images, step.
      head: `classifier.Trained`, or None.
    """

    subject: Any
    head: Any = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of `classify`, a tuple; None where the training images had no names for their classes."""
        return self.head.class_names if self.head else None

    def features(self, images: Images) -> np.ndarray:
        """Features of images: float32 [n, F].

        Args:
          images: uint8 [n, h, w, C], or uint16, whose white is 65535, or a list of such [h, w, C] of any sizes.
        Raises:
          UserError: they are something else, or have other channels than the network is for.
        """
        return self._computed(self._encode, images)

    def classify(self, images: Images) -> np.ndarray:
        """The share of each class, float32 [n, classes], rows that sum to 1. Arguments as of `features`.

        Raises:
          UserError: nothing was trained to classify; see linear_eval.py.
        """
        if self.head is None:
            raise UserError(
                f"{self.subject.path} has no classifier; load the work folder of linear_eval.py (or of "
                'barlow_jax.evaluate(..., by="linear")).'
            )
        return self._computed(self._shares, images)

    @functools.cached_property
    def _encode(self):
        return make_encode(self.subject.config, self.subject.channels, self.subject.params, self.subject.batch_stats)

    @functools.cached_property
    def _shares(self):
        head = self.head
        view = {"resize": head.resize, "crop": head.size, "mean": head.mean, "std": head.std}

        def shares(images):
            network = model.merge(head.graphdef, head.params, head.batch_stats)
            return jax.nn.softmax(network(central_view(images, **view), train=False))

        return jax.jit(shares)

    def _computed(self, function, images):
        """The rows that a function of [ROWS, h, w, C] gives for these images."""
        groups = [images] if type(images) is np.ndarray else [np.asarray(image)[None] for image in images]
        found = []
        for group in groups:
            if group.ndim != 4 or group.dtype not in DTYPES or group.shape[-1] != self.subject.channels:
                raise UserError(
                    f"The images are {group.dtype} {list(group.shape)}; give uint8 [n, height, width, "
                    f"{self.subject.channels}], or uint16, whose white is 65535, or a list of such [height, width, "
                    f"{self.subject.channels}]."
                )
            for first in range(0, len(group), ROWS):
                part = group[first : first + ROWS]
                # One program for all parts of a large array.
                rows = ROWS if len(group) > ROWS else len(part)
                filled = np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), part.dtype)])
                found.append(np.asarray(function(filled))[: len(part)])
        if not found:
            raise UserError("There are no images; give one or more.")
        return np.concatenate(found)


def load(path, *, step: int | None = None, ema: str = "average") -> Network:
    """The network of a run, of an evaluation by linear_eval.py, or in a file of weights.

    Args:
      path: work folder, one of its checkpoints, a file (.pth, .pkl, .safetensors), or a folder with model.safetensors
        as the Hugging Face Hub has them, of which the backbone is taken.
      step: of an evaluation, which of the checkpoints kept; None is the last one.
      ema: of a run with config.ema, whether its "average" is taken or its "last" weights.
    Raises:
      UserError: there is no such thing.
    """
    folder = reading.named(path)
    if not as_run.is_file(folder):
        params, batch_stats, meta = restore_params(folder, step=step)
        if "classifier" in meta:
            finite.check(folder, params, batch_stats)
            return Network(subject.of_evaluation(params, batch_stats, meta), classifier.of(params, batch_stats, meta))
    return Network(subject.load(folder, ema=ema))
