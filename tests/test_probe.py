"""`python -m barlow_jax.probe` as a user types it: the head it keeps, devices and processes, its refusals."""

import commands
import frozen_runs
import numpy as np
import pytest

from barlow_jax.evaluation import heads

SHORT = (
    "--config.eval.batch_size=16",
    "--config.batch_size=16",
    "--config.epochs=6",
    "--config.passes=2",
    "--config.learning_rates=(0.01,0.1,1.0)",
    "--config.weight_decays=(0.0,0.01)",
    "--config.seeds=2",
    "--config.held_out=0.3",
    "--config.crop_scale=(0.5,1.0)",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return frozen_runs.make(folder / "run", frozen_runs.write_set(folder / "set.npz"))


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    """What one device finds."""
    workdir = tmp_path_factory.mktemp("alone") / "eval"
    status, output = commands.run("-m", "barlow_jax.probe", f"--checkpoint={run}", f"--workdir={workdir}", *SHORT)
    assert status == 0, output
    return workdir, output


def kept(workdir):
    """{told: Extracted as a dict} of the features in a work folder."""
    found = {}
    for file in workdir.glob("features_*.npz"):
        with np.load(file) as arrays:
            found[str(arrays["told"])] = dict(arrays)
    return found


def test_the_kept_head_is_the_one_that_was_judged(run, alone):
    workdir, output = alone
    (line,) = frozen_runs.lines(workdir)
    assert (line["protocol"], line["metric"], line["seeds"]) == ("fast probe", "top1", [0, 1])
    assert (line["dataset"], line["n"], line["classes"]) == ("set.npz:test", frozen_runs.VAL, frozen_runs.CLASSES)
    assert line["settings"]["heads"] == 6 and len(line["settings"]["chosen"]) == 2 and line["value"] > 0.4
    assert "not the paper's protocol" in output and "mean and standard deviation" in output
    (judged,) = (arrays for told, arrays in kept(workdir).items() if '"set.npz:test"' in told)
    head = heads.load(workdir / "fast_probe.npz")
    accuracy = (head(judged["features"]).argmax(1) == judged["labels"]).mean()
    assert f"{100 * accuracy:.2f}" in next(row for row in output.splitlines() if row.startswith("   0"))


def test_augmented_passes_show_every_image_once_and_never_alike(alone):
    features = {told: arrays for told, arrays in kept(alone[0]).items() if '"set.npz:train"' in told}
    assert len(features) == 3  # the central view and two passes
    for arrays in features.values():
        np.testing.assert_array_equal(arrays["index"], np.arange(frozen_runs.TRAIN))
        np.testing.assert_array_equal(arrays["labels"], next(iter(features.values()))["labels"])
    one, other = (arrays["features"] for told, arrays in features.items() if '"draw"' in told)
    assert (np.abs(one - other).max(1) > 1e-3).all()


@pytest.mark.slow
def test_the_same_on_devices_and_processes(run, alone, tmp_path):
    """83 and 45 images, 6 heads: on 2 and 8 devices, and on two processes of 2, what one device finds."""
    expected = frozen_runs.lines(alone[0])
    for name in frozen_runs.on_devices_and_processes("barlow_jax.probe", run, tmp_path, *SHORT):
        assert frozen_runs.lines(tmp_path / name) == expected, name
        assert (tmp_path / name / "fast_probe.npz").exists()


@pytest.mark.parametrize(
    "change,sentence",
    [
        ({"y_train": None}, "set.npz:train has no labels; point config.data.path, train and val to images with labels"),
        ({"y_test": np.full(frozen_runs.VAL, 7)}, "set.npz:test has images of class 7, but set.npz:train has only the"),
        ({"y_train": np.zeros(frozen_runs.TRAIN, int), "y_test": np.zeros(frozen_runs.VAL, int)}, "one class only"),
    ],
)
def test_wrong_labels_are_one_sentence(run, tmp_path, change, sentence):
    data = frozen_runs.write_set(tmp_path / "set.npz", **change)
    call = ("-m", "barlow_jax.probe", f"--checkpoint={run}", f"--workdir={tmp_path / 'eval'}", *SHORT)
    status, output = commands.run(*call, f"--config.data.path={data}")
    assert status == 1 and "Traceback" not in output and sentence in output.splitlines()[-1], output


def test_impossible_values_are_one_sentence(run):
    for flag, sentence in (
        ("--config.held_out=1.0", "config.held_out is 1.0; it must be below 1."),
        ("--config.learning_rates=()", "config.learning_rates is (); it must have 1 to 1000 values."),
    ):
        status, output = commands.run("-m", "barlow_jax.probe", f"--checkpoint={run}", flag)
        assert status == 1 and output.splitlines()[-1] == f"error: {sentence}", output
