"""CIFAR-10 by configs/cifar10.py: accuracy against the time that train.py has run, and linear evaluation of that run.

The clock counts the time in which the run's processes ran, starts and evaluations included. A slice ends with SIGTERM,
as on a cluster: the run saves, and the next slice goes on.
"""

import json
import time

import numpy as np

from . import record, runs
from .paths import ROOT  # noqa: F401

import cifar10  # isort: skip

AIM = 0.9
SAVES = 30  # seconds that a run may take to stop


def measure(context, *, linear=False):
    data = images(context)
    return judge(context, data) if linear else train(context, data)


def images(context):
    """The .npz; of a small run without one, noisy colours."""
    if context.options.cifar:
        return context.options.cifar
    if not context.small:
        raise record.Skipped("no --cifar=FILE.npz was given")
    file, rng, arrays = context.out / "colours.npz", np.random.default_rng(0), {}
    for split, count in (("train", 64), ("test", 32)):
        label = np.arange(count) % 10
        colours = rng.integers(0, 128, (10, 1, 1, 3))[label] + rng.integers(0, 128, (count, 32, 32, 3))
        arrays |= {f"x_{split}": colours.astype(np.uint8), f"y_{split}": label}
    np.savez(file, **arrays)
    return file


def command(context, data, workdir):
    epochs = 2 if context.small else context.options.epochs
    tiny = {"arch": "convnet", "projector": "(16,16)", "batch_size": 16, "eval__batch_size": 16, "eval__knn_k": 5}
    words = runs.line(
        "train",
        workdir,
        data__path=data,
        precision=context.machine()["precision"],
        epochs=epochs,
        warmup_epochs=min(10, epochs - 1),
        eval__every_epochs=max(epochs // 40, 1),
        **(tiny if context.small else {}),
    )
    return [*words, "--config=cifar10"]


def train(context, data):
    """A slice of the run: notes each evaluation with the minutes it came after; False if there is time left."""
    workdir, clock = context.out / "run", cifar10.Clock(context.out / "clock.json")
    given = 60 * context.options.minutes
    run = runs.Run(command(context, data, workdir), context.out / "run.log")
    until = min(context.deadline, time.monotonic() + max(given - clock.seconds(), 0))
    status = None
    while status is None and time.monotonic() < until:
        status = run.wait(min(time.monotonic() + 0.5, until))
        note(context, workdir, clock)
    if status is None:
        status = run.stop()
        note(context, workdir, clock)
        finished = clock.seconds() + SAVES > given
    else:
        finished = True
    if status:
        raise RuntimeError(run.said())
    describe(context, clock.seconds() / 60)
    return finished


def note(context, workdir, clock):
    """Adds evaluations that are new to the list, with the time."""
    clock.save()
    file = context.out / "accuracy.jsonl"
    known = {json.loads(line)["step"] for line in file.read_text().splitlines()} if file.exists() else set()
    with file.open("a") as stream:
        for line in runs.metrics(workdir):
            if "knn" in line and line["step"] not in known:
                kept = {
                    "step": line["step"],
                    "minutes": clock.seconds() / 60,
                    "knn": line["knn"],
                    "probe": line["probe"],
                }
                stream.write(json.dumps(kept) + "\n")


def describe(context, minutes):
    found = [json.loads(line) for line in (context.out / "accuracy.jsonl").read_text().splitlines()]
    rates = [line for line in runs.metrics(context.out / "run") if "images_per_second" in line][-5:]
    speed = f"{rates[-1]['images_per_second']:,.0f} images/s" if rates else ""
    for name, what in (("knn", "20-NN"), ("probe", "online linear probe")):
        first = next((line for line in found if line[name] >= AIM), None)
        reached = f"{first['minutes']:.1f} minutes" if first else "not reached"
        at = f"at step {first['step']}" if first else ""
        context.row(f"to {AIM:.0%} by {what}", reached, at, minutes=first and first["minutes"])
        if found:
            last = found[-1]
            after = f"after {last['minutes']:.1f} minutes, step {last['step']}; {speed}"
            context.row(f"{what} in the end", f"{100 * last[name]:.2f} %", after, value=last[name], curve=found)
    context.row("time", f"{minutes:.1f} minutes", f"of {context.options.minutes:g}", minutes=minutes)


def judge(context, data):
    """Linear evaluation of the run, as far as it has come."""
    checkpoint = context.out.parent / "cifar" / "run"
    if not (checkpoint / "checkpoints").is_dir():
        raise record.Skipped("the step cifar has left no checkpoint")
    words = runs.line(
        "linear_eval",
        context.out / "run",
        data__path=data,
        epochs=2 if context.small else 100,
        **({"batch_size": 16, "eval__batch_size": 16} if context.small else {}),
    )
    run = runs.Run([*words, "--config=linear_cifar10", f"--checkpoint={checkpoint}"], context.out / "run.log")
    status = run.wait(context.deadline)
    if status is None:
        run.stop()
        return False
    if status:
        raise RuntimeError(run.said())
    for text in (context.out / "run" / "results.jsonl").read_text().splitlines():
        line = json.loads(text)
        what = f"{line['settings']['result']} {line['metric']}"
        context.row(what, f"{100 * line['value']:.2f} %", f"{line['n']} images", value=line["value"])
