"""Weights that are no numbers: named where they are read, and refused unless asked for."""

import sys

import commands
import numpy as np
import pytest
import saved_runs
from saved_runs import a_config, save_run

from barlow_jax import export
from barlow_jax.errors import UserError
from barlow_jax.evaluation import encoder, subject
from barlow_jax.weights import as_run, files, finite, naming, pickle_writer

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
import weight_files


def poisoned(tree, where, value=np.nan, count=3):
    """The tree with some values of one array replaced."""
    tree = {key: dict(part) if isinstance(part, dict) else part for key, part in tree.items()}
    *modules, leaf = where
    inner = tree
    for module in modules:
        inner[module] = dict(inner[module])
        inner = inner[module]
    inner[leaf] = np.array(inner[leaf])
    inner[leaf].flat[:count] = value
    return tree


@pytest.fixture(params=["file.pth", "file.pkl", "legacy.pth", "file.safetensors"])
def write(request, tmp_path):
    """Writes arrays in one of the formats, and returns the path."""

    def written(arrays):
        path = tmp_path / request.param
        if request.param == "legacy.pth":
            weight_files.in_legacy(path, arrays)
        elif path.suffix == ".pkl":
            pickle_writer.save_pickle(path, {"model": arrays})
        elif path.suffix == ".safetensors":
            params, batch_stats = naming.trees(arrays)
            files.save(path, "safetensors", files.Weights("backbone", {"backbone": params}, {"backbone": batch_stats}))
        else:
            pickle_writer.save(path, {"state_dict": arrays})
        return path

    return written


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_file_with_such_values_names_array_and_count(write, value):
    arrays = weight_files.tiny_names()
    assert files.load(write(arrays)).kind == "backbone"
    arrays["layer2.0.bn1.running_var"] = np.float32([1, value])
    arrays["layer3.0.conv1.weight"] = np.full((2, 2, 3, 3), value, np.float32)
    path = write(arrays)
    with pytest.raises(UserError) as caught:
        files.load(path)
    said = str(caught.value)
    assert str(path) in said and "holds 1 values that are nan or infinite in layer2.0.bn1.running_var" in said
    assert "and 36 in 1 other arrays" in said
    found = files.load(path, only_finite=False)
    kernel = found.params["backbone"]["layer3"]["0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, np.full((3, 3, 2, 2), value))


def test_what_single_precision_cannot_hold_is_infinite(tmp_path):
    assert finite.found_bad({"a": np.array([1e39, 1e38, -1e300])}) == {"a": 2}
    assert finite.found_bad({"a": np.array([2**60]), "b": np.zeros(0)}) == {}
    arrays = weight_files.tiny_names()
    half = {name: value.astype(np.float16) for name, value in arrays.items()}
    half["bn1.num_batches_tracked"] = np.array(np.inf, np.float16)  # 100,000 batches, in half precision
    pickle_writer.save(tmp_path / "x.pth", half)
    assert files.load(tmp_path / "x.pth").step == 0


def test_a_momentum_that_is_no_number(tmp_path):
    source = commands.FIXTURES / "ckpt_tiny" / "checkpoint.pth"
    weights = files.load(source)
    momentum = poisoned(weights.momentum, ("projector", "linears", "0", "kernel"))
    files.save(tmp_path / "x.pth", "official", weights._replace(momentum=momentum), groups=({}, {}))
    with pytest.raises(UserError, match=r"holds 3 values that .* in the momentum of projector.0.weight"):
        files.load(tmp_path / "x.pth")
    assert files.load(tmp_path / "x.pth", whole=False).kind == "pretraining"  # it is not read


@pytest.fixture
def diverged(tmp_path, monkeypatch):
    """The work folder of a run whose last checkpoint is no longer a network."""
    sound = saved_runs.random_like

    def random_like(tree, seed=0):
        tree = sound(tree, seed)
        return poisoned(tree, ("backbone", "convs", "0", "kernel")) if seed == 0 else tree

    monkeypatch.setattr(saved_runs, "random_like", random_like)
    config = a_config("convnet", image_size=24)
    config.eval.resize, config.eval.crop = 24, 24
    save_run(tmp_path / "run", config)
    return tmp_path / "run"


def test_a_run_with_such_values_is_neither_judged_nor_exported(diverged, tmp_path):
    for read in (subject.load, encoder.load, export.read):
        with pytest.raises(
            UserError, match=r"run holds 3 values that are nan or infinite in .*convs.0.kernel; no feat"
        ):
            read(diverged)
    assert subject.load(diverged, "random").baseline == "random"  # judges what such a network was before
    folder = commands.photographs(tmp_path / "set", each=1)
    status, output = commands.run("-m", "barlow_jax.embed", diverged, folder, f"--out={tmp_path / 'x.npz'}")
    assert status == 1 and "nan or infinite in convs.0.kernel" in output and "Traceback" not in output, output
    assert not (tmp_path / "x.npz").exists()


def test_export_takes_them_if_asked(diverged, tmp_path):
    """To look at them in another program; the arrays are compared, features there are none."""
    line = ("-m", "barlow_jax.export", diverged, "--format=safetensors", f"--out={tmp_path / 'x.safetensors'}")
    status, output = commands.run(*line)
    assert status == 1 and "nan or infinite in backbone.convs.0.kernel" in output, output
    status, output = commands.run(*line, "--nonfinite=keep")
    assert status == 0 and "arrays read back 0.0e+00" in output, output
    with pytest.raises(UserError, match="convs.0.weight"):
        as_run.restore(tmp_path / "x.safetensors")
    found, *_ = as_run.restore(tmp_path / "x.safetensors", only_finite=False)
    assert np.isnan(found.params["backbone"]["convs"]["0"]["kernel"]).sum() == 3
    with pytest.raises(UserError, match="convs.0.weight"):
        export.read(tmp_path / "x.safetensors")
    assert export.read(tmp_path / "x.safetensors", only_finite=False).weights.params.keys() == found.params.keys()
    with pytest.raises(UserError, match="of which no program is made"):
        export.check(export.read(diverged, only_finite=False), "stablehlo")
