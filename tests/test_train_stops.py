"""`python train.py` undisturbed, and killed, stopped, started again, on two processes: the same run."""

import contextlib
import signal
from types import SimpleNamespace

import commands
import numpy as np
import pytest
from train_runs import arguments

from barlow_jax.data import Arrays
from barlow_jax.errors import UserError
from barlow_jax.run import workdir
from barlow_jax.run.checkpoint import restore_params


@pytest.fixture(scope="module")
def undisturbed(photographs, tmp_path_factory):
    """A run of 24 steps on JPEGs that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = commands.run("train.py", *arguments(photographs, workdir))
    assert status == 0, output
    return workdir, output


def assert_same_run(workdir, undisturbed):
    """Parameters bit for bit, and every line of metrics that no clock measured."""
    (got, want) = (restore_params(w)[:2] for w in (workdir, undisturbed))
    equal = []

    def compare(a, b):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], dict):
                compare(a[key], b[key])
            else:
                equal.append(np.array_equal(a[key], b[key]))

    for a, b in zip(got, want, strict=True):
        compare(a, b)
    assert len(equal) > 20 and all(equal)
    assert commands.lines(workdir) == commands.lines(undisturbed)


def test_a_run_leaves_metrics_pictures_and_checkpoints(undisturbed):
    workdir, output = undisturbed
    steps = [line for line in commands.lines(workdir) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 25))
    for name in (
        "on_diag",
        "off_diag",
        "learning_rate_weights",
        "learning_rate_biases",
        "z_mean",
        "z_std",
        "dead_dims",
        "grad_norm",
        "probe_accuracy",
    ):
        assert all(name in line for line in steps), name
    scores = [line for line in commands.lines(workdir) if "knn" in line]
    assert [line["step"] for line in scores] == [0, 12, 24]
    assert all(0 <= line[name] <= 1 for line in scores for name in ("knn", "probe"))
    first = {"images": 48, "judged_images": 48, "distinct_images": 48, "features": 256, "dimensions": 32}
    assert {name: scores[0][name] for name in first} == first  # before the first step
    assert all({"alignment", "c_on_diag", "c_off_diag", "verdict"} <= line.keys() for line in scores)
    for file in ("views.png", "config.json", "correlation/00000000.png", "correlation/00000024.png", "tensorboard"):
        assert (workdir / file).exists(), file
    assert "images/s" in output and "waiting for data" in output


def test_killed_in_the_middle_and_started_again(photographs, undisturbed, tmp_path):
    process = commands.start("train.py", *arguments(photographs, tmp_path / "run"))
    commands.wait_for(process, lambda: list((tmp_path / "run" / "checkpoints").glob("1[0-9]/manifest.json")))
    process.end()
    status, output = commands.run("train.py", *arguments(photographs, tmp_path / "run"))
    assert status == 0 and "going on from step" in output, output
    assert_same_run(tmp_path / "run", undisturbed[0])


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_status_0(photographs, undisturbed, tmp_path):
    process = commands.start("train.py", *arguments(photographs, tmp_path / "run"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    commands.wait_for(process, lambda: metrics.exists() and metrics.read_text().count("\n") >= 2)
    process.send_signal(signal.SIGTERM)
    output = commands.finish(process, timeout=100)
    assert process.returncode == 0 and "preempted at step" in output, output
    status, output = commands.run("train.py", *arguments(photographs, tmp_path / "run"))
    assert status == 0, output
    assert_same_run(tmp_path / "run", undisturbed[0])


OF_SIZES = {
    "multi-crop": ("--config.views.number=3", "--config.views.small=2", "--config.views.small_size=16"),
    "ramp": ("--config.views.ramp_sizes=(16,)", "--config.views.ramp_epochs=(4,)"),
}
OF_ANY_SIZE = """
import functools, sys
sys.path.insert(0, {tests!r})
import barlow_jax, pooled
from barlow_jax import model

def get_config():
    model.BACKBONES["resnet18"] = functools.partial(pooled.Pooled, layers=3)
    return barlow_jax.config("image_folder")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_SIZES)
def test_views_of_several_sizes_killed_and_started_again(photographs, tmp_path, name):
    """Killed after step 10, two steps before the ramp ends, of 3 steps an epoch; the network takes any size."""
    (tmp_path / "config.py").write_text(OF_ANY_SIZE.format(tests=str(commands.ROOT / "tests")))
    more = (*OF_SIZES[name], f"--config={tmp_path / 'config.py'}", "--config.arch=resnet18")
    more += (f"--config.compilation_cache={tmp_path / 'programs'}",)
    status, output = commands.run("train.py", *arguments(photographs, tmp_path / "whole", *more))
    assert status == 0, output
    process = commands.start("train.py", *arguments(photographs, tmp_path / "run", *more))
    commands.wait_for(process, lambda: list((tmp_path / "run" / "checkpoints").glob("10/manifest.json")))
    process.end()
    status, output = commands.run("train.py", *arguments(photographs, tmp_path / "run", *more))
    assert status == 0 and "going on from step 1" in output, output
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    if name == "ramp":
        told = (tmp_path / "whole" / "log.txt").read_text()
        assert "views of 16 pixels from step 0 on" in told and "views of 24 pixels from step 12 on" in told


def test_a_finished_run_started_again_does_nothing(photographs, undisturbed):
    before = commands.lines(undisturbed[0])
    status, output = commands.run("train.py", *arguments(photographs, undisturbed[0]))
    assert status == 0 and "going on from step 24 of 24" in output, output
    assert commands.lines(undisturbed[0]) == before


def test_another_number_of_images_is_refused():
    class Saved:
        latest_step = staticmethod(lambda: 7)
        restore = staticmethod(lambda state: (state, {"images": 48}))

    source, state = Arrays(np.zeros((47, 2, 2, 3), np.uint8), name="photos"), SimpleNamespace(step=7)
    with pytest.raises(UserError, match="photos holds 47 images and had 48 when this run began"):
        workdir.resume(Saved, state, source, total_steps=9)
    Saved.restore = staticmethod(lambda state: (state, {"images": 47}))
    assert workdir.resume(Saved, state, source, total_steps=9) == (state, {"images": 47})
    for listing, refused in ((source.listing(), False), ("of other names", True)):
        Saved.restore = staticmethod(lambda state, listing=listing: (state, {"images": 47, "names": listing}))
        with pytest.raises(UserError, match="holds other images") if refused else contextlib.nullcontext():
            workdir.resume(Saved, state, source, total_steps=9)
    for began, given, words in (
        ("", "", ""),
        ("a.pth", "a.pth", ""),
        ("a.pth", "", ""),
        ("", "a.pth", "--init is a.pth, but this run began from random weights and goes on from its checkpoint"),
        ("b.pth", "a.pth", "--init is a.pth, but this run began from --init=b.pth"),
    ):
        Saved.restore = staticmethod(lambda state, began=began: (state, {"images": 47, "init": began}))
        with pytest.raises(UserError, match=words) if words else contextlib.nullcontext():
            workdir.resume(Saved, state, source, total_steps=9, init=given)
    Saved.restore = staticmethod(lambda state: (state, {"images": 47}))
    workdir.resume(Saved, state, source, total_steps=9, init="a.pth")  # of a time when it was not written down
    with pytest.raises(UserError, match="has done 7 steps, and its config ends at step 6; set config.epochs higher"):
        workdir.resume(Saved, state, source, total_steps=6)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(photographs, undisturbed, tmp_path):
    """Two real processes of two devices each; SIGTERM to one of them stops both at the same step, and both go on.

    To step 8, as a step waits for the connection between them, and from 10 on rounding has grown.
    """

    def both():
        port = commands.free_port()
        return [
            commands.start(
                "train.py",
                *arguments(photographs, tmp_path / "run"),
                devices=2,
                JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(index),
            )
            for index in range(2)
        ]

    metrics = tmp_path / "run" / "metrics.jsonl"
    for steps, told in ((2, 1), (8, 0)):
        processes = both()
        commands.wait_for(processes[0], lambda n=steps: metrics.exists() and len(commands.lines(tmp_path / "run")) >= n)
        processes[told].send_signal(signal.SIGTERM)
        outputs = [commands.finish(process) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert all("preempted at step" in output for output in outputs), outputs
    got, want = (
        [line["loss"] for line in commands.lines(workdir) if "loss" in line]
        for workdir in (tmp_path / "run", undisturbed[0])
    )
    assert len(got) >= 8
    np.testing.assert_allclose(got, want[: len(got)], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_of_four_devices_end_where_one_of_eight_does(tmp_path):
    """Three steps in float64 with micro-batches: views bit for bit, all else to 1e-9; the two split their state."""
    port, script = commands.free_port(), "tests/steps_on_devices.py"
    cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    processes = [commands.start(script, tmp_path / "one.npz", devices=8)]
    for index in range(2):
        place = cluster | {"JAX_PROCESS_ID": str(index)}
        processes.append(commands.start(script, tmp_path / "two.npz", "split", devices=4, **place))
    outputs = [commands.finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert one.files == two.files and len(one.files) > 40
    for name in one.files:
        atol = 0 if name == "views" else 1e-9 * np.abs(one[name]).max()
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
def test_keep_ends_an_epoch_with_a_smaller_batch_and_the_nominal_divisor(tmp_path):
    """42 images for 4 ranks: 16, 16 and 12 rows. Both views alike, so the diagonal of c is 1, and 12/16 at the end.

    Stopped where an epoch ends, as the smaller batch has to be compiled first, it goes on with the next epoch.
    """
    folder = commands.photographs(tmp_path / "photographs", each=14)
    alike = ("crop_scale=(1.0,1.0)", "flip=0.0", "jitter=0.0", "grayscale=0.0", "blur=(0.0,0.0)", "solarize=(0.0,0.0)")
    workdir = tmp_path / "run"
    command = (
        "train.py",
        *arguments(folder, workdir, *(f"--config.views.{field}" for field in alike)),
        "--config.epochs=2",
        "--config.data.last=keep",
        "--config.reference_world_size=4",
        "--config.data.val=",
        "--config.eval.every_epochs=0",
    )
    process = commands.start(*command, devices=4)
    commands.wait_for(process, lambda: (workdir / "metrics.jsonl").exists() and len(commands.lines(workdir)) >= 2)
    process.send_signal(signal.SIGTERM)
    output = commands.finish(process, timeout=100)
    assert process.returncode == 0 and "3 steps an epoch" in output and "preempted at step" in output, output
    status, output = commands.run(*command, devices=4)
    assert status == 0 and "going on from step" in output, output
    lines = commands.lines(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([line["on_diag"] for line in lines], [0, 0, 32 / 16] * 2, atol=0.01)


@pytest.mark.slow
def test_a_small_folder_lives_on_the_devices(photographs, tmp_path):
    """The host then sends an index a step; stopped and started again the run goes on as if nothing had happened."""
    more = ("--config.data.resident_bytes=1000000", "--config.epochs=4", "--config.checkpoint_every_steps=2")
    status, output = commands.run("train.py", *arguments(photographs, tmp_path / "one", *more))
    assert status == 0 and "lives on the devices: 48 images of at most 48 x 40 pixels" in output, output
    process = commands.start("train.py", *arguments(photographs, tmp_path / "two", *more))
    commands.wait_for(process, lambda: list((tmp_path / "two" / "checkpoints").glob("2/manifest.json")))
    process.end()
    status, output = commands.run("train.py", *arguments(photographs, tmp_path / "two", *more))
    assert status == 0 and commands.lines(tmp_path / "one") == commands.lines(tmp_path / "two"), output


def test_another_architecture_is_refused(photographs, undisturbed):
    status, output = commands.run("train.py", *arguments(photographs, undisturbed[0], "--config.arch=resnet18"))
    commands.assert_refused(status, output, "config.arch was 'convnet' and is 'resnet18'")
    # And where the config is gone, by the parameters themselves.
    kept = (undisturbed[0] / "config.json").read_text()
    (undisturbed[0] / "config.json").unlink()
    status, output = commands.run("train.py", *arguments(photographs, undisturbed[0], "--config.image_size=32"))
    (undisturbed[0] / "config.json").write_text(kept)
    commands.assert_refused(status, output, r"params\.backbone\.dense\.kernel")
