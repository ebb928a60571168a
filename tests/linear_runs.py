"""`python linear_eval.py` on an .npz of six colours: its images, its command line, its results."""

import json

import numpy as np

CLASSES, TRAIN, VAL = 6, 44, 30


def write_set(path, *, seed=0, classes=CLASSES, **changes):
    """An .npz of noisy colours, the colour telling the class, so that top-5 of 6 classes says something too."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 200, size=(classes, 1, 1, 3))
    arrays = {}
    for split, n in (("train", TRAIN), ("test", VAL)):
        labels = np.arange(n) % classes
        cast = rng.integers(-60, 60, size=(n, 1, 1, 3))  # so that not every image is told right
        images = colours[labels] + cast + rng.integers(-40, 40, size=(n, 24, 24, 3))
        arrays |= {f"x_{split}": images.clip(0, 255).astype(np.uint8), f"y_{split}": labels}
    np.savez(path, **(arrays | changes))
    return path


def arguments(pretrained, workdir, *more):
    """5 epochs of 3 steps, the last batch of each smaller."""
    return (
        "--config=configs/linear_cifar10.py",
        f"--checkpoint={pretrained}",
        f"--workdir={workdir}",
        "--config.epochs=5",
        "--config.batch_size=16",
        "--config.image_size=0",
        "--config.eval.resize=0",
        "--config.eval.crop=0",
        "--config.eval.batch_size=16",
        "--config.log_every_steps=1",
        "--config.checkpoint_every_epochs=2",
        "--config.optimizer.learning_rate_classifier=0.05",
        *more,
    )


def results(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def scores(workdir):
    """{("last", "top1"): value, ...} of the results of one seed."""
    return {(line["settings"]["result"], line["metric"]): line["value"] for line in results(workdir)}
