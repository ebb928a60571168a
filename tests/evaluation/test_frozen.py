"""`python -m barlow_jax.knn` as a user types it: against scikit-learn, on devices and processes, and its refusals."""

import commands
import frozen_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.neighbors
from flax import nnx
from ml_collections import ConfigDict

from barlow_jax import experiment, model
from barlow_jax.run.checkpoint import restore_params

SHORT = ("--config.eval.batch_size=16", "--config.k=(1,5,200)", "--config.shots=(1,3,99)", "--config.shot_seeds=3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return frozen_runs.make(folder / "run", frozen_runs.write_set(folder / "set.npz"))


def features(run):
    """Features of both splits, without the pipeline: central crops of 24 x 24 are whole."""
    params, batch_stats, meta = restore_params(run)
    config = ConfigDict(meta["config"])
    graphdef, *_ = model.split(nnx.eval_shape(lambda: experiment.network(config, 3)))
    data = np.load(config.data.path)

    @jax.jit
    def of(images):
        return model.merge(graphdef, params, batch_stats).backbone(images, train=False)

    for split in ("train", "test"):
        images = (data[f"x_{split}"] / 255 - config.views.mean) / config.views.std
        yield np.asarray(of(jnp.asarray(images, jnp.float32))), data[f"y_{split}"]


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    """What one device finds."""
    workdir = tmp_path_factory.mktemp("alone") / "eval"
    status, output = commands.run("-m", "barlow_jax.knn", f"--checkpoint={run}", f"--workdir={workdir}", *SHORT)
    assert status == 0, output
    return workdir, output


def test_accuracies_are_scikit_learns(run, alone):
    workdir, output = alone
    (bank, labels), (queries, targets) = features(run)
    rank, *lines = frozen_runs.lines(workdir)
    assert rank["metric"] == "effective_rank" and 1 < rank["value"] < frozen_runs.VAL
    knn = {line["settings"]["k"]: line for line in lines if line["protocol"] == "knn"}
    assert list(knn) == [1, 5]  # 200 are more than there are
    assert "larger k are left out" in output
    for k, line in knn.items():
        reference = sklearn.neighbors.KNeighborsClassifier(
            k, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute"
        ).fit(bank.astype(np.float64), labels)
        assert line["value"] == reference.score(queries.astype(np.float64), targets)
        assert (line["n"], line["classes"], line["dataset"]) == (frozen_runs.VAL, frozen_runs.CLASSES, "set.npz:test")
        assert f"k = {k}" in output and f"{100 * line['value']:.2f}" in output
    assert 0.3 < knn[5]["value"] < 1
    few = [line for line in lines if line["protocol"] == "few-shot"]
    asked = [(line["settings"]["shots"], line["settings"]["classifier"]) for line in few]
    assert asked == [(n, name) for n in (1, 3) for name in ("nearest mean", "ridge")]  # no class has 99
    assert all(line["seeds"] == [0, 1, 2] and line["spread"] >= 0 for line in few)


def test_the_same_on_devices_and_processes(run, alone, tmp_path):
    """83 and 45 images on 2 and 8 devices, and on two processes of 2: every number is that of one device."""
    expected = frozen_runs.lines(alone[0])
    for name in frozen_runs.on_devices_and_processes("barlow_jax.knn", run, tmp_path, *SHORT):
        found = frozen_runs.lines(tmp_path / name)
        for one, other in zip(found, expected, strict=True):
            tolerance = 1e-5 if one["metric"] == "effective_rank" else 0
            assert one.pop("value") == pytest.approx(other["value"], rel=tolerance, abs=0), name
            assert one == {key: value for key, value in other.items() if key != "value"}


def test_features_are_computed_once(run, alone):
    """Again from the file; anew for other images under the same name, and where the file is damaged."""
    workdir, output = alone
    assert "read from" not in output
    call = ("-m", "barlow_jax.knn", f"--checkpoint={run}", f"--workdir={workdir}", *SHORT)
    before, kept = frozen_runs.lines(workdir), sorted(workdir.glob("features_*.npz"))
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:1000])
    status, output = commands.run(*call)
    assert status == 0 and output.count("read from") == 1 and "features are computed again" in output, output
    assert frozen_runs.lines(workdir) == before  # the same lines, and no second time
    other = frozen_runs.write_set(run.parent / "other" / "set.npz", y_test=np.zeros(frozen_runs.VAL, int))
    status, output = commands.run(*call, f"--config.data.path={other}")
    assert status == 0 and output.count("read from") == 1 and "features of set.npz:train: read from" in output, output
    assert len(list(workdir.glob("features_*.npz"))) == 3


@pytest.mark.parametrize("resident_bytes", [0, pytest.param(2**30, marks=pytest.mark.slow)])
def test_features_of_replaced_pixels_are_computed_anew(run, tmp_path, resident_bytes):
    """One image of those that are judged is another one by the same name and of the same size, then its old self."""
    for split, each in (("train", 9), ("val", 4)):
        commands.photographs(tmp_path / "set" / split, classes=2, each=each)
    workdir, file = tmp_path / "eval", tmp_path / "set" / "val" / "class1" / "002.jpg"
    call = ("-m", "barlow_jax.knn", f"--checkpoint={run}", f"--workdir={workdir}", *SHORT, "--config.shot_seeds=0")
    call += ("--config.data.kind=folder", f"--config.data.path={tmp_path / 'set'}", "--config.data.train=train")
    call += ("--config.data.val=val", f"--config.data.resident_bytes={resident_bytes}", "--config.data.canvas=64")
    status, output = commands.run(*call)
    assert status == 0 and "read from" not in output, output
    kept = {path: path.read_bytes() for path in workdir.glob("features_*.npz")}
    before = file.read_bytes()
    other = (tmp_path / "set" / "val" / "class0" / "001.jpg").read_bytes()
    size = max(len(before), len(other))  # what follows a JPEG is no part of the image
    file.write_bytes(before.ljust(size, b"\0"))
    status, output = commands.run(*call)
    assert status == 0 and output.count("read from") == 1, output
    file.write_bytes(other.ljust(size, b"\0"))
    status, output = commands.run(*call)
    assert status == 0 and output.count("read from") == 1 and "set/train: read from" in output, output
    assert len(kept) == 2 and len(list(workdir.glob("features_*.npz"))) == 4
    features = [np.load(path)["features"] for path in workdir.glob("features_*.npz")]
    assert len({rows.tobytes() for rows in features}) == 3  # of the training images, of before, and of after


def test_without_labels_there_is_the_effective_rank(run, tmp_path):
    data = frozen_runs.write_set(tmp_path / "set.npz", y_train=np.full(frozen_runs.TRAIN, -1))
    call = ("-m", "barlow_jax.knn", f"--checkpoint={run}", f"--workdir={tmp_path / 'eval'}", *SHORT)
    status, output = commands.run(*call, f"--config.data.path={data}")
    assert status == 0 and "no labels" in output, output
    (line,) = frozen_runs.lines(tmp_path / "eval")
    assert (line["metric"], line["n"]) == ("effective_rank", frozen_runs.VAL)


def test_features_that_are_not_finite_are_one_sentence(run, tmp_path):
    def broken(params):
        kernel = params["backbone"]["dense"]["kernel"]
        return params | {"backbone": params["backbone"] | {"dense": {"kernel": kernel.at[0, 0].set(jnp.nan)}}}

    bad = frozen_runs.make(tmp_path / "run", run.parent / "set.npz", broken)
    status, output = commands.run("-m", "barlow_jax.knn", f"--checkpoint={bad}", *SHORT)
    commands.assert_refused(status, output, r"holds 1 values that are nan or infinite in dense\.kernel")

    def huge(params):
        return params | {"backbone": jax.tree.map(lambda x: jnp.full_like(x, 1e38), params["backbone"])}

    bad = frozen_runs.make(tmp_path / "huge", run.parent / "set.npz", huge)
    status, output = commands.run("-m", "barlow_jax.knn", f"--checkpoint={bad}", *SHORT)
    assert status == 1 and "Traceback" not in output
    want = "error: The features of 45 of the 45 images of set.npz:test are not finite, first those of image 0 "
    want += "(set.npz:test[0]); judge an"
    assert want in output.splitlines()[-1], output
    assert not list((bad / "eval").glob("features_*"))


@pytest.mark.parametrize(
    "flags,sentence",
    [
        (("--config.k=(0,)",), "config.k is (0,); each must be at least 1."),
        (
            ("--config.eval.crop=20",),
            "the convnet of the pre-training run is for images of 24 pixels; take --config.eval.crop=24.",
        ),
        (("--config=configs/linear_demo.py",), "configs/frozen.py."),
        (
            ("--config=configs/nothing.py",),
            "The file of --config cannot be read (configs/nothing.py is not there); give another.",
        ),
        (("--config.kk=3",), "config.kk is no field; did you mean config.k?"),
        (("--workdir=RUN",), "--workdir RUN holds the run that is judged; take a folder for it alone, or none."),
    ],
)
def test_refusals(run, flags, sentence):
    flags = [flag.replace("RUN", str(run)) for flag in flags]
    status, output = commands.run("-m", "barlow_jax.knn", f"--checkpoint={run}", *flags)
    assert status == 1 and "Traceback" not in output
    assert output.splitlines()[-1].endswith(sentence.replace("RUN", str(run))), output
