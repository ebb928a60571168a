"""A finished pre-training run for tests of the frozen commands, made in a second: a small network as initialised."""

import json

import commands
import jax
import numpy as np
import optax

from barlow_jax import experiment, pretrain
from barlow_jax.run.checkpoint import FOLDER, Checkpoints
from configs import cifar10

CLASSES, TRAIN, VAL = 4, 83, 45  # uneven for any batch and any number of devices


def write_set(path, **changes):
    """An .npz of noisy colours, the colour telling the class, but not too clearly; changes: other arrays, or None."""
    rng = np.random.default_rng(0)
    colours = rng.integers(90, 160, size=(CLASSES, 1, 1, 3))
    arrays = {}
    for split, n in (("train", TRAIN), ("test", VAL)):
        labels = rng.integers(0, CLASSES, n)
        images = colours[labels] + rng.integers(-25, 25, size=(n, 1, 1, 3)) + rng.integers(-60, 60, size=(n, 24, 24, 3))
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    path.parent.mkdir(exist_ok=True)
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez(path, **arrays)
    return path


def config_of(data):
    """That of the run, unlocked."""
    config = cifar10.get_config().unlock()
    config.arch, config.projector, config.precision = "convnet", (16, 16), "float32"
    config.image_size = config.eval.resize = config.eval.crop = 24
    config.data.path = str(data)
    return config


def make(folder, data, change=lambda params: params):
    """The work folder of a run on an .npz; change: params -> params, such as one that breaks them."""
    config = config_of(data)
    _, state = pretrain.create_state(experiment.network(config, 3), optax.sgd(0.1))
    state = state._replace(params=change(state.params))
    checkpoints = Checkpoints(folder / FOLDER)
    checkpoints.save(7, jax.device_get(state), {"config": config.to_dict(), "channels": 3, "images": TRAIN})
    checkpoints.close()
    return folder


def lines(workdir):
    """results.jsonl without what says where and how it was run."""
    kept = []
    for line in map(json.loads, (workdir / "results.jsonl").read_text().splitlines()):
        kept.append({name: value for name, value in line.items() if name != "command"})
    return kept


def two_processes(module, *arguments):
    """A command on two processes of two devices each, running."""
    place = {"JAX_COORDINATOR_ADDRESS": f"localhost:{commands.free_port()}", "JAX_NUM_PROCESSES": "2"}
    return [
        commands.start("-m", module, *arguments, devices=2, JAX_PROCESS_ID=str(index), **place) for index in range(2)
    ]


def on_devices_and_processes(module, run, folder, *options):
    """A command on 2 and on 8 devices and on two processes of 2, each to its end; their work folders' names."""
    started = {}
    for name, devices in (("2", 2), ("8", 8)):
        call = ("-m", module, f"--checkpoint={run}", f"--workdir={folder / name}", *options)
        started[name] = [commands.start(*call, devices=devices)]
    started["processes"] = two_processes(module, f"--checkpoint={run}", f"--workdir={folder / 'processes'}", *options)
    for name, processes in started.items():
        outputs = [commands.finish(process) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs
        yield name
