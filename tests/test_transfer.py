"""VOC2007: the SVMs against scikit-learn's own cross-validation, and the command on images of our own."""

import itertools
import threading
import warnings

import commands
import frozen_runs
import in_threads
import numpy as np
import pytest
import sklearn.exceptions
import sklearn.metrics
import sklearn.model_selection
import sklearn.svm
import voc_set

from barlow_jax.errors import UserError
from barlow_jax.evaluation import svm


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return voc_set.write(tmp_path_factory.mktemp("voc") / "VOC2007")


def four_classes():
    """Targets of 60 images, a tenth of them difficult; features of these and of 40 others."""
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((60, 4)) < 0.3, 1, -1)
    targets[rng.random(targets.shape) < 0.1] = 0
    features = rng.standard_normal((60, 8)) + 0.5 * targets[:, [0, 0, 1, 1, 2, 2, 3, 3]]
    return targets, features, rng.standard_normal((40, 8))


def test_svms_equal_scikit_learns_cross_validation():
    """Random features and targets, a tenth difficult: scores, costs and precisions of an independent loop."""
    costs, (targets, train, test) = (0.01, 1.0, 10.0), four_classes()
    unit = [x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5) for x in (train, test)]
    np.testing.assert_allclose(svm.normalize(train), unit[0])
    found = svm.judge(svm.normalize(train), targets, svm.normalize(test), costs=costs, class_names="abcd", workers=2)
    for c, one in enumerate(found):
        rows = targets[:, c] != 0
        x, y = unit[0][rows], targets[rows, c]
        models = [
            sklearn.svm.LinearSVC(C=cost, class_weight={1: 2, -1: 1}, random_state=0, max_iter=2000, dual=True)
            for cost in costs
        ]
        precisions = [
            sklearn.model_selection.cross_val_score(m, x, y, cv=3, scoring="average_precision").mean() for m in models
        ]
        best = int(np.argmax(precisions))
        assert one.cost == costs[best] and one.cross_validated == pytest.approx(precisions[best], abs=1e-12)
        np.testing.assert_allclose(one.scores, models[best].fit(x, y).decision_function(unit[1]), rtol=1e-12)
    assert len({one.cost for one in found}) > 1


@pytest.fixture
def one_by_one(monkeypatch):
    """Threads that play processes take turns at LIBLINEAR, whose random numbers are one for all of them."""
    turn, real = threading.Lock(), svm._judge_one

    def judge_one(*given):
        with turn:
            return real(*given)

    monkeypatch.setattr(svm, "_judge_one", judge_one)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("count", [3, 5])
def test_processes_share_the_classes_and_all_have_all(monkeypatch, count):
    """4 classes on 3 processes, and on 5, of which one has none: bit for bit what one finds, each class judged once."""
    targets, train, test = four_classes()
    judged = []

    def alone():
        def track(results, total):
            judged.append(total)
            return results

        return svm.judge(train, targets, test, costs=(0.1, 1.0), class_names="abcd", workers=1, track=track)

    expected = alone()
    assert judged == [4]
    for found in in_threads.processes(monkeypatch, count, alone):
        for one, other in zip(found, expected, strict=True):
            assert one[:2] == other[:2] and one.unfinished == other.unfinished
            np.testing.assert_array_equal(one.scores, other.scores)
    assert sorted(judged[1:]) == {3: [1, 1, 2], 5: [1, 1, 1, 1]}[count]


@pytest.mark.usefixtures("one_by_one")
def test_classes_that_are_done_are_kept(monkeypatch, tmp_path):
    """Killed after two of four on one process, gone on with on two: only the others are judged, and all is the same."""
    targets, train, test = four_classes()

    def judge(track=lambda results, total: results, costs=(0.1, 1.0)):
        return svm.judge(
            train, targets, test, costs=costs, class_names="abcd", workers=1, track=track, kept=tmp_path / "kept"
        )

    def killed(results, total):
        yield from itertools.islice(results, 2)
        raise KeyboardInterrupt

    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyboardInterrupt):
        judge(killed)
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 2
    judged = []
    both = in_threads.processes(monkeypatch, 2, lambda: judge(lambda results, total: judged.append(total) or results))
    assert judged == [1, 1]
    (tmp_path / "kept").rename(tmp_path / "first")
    (tmp_path / "kept").mkdir()
    for found in both:
        for one, other in zip(found, judge(), strict=True):
            assert one[:2] == other[:2] and type(one) is type(other)
            np.testing.assert_array_equal(one.scores, other.scores)
    assert {file.name for file in (tmp_path / "first").iterdir()} == {
        file.name for file in (tmp_path / "kept").iterdir()
    }
    again = []
    sorted((tmp_path / "kept").iterdir())[0].write_bytes(b"PK half a file")
    judge(lambda results, total: again.append(total) or results)
    judge(lambda results, total: again.append(total) or results, costs=(0.1,))
    assert again == [1, 4]


def test_a_class_with_too_few_images_is_one_sentence():
    targets = np.array([[1], [1], [-1], [-1], [-1], [0]])
    with pytest.raises(UserError, match="Class cow has 2 positive and 3 negative images, and 3 folds need 3"):
        svm.judge(np.eye(6), targets, np.eye(6), costs=(1.0,), class_names=("cow",))
    # Neither do rows that do not count make up for negatives; three of each are enough.
    targets = np.array([[1], [1], [1], [-1], [-1], [0], [-1]])
    with pytest.raises(UserError, match="3 positive and 2 negative"):
        svm.judge(np.eye(6), targets[:6], np.eye(6), costs=(1.0,), class_names=("cow",))
    (one,) = svm.judge(np.eye(7), targets, np.eye(7), costs=(1.0,), class_names=("cow",), workers=1)
    assert one.scores.shape == (7,)
    with pytest.raises(ValueError, match="zip"):  # the messages would name another class
        svm.judge(np.eye(7), targets, np.eye(7), costs=(1.0,), class_names=("cow", "dog"))


def test_fits_that_come_to_their_last_iteration_are_counted():
    """Classes that no plane divides, at a cost that LIBLINEAR does not finish with, and at one that it does."""
    rng = np.random.default_rng(0)
    train, test, targets = rng.standard_normal((60, 4)), rng.standard_normal((5, 4)), np.resize([1, -1], (60, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        options = {"class_weight": {1: 2, -1: 1}, "random_state": 0, "max_iter": 2000, "dual": True}
        hard = sklearn.svm.LinearSVC(C=1e5, **options).fit(train, targets[:, 0])
        assert hard.n_iter_ == 2000  # so it happens
    finished = []

    def track(results, total):
        assert total == 1
        for result in results:
            finished.append(result)
            yield result

    judged = svm.judge(train, targets, test, costs=(1e5,), class_names=("cow",), workers=1, track=track)
    assert judged[0][:2] == finished[0][:2] and judged[0].unfinished == 4  # three folds and the whole
    np.testing.assert_array_equal(judged[0].scores, hard.decision_function(test))
    (easy,) = svm.judge(train, targets, test, costs=(0.01,), class_names=("cow",), workers=1)
    assert easy.unfinished == 0


SHORT = (
    "--config.eval.crop=24",
    "--config.eval.resize=24",
    "--config.costs=(0.1,1.0,10.0)",
    "--config.eval.batch_size=8",
    "--config.data.threads=1",
)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(voc, tmp_path):
    """Two of two devices, and one: the same costs and averages, scores to 1e-4."""
    run = frozen_runs.make(tmp_path / "run", frozen_runs.write_set(tmp_path / "set.npz"))
    call = (f"--checkpoint={run}", f"--config.data.path={voc}", *SHORT)
    status, alone = commands.run("-m", "barlow_jax.transfer", f"--workdir={tmp_path / '1'}", *call)
    assert status == 0, alone
    both = frozen_runs.two_processes("barlow_jax.transfer", f"--workdir={tmp_path / '2'}", *call)
    outputs = [commands.finish(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    for one, other in zip(*(frozen_runs.lines(tmp_path / name) for name in "12"), strict=True):
        assert one.pop("value") == pytest.approx(other.pop("value"), abs=1e-9)
        assert one == other
    one, other = (dict(np.load(tmp_path / name / "voc_scores.npz")) for name in "12")
    np.testing.assert_allclose(other["scores"], one["scores"], atol=1e-4)
    np.testing.assert_array_equal(other["targets"], one["targets"])
    tables = [
        [line for line in text.splitlines() if line.startswith(("bird", "boat", "cow"))] for text in (alone, outputs[0])
    ]
    assert tables[0] == tables[1] and len(tables[0]) == 3


def test_the_command(voc, tmp_path):
    """Its precisions, from the scores it leaves; a class that one split lacks."""
    run = frozen_runs.make(tmp_path / "run", frozen_runs.write_set(tmp_path / "set.npz"))
    call = ("-m", "barlow_jax.transfer", f"--checkpoint={run}", *SHORT)
    status, output = commands.run(*call, f"--config.data.path={voc}", devices=2)
    assert status == 0, output
    lines = {line["metric"]: line for line in frozen_runs.lines(run / "eval")}
    assert list(lines) == ["map_voc07", "map_area", "map_voc10"]
    line = lines["map_area"]
    assert (line["protocol"], line["dataset"], line["n"], line["classes"]) == ("voc07 svm", "VOC2007:test", 23, 3)
    with np.load(run / "eval" / "voc_scores.npz") as file:
        left = dict(file)
    counted = left["targets"] != 0
    assert (~counted).sum() == 3  # of the images 35, 42 and 49
    areas = [
        sklearn.metrics.average_precision_score(left["targets"][counted[:, c], c], left["scores"][counted[:, c], c])
        for c in range(3)
    ]
    assert line["value"] == pytest.approx(np.mean(areas)) and line["value"] > 0.5
    assert "cow" in output and "voc10 %" in output

    (voc / "ImageSets" / "Main" / "dog_test.txt").write_text("000031 1\n")
    status, output = commands.run(*call, f"--config.data.path={voc}")
    assert status == 1 and "error: There is a list of class dog for one of" in output and "Traceback" not in output
