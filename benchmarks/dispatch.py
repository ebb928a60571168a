"""What Python costs in one train step: the time until the call returns, with the result still being computed.

    python benchmarks/dispatch.py [--steps=200]

On the CPU with a network so small that nothing else counts: configs/demo.py's ConvNet with 8 x 8 embeddings, batch 8 of
12 pixels, one device. The step is that of train.py. An accelerator is kept busy as long as a step takes it longer than
this. Printed: the whole call, and what it is made of, each measured by itself:

    flatten        the state's tree to its leaves and back, which every jitted call does
    jit of as many arguments that computes nothing: JAX's own price for so many arrays in and out, donated as here
    batch          getting the next batch onto the device (feed.put), beside the step
"""

import logging
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from absl import app, flags

from barlow_jax import experiment, pretrain, sharding
from barlow_jax.training import feed
from configs import demo

STEPS = flags.DEFINE_integer("steps", 200, "Calls to measure.")


def host_milliseconds(call, wait, repeats):
    """(median, lowest) milliseconds until call() returns; wait() then lets the device finish, outside the clock."""
    for _ in range(5):
        call()
        wait()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
        wait()
    return statistics.median(times), min(times)


def tiny_step(mesh):
    """The jitted train step of a tiny network, its state and a batch on the device."""
    config = demo.get_config().unlock()
    config.projector, config.batch_size, config.image_size = (8, 8), 8, 12
    method, state = experiment.method(config, channels=3, num_classes=10, steps_per_epoch=100, mesh=mesh)
    state = jax.device_put(state, method.state_sharding)
    batch = {
        "canvas": np.zeros((8, 12, 12, 3), np.uint8),
        "boxes": np.tile(np.array([0, 0, 12, 12], np.float32), (8, 2, 1)),
        "index": np.arange(8, dtype=np.int32),
        "label": np.zeros(8, np.int32),
    }
    return pretrain.make_train_step(method), state, batch


def main(_):
    logging.getLogger("jax").setLevel(logging.WARNING)
    mesh = sharding.make_mesh(jax.devices()[:1])
    step, state, rows = tiny_step(mesh)
    batch = feed.put(rows, mesh)
    held = {"state": state, "leaves": None, "put": None}

    def train():
        held["state"], held["metrics"] = step(held["state"], batch)

    def wait():
        jax.block_until_ready((held["state"], held["leaves"], held["put"]))

    def flatten():
        leaves, tree = jax.tree.flatten(held["state"])
        jax.tree.unflatten(tree, leaves)

    whole = host_milliseconds(train, wait, STEPS.value)
    parts = [("flatten", host_milliseconds(flatten, wait, STEPS.value))]

    leaves = jax.device_put(
        [np.zeros(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(held["state"])], sharding.replicated(mesh)
    )
    nothing = jax.jit(lambda arrays: [a + 1 for a in arrays], donate_argnums=0)
    held["leaves"] = leaves

    def empty():
        held["leaves"] = nothing(held["leaves"])

    parts.append((f"jit of {len(leaves)} arrays that adds 1", host_milliseconds(empty, wait, STEPS.value)))

    def put():
        held["put"] = feed.put(rows, mesh)

    parts.append(("batch", host_milliseconds(put, wait, STEPS.value)))

    print(
        f"jax {jax.__version__}, {os.cpu_count()} cores, {jax.devices()[0].platform}; {STEPS.value} calls, "
        f"state of {len(leaves)} arrays\n"
    )
    print(f"{'milliseconds of the host':40}{'median':>10}{'lowest':>10}")
    for name, (median, lowest) in (("train step, until the call returns", whole), *parts):
        print(f"{name:40}{median:10.3f}{lowest:10.3f}")


if __name__ == "__main__":
    app.run(main)
