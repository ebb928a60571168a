"""Metrics on disk: valid JSON, the same file after a kill, TensorBoard events as TensorBoard reads them."""

import io
import json
import os
import struct
import subprocess
import sys
import types
from types import SimpleNamespace

import commands
import foreign_json
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tensorboardX.proto.event_pb2 import Event, SessionLog

from barlow_jax.errors import UserError
from barlow_jax.run import metric_writers, pictures


def lines(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(workdir):
    """Every event of every file, oldest file first: length (8 bytes), its CRC (4), the event, its CRC (4)."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def run(workdir, start, stop, resume_step, last=None):
    """Writes steps start < step <= stop as a training loop would; `last` half-writes another and is killed."""
    with metric_writers.create(workdir, resume_step=resume_step) as writer:
        for step in range(start + 1, stop + 1):
            writer.scalars(step, {"loss": 1 / step})
            if step % 4 == 0:
                writer.scalars(step, {"knn": step / 100})
    if last:
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(last)


def test_a_killed_run_leaves_the_same_lines(tmp_path):
    run(tmp_path / "whole", 0, 12, None)
    run(tmp_path / "killed", 0, 7, None, last='{"step": 8, "lo')  # killed in mid-write; the checkpoint is of step 4
    with_half = (tmp_path / "killed" / "metrics.jsonl").read_text()
    run(tmp_path / "killed", 4, 10, 4)
    run(tmp_path / "killed", 8, 12, 8)
    assert with_half.count("\n") == 8
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert [line["step"] for line in lines(tmp_path / "killed")].count(8) == 2  # loss and knn of the checkpoint's step


def test_a_new_run_in_an_old_folder_starts_with_an_empty_file(tmp_path):
    run(tmp_path, 0, 3, None)
    run(tmp_path, 0, 1, None)
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_half_written_line_is_named_and_dropped(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "a\xff\n{"step": 3}\n')
    metric_writers.keep_until(path, 3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]
    assert "1 lines of" in caplog.text and "(first line 2)" in caplog.text


def test_lines_of_others_are_left_out_and_counted(tmp_path, caplog):
    """Where a run goes on what has a step is kept as it is; what is drawn is numbers alone."""
    path, ours = tmp_path / "metrics.jsonl", b'{"step": 1, "loss": 2.0, "knn": null}'
    others = [*foreign_json.NO_OBJECTS, *foreign_json.objects({"step": 1, "loss": 2.0}, ("step", "loss"))]
    path.write_bytes(b"\n".join([ours, *others, b'{"step": 2, "loss": 1}', b'{"step": 3, "lo']))
    found = metric_writers.read(path)
    assert found[0] == json.loads(ours) and found[-1] == {"step": 2, "loss": 1}
    assert all(type(line["step"]) is int and line["step"] >= 0 for line in found)
    assert {type(value) for line in found for value in line.values()} <= {int, float, type(None)}
    count = len(others) + 3
    assert f"{count - len(found)} of {count} lines of {path} are no metrics" in caplog.text
    assert len(pictures.curves(path, ["loss"])) > 100
    before = path.read_bytes().decode(errors="replace").split("\n")
    metric_writers.keep_until(path, 1)
    kept = path.read_text().splitlines()
    assert kept == [line for line in before if line in kept and json.loads(line)["step"] <= 1] and len(kept) > 10
    assert json.dumps({"step": 1, "loss": {"a": {"b": []}}}) in kept


def test_what_is_no_file_in_the_place_of_the_metrics(tmp_path):
    (tmp_path / "folder" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "metrics.jsonl")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match="metrics.jsonl is no file; remove it"):
            metric_writers.read(tmp_path / name / "metrics.jsonl")
        with pytest.raises(UserError, match="metrics.jsonl is no file; remove it"):
            metric_writers.create(tmp_path / name, resume_step=3)
    assert metric_writers.read(tmp_path / "metrics.jsonl") == []


def test_numbers_of_every_kind_become_plain_json(tmp_path):
    replicated = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P())
    with metric_writers.create(tmp_path) as writer:
        writer.scalars(
            jnp.int32(3),
            {
                "device": jax.device_put(jnp.float32(0.1), replicated),
                "half": jnp.bfloat16(0.5),
                "numpy": np.float64(0.1),
                "count": jnp.int32(7),
                "flag": np.bool_(True),
                "plain": 2,
                "nan": jnp.nan,
                "inf": jnp.float32(-jnp.inf),
            },
        )
    expected = {"device": 0.1, "half": 0.5, "numpy": 0.1, "count": 7, "flag": 1, "plain": 2, "nan": None, "inf": None}
    assert lines(tmp_path) == [{"step": 3} | expected]


def test_tensorboard_has_scalars_and_images_and_hides_what_is_written_again(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    with metric_writers.create(tmp_path) as writer:
        writer.scalars(5, {"loss": 0.25})
        writer.image(5, "views", picture)
    written = events(tmp_path)
    assert written[0].file_version == "brain.Event:2"
    values = [(event.step, value) for event in written for value in event.summary.value]
    assert [(step, v.tag) for step, v in values] == [(5, "loss"), (5, "views")]
    assert values[0][1].simple_value == 0.25
    from PIL import Image

    decoded = np.asarray(Image.open(io.BytesIO(values[1][1].image.encoded_image_string)))
    np.testing.assert_array_equal(decoded, picture)

    with metric_writers.create(tmp_path, resume_step=3):
        pass
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [0, 4]  # everything from step 4 on is hidden


def test_what_is_not_finite_is_written_without_a_warning(tmp_path, caplog):
    """As the norm of a gradient that overflows float16, which is ordinary."""
    with metric_writers.create(tmp_path) as writer:
        writer.scalars(1, {"grad_norm": float("inf"), "loss": float("nan"), "gradients/of_a": 0.5})
    values = {value.tag: value.simple_value for event in events(tmp_path) for value in event.summary.value}
    assert values["grad_norm"] == float("inf") and np.isnan(values["loss"]) and values["gradients/of_a"] == 0.5
    assert not caplog.records and commands.lines(tmp_path) == [
        {"step": 1, "grad_norm": None, "loss": None, "gradients/of_a": 0.5}
    ]


def test_only_process_0_writes(tmp_path):
    with metric_writers.create(tmp_path / "run", 1, wandb=True) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.image(1, "views", np.zeros((2, 2, 3), np.uint8))
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_appended_to():
    with pytest.raises(
        UserError, match="Metrics cannot be appended to files in gs://bucket/run; give a folder of this host"
    ):
        metric_writers.create("gs://bucket/run")


def test_wandb_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        metric_writers.create(tmp_path, wandb=True)
    assert not list(tmp_path.iterdir())
    # There is one, which lacks something: what is told is not that there is none.
    (tmp_path / "wandb.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="wandb cannot be imported .No module named 'a_package_that_is_not_there'"):
        metric_writers.create(tmp_path / "run", wandb=True)


class FakeRun:
    def __init__(self, options):
        self.options, self.logged, self.axes, self.finished = options, [], [], False

    def define_metric(self, name, step_metric=None):
        self.axes.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def test_wandb_is_one_run_over_restarts(tmp_path, monkeypatch):
    runs = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: runs.append(FakeRun(options)) or runs[-1]
    fake.Image = lambda pixels: ("image", pixels.shape)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume_step in (None, 4, None):
        with metric_writers.create(tmp_path, wandb=True, resume_step=resume_step, config={"lambd": 0.0051}) as writer:
            writer.scalars(5, {"loss": jnp.float32(0.1)})
            writer.image(5, "views", np.zeros((2, 4, 3), np.uint8))
    first, second, third = (r.options["id"] for r in runs)
    assert first == second != third
    assert runs[0].options["config"] == {"lambd": 0.0051} and runs[0].options["resume"] == "allow"
    assert runs[0].axes == [("step", None), ("*", "step")]
    assert runs[0].logged == [{"step": 5, "loss": 0.1}, {"step": 5, "views": ("image", (2, 4, 3))}]
    assert all(r.finished for r in runs)


@pytest.mark.parametrize("error", [OSError(104, "Connection reset"), ValueError("no such bucket"), RuntimeError()])
@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_what_a_service_raises_later_is_one_warning_and_not_the_runs_end(tmp_path, monkeypatch, caplog, service, error):
    """An artifact store's errors are those of whatever library it has, and a closed connection is an OSError."""

    def fails(*_, **__):
        raise error

    calls = dict.fromkeys(("log", "finish", "log_batch", "log_image", "set_terminated"), fails)
    run = SimpleNamespace(define_metric=lambda *_, **__: None, **calls)
    fake = types.ModuleType(service)
    fake.init, fake.Image = lambda **_: run, lambda pixels: pixels
    monkeypatch.setitem(sys.modules, service, fake)
    if service == "wandb":
        output = metric_writers.WeightsAndBiases(tmp_path)
    else:
        output = metric_writers.MLflow.__new__(metric_writers.MLflow)
        output._client, output._run, output._written, output._given_up = run, "0", None, False
        output._metric = lambda *about: about
    lines = metric_writers.JsonLines(tmp_path / "metrics.jsonl")
    with metric_writers.MetricWriter([output, lines], tmp_path) as writer:
        writer.image(1, "views", np.zeros((2, 4, 3), np.uint8))
        for step in (1, 2):
            writer.scalars(step, {"loss": np.inf})
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(f'{{"step": {k}, "loss": null}}\n' for k in (1, 2))
    name, reason = {"wandb": "W&B", "mlflow": "MLflow"}[service], str(error) or "RuntimeError"
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} does not take what this run writes ({reason}); nothing more goes there."
    ]


def test_wandb_that_does_not_take_a_run_is_one_sentence(tmp_path, monkeypatch):
    fake = types.ModuleType("wandb")
    fake.init = lambda **_: (_ for _ in ()).throw(RuntimeError("api_key not\nconfigured"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match=r"^W&B does not take this run \(api_key not configured\); see to its") as error:
        metric_writers.create(tmp_path, wandb=True)
    assert "\n" not in str(error.value)


def test_importing_it_is_light():
    code = (
        "import sys, barlow_jax.run.metric_writers; print({'torch', 'tensorflow', 'tensorboardX'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
