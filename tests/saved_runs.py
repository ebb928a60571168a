"""Checkpoints of runs that nobody had to wait for: random weights, saved as train.py and linear_eval.py save theirs."""

import importlib

import jax
import numpy as np

from barlow_jax import experiment, pretrain
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


def save_run(folder, config, *, classifier=None):
    """A run as train.py leaves it, or the evaluation of one as linear_eval.py does."""
    network = experiment.network(config, 3)
    tx, _ = experiment.optimizer(config, 12)
    state = pretrain.create_state(network, tx)[1]
    state = state._replace(params=random_like(state.params), batch_stats=random_like(state.batch_stats, 1))
    state = state._replace(opt_state=random_like(state.opt_state, 2), step=np.int32(STEP))
    meta = {"config": config.to_dict(), "channels": 3, "images": IMAGES}
    if classifier:
        fc = {"kernel": np.ones((512, classifier), np.float32), "bias": np.zeros(classifier, np.float32)}
        state = {"params": {"backbone": state.params["backbone"], "fc": fc}, "batch_stats": state.batch_stats}
        meta |= {"classifier": {"num_classes": classifier}}
    with Checkpoints(folder / FOLDER, asynchronous=False) as checkpoints:
        checkpoints.save(STEP, state, meta)
    return state
