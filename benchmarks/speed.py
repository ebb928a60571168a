"""Speeds of the parts, on whatever machine this is.

    python benchmarks/speed.py

Medians of several runs. CPU seconds are of all cores together, and what to compare on a shared machine; wall times of
small machines are mostly noise. input_pipeline.py measures the host's half of the input.
"""

import logging
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from barlow_jax import augment, experiment, pretrain, sharding, views
from barlow_jax.training import feed, viewing
from configs import cifar10, demo


def cpu_seconds(who=resource.RUSAGE_SELF):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def measure(work, repeats=7):
    """Median (wall, CPU) seconds of work(), after one call that compiles."""
    work()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), cpu_seconds()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu_seconds() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def row(name, wall, cpu, images=None):
    rate = "" if images is None else f"{images / wall:12.0f}{images / cpu:16.0f}"
    print(f"{name:44}{1e3 * wall:10.1f}{1e3 * cpu:10.1f}{rate}", flush=True)


def batch_of(size, canvas, batch_size):
    rng = np.random.default_rng(0)
    return {
        "canvas": rng.integers(0, 256, (batch_size, canvas, canvas, 3), np.uint8),
        "boxes": np.tile(np.array([0, 0, canvas, canvas], np.float32), (batch_size, 2, 1)),
        "index": np.arange(batch_size),
        "label": np.full(batch_size, -1, np.int32),
    }


def time_views(name, recipe, canvas, batch_size):
    mesh = sharding.make_mesh()
    views_of = jax.jit(views.make_views(recipe, 0, mesh))
    batch = feed.put(batch_of(recipe.size, canvas, batch_size), mesh)
    row(name, *measure(lambda: jax.block_until_ready(views_of(jnp.int32(0), batch))), images=batch_size)


def time_step(name, config):
    mesh = sharding.make_mesh()
    method, state = experiment.method(config, channels=3, num_classes=None, steps_per_epoch=100, mesh=mesh)
    step = pretrain.make_train_step(method)
    batch = feed.put(batch_of(config.image_size, config.image_size, config.batch_size), mesh)
    holder = [jax.device_put(state, method.state_sharding)]

    def once():
        holder[0], metrics = step(holder[0], batch)
        jax.block_until_ready(metrics)

    row(name, *measure(once), images=config.batch_size)


def time_help():
    def once():
        subprocess.run([sys.executable, ROOT / "train.py", "--help"], capture_output=True, cwd=ROOT)

    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    wall, _ = measure(once, repeats=5)
    row("train.py --help", wall, (cpu_seconds(resource.RUSAGE_CHILDREN) - before) / 6)


def main(_):
    logging.getLogger("jax").setLevel(logging.WARNING)
    print(
        f"{jax.devices()[0].device_kind}, {len(jax.devices())} devices, {os.cpu_count()} cores, jax {jax.__version__}\n"
    )
    print(f"{'':44}{'wall ms':>10}{'CPU ms':>10}{'images/s':>12}{'images/CPU-s':>16}")
    time_help()
    time_views("views, demo, 24 px, batch 256", viewing.recipe(demo.get_config(), 3), 24, 256)
    time_views("views, cifar10, 32 px, batch 256", viewing.recipe(cifar10.get_config(), 3), 32, 256)
    time_views("views, ImageNet, 224 px, canvas 512, batch 8", augment.Recipe(), 512, 8)
    time_step("train step, demo, batch 256", demo.get_config())


if __name__ == "__main__":
    app.run(main)
