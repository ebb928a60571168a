"""Frozen features of a data set: the backbone in evaluation mode over every image once."""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from barlow_jax import model, views
from barlow_jax.sharding import by_example, replicated
from barlow_jax.training.feed import put

BLOCK = 1024  # rows that are moved at a time


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


def extract(feature_step, params, batch_stats, batches, mesh, *, n):
    """Features and labels of all examples, in the order of the source, as `Extracted`; the same on every process.

    Args:
      n: examples of the source.
      batches: this process's evaluation batches (numpy); padding rows are dropped here.
    """
    return gather((feature_step(params, batch_stats, put(batch, mesh)) for batch in batches), n)


def gather(outputs, n):
    """What feature steps gave of n examples, as one `Extracted` in the order of the source, each example once.

    Of an example that comes again, as at the end of a training epoch, the first counts. Each row is written once to
    where it belongs: ImageNet's features are 10.5 GB, and no second copy of them is made.
    """
    wholes, seen, kind = {}, np.zeros(n, bool), np.int32
    for out in outputs:
        out = jax.device_get(out)
        rows = np.flatnonzero(out["mask"]) if "mask" in out else np.arange(len(out["label"]))
        kind = out["index"].dtype
        index, first = np.unique(out["index"][rows], return_index=True)
        new = ~seen[index]
        index, rows = index[new], rows[first[new]]
        for name in ("features", "label"):
            if name not in wholes:
                wholes[name] = np.empty((n, *out[name].shape[1:]), out[name].dtype)
            wholes[name][index] = out[name][rows]
        seen[index] = True
    index = np.flatnonzero(seen).astype(kind)
    return Extracted(*(_together(wholes[name], index) for name in ("features", "label")), index)


def _together(whole, rows):
    """whole[rows] of rising rows, in the memory of `whole`."""
    if len(rows) < len(whole):
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            whole[part][: len(rows) - start] = whole[rows[part]]  # from this row on or later, so from none written
    return whole[: len(rows)]
