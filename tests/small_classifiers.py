"""Classifiers that compile at once: a head alone, and one on a backbone of a layer."""

import functools

import jax
import numpy as np
from flax import nnx

from barlow_jax import model
from barlow_jax.networks import batch_norm


class Identity(nnx.Module):
    """A backbone whose features are the images: what is left of the step is the head."""

    def __init__(self, num_features, *, rngs):
        del rngs
        self.num_features = num_features

    def __call__(self, images, *, train):
        del train
        return images


def head(num_features, num_classes):
    """() -> a classifier that is its fc alone."""
    return lambda: model.Classifier(functools.partial(Identity, num_features), num_classes, rngs=nnx.Rngs(0))


class Small(nnx.Module):
    """One layer and its BatchNorm on 8 x 8 images: all that the modes of a backbone are about, quick to compile."""

    num_features = 16

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(8 * 8 * 3, self.num_features, rngs=rngs)
        self.norm = batch_norm.BatchNorm(self.num_features)

    def __call__(self, images, *, train):
        return nnx.relu(self.norm(self.dense(images.reshape(*images.shape[:-3], -1)), train=train))


def small_classifier():
    return model.Classifier(Small, 5, rngs=nnx.Rngs(0))


def moved_backbone():
    """A backbone whose running statistics and scales are not those of a fresh one."""
    _, params, batch_stats = model.split(nnx.eval_shape(small_classifier))
    rng = np.random.default_rng(3)

    def draw(path, like):
        around = 1 if jax.tree_util.keystr(path).endswith(("['scale']", "['var']")) else 0
        return (around + 0.1 * rng.normal(size=like.shape)).astype(np.float32)

    draw_all = functools.partial(jax.tree_util.tree_map_with_path, draw)
    return draw_all(params["backbone"]), draw_all(batch_stats["backbone"])
