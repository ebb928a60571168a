"""Checkpoints of runs that nobody had to wait for: random weights, saved as train.py and linear_eval.py save theirs."""

import importlib

import jax
import numpy as np
from flax import nnx

from barlow_jax import experiment, model, pretrain, sharding
from barlow_jax.run.checkpoint import FOLDER, Checkpoints

STEP, IMAGES = 24, 100  # 12 steps an epoch


def random_like(tree, seed=0):
    """Weights as after some training: the zeros of the start would hide what is wrong behind them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (a + (a.ndim < 2) * rng.uniform(0.1, 0.3, a.shape)).astype(np.float32), tree)


def a_config(arch="resnet18", stem="imagenet", **fields):
    config = importlib.import_module("configs.cifar10").get_config().unlock()
    config.arch, config.stem, config.projector, config.batch_size = arch, stem, (16, 8), 8
    config.update(fields)
    return config


def save_run(folder, config, *, classifier=None, channels=3):
    """A run as train.py leaves it, or the evaluation of one as linear_eval.py does."""
    network = experiment.network(config, channels)
    tx, _ = experiment.optimizer(config, 12)
    state = pretrain.create_state(network, tx)[1]
    state = state._replace(params=random_like(state.params), batch_stats=random_like(state.batch_stats, 1))
    state = state._replace(opt_state=random_like(state.opt_state, 2), step=np.int32(STEP))
    meta = {"config": config.to_dict(), "channels": channels, "images": IMAGES}
    if classifier:
        fc = {"kernel": np.ones((512, classifier), np.float32), "bias": np.zeros(classifier, np.float32)}
        state = {"params": {"backbone": state.params["backbone"], "fc": fc}, "batch_stats": state.batch_stats}
        meta |= {"classifier": {"num_classes": classifier}}
    with Checkpoints(folder / FOLDER, asynchronous=False) as checkpoints:
        checkpoints.save(STEP, state, meta)
    return state


def filled(shapes, seed=0):
    """Random arrays: a network drawn as a run begins costs seconds."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes)


def save_filled(folder, config, *, images):
    """The backbone and projector of a run alone, of arrays that are `filled`."""
    _, *shapes = model.split(nnx.eval_shape(lambda: experiment.network(config, 3)))
    state = dict(zip(("params", "batch_stats"), map(filled, shapes), strict=True))
    with Checkpoints(folder / FOLDER, asynchronous=False) as checkpoints:
        checkpoints.save(7, state, {"config": config.to_dict(), "channels": 3, "images": images})


def fresh_method(config):
    """The step of train.py on one device, and a state of zeros for it."""
    parts = {"channels": 3, "num_classes": 4, "steps_per_epoch": 5, "mesh": sharding.make_mesh(jax.devices()[:1])}
    method, shapes = experiment.method(config, **parts, abstract=True)
    return method, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)


def unmoved_by_a_step(config):
    """The paths of the parameters that one step on random images leaves as they were."""
    method, state = fresh_method(config)
    state = state._replace(params=filled(state.params), batch_stats=jax.tree.map(np.ones_like, state.batch_stats))
    rng, side = np.random.default_rng(0), config.image_size
    batch = {
        "canvas": rng.integers(0, 256, (16, side, side, 3)).astype(np.uint8),
        "boxes": np.tile(np.float32([0, 0, side, side]), (16, 2, 1)),
        "index": np.arange(16, dtype=np.int32),
        "label": np.arange(16, dtype=np.int32) % 4,
    }
    after, metrics = pretrain.make_train_step(method)(state, batch)
    assert np.isfinite(metrics["loss"]) and int(after.step) == 1 and int(metrics["skipped"]) == 0
    flat = zip(jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(after.params), strict=True)
    return [path for (path, before), now in flat if np.array_equal(before, now)]
