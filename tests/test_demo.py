"""`make demo` keeps its promise, and its parts compute what they say."""

import re
import signal
from types import SimpleNamespace

import commands
import numpy as np
import pytest
from saved_runs import a_config, save_run

from barlow_jax import demo
from barlow_jax.data import open_source
from barlow_jax.errors import UserError
from barlow_jax.run import config_files
from barlow_jax.run.checkpoint import FOLDER, Checkpoints


def table(output):
    """{representation: (20-NN, linear)} of what the demo printed."""
    rows = re.findall(r"^(.+?) {2,}(\d\.\d+) +(\d\.\d+)$", output, re.M)
    return {name: (float(knn), float(linear)) for name, knn, linear in rows}


@pytest.mark.slow
def test_a_short_demo_prints_its_table_and_leaves_its_pictures(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    status, output = commands.run(
        "train.py", "--config=configs/demo.py", workdir, "--config.epochs=4", "--config.log_every_steps=5"
    )
    assert status == 0, output
    status, output = commands.run("-m", "barlow_jax.demo", workdir)
    assert status == 0, output
    assert list(table(output)) == ["raw pixels", "raw pixels, mean colour off", "random network", "Barlow Twins"]
    for picture in (
        "views.png",
        "neighbours.png",
        "curves.png",
        "correlation/00000000.png",
        "correlation/00000056.png",
    ):
        assert (tmp_path / "run" / picture).stat().st_size > 1000, picture


@pytest.mark.slow
def test_without_a_run_it_trains_one_and_goes_on_where_it_was_stopped(tmp_path):
    """The first line says what the run is; a second start goes on from the checkpoint."""
    line, metrics = ("-m", "barlow_jax.demo", f"--workdir={tmp_path / 'run'}"), tmp_path / "run" / "metrics.jsonl"
    for said in ("starting at step 0 of 1400", "going on from step"):
        process = commands.start(*line)
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        commands.wait_for(process, lambda n=lines: metrics.exists() and metrics.read_text().count("\n") > n + 1)
        process.send_signal(signal.SIGTERM)
        output = commands.finish(process, timeout=100)
        assert process.returncode == 0 and said in output and "preempted at step" in output, output
        assert not table(output)


def test_a_folder_with_another_run_is_refused(tmp_path):
    save_run(tmp_path / "other", a_config("convnet", image_size=24))
    save_run(tmp_path / "linear", config_files.load("demo").unlock(), classifier=3)
    with Checkpoints(tmp_path / "foreign" / FOLDER, asynchronous=False) as checkpoints:
        checkpoints.save(1, {"params": {"w": np.ones(3)}}, {"step": 1})
    for name in ("other", "linear", "foreign"):
        with pytest.raises(UserError, match=f"{name} holds no run of --config=demo; take another --workdir"):
            demo.main(SimpleNamespace(workdir=str(tmp_path / name)))


def test_centred_pixels_have_no_mean_colour():
    source = open_source("digits", split="val")
    centred = demo.pixels(source, centred=True).reshape(source.images.shape)
    np.testing.assert_allclose(centred.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(demo.pixels(source)[0], source.images[0].ravel() / 255, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_demo_beats_pixels_and_random_features(tmp_path, seed):
    workdir = f"--workdir={tmp_path / 'run'}"
    status, output = commands.run(
        "train.py", "--config=configs/demo.py", workdir, f"--config.seed={seed}", timeout=1800
    )
    assert status == 0, output
    rows = table(commands.run("-m", "barlow_jax.demo", workdir)[1])
    for k in (0, 1):  # 20-NN, linear
        assert rows["Barlow Twins"][k] > rows["raw pixels"][k] + 0.2
        assert rows["Barlow Twins"][k] > rows["random network"][k] + 0.2
        assert rows["Barlow Twins"][k] > rows["raw pixels, mean colour off"][k] + 0.15
