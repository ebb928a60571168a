"""linear_eval.py on 1, 2 and 8 devices and on two processes: the same accuracies, every image counted once."""

import importlib
import json

import commands
import numpy as np
import pytest

from barlow_jax import experiment, model
from barlow_jax.run.checkpoint import Checkpoints

CLASSES, TRAIN, VAL = 7, 45, 37  # 3 training batches of 16, the last one of 13 rows; 37 = 16 + 16 + 5


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The work folder of a run that has not trained yet, and a set of images whose brightness hints at their class."""
    folder, rng = tmp_path_factory.mktemp("judged"), np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", TRAIN), ("test", VAL)):
        labels = np.arange(n) % CLASSES
        images = (
            rng.integers(0, 90, (n, 24, 24, 3)) + 22 * labels[:, None, None, None] + rng.integers(0, 30, (n, 1, 1, 3))
        )
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    np.savez(folder / "set.npz", **arrays)
    config = importlib.import_module("configs.cifar10").get_config()
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "arch": "convnet",
                "projector": (16,),
                "precision": "float32",
                "image_size": 24,
                "eval.resize": 24,
                "eval.crop": 24,
                "data.path": str(folder / "set.npz"),
            }
        )
    _, params, batch_stats = model.split(experiment.network(config, 3))
    with Checkpoints(folder / "run" / "checkpoints", asynchronous=False) as checkpoints:
        meta = {"config": config.to_dict(), "channels": 3, "images": TRAIN}
        checkpoints.save(1, {"params": params, "batch_stats": batch_stats}, meta)
    return folder / "run"


def line(judged, workdir, *more):
    return (
        "linear_eval.py",
        "--config=configs/linear_cifar10.py",
        f"--checkpoint={judged}",
        f"--workdir={workdir}",
        "--config.epochs=3",
        "--config.batch_size=16",
        "--config.image_size=0",
        "--config.eval.resize=0",
        "--config.eval.crop=0",
        "--config.eval.batch_size=16",
        "--config.log_every_steps=1",
        "--config.data.resident_bytes=0",
        "--config.optimizer.learning_rate_classifier=0.05",
        *more,
    )


def scores(workdir):
    """({(result, metric): (value, images)}, the accuracies of every epoch, the losses of every step)."""
    results = [json.loads(text) for text in (workdir / "results.jsonl").read_text().splitlines()]
    final = {(one["settings"]["result"], one["metric"]): (one["value"], one["n"]) for one in results}
    epochs = [(one["top1"], one["top5"], one["images"]) for one in commands.lines(workdir) if "top1" in one]
    return final, epochs, [one["loss"] for one in commands.lines(workdir) if "loss" in one]


@pytest.fixture(scope="module")
def alone(judged, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    status, output = commands.run(*line(judged, workdir))
    assert status == 0, output
    return scores(workdir)


def assert_same(got, want):
    assert got[:2] == want[:2]
    np.testing.assert_allclose(got[2], want[2], rtol=1e-5)


def test_every_image_counts_once(alone):
    final, epochs, losses = alone
    assert {images for *_, images in epochs} == {VAL} == {images for _, images in final.values()}
    assert len(epochs) == 3 and len(losses) == 9
    # Whole images out of 37, and not all or none, so that equal accuracies say something.
    for value, _ in final.values():
        assert value * VAL == pytest.approx(round(value * VAL), abs=1e-9) and 0 < value < 1


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_on_several_devices(judged, alone, tmp_path, devices):
    status, output = commands.run(*line(judged, tmp_path), devices=devices)
    assert status == 0, output
    assert_same(scores(tmp_path), alone)


@pytest.mark.slow
def test_on_two_processes_of_two_devices(judged, alone, tmp_path):
    address = f"localhost:{commands.free_port()}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        commands.start(*line(judged, tmp_path), devices=2, JAX_PROCESS_ID=str(index), **variables) for index in (0, 1)
    ]
    outputs = [commands.finish(process, timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same(scores(tmp_path), alone)
    assert "last top1" in outputs[0] and "last top1" not in outputs[1]  # process 0 reports
