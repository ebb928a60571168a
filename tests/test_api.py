"""What a notebook calls: train, evaluate, load; the same code as behind the commands."""

import gc
import json
import pathlib
import signal
import subprocess
import sys
import threading

import commands
import frozen_runs
import jax
import numpy as np
import pytest

import barlow_jax
import barlow_jax.data
from barlow_jax import export, knn, results
from barlow_jax.errors import UserError
from barlow_jax.evaluation import encoder, subject
from barlow_jax.results import starts
from barlow_jax.run import config_files

FIELDS = {
    "arch": "convnet",
    "projector": (16, 16),
    "precision": "float32",
    "image_size": 24,
    "batch_size": 16,
    "warmup_epochs": 0,
    "epochs": 2,
    "eval": {"resize": 24, "crop": 24, "batch_size": 16, "knn_k": 5},
}
LINEAR = {"epochs": 3, "batch_size": 16, "image_size": 0, "eval": {"resize": 0, "crop": 0}}


@pytest.fixture(scope="module")
def no_tensorflow():
    """As where it is not installed, which images for GPUs seldom have: of the package only these modules import it."""
    gc.collect()  # what other tests left of its data sets could not be taken apart meanwhile
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tensorflow", "tensorflow_datasets", "barlow_jax.data.decode", "barlow_jax.data.records"):
            patch.setitem(sys.modules, module, None)
        for name in ("decode", "records"):
            patch.delattr(barlow_jax.data, name, raising=False)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, no_tensorflow):
    """(work folder of a run, the .npz it was trained on)."""
    folder = tmp_path_factory.mktemp("api")
    data = frozen_runs.write_set(folder / "set.npz")
    shared = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)  # as where nobody told JAX of one
    try:
        assert barlow_jax.train("cifar10", data=data, workdir=folder / "run", **FIELDS)
    finally:
        jax.config.update("jax_compilation_cache_dir", shared)
    return folder / "run", data


def test_importing_the_package_loads_nothing():
    code = "import sys, barlow_jax; print([m for m in ('jax', 'tensorflow', 'torch', 'absl') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
    assert {*barlow_jax.__all__} == {"config", "evaluate", "load", "train"}
    from barlow_jax.evaluation import classifier, heads

    assert barlow_jax.trained is classifier and barlow_jax.heads is heads  # where they were in 0.1
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        barlow_jax.nothing  # noqa: B018


def test_the_same_call_goes_on_and_gives_handlers_and_lock_back(trained):
    run, data = trained
    before = signal.getsignal(signal.SIGINT)
    lines = (run / "metrics.jsonl").read_text()
    assert barlow_jax.train("cifar10", data=data, workdir=run, **FIELDS)
    assert (run / "metrics.jsonl").read_text() == lines  # all was done
    assert [line["command"][:28] for line in starts.read(run)] == 2 * ["barlow_jax.train('cifar10', "]
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(UserError, match="config.epochs was 2 and is 3"):
        barlow_jax.train("cifar10", data=data, workdir=run, **(FIELDS | {"epochs": 3}))


@pytest.mark.slow
def test_ctrl_c_saves_first(trained, tmp_path, monkeypatch):
    _, data = trained
    fields = FIELDS | {"epochs": 50, "log_every_steps": 1}

    def press():
        while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text():
            if ended.wait(0.02):
                return
        signal.raise_signal(signal.SIGINT)

    ended = threading.Event()
    presser = threading.Thread(target=press)
    presser.start()
    assert not barlow_jax.train("cifar10", data=data, workdir=tmp_path, **fields)
    ended.set()
    presser.join()
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved and max(saved) < 50 * 5


def test_arrays_are_trained_on_and_judged_without_tensorflow(trained):
    """As all tests here do; an image of a file needs it."""
    with pytest.raises(ImportError):
        from barlow_jax.data import decode  # noqa: F401
    assert (trained[0] / "compiled").is_dir()  # and what was compiled is kept in the work folder


@pytest.mark.parametrize("by", ["knn", "probe"])
def test_evaluate_is_the_command(trained, tmp_path, by):
    run, _ = trained
    fields = {"knn": {"k": (1, 5), "shots": (1,), "shot_seeds": 0}, "probe": {"epochs": 2, "batch_size": 16}}[by]
    found = barlow_jax.evaluate(run, by=by, workdir=tmp_path / "call", **fields)
    written = [json.loads(line) for line in (tmp_path / "call" / "results.jsonl").read_text().splitlines()]
    assert json.loads(json.dumps(found)) == written
    assert written[0]["command"].startswith(f"barlow_jax.evaluate('{run}', by='{by}', ")
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    status, output = commands.run(
        "-m", f"barlow_jax.{by}", f"--checkpoint={run}", f"--workdir={tmp_path / 'line'}", *flags, devices=8
    )
    assert status == 0, output
    assert frozen_runs.lines(tmp_path / "line") == frozen_runs.lines(tmp_path / "call")


def test_load_gives_features_and_classes(trained, tmp_path):
    run, data = trained
    arrays = np.load(data)
    network = barlow_jax.load(run)
    features = network.features(arrays["x_test"])
    # What evaluations see: kNN's features, kept in its work folder.
    barlow_jax.evaluate(run, by="knn", workdir=tmp_path / "knn", k=(1,), shot_seeds=0)
    kept = [np.load(file) for file in (tmp_path / "knn").glob("features_*.npz")]
    same = next(one for one in kept if len(one["features"]) == len(features))
    np.testing.assert_allclose(features, same["features"], rtol=1e-4, atol=1e-5)
    # One by one, of any size, and more than go at a time.
    np.testing.assert_allclose(network.features([*arrays["x_test"][:3]]), features[:3], rtol=1e-4, atol=1e-5)
    larger = arrays["x_train"][:1].repeat(2, 1).repeat(2, 2)
    views = export.evaluation_views(network.subject.config, larger)
    expected = encoder.make_features(network.subject.config, 3)(
        network.subject.params, network.subject.batch_stats, views
    )
    np.testing.assert_allclose(network.features(larger), expected, rtol=0.05, atol=0.05)  # a grey level may round
    assert network.features(arrays["x_train"]).shape == (83, 256)
    with pytest.raises(UserError, match=r"holds no trained classifier|has no classifier"):
        network.classify(arrays["x_test"])

    found = barlow_jax.evaluate(
        run, by="linear", config="linear_cifar10", workdir=tmp_path / "linear", seed=1, **LINEAR
    )
    judged = barlow_jax.load(tmp_path / "linear")
    shares = judged.classify(arrays["x_test"])
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    [last] = [line for line in found if line["settings"]["result"] == "last" and line["metric"] == "top1"]
    assert (shares.argmax(1) == arrays["y_test"]).mean() == pytest.approx(last["value"])
    np.testing.assert_allclose(judged.features(arrays["x_test"]), features, rtol=1e-4, atol=1e-5)
    assert judged.class_names is None and judged.subject.sha256 == subject.load(run).sha256


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda run: barlow_jax.evaluate(run, by="nearest"), "by is 'nearest'; it is one of knn, probe, transfer"),
        (lambda run: barlow_jax.evaluate(run, nothing=1), "config has no field nothing"),
        (lambda run: barlow_jax.load(run / "nowhere"), "nowhere"),
        (lambda run: barlow_jax.train("demo", workdir=""), "--workdir is missing"),
        (lambda run: barlow_jax.train("nothing", workdir="x"), "There is no config 'nothing'"),
        (lambda run: barlow_jax.load(run).features(np.zeros((2, 24, 24, 3))), "The images are float64"),
        (lambda run: barlow_jax.load(run).features(np.zeros((2, 24, 24, 1), np.uint8)), r"give uint8 \[n, height, wi"),
        (lambda run: barlow_jax.load(run).features([]), "There are no images"),
    ],
)
def test_mistakes_are_one_sentence(trained, call, sentence):
    with pytest.raises(UserError, match=sentence):
        call(trained[0])


def test_the_call_that_a_result_remembers_has_all_that_was_given(monkeypatch, tmp_path):
    """A number of the random network would else seem to be the run's."""
    monkeypatch.setattr(knn, "judge", lambda given: [results.lines.typed(), given])
    told, given = barlow_jax.evaluate(tmp_path, baseline="random", ema="last", workdir=pathlib.Path("out"), k=(1,))
    assert told == f"barlow_jax.evaluate('{tmp_path}', by='knn', workdir='out', baseline='random', ema='last', k=(1,))"
    assert (given.baseline, given.ema, given.workdir) == ("random", "last", "out")
    told, _ = barlow_jax.evaluate(tmp_path, config=barlow_jax.config("frozen"))
    assert told == f"barlow_jax.evaluate('{tmp_path}', by='knn', config=config)"


def test_the_name_of_one_field_is_a_name(monkeypatch):
    program, seen = config_files.program("train"), []
    monkeypatch.setattr(program, "main", lambda given: seen.append((given.workdir, given.allow_changes)) or 0)
    monkeypatch.setattr(config_files, "program", lambda name: program)
    assert barlow_jax.train("demo", workdir="x", allow_changes="projector") is True
    barlow_jax.train("demo", workdir=None, allow_changes=("epochs", "lambd"))  # no folder of that name
    assert seen == [("x", ["projector"]), ("", ["epochs", "lambd"])]
