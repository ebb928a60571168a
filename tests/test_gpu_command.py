"""benchmarks/gpu.py: its steps small, and what is kept of them when they are stopped, fail, or are started again."""

import importlib
import json
import pathlib
import sys
import types

import commands
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(commands.ROOT / "benchmarks"))

import gpu
from gpu_steps import configs, fixtures, machine, memory, record, runs, step_time, steps

# In place of a step's process: what it does is its name, and what it has done before lies in the folder.
FAKE = """
import json, pathlib, sys, time
name = next(word.split("=")[1] for word in sys.argv if word.startswith("--step="))
out = pathlib.Path(next(word.split("=")[1] for word in sys.argv if word.startswith("--out=")))
file, calls = out / "steps" / f"{name}.json", out / f"{name}.calls"
count = len(calls.read_text()) + 1 if calls.exists() else 1
calls.write_text("x" * count)
kept = json.loads(file.read_text()) if file.exists() else {"rows": []}
values = {"platform": "cpu", "kind": "cpu", "count": 1} if name == "machine" else {}
kept["rows"] = [{"what": "calls", "figure": str(count), "beside": "a | b", "values": values}]
kept["why"] = "not installed" if name == "input" else ""
file.write_text(json.dumps(kept))
if name == "memory":
    time.sleep(60)
if name == "compile":
    sys.exit("it is broken")
sys.exit({"bits": 75 if count < 3 else 0, "input": 76}.get(name, 0))
"""


@pytest.fixture
def day(tmp_path, monkeypatch):
    """words -> (exit status, {step: record}) of gpu.py with such steps, in a folder of its own."""
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(gpu, "__file__", str(fake))
    monkeypatch.setattr(gpu, "LIMIT", 2)

    def run(*words):
        status = gpu.main([f"--out={tmp_path / 'out'}", *words])
        found = tmp_path / "out" / "gpu.json"
        return status, json.loads(found.read_text()) if found.exists() else {}

    return run


def test_what_is_done_stays_and_what_failed_is_tried_again(day, capsys):
    status, found = day()
    assert status == 1 and list(found) == [step.name for step in steps.all_of(True)]
    assert {name: kept["status"] for name, kept in found.items() if kept["status"] != "done"} == {
        "memory": "failed",
        "compile": "failed",
        "input": "skipped",
    }
    assert found["memory"]["why"] == "not done after 2 s" and found["compile"]["why"] == "it is broken"
    assert found["bits"]["rows"][0]["figure"] == "3"  # two slices went on
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert "| input |  | skipped | not installed |" in table and "| views | calls | 1 | a / b |" in table

    _, again = day()
    counts = {name: kept["rows"][0]["figure"] for name, kept in again.items()}
    assert counts["views"] == counts["input"] == "1" and counts["memory"] == counts["compile"] == "2"
    assert counts["bits"] == "3"
    _, chosen = day("--only=views")
    assert chosen["views"]["rows"][0]["figure"] == "2" and chosen["bits"]["rows"][0]["figure"] == "3"
    with pytest.raises(SystemExit, match="--only=view names view; there are machine, fixtures"):
        day("--only=view")


def test_no_slice_begins_that_may_end_too_late(day, capsys):
    status, found = day("--leave_after=2", "--only=views,bits")
    assert status == gpu.GOES_ON and "left: views, bits; the same line goes on" in capsys.readouterr().out
    assert "views" not in found


def test_another_machine_is_refused(day, tmp_path):
    day("--only=views")
    settings = tmp_path / "out" / "settings.json"
    settings.write_text(json.dumps({"small": False, "devices": "8 x NVIDIA H100 80GB HBM3"}))
    with pytest.raises(SystemExit, match="8 x NVIDIA H100.*now it is .*1 x cpu.*another --out"):
        day("--only=views")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("Tesla V100-SXM2-16GB", "V100-16"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("TPU v5 lite", "v5e"),
        ("TPU v3", "v3"),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_the_device_is_found_among_those_that_plan_knows(kind, name):
    assert machine.name_of(kind) == name
    assert bool(machine.peaks(kind)) == bool(name)
    if kind == "TPU v3":  # a device is one of two cores
        assert machine.peaks(kind)["bandwidth"] == 450e9


@pytest.fixture
def context(tmp_path):
    """A small step's, on a machine whose peaks are known."""
    (tmp_path / "steps").mkdir()
    options = types.SimpleNamespace(out=tmp_path, small=True, cifar=None, images=None, minutes=1.0, epochs=2)
    known = {"flops": 1e12, "bandwidth": 1e11, "memory": 1e9}
    record.Context(options, "machine", 0).row(
        "device", "", precision="float32", peaks=known, count=8, name=None, kind="x"
    )
    return record.Context(options, "here", deadline=float("inf"))


def rows(context):
    return {row["what"]: row for row in record.load(context.options.out, "here")["rows"]}


@pytest.mark.slow
def test_the_time_of_a_step_and_its_shares(context):
    step_time.measure(context, arch="convnet", side=24, batch_size=16)
    found = rows(context)
    step = found["step"]["values"]
    assert step["images_per_second"] == pytest.approx(16 / step["seconds"])
    assert step["mfu"] == pytest.approx(step["flops"] / step["seconds"] / 8 / 1e12)
    assert step["roofline"] == pytest.approx(step["bytes"] / 1e11 / step["seconds"])
    assert found["memory"]["values"]["program_bytes"] > 0 and found["views"]["values"]["share"] < 1
    absent = [name for name in ("torch", "torchvision") if not steps.has(name)]
    assert not absent or "torch" in found["PyTorch"]["beside"]


@pytest.mark.slow
def test_a_forecast_is_made_by_plan(context):
    found = memory.planned(context, {"arch": "convnet", "side": 24, "batch_size": 16}, "gpu:1xH100")
    assert found["bytes"] > found["temporaries"] > 0


def test_a_contestant_without_room_is_left_out():
    calls = []

    def full():
        calls.append("full")
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")

    contestants = {"full": (full, lambda _: None), "fits": (lambda: calls.append("fits"), lambda _: None)}
    assert list(step_time.take_turns(contestants, rounds=2, budget=1e-4)) == ["fits"]
    assert calls.count("full") == 1

    def broken():
        raise RuntimeError("no such operation")

    with pytest.raises(RuntimeError, match="no such"):
        step_time.take_turns({"broken": (broken, lambda _: None)}, rounds=1, budget=1e-4)


def test_fixtures_hold_on_the_cpu_and_a_wrong_device_is_seen(context, monkeypatch):
    found = fixtures.loss(jnp.float32, True) | fixtures.lars(jnp.float32, True)
    assert all(found[what] < fixtures.BOUNDS[what][1] for what in found) and len(found) == 3
    monkeypatch.setattr(fixtures, "errors", lambda kind, small: {"loss": 1.0 if kind == "float32" else 0.0})
    monkeypatch.setattr(fixtures, "BOUNDS", {"loss": (1e-3, 1e-3, 1e-3)})
    with pytest.raises(SystemExit, match="^beyond the bound: loss in float32$"):
        fixtures.measure(context)
    assert rows(context)["loss, float32"]["beside"] == "BEYOND its bound of 0.001"


def test_configs_go_through_words():
    given = ("resnet18", 32, 8, "float32", True)
    assert configs.of_words(*configs.words(*given)).to_dict() == configs.of_step(*given).to_dict()
    for step in steps.all_of(False):
        assert callable(importlib.import_module(f"gpu_steps.{step.module}").measure)
        assert step.seconds < gpu.LIMIT < 540


@pytest.mark.slow
def test_all_of_it_small_from_start_to_end(tmp_path):
    """What a GPU would be asked, on this CPU; the second start finds all done."""
    line = ("benchmarks/gpu.py", f"--out={tmp_path}")
    status, output = commands.run(*line, timeout=3000)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert status == 0, output
    assert {kept["status"] for kept in found.values()} == {"done"}, output
    for step in ("bits", "bits-deterministic"):
        assert len(found[step]["rows"]) == 3
        assert all(row["values"]["different"] == 0 for row in found[step]["rows"]), found[step]
    cold, warm = (row["values"]["seconds"] for row in found["compile"]["rows"])
    assert warm < cold / 2
    assert found["memory"]["rows"][0]["values"]["forecast"] > 0
    assert all(row["values"]["share"] == 0 for row in found["views"]["rows"])
    assert len(runs.metrics(pathlib.Path(tmp_path) / "cifar" / "run")) > 0
    status, output = commands.run(*line)
    assert status == 0 and "bits: runs again" not in output
