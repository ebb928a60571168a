"""Runs that are made to fail, and healthy ones: how often is the verdict of docs/watching.md right?

    python benchmarks/verdicts.py --workdir=FOLDER [--seeds=100,101,102] [--cases=no_augmentation] [--epochs=3]

Each case is a short run of train.py on scattered digits or on images made here, in this process, some 20 s on two CPU
cores. Prints for each which verdicts it ended with, whether they are right, and the accuracy of the nearest neighbours
before and after, where there are labels. Of healthy runs all that was logged on the way is judged too: a verdict of
failure there is a false alarm. Runs that are done are not done again. Seeds below 100 are for looking.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

import barlow_jax
from barlow_jax import experiment
from barlow_jax.data.digits import scattered_digits
from barlow_jax.errors import UserError
from barlow_jax.results import verdict
from barlow_jax.run import metric_writers, workdir

FRESH = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "rotation": 0.0,
    "jitter": 0.0,
    "grayscale": 0.0,
}  # both views are the image itself
FAST = {"learning_rate_weights": 0.3, "learning_rate_biases": 0.3}  # a hundred times the demo's
BREAKS = {"name": "sgd", "learning_rate_weights": 1000.0, "weight_decay": 10.0}  # weights grow 10,000 times a step

SMALL = {
    "batch_size": 128,
    "projector": (256, 256),
    "warmup_epochs": 1,
    "log_every_steps": 4,
    "picture_every_epochs": 0,
    "eval": {"every_epochs": 1000, "lidar_images": 0},
}

# name: (fields beside configs/demo.py's, the verdicts that are right, what is done to the state or the images).
CASES = {
    "healthy": ({}, (verdict.LEARNING,), ""),
    "healthy, no labels": ({}, (verdict.LEARNING,), "unlabelled"),
    "healthy, N 64, D 64": ({"batch_size": 64, "projector": (64, 64), "lambd": 0.1}, (verdict.LEARNING,), ""),
    "healthy, vicreg": ({"objective": "vicreg"}, (verdict.LEARNING,), ""),
    "rate too high": ({"optimizer": FAST}, (verdict.COLLAPSED, verdict.ILL), ""),
    "rate far too high": ({"optimizer": BREAKS, "on_nonfinite": "skip", "max_skipped": 10**6}, (verdict.ILL,), ""),
    "lambd 0": ({"lambd": 0.0}, (verdict.COLLAPSED,), ""),
    "lambd 1": ({"lambd": 1.0}, (verdict.COLLAPSED,), ""),
    "no augmentation": ({"views": FRESH}, (verdict.OVERFITTED,), ""),
    "one image, 1000 times": ({}, (verdict.STARVED,), "one"),
    "black images": ({}, (verdict.STARVED,), "black"),
    "100 images, batches of 128": ({}, (verdict.STARVED,), "few"),
    "half the dimensions cut": ({}, (verdict.COLLAPSED,), "cut"),
}


def images_of(kind, seed):
    """uint8 [n, 24, 24, 3] of a case whose images are made here."""
    digits = scattered_digits("train", seed=seed).images
    rng = np.random.default_rng(seed)
    if kind == "one":
        return digits[rng.integers(len(digits))][None].repeat(1000, 0)
    if kind == "black":
        return np.zeros((1000, 24, 24, 3), np.uint8)
    return digits[rng.permutation(len(digits))[:100]] if kind == "few" else digits


def cut(method):
    """`experiment.method` with half of the embedding's dimensions at 0 from the start; their gradient is 0 too."""

    def made(*args, **options):
        parts, state = method(*args, **options)
        last = max(state.params["projector"]["linears"], key=int)
        layer = state.params["projector"]["linears"][last]
        half = layer["kernel"].shape[1] // 2
        state.params["projector"]["linears"][last] = jax.tree.map(lambda a: a.at[..., :half].set(0), layer)
        return parts, state

    return made


def train(case, seed, epochs, folder):
    """One run; the error that it ended with, or ""."""
    fields, _, kind = CASES[case]
    data = {}
    if kind and kind != "cut":
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "images.npz", x_train=images_of(kind, seed))
        data = {"data": {"kind": "npz", "path": str(folder / "images.npz"), "val": "", "last": "wrap"}}
    more = {"epochs": epochs, "seed": seed, **SMALL, **fields}
    method = experiment.method
    if kind == "cut":
        experiment.method = cut(method)
    try:
        if not barlow_jax.train("demo", workdir=folder / "run", **more, **data):
            sys.exit("stopped; the same line goes on")
    except UserError as error:
        return str(error)
    finally:
        experiment.method = method
    return ""


def judged(folder, wanted):
    """Of a run that is done: its verdict, its verdicts at the ends of its epochs, and kNN before and after."""
    lines = metric_writers.read(folder / "run" / metric_writers.FILE)
    config = json.loads((folder / "run" / workdir.CONFIG_FILE).read_text())
    last = verdict.judge(lines, config)
    steps = sorted({line["step"] for line in lines if "loss" in line and line["step"] > 1})
    early = [verdict.judge([line for line in lines if line["step"] <= step], config).name for step in steps]
    knn = [line["knn"] for line in lines if "knn" in line]
    return {
        "name": last.name,
        "right": last.name in wanted,
        "alarms": sum(name in verdict.FAILED for name in early),
        "judged": len(early),
        "knn": [knn[0], knn[-1]] if knn else None,
        "why": last.reasons[0],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", default="100,101,102")
    parser.add_argument("--cases", default="", help="words of their names, by commas; all where there are none")
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    chosen = [case for case in CASES if any(word in case for word in given.cases.split(","))]
    table = {}
    for case in chosen:
        for seed in seeds:
            folder = pathlib.Path(given.workdir) / case.replace(",", "").replace(" ", "_") / str(seed)
            if not (folder / "done").exists():
                error = train(case, seed, given.epochs, folder)
                (folder / "done").write_text(error)
            found = judged(folder, CASES[case][1])
            table.setdefault(case, []).append(found)
            print(f"{case}, seed {seed}: {found['name']}. {found['why']}", file=sys.stderr, flush=True)
    print("\n| case | right is | verdicts | right | false alarms | kNN before, after |\n|---|---|---|---|---|---|")
    for case, runs in table.items():
        names = [run["name"] for run in runs]
        said = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        wanted = " or ".join(CASES[case][1])
        alarms = "-"
        if verdict.LEARNING in CASES[case][1]:
            alarms = f"{sum(run['alarms'] for run in runs)} of {sum(run['judged'] for run in runs)}"
        pairs = [run["knn"] for run in runs if run["knn"]]
        knn = ", ".join(f"{100 * x:.1f} %" for x in np.mean(pairs, 0)) if pairs else "-"
        right = sum(run["right"] for run in runs)
        print(f"| {case} | {wanted} | {said} | {right} of {len(runs)} | {alarms} | {knn} |")
    runs = [run for some in table.values() for run in some]
    print(f"\n{sum(run['right'] for run in runs)} of {len(runs)} right, seeds {given.seeds}.")


if __name__ == "__main__":
    main()
