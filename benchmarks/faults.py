"""Kills a run again and again at random moments, and looks whether anything is lost or different.

    python benchmarks/faults.py [--kills=20] [--processes=1] [--seed=0] [--workdir=FOLDER]

A small run of train.py is done twice, both in processes of their own: once undisturbed, and once killed with SIGKILL
and started again with the same line, `kills` times, and then left to its end. Every moment is drawn at random, in turn
from a third of these: any time between the start of the process and its first steps (imports, reading the checkpoint,
compiling); any time while it trains; any time while a checkpoint is being written.

With several processes one of them is drawn and killed, process 0 as often as the others, which must end by themselves.
Then all are started again.

Then the two are compared: parameters, batch statistics, optimiser state and the online probe bit for bit, and every
line of metrics.jsonl but for what a clock measured. Prints a table; exit status 1 if anything differs.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from absl import logging

from barlow_jax.run import metric_writers, trees
from barlow_jax.run.checkpoint import FOLDER, newest_step, restore_all

EVERY = 20  # steps between checkpoints
CLOCK = ("images_per_second", "data_wait")  # of metrics.jsonl
MOMENTS = ("starting", "training", "saving")


def command(images, workdir, steps):
    """A run of that many steps, at least; some 50 a second on one core."""
    per_epoch = 8
    return (
        sys.executable,
        str(ROOT / "train.py"),
        "--config=configs/cifar10.py",
        f"--config.data.path={images}",
        "--config.data.val=",
        f"--workdir={workdir}",
        "--config.arch=convnet",
        "--config.projector=(64,64)",
        "--config.precision=float32",
        "--config.image_size=24",
        "--config.batch_size=16",
        "--config.data.canvas=24",
        "--config.data.resident_bytes=0",
        f"--config.epochs={-(-steps // per_epoch)}",
        "--config.warmup_epochs=1",
        "--config.eval.every_epochs=10",
        "--config.eval.resize=24",
        "--config.eval.crop=24",
        "--config.eval.knn_k=5",
        "--config.log_every_steps=1",
        "--config.picture_every_epochs=0",
        f"--config.checkpoint_every_steps={EVERY}",
    )


def write_images(path, n=128):
    """Noisy colours with labels, 8 batches of 16."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 24, 24, 3)).astype(np.uint8)
    np.savez(path, x_train=images, y_train=np.arange(n) % 4)
    return path


def start(command, log, count=1):
    """The processes of a run; what process 1 prints goes to LOG.1."""
    place = {}
    if count > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        place = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    logs = [log.with_suffix(f".log.{index}" if index else ".log") for index in range(count)]
    return [
        _started(command, logs[index], {**place, "JAX_PROCESS_ID": str(index)} if place else {})
        for index in range(count)
    ]


def _started(command, log, place):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(log.parent / "xla"),  # so that a new start takes seconds
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **place,
    }
    with log.open("a") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def finish(processes, log):
    """Waits for the end of a run; ends this script if the run failed."""
    for process in processes:
        if process.wait():
            raise SystemExit(f"A run ended with status {process.returncode}:\n{log.read_text()[-3000:]}")


def lines(workdir):
    """metrics.jsonl without what a clock measured; whole lines only."""
    file = workdir / metric_writers.FILE
    text = file.read_text() if file.exists() else ""
    found = (json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in found]


def last_step(workdir):
    """Step of the last whole line of metrics.jsonl, 0 if there is none."""
    file = workdir / metric_writers.FILE
    end = file.read_bytes()[-4096:] if file.exists() else b""
    whole = end[: end.rfind(b"\n") + 1].splitlines()
    return json.loads(whole[-1])["step"] if whole else 0


def identity(file):
    """Changes when a run that goes on has cut its metrics back to its checkpoint: the file is another one then."""
    return file.stat().st_ino if file.exists() else None


def saving(workdir):
    """Whether a checkpoint is being written."""
    return any((workdir / FOLDER).glob("*.orbax-checkpoint-tmp"))


def reached(process, condition):
    """Waits until the condition holds; False if the process ended before."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.004)
    return False


def kill_somewhere(processes, workdir, moment, rng, startup):
    """Kills one process of a run that has just been started, somewhere in that moment of its life.

    Args:
      startup: seconds that a start takes.
    Returns:
      What the run was doing, for the table, and after how many seconds the other processes had ended; None if it ended
      by itself.
    """
    process = processes[rng.integers(len(processes))]
    resumed = newest_step(workdir) or 0
    metrics, began = workdir / metric_writers.FILE, time.monotonic()
    before = identity(metrics)

    def came_to(step):
        return identity(metrics) != before and last_step(workdir) >= step

    if moment == "starting":
        until = began + rng.uniform(0, startup)
        alive = reached(process, lambda: time.monotonic() > until or came_to(resumed + 2 * EVERY))
    else:
        # Somewhere in the next two intervals between checkpoints, and then not just where a step ends.
        until = resumed + rng.integers(1, 2 * EVERY)
        alive = reached(process, lambda: came_to(until))
        if moment == "saving":
            alive = alive and reached(process, lambda: saving(workdir))
        time.sleep(rng.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    row = {"from": resumed, "seconds": time.monotonic() - began, "step": last_step(workdir), "saving": saving(workdir)}
    killed, alone = process.wait() == -signal.SIGKILL, time.monotonic()
    for other in processes:
        other.wait(300)
        alive &= other is process or other.returncode in (1, 6)
    row |= {"killed": processes.index(process), "others": time.monotonic() - alone}
    return row if alive and killed else None


def differences(workdir, other):
    """What differs between two runs, in words: arrays of their last checkpoints, lines of their metrics."""
    (a, _), (b, _) = restore_all(workdir), restore_all(other)
    a, b = trees.named(a), trees.named(b)
    found = [f"{name} is in one run only" for name in sorted(a.keys() ^ b.keys())]
    for name in sorted(a.keys() & b.keys()):
        if a[name].dtype != b[name].dtype or a[name].shape != b[name].shape or a[name].tobytes() != b[name].tobytes():
            found.append(f"{name} differs")
    ours, theirs = lines(workdir), lines(other)
    if len(ours) != len(theirs):
        found.append(f"metrics.jsonl has {len(ours)} lines and {len(theirs)}")
    found += [f"metrics of step {x['step']} differ" for x, y in zip(ours, theirs, strict=False) if x != y]
    return found, len(a), len(ours)


def trial(folder, kills, seed, count=1):
    """Both runs in `folder`; prints the table and returns the differences."""
    folder.mkdir(parents=True, exist_ok=True)
    images = write_images(folder / "images.npz")
    rng = np.random.default_rng(seed)
    steps = EVERY * (2 * kills + 4)
    runs = {name: folder / name for name in ("undisturbed", "killed")}

    log = folder / "undisturbed.log"
    processes = start(command(images, folder / "warm", steps), log, count)  # compiles what the others find compiled
    reached(processes[0], lambda: last_step(folder / "warm") >= EVERY)
    for process in processes:
        process.kill()
        process.wait()
    began = time.monotonic()
    processes = start(command(images, runs["undisturbed"], steps), log, count)
    reached(processes[0], lambda: last_step(runs["undisturbed"]) > 0)
    startup = time.monotonic() - began
    finish(processes, log)
    total = last_step(runs["undisturbed"])
    print(f"undisturbed: {total} steps in {time.monotonic() - began:.0f} s, the first after {startup:.1f} s\n")

    several = "  process  others gone after" * (count > 1)
    head = "kill  goes on from  drawn from  seconds after start  last step logged  checkpoint half-written"
    print(head + several, flush=True)
    log = folder / "killed.log"
    for number in range(kills):
        moment = MOMENTS[number % len(MOMENTS)]
        processes = start(command(images, runs["killed"], steps), log, count)
        row = kill_somewhere(processes, runs["killed"], moment, rng, startup)
        if row is None:
            raise SystemExit(f"The run ended by itself before kill {number + 1}:\n{log.read_text()[-3000:]}")
        print(
            f"{number + 1:4}{row['from']:14}  {moment:10}{row['seconds']:21.2f}{row['step']:18}"
            f"{'yes' if row['saving'] else 'no':>25}" + f"{row['killed']:9}{row['others']:18.1f} s" * (count > 1),
            flush=True,
        )
    finish(start(command(images, runs["killed"], steps), log, count), log)

    found, arrays, written = differences(runs["killed"], runs["undisturbed"])
    print(f"\n{arrays} arrays of the last checkpoint and {written} lines of metrics compared: ", end="")
    print("\n".join(["", *found]) if found else "all equal, bit for bit")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--processes", type=int, default=1, help="of the run, on this host")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=pathlib.Path, help="an empty folder that keeps the two runs")
    given = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.workdir or pathlib.Path(temporary)).expanduser().absolute()
        found = trial(folder, given.kills, given.seed, given.processes)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
