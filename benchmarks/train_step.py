"""The train step at full speed, views on the device included, on whatever device is there.

    python benchmarks/train_step.py [--batch-size=512] [--profile=FOLDER]
    python benchmarks/train_step.py --vs=torch

Random uint8 canvases, the official network, loss and optimiser; jax, flax, optax and numpy alone. --vs=torch, where
torch and torchvision are installed, alternates in one run with the step that a user of the official code has: its own
LARS, AMP, and the same with channels last. PyTorch is given ready views, as its views are made by the host. On a CPU
everything is small unless sizes are given, and says nothing about an accelerator.
"""

import argparse
import functools
import math
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gpu_steps.machine import peaks
from jax.interpreters import partial_eval

from barlow_jax import augment, model, optim, pretrain, sharding, views
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.training import feed

LAMBD = 0.0051

FULL = {"arch": "resnet50", "batch_size": 512, "image_size": 224, "canvas": 512, "projector": "8192,8192,8192"}
SMALL = {"arch": "resnet18", "batch_size": 16, "image_size": 64, "canvas": 96, "projector": "256,256,256"}


def arguments():
    parser = argparse.ArgumentParser(description="Times the jitted train step.")
    parser.add_argument("--arch", choices=[name for name in model.BACKBONES if name.startswith(("resnet", "wide"))])
    parser.add_argument("--batch-size", type=int, help="over all devices")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--canvas", type=int)
    parser.add_argument("--projector", help="widths, such as 8192,8192,8192")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--steps", type=int, default=10, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", default="", help="folder for a profile by operation, for TensorBoard or xprof")
    parser.add_argument("--vs", choices=["torch"])
    chosen = parser.parse_args()
    for name, value in (SMALL if jax.default_backend() == "cpu" else FULL).items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    chosen.projector = tuple(int(width) for width in chosen.projector.split(","))
    return chosen


def make_step(chosen):
    """() -> the metrics of one more step, and the count of multiplications and additions in a step."""
    dtype = jnp.dtype(chosen.precision)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(chosen.batch_size, mesh)
    backbone = model.make_backbone(chosen.arch, image_size=chosen.image_size, zero_init_residual=True, dtype=dtype)
    network = model.BarlowTwins(backbone, chosen.projector, dtype=dtype, rngs=nnx.Rngs(0))
    peak = 0.2 * chosen.batch_size / 256
    rates = [optim.warmup_cosine(r, 6_260, 626_000, final=0.001) for r in (peak, peak * 0.024)]
    tx = optim.make_optimizer("lars", *rates, reference_world_size=16)
    graphdef, state = pretrain.create_state(network, tx)
    recipe = augment.Recipe(size=chosen.image_size)
    loss = functools.partial(barlow_twins_loss, lambd=LAMBD, batch_size=chosen.batch_size)
    step = pretrain.make_train_step(pretrain.Method(graphdef, tx, views.make_views(recipe, 0, mesh), loss, mesh))
    state = jax.device_put(state, sharding.replicated(mesh))
    batch = feed.put(random_batch(chosen), mesh)
    jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
    flops = count_flops(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])
    holder = [state]

    def once():
        holder[0], metrics = step(holder[0], batch)
        return metrics

    return once, flops


def random_batch(chosen):
    """Canvases of noise, with the boxes that RandomResizedCrop draws on them."""
    n, side = chosen.batch_size, chosen.canvas
    keys = jax.random.split(jax.random.key(1), n)
    boxes = augment.random_boxes(keys, side, side, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    canvas = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)
    return {
        "canvas": canvas,
        "boxes": np.asarray(boxes),
        "index": np.arange(n, dtype=np.int32),
        "label": np.full(n, -1, np.int32),
    }


def count_flops(jaxpr):
    """FLOPs of all matrix products and convolutions in a jaxpr, as the mathematics has them, on no device's account."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
            total += 2 * depth * eqn.outvars[0].aval.size
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval, eqn.params["dimension_numbers"]
            taps = kernel.size // kernel.shape[numbers.rhs_spec[0]]
            zeros = math.prod(eqn.params["lhs_dilation"])  # a strided convolution's gradient multiplies by them
            total += 2 * taps * eqn.outvars[0].aval.size // zeros
        elif eqn.primitive.name == "cond":  # forms of one operation for several platforms; the last is the usual one
            total += count_flops(eqn.params["branches"][-1].jaxpr)
        else:
            rounds = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            if eqn.primitive.name == "shard_map":
                rounds = eqn.params["mesh"].size
            total += rounds * sum(count_flops(inner) for inner in jax.extend.core.jaxprs_in_params(eqn.params))
    return total


def timed(once, steps, finish):
    """Seconds of one step, over several."""
    start = time.perf_counter()
    for _ in range(steps):
        result = once()
    finish(result)
    return (time.perf_counter() - start) / steps


def row(name, seconds, batch_size, extra=""):
    median = statistics.median(seconds)
    spread = f"{1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f}"
    print(f"{name:34}{1e3 * median:10.1f}{spread:>20}{batch_size / median:12.0f}   {extra}", flush=True)
    return median


def main():
    chosen = arguments()
    device, count = jax.devices()[0], len(jax.devices())
    print(
        f"{count} x {device.device_kind}, jax {jax.__version__}, {chosen.arch}, {chosen.image_size} pixels from a "
        f"canvas of {chosen.canvas}, projector {'-'.join(map(str, chosen.projector))}, batch {chosen.batch_size}, "
        f"{chosen.precision}"
    )
    if device.platform == "cpu":
        print("No accelerator here: these are a CPU's figures, for a check that everything runs.")
    start = time.perf_counter()
    ours, flops = make_step(chosen)
    jax.block_until_ready(ours())
    print(f"compiled and run once in {time.perf_counter() - start:.0f} s; {flops / 1e12:.3f} TFLOP a step\n")
    contestants = {"ours, views included": (ours, jax.block_until_ready)}
    if chosen.vs:
        import torch_step

        contestants |= torch_step.contestants(chosen, LAMBD)
    seconds = {name: [] for name in contestants}
    for once, finish in contestants.values():
        timed(once, 2, finish)
    for _ in range(chosen.rounds):
        for name, (once, finish) in contestants.items():
            seconds[name].append(timed(once, chosen.steps, finish))

    print(f"{'':34}{'ms a step':>10}{'lowest to highest':>20}{'images/s':>12}")
    peak = peaks(device.device_kind).get("flops")
    medians = {}
    for name in contestants:
        rate = flops / statistics.median(seconds[name]) / 1e12
        share = f"{rate:.1f} TFLOP/s" + ("" if peak is None else f", {100e12 * rate / peak / count:.1f} % of the peak")
        medians[name] = row(name, seconds[name], chosen.batch_size, share)
    if memory := device.memory_stats():
        print(f"\nmost memory in use on a device: {memory['peak_bytes_in_use'] / 2**30:.2f} GiB")
    for name, median in medians.items():
        if not name.startswith("ours"):
            print(f"{name} takes {median / medians['ours, views included']:.2f} times as long")
    if chosen.profile:
        with jax.profiler.trace(chosen.profile):
            timed(ours, 3, jax.block_until_ready)
        print(f"profile of three steps: {chosen.profile} (open it with TensorBoard's or xprof's viewer)")


if __name__ == "__main__":
    main()
