"""Frozen features of a data set: the backbone in evaluation mode over every image once."""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from barlow_jax import model, views
from barlow_jax.sharding import by_example, replicated
from barlow_jax.training.feed import put


class Extracted(NamedTuple):
    """What `extract` found, a row for each image that could be read."""

    features: np.ndarray  # float32 [n, F]
    labels: np.ndarray  # int32 [n], -1: unlabelled
    index: np.ndarray  # int32 [n], places in the source


class Encoder(nnx.Module):
    """A backbone by itself, under the name that it has in every network."""

    def __init__(self, backbone, *, rngs):
        self.backbone = backbone(rngs=rngs)


def encoder(backbone):
    """The graphdef of a backbone by itself, for `make_feature_step`; nothing is computed.

    Args:
      backbone: rngs -> module, as `model.make_backbone` gives.
    """
    return model.split(nnx.eval_shape(lambda: Encoder(backbone, rngs=nnx.Rngs(0))))[0]


def make_feature_step(graphdef, *, size, mean, std, mesh):
    """(params, batch_stats, batch) -> {"features" [b, F], "label", "index", "mask" [b]}, replicated.

    Args:
      graphdef: of a network with a `backbone`.
      size: side of the images that it sees.
      mean, std: of the normalisation, one value for each channel.
    """

    images_of = views.make_eval_views(size=size, mean=mean, std=std, mesh=mesh)

    def features(params, batch_stats, batch):
        images = images_of(batch)
        network = model.merge(graphdef, params, batch_stats)
        told = {name: batch[name] for name in ("label", "index", "mask")}
        return {"features": network.backbone(images, train=False), **told}

    # Parameters come as they are: replicated, or split over the devices.
    return jax.jit(features, in_shardings=(None, None, by_example(mesh)), out_shardings=replicated(mesh))


def make_view_feature_step(graphdef, images_of, *, mesh):
    """(step, params, batch_stats, batch) -> {"features" [b, F], "label", "index" [b]} of one random view, replicated.

    Args:
      graphdef: of a network with a `backbone`.
      images_of: (step, batch) -> [b, H, W, C], as `views.make_one_view` gives.
    """

    def features(step, params, batch_stats, batch):
        network = model.merge(graphdef, params, batch_stats)
        told = {name: batch[name] for name in ("label", "index")}
        return {"features": network.backbone(images_of(step, batch), train=False), **told}

    return jax.jit(features, in_shardings=(None, None, None, by_example(mesh)), out_shardings=replicated(mesh))


def extract(feature_step, params, batch_stats, batches, mesh):
    """Features and labels of all examples, in the order of the source, as `Extracted`; the same on every process.

    Args:
      batches: this process's evaluation batches (numpy); padding rows are dropped here.
    """
    return gather(feature_step(params, batch_stats, put(batch, mesh)) for batch in batches)


def gather(outputs):
    """What feature steps gave, as one `Extracted` in the order of the source, each example once."""
    parts = []
    for out in outputs:
        out = jax.device_get(out)
        mask = out.get("mask", np.ones(len(out["label"]), bool))
        parts.append([out[name][mask] for name in ("features", "label", "index")])
    features, labels, index = (np.concatenate(part) for part in zip(*parts, strict=True))
    # Evaluation batches are in order as they come; the last batch of a training epoch repeats its first examples.
    index, first = np.unique(index, return_index=True)
    if not np.array_equal(first, np.arange(len(labels))):
        features, labels = features[first], labels[first]
    return Extracted(features, labels, index)
