"""Whether a run of train.py on arrays ends with the same bits: again, killed in between, and compiled anew.

Four runs of one line: `whole`; `again`, which finds whole's programs in the compilation cache; `killed`, which does
too, is killed with -9 at half its steps and goes on; and `anew`, with a cache of its own, where a GPU chooses its
algorithms again. All arrays of the last checkpoints are compared, optimiser included.
"""

import numpy as np

from . import runs
from .paths import ROOT  # noqa: F401

RUNS = {"whole": "cache", "again": "cache", "killed": "cache", "anew": "cache-anew"}
TOLD = {
    "again": "run again, programs from the cache",
    "killed": "killed at half its steps, and gone on",
    "anew": "run again, compiled anew",
}


def measure(context, *, deterministic=False):
    images, steps = write_images(context), 60 if context.small else 200
    for name, cache in RUNS.items():
        workdir, ended = context.out / name, context.out / f"{name}.ended"
        if ended.exists():
            continue
        words = command(context, images, workdir, steps, deterministic, context.out / cache)
        run = runs.Run(words, context.out / f"{name}.log")
        if name == "killed" and not (context.out / "was_killed").exists():
            status = run.wait(context.deadline, lambda folder=workdir: half_way(folder, steps))
            if status is None and not context.late():
                (context.out / "was_killed").touch()
                run.kill()
                run = runs.Run(words, context.out / f"{name}.log")
        status = run.wait(context.deadline)
        if status is None:
            run.stop()  # saves
            return False
        if status:
            context.row(name, "does not run", run.said())
            return
        ended.touch()
    compare(context, steps, deterministic)


def compare(context, steps, deterministic):
    from barlow_jax.run import trees  # here, as nothing is to hold the device while the runs want it
    from barlow_jax.run.checkpoint import restore_all

    whole = restore_all(context.out / "whole")[0]
    mode = "deterministic" if deterministic else "not deterministic"
    for name, what in TOLD.items():
        if name == "killed" and not (context.out / "was_killed").exists():
            context.row(what, "not seen", "it was done before it could be killed")
            continue
        different = trees.differences(whole, restore_all(context.out / name)[0], told=lambda x: np.asarray(x).tobytes())
        count = len(trees.named(whole))
        figure = f"{len(different)} of {count} arrays differ" if different else f"all {count} arrays equal, bit for bit"
        context.row(what, figure, f"after {steps} steps, {mode}", different=len(different), arrays=count)


def half_way(workdir, steps):
    """Whether there is a checkpoint to go on from, and half the steps are done."""
    lines, saved = runs.metrics(workdir), workdir / "checkpoints"
    return bool(lines) and lines[-1]["step"] >= steps // 2 and any(step.name.isdigit() for step in saved.glob("*"))


def write_images(context):
    """An .npz of noisy colours, 3 or 20 batches of them."""
    file, side = context.out / "images.npz", 24 if context.small else 64
    if not file.exists():
        rng, n = np.random.default_rng(0), 48 if context.small else 2560
        colours = rng.integers(0, 256, (n, 1, 1, 3)) // 2 + rng.integers(0, 128, (n, side, side, 3))
        np.savez(context.out / "half.npz", x_train=colours.astype(np.uint8), y_train=np.arange(n) % 10)
        (context.out / "half.npz").replace(file)
    return file


def command(context, images, workdir, steps, deterministic, cache):
    """A run of so many steps."""
    if context.small:
        size = {"arch": "convnet", "projector": "(16,16)", "image_size": 24, "batch_size": 16, "data__canvas": 24}
        steps_per_epoch = 3
    else:
        size = {"arch": "resnet50", "projector": "(2048,2048,2048)", "image_size": 64, "batch_size": 128}
        steps_per_epoch = 20
    words = runs.line(
        "train",
        workdir,
        **size,
        precision=context.machine()["precision"],
        data__kind="npz",
        data__path=images,
        data__val="",
        epochs=-(-steps // steps_per_epoch),
        warmup_epochs=1,
        eval__every_epochs=0,
        eval__resize=24,
        eval__crop=24,
        log_every_steps=max(steps // 20, 1),
        checkpoint_every_steps=steps // 4,
        picture_every_epochs=0,
        deterministic=deterministic,
        compilation_cache=cache,
    )
    return [*words, "--config=barlow_twins"]
