"""CIFAR-10 from start to end: accuracy against time, with the images on the device.

    python benchmarks/cifar10.py --data=cifar10.npz --workdir=runs/c10 [--epochs=1000]

Runs train.py on configs/cifar10.py (ResNet-18, solo-learn's recipe), prints a line at every evaluation, then
runs linear_eval.py. Stopped at any moment and started again with the same line, it goes on; the clock counts only the
time in which it ran. --data holds x_train, y_train, x_test, y_test. On a CPU it takes 512 images and 4 epochs unless
--epochs says otherwise, which shows that everything runs and nothing else.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
AIM = "aim: 1000 epochs and 92.1 % in half an hour on one H100"


def arguments():
    parser = argparse.ArgumentParser(description="CIFAR-10, accuracy against time.")
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def small_part(data, workdir):
    """An .npz of 512 training and 200 test images; its path."""
    path = workdir / "small.npz"
    workdir.mkdir(parents=True, exist_ok=True)
    with np.load(data) as arrays:
        np.savez(path, **{key: arrays[key][: 512 if "train" in key else 200] for key in arrays.files})
    return path


class Clock:
    """Seconds of running time, kept over restarts in a file of the work folder."""

    def __init__(self, file):
        self._file = file
        self._before = json.loads(file.read_text()) if file.exists() else 0.0
        self._start = time.monotonic()

    def seconds(self):
        return self._before + time.monotonic() - self._start

    def save(self):
        self._file.write_text(json.dumps(self.seconds()))


def new_lines(file, position):
    """(complete lines of a growing file from a position on, the position behind them)."""
    if not file.exists():
        return [], position
    with file.open() as stream:
        stream.seek(position)
        text = stream.read()
    text = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in text.splitlines()], position + len(text)


def train(line, workdir, clock, steps_per_epoch):
    """Runs train.py and prints what it measures as it comes."""
    metrics = workdir / "metrics.jsonl"
    position = metrics.stat().st_size if metrics.exists() else 0
    print(f"{'minutes':>8}{'epoch':>8}{'images/s':>10}{'waiting':>9}{'20-NN %':>9}{'probe %':>9}", flush=True)
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        rate, running = {}, True
        while running:
            running = process.poll() is None
            time.sleep(0.5)
            lines, position = new_lines(metrics, position)
            for values in lines:
                rate |= {key: values[key] for key in ("images_per_second", "data_wait") if key in values}
                if "knn" in values:
                    print(
                        f"{clock.seconds() / 60:8.1f}{values['step'] // steps_per_epoch:8}"
                        f"{rate.get('images_per_second', float('nan')):10.0f}{100 * rate.get('data_wait', 0):8.0f}%"
                        f"{100 * values['knn']:9.2f}{100 * values['probe']:9.2f}",
                        flush=True,
                    )
            clock.save()
        return process.returncode


def device():
    """(platform, what the devices are), asked in another process: this one must not hold them."""
    code = (
        "import jax; d = jax.devices(); print(d[0].platform, len(d), 'x', d[0].device_kind, ', jax', jax.__version__)"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return answer.split(maxsplit=1)


def main():
    chosen = arguments()
    workdir, data = chosen.workdir.resolve(), chosen.data.resolve()
    if not data.is_file():
        sys.exit(f"error: {chosen.data} is not there; give an .npz that holds x_train, y_train, x_test, y_test.")
    workdir.mkdir(parents=True, exist_ok=True)
    platform, kind = device()
    cpu = platform == "cpu"
    print(f"{kind.strip()}; {AIM}")
    if cpu:
        data = small_part(data, workdir)
        print("No accelerator here: 512 images, a check that everything runs.")
    epochs = chosen.epochs or (4 if cpu else 1000)
    with np.load(data) as arrays:
        steps_per_epoch = len(arrays["x_train"]) // 256
    clock = Clock(workdir / "clock.json")
    precision = ["--config.precision=float32"] if cpu else []
    line = [
        sys.executable,
        "train.py",
        "--config=configs/cifar10.py",
        f"--workdir={workdir}",
        *precision,
        f"--config.data.path={data}",
        f"--config.seed={chosen.seed}",
        f"--config.epochs={epochs}",
        f"--config.warmup_epochs={min(10, epochs - 1)}",
        f"--config.eval.every_epochs={max(epochs // 40, 1)}",
    ]
    if status := train(line, workdir, clock, steps_per_epoch):
        sys.exit(status)
    print(f"\npre-training took {clock.seconds() / 60:.1f} minutes; linear evaluation, frozen backbone:", flush=True)
    line = [
        sys.executable,
        "linear_eval.py",
        "--config=configs/linear_cifar10.py",
        f"--checkpoint={workdir}",
        f"--workdir={workdir / 'linear'}",
        f"--config.epochs={4 if cpu else 100}",
    ]
    sys.exit(subprocess.run(line, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
