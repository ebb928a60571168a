"""Runs that are stopped, refused, starved of disk space, damaged, moved to other devices: each a real process."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import commands
import foreign_json
import numpy as np
import pytest

import barlow_jax
from barlow_jax.errors import UserError
from barlow_jax.run import lock, signals
from barlow_jax.run import workdir as workdirs
from benchmarks import faults

STEPS = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return faults.write_images(tmp_path_factory.mktemp("images") / "set.npz", n=48)


def arguments(images, workdir, *more):
    """20 epochs of 3 steps, so slow that rounding does not grow."""
    plain = ("jitter=0.0", "grayscale=0.0", "solarize=(0.0,0.0)")  # of what there is no need to compile
    return (
        "--config=configs/cifar10.py",
        f"--config.data.path={images}",
        "--config.data.val=",
        f"--workdir={workdir}",
        *commands.SMALL,
        "--config.epochs=20",
        "--config.eval.every_epochs=0",
        *(f"--config.optimizer.learning_rate_{group}=1e-4" for group in ("weights", "biases")),
        "--config.picture_every_epochs=0",
        "--config.checkpoint_every_steps=10",
        *(f"--config.views.{field}" for field in plain),
        *more,
    )


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = commands.run("train.py", *arguments(images, workdir))
    assert status == 0, output
    return workdir


@pytest.fixture
def slurm(tmp_path):
    """Environment of a SLURM job whose scontrol writes down what it is asked; and a function that reads it."""
    folder, asked = tmp_path / "bin", tmp_path / "scontrol.log"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{asked}"\n')
    (folder / "scontrol").chmod(0o755)
    environment = {"SLURM_JOB_ID": "4711", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return environment, lambda: asked.read_text().splitlines() if asked.exists() else []


def logged(workdir, steps):
    """Whether a run has written that many steps."""
    return lambda: faults.last_step(workdir) >= steps


def saved(workdir):
    return sorted((int(f.name) for f in (workdir / "checkpoints").iterdir() if f.name.isdigit()), reverse=True)


def assert_undisturbed(workdir, undisturbed):
    found, arrays, lines = faults.differences(workdir, undisturbed)
    assert not found and arrays > 50 and lines == STEPS, found


def test_a_second_run_is_refused_usr1_requeues_and_damaged_checkpoints_are_passed_over(
    images, undisturbed, slurm, tmp_path
):
    """One run: while it trains a second is refused; SIGUSR1 ends it; two of its checkpoints are damaged; it goes on."""
    environment, asked = slurm
    workdir = tmp_path / "run"
    (workdir / lock.FILE).parent.mkdir()
    (workdir / lock.FILE).write_text('{"process": 1, "host": "gone", "since": "yesterday"}')  # of a run that is dead
    process = commands.start("train.py", *arguments(images, workdir), **environment)
    commands.wait_for(process, logged(workdir, 31))
    process.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile
    try:
        status, output = commands.run("train.py", *arguments(images, workdir))
    finally:
        process.send_signal(signal.SIGCONT)
    commands.assert_refused(
        status,
        output,
        rf"{workdir} is in use by another run \(process {process.pid} on {socket.gethostname()}, "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, SLURM job 4711\); stop it first, or take another --workdir",
    )
    process.send_signal(signal.SIGUSR1)
    output = commands.finish(process, timeout=100)
    assert process.returncode == 0 and "SLURM job 4711 is back in the queue" in output, output
    assert asked() == ["requeue 4711"]
    [stopped] = re.findall(r"preempted at step (\d+)", output)

    newest, second, third = saved(workdir)
    assert newest == int(stopped)
    flipped, cut = (
        max((f for f in (workdir / "checkpoints" / str(s)).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        for s in (newest, second)
    )
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    os.truncate(cut, cut.stat().st_size // 2)
    status, output = commands.run("train.py", *arguments(images, workdir))
    assert status == 0 and f"going on from step {third} of {STEPS}" in output, output
    for step, reason in ((newest, "does not match its checksum"), (second, r"has \d+ bytes instead of \d+")):
        assert re.search(rf"Checkpoint \S*checkpoints/{step} is damaged \(\S+ {reason}\) and is not used", output)
    assert_undisturbed(workdir, undisturbed)


NO_SPACE = """
set -e
mkdir disk; mount -t tmpfs -o size=5m tmpfs disk
status=0; "$@" || status=$?
ls disk/run/checkpoints; echo "status $status"
test $status = 1
mount -o remount,size=50m disk
"$@"
cp -r disk/run kept
"""
TWO = """
mkdir disk; mount -t tmpfs -o size=5m tmpfs disk
for index in 0 1; do (JAX_PROCESS_ID=$index "$@"; echo "status of $index: $?") > output$index 2>&1 & done; wait
"""


def on_a_small_disk(script, images, tmp_path, **more):
    """Output of a shell script that may mount file systems; its arguments are the command of a run on disk/run."""
    alone = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*alone, "mount -t tmpfs none /mnt"]).returncode:
        pytest.skip("file systems cannot be mounted here")
    command = [
        sys.executable,
        commands.ROOT / "train.py",
        *arguments(images, "disk/run", "--config.keep_checkpoints=9"),
    ]
    command = [str(word).replace("=configs/", f"={commands.ROOT}/configs/") for word in command]
    process = commands.Command(*alone, script, "sh", *command, cwd=tmp_path, env=commands.environment(**more))
    output = commands.finish(process, timeout=300)
    assert process.returncode == 0 and "Traceback" not in output, output
    return output


def test_a_full_disk_ends_the_run_with_one_sentence_and_loses_nothing(images, undisturbed, tmp_path):
    """On a file system of 5 MB, with room for two checkpoints of three; and to the end where there is space again."""
    output = on_a_small_disk(NO_SPACE, images, tmp_path)
    first, second = output.split("status 1\n")
    sentence = r"error: The checkpoint of step 30 could not be written to \S+disk/run/checkpoints \(.*No space left.*"
    assert re.search(sentence + r"step 20 is still there; see to free space", first), output
    assert f"going on from step 20 of {STEPS}" in second, output
    assert_undisturbed(tmp_path / "kept", undisturbed)


@pytest.mark.slow
def test_a_full_disk_ends_two_processes(images, tmp_path):
    """Orbax would wait for 20 minutes, each process at another place. JAX may end one where the other has gone."""
    variables = {"JAX_COORDINATOR_ADDRESS": f"localhost:{commands.free_port()}", "JAX_NUM_PROCESSES": "2"}
    began = time.monotonic()
    on_a_small_disk(TWO, images, tmp_path, **variables)
    outputs = [(tmp_path / f"output{index}").read_text() for index in range(2)]
    assert any("error: The checkpoint of step 30 could not be written" in output for output in outputs), outputs
    for index, output in enumerate(outputs):
        assert "Traceback" not in output and re.search(rf"status of {index}: [^0]", output), outputs
    assert time.monotonic() - began < 250


def both(images, workdir, port, **environment):
    """Two processes of one run, one device each."""
    variables = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [
        commands.start("train.py", *arguments(images, workdir), JAX_PROCESS_ID=str(index), **variables, **environment)
        for index in range(2)
    ]


def assert_same_batches(workdir, undisturbed):
    """Every loss is that of the run on one device up to 1e-5 in float32 (measured: 6e-7); a step further is not."""
    got, want = ([line["loss"] for line in commands.lines(folder)] for folder in (workdir, undisturbed))
    assert len(got) == STEPS and min(abs(np.diff(want) / want[1:])) > 1e-4
    np.testing.assert_allclose(got, want, rtol=1e-5)


def stopped_by(number, steps, images, workdir, devices=1, status=0):
    """A run on that many devices until it has written some steps and gets the signal."""
    asked = [f"--stopped_status={status}"] if status else []
    process = commands.start("train.py", *arguments(images, workdir, *asked), devices=devices)
    commands.wait_for(process, logged(workdir, steps))
    process.send_signal(number)
    output = commands.finish(process, timeout=100)
    assert process.returncode == status and "preempted at step" in output, output


@pytest.mark.slow
def test_two_processes_go_on_for_one_and_one_for_them(images, undisturbed, slurm, tmp_path):
    """One process until Ctrl-C, two until SIGUSR1 to one of them, then one to the end; all on the same batches.

    Two more on the folder of the two are refused, both.
    """
    environment, asked = slurm
    workdir = tmp_path / "run"
    stopped_by(signal.SIGINT, 5, images, workdir, status=75)
    processes = both(images, workdir, commands.free_port(), **environment)
    commands.wait_for(processes[0], logged(workdir, saved(workdir)[0] + 2))
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    others = both(images, workdir, commands.free_port())
    for process in others:
        output = commands.finish(process, timeout=100)
        commands.assert_refused(process.returncode, output, rf"in use by another run \(process {processes[0].pid} on ")
    for process in processes:
        process.send_signal(signal.SIGCONT)
    processes[1].send_signal(signal.SIGUSR1)
    outputs = [commands.finish(process, timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("preempted at step" in output for output in outputs) and asked() == ["requeue 4711"], outputs
    status, output = commands.run("train.py", *arguments(images, workdir))
    assert status == 0, output
    assert_same_batches(workdir, undisturbed)


@pytest.mark.slow
def test_other_numbers_of_devices_go_on_with_the_same_batches(images, undisturbed, tmp_path):
    """1 device, 8, 2."""
    workdir = tmp_path / "run"
    stopped_by(signal.SIGTERM, 20, images, workdir)
    stopped_by(signal.SIGTERM, 40, images, workdir, devices=8)
    status, output = commands.run("train.py", *arguments(images, workdir), devices=2)
    assert status == 0, output
    assert_same_batches(workdir, undisturbed)


def test_a_changed_config_is_refused_field_by_field_unless_told(images, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    changed = ("--config.epochs=21", "--config.lambd=0.01", "--config.keep_checkpoints=2")
    status, output = commands.run("train.py", *arguments(images, workdir, *changed))
    commands.assert_refused(
        status,
        output,
        r"another config \(config.epochs was 20 and is 21; config.lambd was 0\.\d+ and is 0.01\);.*"
        "or go on with the new ones by --allow_changes=epochs,lambd",
    )
    assert not (workdir / workdirs.CHANGES_FILE).exists()
    status, output = commands.run("train.py", *arguments(images, workdir, *changed, "--allow_changes=epochs,lambd"))
    assert status == 0 and f"going on from step {STEPS} of {STEPS + 3}" in output, output
    assert "changed since this run began: config.epochs was 20 and is 21; config.keep" in output
    [record] = (json.loads(line) for line in (workdir / workdirs.CHANGES_FILE).read_text().splitlines())
    assert record["step"] == STEPS and record["changes"]["epochs"] == {"was": 20, "is": 21}
    assert record["changes"].keys() == {"epochs", "lambd", "keep_checkpoints"}
    assert json.loads((workdir / workdirs.CONFIG_FILE).read_text())["epochs"] == 21


def test_which_changes_are_refused():
    old = {"epochs": 3, "views": {"flip": 0.5, "blur": [1, 0]}, "eval": {"crop": 8}, "gone": 1}
    new = {"epochs": 4, "views": {"flip": 0.4, "blur": [1, 0]}, "eval": {"crop": 9}, "new": None}
    changes = workdirs.changed_fields(old, new)
    assert changes == {
        "epochs": (3, 4),
        "eval.crop": (8, 9),
        "gone": (1, workdirs.ABSENT),
        "new": (workdirs.ABSENT, None),
        "views.flip": (0.5, 0.4),
    }
    with pytest.raises(UserError, match=r"--allow_changes=epochs,gone,new,views.flip"):
        workdirs.check_changes("run", changes, free=("eval",), allowed=())
    with pytest.raises(UserError, match=r"--allow_changes=eval.crop"):
        workdirs.check_changes("run", changes, free=("epochs", "gone", "new"), allowed=["config.views"])
    workdirs.check_changes("run", changes, free=(), allowed=["all"])


@pytest.mark.parametrize("name", ["barlow_twins", "linear", "cifar10"])
def test_a_field_that_is_younger_than_a_run_is_no_change(tmp_path, caplog, name):
    """At the value of a fresh config; at another one it is a change like others."""
    config = barlow_jax.config(name).to_dict()
    old = json.loads(json.dumps(config))
    for field in ("value_range", "max_pixels"):
        del old["data"][field]
    del old["precision"]
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / workdirs.CONFIG_FILE).write_text(json.dumps(old))
    changed = config | {"data": config["data"] | {"value_range": (0, 4095)}}
    words = r"\(config.data.value_range was 'absent' and is \[0, 4095\]\)"
    with pytest.raises(UserError, match=words), workdirs.opened(str(tmp_path), changed):
        pass
    with workdirs.opened(str(tmp_path), config):
        assert json.loads((tmp_path / workdirs.CONFIG_FILE).read_text()) == json.loads(json.dumps(config))
    assert not (tmp_path / workdirs.CHANGES_FILE).exists() and "changed since" not in caplog.text


def test_a_damaged_record_of_the_config_is_named(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    file = tmp_path / workdirs.CONFIG_FILE
    for content in foreign_json.NO_OBJECTS:
        file.write_bytes(content)
        with pytest.raises(UserError, match="config.json is damaged .*; remove it to go on"):
            workdirs.opened(str(tmp_path), {}).__enter__()
    for line in foreign_json.objects({"seed": 1}, ["seed"]):
        file.write_bytes(line)
        with pytest.raises(UserError, match="holds a run with another config"):
            workdirs.opened(str(tmp_path), {"seed": 2}).__enter__()
    file.write_text("{")
    made = f"workdir.opened({str(tmp_path)!r}, {{}}).__enter__()"
    code = f"from barlow_jax.run import launch, workdir; launch.run(lambda _: {made}, lambda _: None)"
    status, output = commands.run("-c", code)
    commands.assert_refused(status, output, "config.json is damaged .*; remove it to go on")
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="config.json is no file; remove it to go on"):
        workdirs.opened(str(tmp_path), {}).__enter__()


@pytest.mark.parametrize("case", ["requeued", "refused", "no scontrol", "no job"])
def test_requeue(case, slurm, monkeypatch, caplog, tmp_path):
    environment, asked = slurm
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if case == "refused":
        (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho 'Job may not\n be requeued' >&2\nexit 1\n")
        with pytest.raises(UserError, match=r"not requeue job 4711 \(Job may not be requeued\); submit it again"):
            signals.requeue_job()
        return
    if case == "no scontrol":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif case == "no job":
        monkeypatch.delenv("SLURM_JOB_ID")
    signals.requeue_job()
    assert asked() == (["requeue 4711"] if case == "requeued" else [])
    assert ("start the same line again" in caplog.text) == (case != "requeued")


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path):
    assert faults.trial(tmp_path, kills=20, seed=1) == []
