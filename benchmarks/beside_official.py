"""The official PyTorch code and this one, on the same images in the same setting: loss, neighbours, linear accuracy.

    git clone https://github.com/facebookresearch/barlowtwins
    python benchmarks/beside_official.py --official=barlowtwins --torch=.venv-torch/bin/python --data=cifar10.npz \
        --workdir=runs/beside_official [--images=12800 --epochs=20 --seeds=0,1 --judge_on=rest]

ResNet-18 with the ImageNet stem at 32 pixels, batch 256, LARS, the official views at that size, one process and float32
on both sides. Each seed has other weights, another order and other views; of the two codes they are not the same
either, so what is compared is the curves and the spread. `official_on_cpu.py` says what is changed in main.py. Both
networks, the network before training and the pixels are judged by `barlow-jax knn` and `probe` on the same images.

Stopped and started again with the same line, it goes on: the official code at its last epoch, ours at its checkpoint.
--data is an .npz of train and test images (docs/data.md); the first --images are taken, a multiple of 256. Judged is on
the test images, or on the training images that were not taken, which are more. What comes out is table.md (of the rest
table_rest.md) and losses.png in the work folder.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from barlow_jax import data, results
from barlow_jax.results import plain

BATCH = 256
RATES = {"weights": 0.4, "biases": 0.0048}  # for a batch of 256; twice the published one, as the run is short
PROJECTOR = (512, 512, 512)
WEIGHT_DECAY, LAMBD = 1e-6, 0.0051
CODES = ("official", "here")
JUDGED = {"test": ("part.npz", "judged"), "rest": ("rest.npz", "rest")}  # file of the images, folder of the results
MEASURES = {"20-NN": ("knn", 20), "linear probe": ("fast probe", None)}  # protocol and k


def arguments(description, seeds="0,1"):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--official", required=True, type=pathlib.Path, help="a checkout of the official code")
    parser.add_argument("--torch", default=".venv-torch/bin/python", help="a Python that has torch and torchvision")
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2, help="epochs")
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--judge_on", choices=JUDGED, default="test", help="test images, or the rest of the train ones")
    parser.add_argument("--workers", type=int, default=2, help="of the official loader")
    chosen = parser.parse_args()
    chosen.seeds = [int(seed) for seed in chosen.seeds.split(",")]
    if chosen.images % BATCH:
        parser.error(f"--images is {chosen.images}, but the official code takes whole batches of {BATCH} alone.")
    chosen.workdir = chosen.workdir.resolve()
    chosen.workdir.mkdir(parents=True, exist_ok=True)
    return chosen


def take_part(chosen):
    """The images as one .npz, for the official code as PNGs in folders of classes, and what is judged as another."""
    from PIL import Image

    file, folder = chosen.workdir / "part.npz", chosen.workdir / "images"
    train, test = (data.open_source("npz", str(chosen.data), split) for split in ("train", "test"))
    images, labels = train.images[: chosen.images], train.labels[: chosen.images]
    part = {"train_images": images, "train_labels": labels, "test_images": test.images, "test_labels": test.labels}
    if len(images) < chosen.images:
        sys.exit(f"error: {chosen.data} has {len(images)} images, and not {chosen.images}.")
    if chosen.judge_on == "rest" and not (rest := chosen.workdir / JUDGED["rest"][0]).exists():
        others = {"test_images": train.images[chosen.images :], "test_labels": train.labels[chosen.images :]}
        np.savez(rest, **(part | others))
    if file.exists():
        return
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "train" / str(label) / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.savez(file, **part)  # last: it says that all is there


def train_official(chosen, seed, folder):
    projector = "-".join(map(str, PROJECTOR))
    line = [chosen.torch, str(ROOT / "benchmarks/official_on_cpu.py"), f"--official={chosen.official}"]
    line += [f"--seed={seed}", f"--warmup={chosen.warmup}", "--", str(chosen.workdir / "images")]
    line += [f"--epochs={chosen.epochs}", f"--batch-size={BATCH}", f"--projector={projector}", "--print-freq=1"]
    line += [f"--learning-rate-weights={RATES['weights']}", f"--learning-rate-biases={RATES['biases']}"]
    line += [f"--weight-decay={WEIGHT_DECAY}", f"--lambd={LAMBD}", f"--workers={chosen.workers}"]
    run(folder, "train", [*line, f"--checkpoint-dir={folder}"])


def settings(chosen, seed):
    """{field: value} of configs/barlow_twins.py for the same here."""
    return {
        "seed": seed,
        "arch": "resnet18",
        "projector": PROJECTOR,
        "precision": "float32",
        "image_size": 32,
        "batch_size": BATCH,
        "epochs": chosen.epochs,
        "warmup_epochs": chosen.warmup,
        "lambd": LAMBD,
        "optimizer.learning_rate_weights": RATES["weights"],
        "optimizer.learning_rate_biases": RATES["biases"],
        "optimizer.weight_decay": WEIGHT_DECAY,
        "reference_world_size": 1,
        "data.kind": "npz",
        "data.path": str(chosen.workdir / "part.npz"),
        "data.val": "test",
        "data.last": "drop",
        "eval.every_epochs": 0,
        "eval.resize": 32,
        "eval.crop": 32,
        "picture_every_epochs": 0,
        "log_every_steps": 1,
        "checkpoint_every_steps": chosen.images // BATCH,
    }


def train_here(chosen, seed, folder):
    line = [sys.executable, "train.py", "--config=configs/barlow_twins.py", f"--workdir={folder}"]
    run(folder, "train", [*line, *(f"--config.{name}={value}" for name, value in settings(chosen, seed).items())])


def judge(chosen, folder, checkpoint, baseline=""):
    """`knn` and `probe` of a run or file of weights, into the results.jsonl of a folder in that of the run; which."""
    file, name = JUDGED[chosen.judge_on]
    folder = folder / name
    source = {"kind": "npz", "path": chosen.workdir / file, "train": "train", "val": "test"}
    words = [f"--checkpoint={checkpoint}", f"--workdir={folder}", "--config.eval.resize=32", "--config.eval.crop=32"]
    words += [f"--config.data.{name}={value}" for name, value in source.items()]
    words += [f"--baseline={baseline}"] if baseline else []
    for command in ("knn", "probe"):
        run(folder, command + baseline, [sys.executable, "-m", f"barlow_jax.{command}", *words])
    return folder


def run(folder, stage, line):
    """Runs a command unless a file says that it is done; what it prints goes to STAGE.log."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"{stage}.done"
    if done.exists():
        return
    print(f"{folder.name}: {stage}", flush=True)
    start = time.monotonic()
    with open(folder / f"{stage}.log", "a") as log:
        status = subprocess.run(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    if status:
        sys.exit(f"error: {stage} ended with status {status}; {folder / f'{stage}.log'} has what it said.")
    done.write_text(f"{time.monotonic() - start:.0f}\n")


def losses(code, folder):
    """[steps] of a run, each once: after a stop the official code repeats those of an epoch."""
    name = "stats.txt" if code == "official" else "metrics.jsonl"
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines() if line.startswith("{")]
    first = 0 if code == "official" else 1  # ours counts steps that are done
    by_step = {line["step"] - first: line["loss"] for line in lines if "loss" in line}
    return np.array([by_step[step] for step in range(len(by_step))])


def accuracies(folder, baseline=""):
    """{measure: share} of what was judged in a folder."""
    found = {}
    for line in results.read(folder / results.FILE):
        key = line["protocol"], line["settings"].get("k")
        for measure in (name for name, wanted in MEASURES.items() if wanted == key):
            if line["metric"] == "top1" and line["baseline"] == baseline:
                found[measure] = line["value"]
    return found


def spread(values):
    """73.1 +- 0.4 of several, with their standard deviation (n - 1)."""
    return f"{statistics.mean(values):.4g}" + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def table(curves, judged, steps_per_epoch):
    """Two tables in Markdown: mean losses of epochs, and accuracies.

    Args:
      curves: {code: [losses of a seed, ...]}; judged: {what: [accuracies of a seed, ...]}.
    """
    epochs = len(curves["here"][0]) // steps_per_epoch
    shown = sorted({1, 2, 3, 5, *range(10, epochs + 1, 10), epochs} & set(range(1, epochs + 1)))
    rows = []
    for code, runs in curves.items():
        means = [run[: epochs * steps_per_epoch].reshape(epochs, -1).mean(1) for run in runs]
        rows.append([code, *(spread([float(mean[epoch - 1]) for mean in means]) for epoch in shown)])
    first = plain.markdown(["mean loss of epoch", *map(str, shown)], rows)
    rows = [
        [what, *(spread([100 * seed[measure] for seed in seeds]) for measure in MEASURES)]
        for what, seeds in judged.items()
    ]
    return first + "\n\n" + plain.markdown(["", *(f"{measure}, %" for measure in MEASURES)], rows) + "\n"


def draw(curves, file):
    """The losses of all runs, running means of 20 steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    for code, colour in zip(CODES, ("tab:orange", "tab:blue"), strict=True):
        for seed, run in enumerate(curves[code]):
            smooth = np.convolve(run, np.ones(20) / 20, "valid")
            style = {"color": colour, "alpha": 0.8, "linewidth": 1}
            axes.plot(np.arange(len(smooth)) + 20, smooth, label="" if seed else code, **style)
    axes.set(xlabel="step", ylabel="loss, running mean of 20 steps", yscale="log")
    axes.set_title("The official code and this one")
    axes.legend(frameon=False)
    figure.savefig(file)


def main():
    chosen = arguments("The official code and this one, side by side.")
    take_part(chosen)
    curves, judged = {code: [] for code in CODES}, {code: [] for code in CODES}
    for seed in chosen.seeds:
        for code, train in zip(CODES, (train_official, train_here), strict=True):
            folder = chosen.workdir / f"{code}_{seed}"
            train(chosen, seed, folder)
            weights = folder / "resnet50.pth" if code == "official" else folder
            curves[code].append(losses(code, folder))
            judged[code].append(accuracies(judge(chosen, folder, weights)))
    first = chosen.workdir / f"here_{chosen.seeds[0]}"
    for baseline in ("random", "pixels"):
        judged[baseline] = [accuracies(judge(chosen, chosen.workdir / baseline, first, baseline), baseline)]
    text = table(curves, judged, chosen.images // BATCH)
    (chosen.workdir / ("table.md" if chosen.judge_on == "test" else "table_rest.md")).write_text(text)
    draw(curves, chosen.workdir / "losses.png")
    print("\n" + text)


if __name__ == "__main__":
    main()
