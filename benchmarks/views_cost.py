"""What the two views cost the accelerator, as a share of the train step that they are part of.

    python benchmarks/views_cost.py [--batch_size=64] [--canvas=512] [--arch=resnet50]

Compiles programs with the values of configs/barlow_twins.py and runs none, so it needs neither images nor memory for
weights: the step that makes its views, the step that is handed ready views, and the views by themselves. FLOPs and
bytes are what XLA counts in each compiled program (cost_analysis).

XLA counts the body of a loop once. The views have two loops, the steps of the colour jitter and the passes of the blur;
what a recipe without one of them saves is taken for its body, and the other rounds are added.
"""

import dataclasses
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from barlow_jax import experiment, pretrain, sharding, views
from barlow_jax.training import viewing
from configs import barlow_twins

BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a step.")
CANVAS = flags.DEFINE_integer("canvas", 512, "Side of the canvases.")
ARCH = flags.DEFINE_string("arch", "", "Another backbone than the config's.")

STEPS_PER_EPOCH = 626  # of the schedule; no matter here
NO_LOOP = ({"jitter": 0.0}, 4), ({"blur": (0.0, 0.0)}, 3)  # a recipe without the loop; how often it goes round


def shape(dtype, *dims):
    return jax.ShapeDtypeStruct((BATCH_SIZE.value, *dims), dtype)


def cost(function, *arguments):
    """What XLA counts in a jitted function compiled for these shapes, per image: float64 [FLOPs, bytes]."""
    counted = function.lower(*arguments).compile().cost_analysis()
    return np.array([counted["flops"], counted["bytes accessed"]]) / BATCH_SIZE.value


def row(name, counted):
    print(f"{name:48}{counted[0] / 1e9:10.2f}{counted[1] / 1e6:12.1f}", flush=True)


def main(_):
    config = barlow_twins.get_config()
    config.batch_size = BATCH_SIZE.value
    config.arch = ARCH.value or config.arch
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.batch_size, mesh)
    device = jax.devices()[0]
    method, state = experiment.method(
        config, channels=3, num_classes=None, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh, abstract=True
    )
    recipe = viewing.recipe(config, 3)

    def views_of(recipe):
        return views.make_views(recipe, config.seed, mesh)

    def views_cost(recipe):
        return cost(jax.jit(views_of(recipe)), jax.ShapeDtypeStruct((), jnp.int32), images)

    def step_with(views_of):
        return pretrain.make_train_step(dataclasses.replace(method, views_of=views_of))

    side, label = config.image_size, shape(jnp.int32)
    images = {
        "canvas": shape(jnp.uint8, CANVAS.value, CANVAS.value, 3),
        "boxes": shape(jnp.float32, 2, 4),
        "label": label,
    }
    ready = {"views": shape(jnp.float32, 2, side, side, 3), "label": label}

    print(
        f"{config.arch}, {side} pixels, {config.precision}, projector {'-'.join(map(str, config.projector))}, batch "
        f"{config.batch_size}, canvas {CANVAS.value}; compiled for {device.device_kind} ({device.platform}, "
        f"{mesh.size} devices), jax {jax.__version__}\n"
    )
    print(f"{'for each image, two views':48}{'GFLOP':>10}{'MB moved':>12}")
    alone = views_cost(recipe)
    row("views by themselves, loops once", alone)
    loops = [(views_cost(dataclasses.replace(recipe, **changes)), rounds) for changes, rounds in NO_LOOP]
    further = sum((rounds - 1) * (alone - without) for without, rounds in loops)
    row("further rounds of their loops", further)
    without = cost(step_with(lambda step, batch: batch["views"]), state, ready)
    row("step, handed ready views", without)
    whole = cost(pretrain.make_train_step(method), state, images)
    row("step that makes its views, loops once", whole)
    row("step that makes its views, all rounds", whole + further)
    flops, moved = 1 - without / (whole + further)
    print(f"\nThe views' share of the step: {flops:.1%} of the FLOPs, {moved:.1%} of the bytes.")
    print("Counts of this backend's program, not times. The optimiser's bytes are shared by all images of the batch.")
    if device.platform == "cpu":
        print(
            "Compiled for a CPU: it computes bfloat16 in float32 and fuses otherwise than an accelerator, where the "
            "bytes will\ndiffer, those of the network most. The FLOPs carry over but for what fusions compute twice."
        )


if __name__ == "__main__":
    app.run(main)
