"""Two real processes: what they must have been told alike, and what is left of one when the other is killed."""

import os
import signal
import subprocess
import sys
import time

import commands
import pytest

from barlow_jax.run import cluster

TRAIN = (
    "train.py",
    "--config=demo",
    "--config.projector=(32,32)",
    "--config.epochs=400",
    "--config.batch_size=64",
    "--config.picture_every_epochs=0",
    "--config.eval.every_epochs=0",
    "--config.log_every_steps=1",
)


def two(workdir, *more, **environment):
    """Both running; more: for each, what its line has beside."""
    address = f"127.0.0.1:{commands.free_port()}"
    return [
        commands.start(
            *TRAIN,
            f"--workdir={workdir}",
            *(more[index] if more else ()),
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
            **environment,
        )
        for index in range(2)
    ], address


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_one_is_killed_the_other_ends_with_a_sentence(tmp_path, killed):
    processes, address = two(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    commands.wait_for(processes[0], lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    if killed == 0:  # the coordinator listens where it was told to
        listening = subprocess.run(["cat", "/proc/net/tcp6", "/proc/net/tcp"], capture_output=True, text=True).stdout
        port = f":{int(address.rsplit(':', 1)[1]):04X} "
        [line] = [line for line in listening.splitlines() if port in line and " 0A " in line]
        assert "0100007F" in line
    os.kill(processes[killed].pid, signal.SIGKILL)
    began = time.monotonic()
    processes[1 - killed].wait(120)
    deadline = time.monotonic() + 10  # the witness outlives it by a moment
    while "error: " not in processes[1 - killed].printed() and time.monotonic() < deadline:
        time.sleep(0.1)
    output = commands.finish(processes[1 - killed], timeout=1)
    assert processes[1 - killed].returncode in (1, 6) and time.monotonic() - began < 100, output
    assert "stack trace" not in output and "Traceback" not in output, output
    assert "error: " in output.splitlines()[-1] and "another process" in output.splitlines()[-1], output
    commands.finish(processes[killed], timeout=10)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (((), ("--config.seed=1",)), "Process 1 has config.seed 1 and process 0 has 0; start all processes of a run"),
        (((), ("--config.optimizer.eps=0.01",)), "Process 1 has config.optimizer.eps 0.01 and process 0 has 0.0001"),
        ((("--init=x.pth",), ()), "Process 1 has flags.init  and process 0 has x.pth"),
        ((("--config.data.path=",), ("--config.data.val=val",)), "Process 1 has config.data.val val and process 0"),
    ],
)
def test_processes_that_were_told_different_things_are_refused(tmp_path, more, sentence):
    processes, _ = two(tmp_path, *more)
    for process in processes:
        output = commands.finish(process, timeout=120)
        assert process.returncode == 1 and sentence in output.splitlines()[-1], output
        assert "Traceback" not in output
    assert not (tmp_path / "metrics.jsonl").exists()


def test_processes_that_see_other_images_are_refused(tmp_path):
    """The same line on two hosts, of which one lacks an image."""
    program, *options = TRAIN
    line = (sys.executable, commands.ROOT / program, *options, "--config=image_folder", "--config.data.path=images")
    place = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{commands.free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = []
    for index in range(2):
        here = tmp_path / f"host{index}"
        commands.photographs(here / "images", classes=2, each=40 - index)
        environment = commands.environment(JAX_PROCESS_ID=str(index), **place)
        processes.append(commands.Command(*line, f"--workdir={tmp_path / 'run'}", cwd=here, env=environment))
    for process in processes:
        output = commands.finish(process)
        assert process.returncode == 1 and "Traceback" not in output, output
        assert "Process 1 has images.count 78 and process 0 has 80" in output.splitlines()[-1], output


def test_one_process_agrees_with_itself():
    cluster.check_agreement({"config": {"seed": 0}})
