"""W&B and MLflow themselves, without a network: what a run writes is there, and a run that goes on is the same one.

Where they are installed; tests/run/test_metric_writers.py has what can be said without them.
"""

import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from barlow_jax.errors import UserError
from barlow_jax.run import metric_writers

PICTURE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
pytestmark = pytest.mark.filterwarnings("ignore")  # of what those packages import


def written(workdir, steps, resume_step=None, **service):
    config = {"lambd": 0.0051, "views": {"flip": 0.5, "mean": (0.5, 0.5)}}
    with metric_writers.create(workdir, resume_step=resume_step, config=config, **service) as writer:
        for step in steps:
            writer.scalars(step, {"loss": jnp.float32(1 / step), "skipped": 0})
            if step % 2 == 0:
                writer.scalars(step, {"knn": step / 10})
        writer.image(steps[-1], "views", PICTURE)


@pytest.fixture
def mlflow(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")


@pytest.mark.slow
def test_mlflow_has_one_run_with_each_number_once(tmp_path, mlflow):
    workdir = tmp_path / "runs" / "r50"
    written(workdir, range(1, 8), mlflow=True)  # killed at 7, its checkpoint is of step 4
    identity = (workdir / "mlflow_id").read_text()
    written(workdir, range(5, 11), resume_step=4, mlflow=True)
    assert (workdir / "mlflow_id").read_text() == identity
    client = mlflow.MlflowClient(f"sqlite:///{workdir / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'barlow-jax'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (identity, "r50", "FINISHED")
    assert run.data.params == {"lambd": "0.0051", "views.flip": "0.5", "views.mean": "(0.5, 0.5)"}
    loss = [(point.step, point.value) for point in client.get_metric_history(identity, "loss")]
    assert sorted(loss) == [(step, pytest.approx(1 / step)) for step in range(1, 11)]
    assert sorted(point.step for point in client.get_metric_history(identity, "knn")) == [2, 4, 6, 8, 10]
    from PIL import Image

    for step in (7, 10):
        (file,) = workdir.rglob(f"views/{step:08}.png")
        assert "mlflow_pictures" in str(file)
        np.testing.assert_array_equal(np.asarray(Image.open(file)), PICTURE)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # nothing beside the work folder
    # Begun anew in the same folder it is another run, and so it is where MLflow has lost the first.
    written(workdir, range(1, 3), mlflow=True)
    assert (workdir / "mlflow_id").read_text() != identity
    (workdir / "mlflow_id").write_text("0" * 32)
    written(workdir, range(3, 5), resume_step=2, mlflow=True)
    assert len(client.search_runs([experiment.experiment_id])) == 3


@pytest.mark.slow
def test_mlflow_takes_what_is_not_finite_and_is_given_up_where_it_fails(tmp_path, mlflow, monkeypatch, caplog):
    with metric_writers.create(tmp_path / "run", mlflow=True) as writer:
        writer.scalars(1, {"loss": jnp.nan, "grad_norm": jnp.inf})
        assert "MLflow does not" not in caplog.text
        writer.scalars(2, {"what\nis no name": 1.0})
        writer.scalars(3, {"loss": 1.0})
    assert caplog.text.count("MLflow does not take what this run writes") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://nowhere")
    with pytest.raises(UserError, match="MLflow does not take this run .*; see to MLFLOW_TRACKING_URI"):
        metric_writers.create(tmp_path / "other", mlflow=True)


def test_mlflow_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="config.mlflow is set, but there is no mlflow; pip install mlflow, or unset"):
        metric_writers.create(tmp_path, mlflow=True)
    assert not list(tmp_path.iterdir())


def records(log):
    """Those of W&B's file, LevelDB's log: blocks of 32 KiB of parts (CRC, length, kind), behind a head of 7 bytes."""
    place, parts = 7, []
    while place < len(log):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", log, place + 4)
        parts.append(log[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_wandb_offline_is_one_run_over_restarts(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "run", range(1, 4), wandb=True)
    identity = (tmp_path / "run" / "wandb_id").read_text()
    written(tmp_path / "run", range(3, 6), resume_step=2, wandb=True)
    wandb.teardown()
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(files) == 2
    history = []
    for file in files:
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                history.append({name: items[name] for name in ("step", "loss", "knn") if name in items})
    assert [int(line["step"]) for line in history if "loss" in line] == [1, 2, 3, 3, 4, 5]
    assert [(int(line["step"]), float(line["knn"])) for line in history if "knn" in line] == [(2, 0.2), (4, 0.4)]
    assert len(list((tmp_path / "run" / "wandb").rglob("*.png"))) == 2
