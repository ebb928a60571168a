"""The doctor: a machine and a set as lines, and a step that was not finite, run again."""

import json
import os

import commands
import pytest

from barlow_jax import doctor
from barlow_jax.data import walk
from barlow_jax.run import checkup, config_files, launch
from barlow_jax.training import first_fault

# SGD whose decay times its rate is far above 2: every step makes the weights larger.
GROWING = (
    "train.py",
    "--config=demo",
    "--config.projector=(32,32)",
    "--config.batch_size=64",
    "--config.warmup_epochs=0",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate_weights=1000.0",
    "--config.optimizer.weight_decay=1.0",
    "--config.picture_every_epochs=0",
    "--config.eval.every_epochs=0",
    "--config.log_every_steps=5",
)


def asked(config, **flags):
    """The doctor's exit status for these flags."""
    flag = launch.Flags()
    doctor.define_flags(flag)
    return doctor.main(flag.given(config, **flags))


def test_a_machine_and_a_set_that_are_fit(tmp_path, capsys):
    status = asked(config_files.load("demo"), workdir=str(tmp_path / "run"), json=True)
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert status == 0 and not list(tmp_path.iterdir())
    told = {line["about"]: line["said"] for line in lines}
    assert {"Python", "packages", "CPUs", "work folder", "disk space", "devices", "arithmetic", "clock"} <= told.keys()
    assert told["set"] == "digits:train: 3591 images, 1200 to judge by (digits:test), 14 steps of 256 an epoch"
    assert "of it for checkpoints" in told["disk space"] and "images/s are read here" in told["reading"]
    assert {line["verdict"] for line in lines} <= {"ok", "warning"}


def test_images_that_train_would_refuse_are_a_problem(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "of_host", lambda *_: {})
    monkeypatch.setattr(doctor, "of_devices", dict)
    config = config_files.load("image_folder").unlock()
    config.data.path = str(tmp_path / "nothing")
    assert asked(config) == 1
    out = capsys.readouterr().out
    assert out.startswith("problem  set ") and "nothing" in out and out.endswith("1 problems, 0 warnings, 0 ok\n")


def test_what_a_config_leaves_open_is_chosen_before_it_is_asked_about(photographs, tmp_path, monkeypatch):
    config = config_files.load("image_folder").unlock()
    config.update({"arch": "convnet", "image_size": 24})
    config.data.path = str(photographs)
    settled, opened, looked, real = [], [], [], walk.look
    monkeypatch.setattr(walk, "look", lambda root: looked.append(root) or real(root))
    checks = doctor.of_host(config, tmp_path, True, settled)
    assert any("of it for checkpoints" in line[2] for line in checks["work folder"]())
    ((verdict, _, said),) = doctor.open_images(config, opened, settled)
    assert len(looked) == 1
    assert verdict == "ok" and said.endswith(": 48 images, 2 steps of 32 an epoch") and len(opened[0]) == 48


def test_a_replay_is_json_where_nothing_is_finite(tmp_path, monkeypatch, capsys):
    """An array without a finite value has no lowest and no highest."""
    nothing = first_fault.Numbers((2,), "float32", float("nan"), float("nan"), 2)
    fault = first_fault.Fault("", (), False, "params.x", (nothing,), nothing, (0,))
    facts = {"config": config_files.load("demo").to_dict(), "step": 3}
    case = facts | {"channels": 1, "num_classes": 10, "steps_per_epoch": 2}
    monkeypatch.setattr(doctor.evidence, "read", lambda folder: (case, {}, ["image 7"]))
    monkeypatch.setattr(doctor.evidence, "restored", lambda folder, shapes: shapes)
    monkeypatch.setattr(doctor.experiment, "method", lambda *_, **__: (None, {}))
    monkeypatch.setattr(doctor.first_fault, "of_inputs", lambda state: fault)
    monkeypatch.setattr(doctor.remedies, "told", lambda *_: ["a sentence"])
    assert asked(None, replay=str(tmp_path), json=True) == 0

    def refused(word):
        raise AssertionError(f"{word} is no JSON")

    told = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert told["fault"]["gave"] == [[2], "float32", None, None, 2] and told["fault"]["images"] == ["image 7"]


def test_what_hangs_does_not_keep_the_process(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examined", lambda *_: [checkup.Line("problem", "disk", "no answer.")])
    monkeypatch.setattr(checkup, "hanging", lambda: ["disk"])
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    asked(config_files.load("demo"))
    assert ended == [1]


@pytest.mark.slow
def test_a_step_of_two_processes_is_kept_by_both_and_replayed_by_one(tmp_path):
    address = f"127.0.0.1:{commands.free_port()}"
    several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    both = [
        commands.start(*GROWING, f"--workdir={tmp_path}", JAX_PROCESS_ID=str(index), **several) for index in range(2)
    ]
    printed = [commands.finish(process) for process in both]
    for output in printed:
        commands.assert_refused(1, output, r"is not finite.* To see why: barlow-jax doctor --replay=\S*/nonfinite/\d+$")
    (folder,) = (tmp_path / "nonfinite").iterdir()
    assert {"batch_0.npz", "batch_1.npz", "case.json", "checkpoints"} == {path.name for path in folder.iterdir()}
    status, output = commands.run("-m", "barlow_jax.doctor", f"--replay={folder}", timeout=900)
    assert status == 0, output
    assert f"Step {folder.name}: the first operation that is not finite is " in output
    assert "in networks/batch_norm.py:" in output and "forward, behind backbone.convs.0.kernel." in output
    assert "have grown over many steps, lower config.optimizer.learning_rate_weights" in output
    status, output = commands.run("-m", "barlow_jax.doctor", f"--replay={tmp_path}")
    commands.assert_refused(status, output, "holds no step that can be replayed")


@pytest.mark.slow
def test_the_way_between_two_processes_is_timed(tmp_path):
    several = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{commands.free_port()}", "JAX_NUM_PROCESSES": "2"}
    words = ("-m", "barlow_jax.doctor", f"--workdir={tmp_path}")
    both = [commands.start(*words, JAX_PROCESS_ID=str(index), **several) for index in range(2)]
    for index, process in enumerate(both):
        output = commands.finish(process)
        assert process.returncode == 0, output
        assert f"[{index}] " in output and "network        2 processes: barrier " in output, output
