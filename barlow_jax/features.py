"""Frozen features of a data set: the backbone in evaluation mode over every image once."""

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from barlow_jax import augment, model
from barlow_jax.sharding import by_example, put, replicated


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
    """(params, batch_stats, batch) -> {"features" [b, F], "label" [b], "mask" [b]}, replicated.

    Args:
      graphdef: of a network with a `backbone`.
      size: side of the images that it sees.
      mean, std: of the normalisation, one value for each channel.
    """

    def eval_views(canvas, boxes, extent):
        return augment.eval_views(canvas, boxes, extent, size=size, mean=mean, std=std)

    def features(params, batch_stats, batch):
        images = jax.shard_map(eval_views, mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P("data"))(
            batch["canvas"], batch["boxes"], batch["extent"]
        )
        network = model.merge(graphdef, params, batch_stats)
        return {
            "features": network.backbone(images, train=False),
            "label": batch["label"],
            "mask": batch["mask"],
        }

    # Parameters come as they are: replicated, or split over the devices.
    return jax.jit(features, in_shardings=(None, None, by_example(mesh)), out_shardings=replicated(mesh))


def extract(feature_step, params, batch_stats, batches, mesh):
    """Features and labels of all examples, in the order of the source.

    Args:
      batches: this process's evaluation batches (numpy); padding rows are dropped here.
    Returns:
      float32 [n, F], int32 [n], the same on every process.
    """
    features, labels = [], []
    for batch in batches:
        out = feature_step(params, batch_stats, put(batch, mesh))
        mask = np.asarray(out["mask"])
        features.append(np.asarray(out["features"])[mask])
        labels.append(np.asarray(out["label"])[mask])
    return np.concatenate(features), np.concatenate(labels)
