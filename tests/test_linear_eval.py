"""`python linear_eval.py` as a user types it, on a run that train.py has just made."""

import os

import commands
import jax
import numpy as np
import pytest
from flax import nnx
from linear_runs import CLASSES, TRAIN, VAL, arguments, results, scores, write_set
from ml_collections import ConfigDict

from barlow_jax import experiment, model
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classifier, linear_experiment
from barlow_jax.run import lock
from barlow_jax.run.checkpoint import Checkpoints, restore_params


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The work folder of a short run of train.py."""
    folder = tmp_path_factory.mktemp("pretrained")
    plain = ("jitter=0.0", "grayscale=0.0", "solarize=(0.0,0.0)")  # of what there is no need to compile
    status, output = commands.run(
        "train.py",
        "--config=configs/cifar10.py",
        f"--config.data.path={write_set(folder / 'set.npz')}",
        f"--workdir={folder / 'run'}",
        *commands.SMALL,
        "--config.epochs=3",
        "--config.eval.every_epochs=0",
        *(f"--config.views.{field}" for field in plain),
    )
    assert status == 0, output
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed(pretrained, tmp_path_factory):
    """An evaluation that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "linear"
    status, output = commands.run("linear_eval.py", *arguments(pretrained, workdir))
    assert status == 0, output
    return workdir, output


def test_results_are_those_of_the_saved_classifier(pretrained, undisturbed):
    """The last accuracies, recomputed from the checkpoint without the pipeline: central crops of 24 x 24 are whole."""
    workdir, _ = undisturbed
    params, batch_stats, meta = restore_params(workdir)
    config = ConfigDict(meta["config"])
    backbone = experiment.backbone(config, 3)
    graphdef, *_ = model.split(nnx.eval_shape(lambda: model.Classifier(backbone, CLASSES, rngs=nnx.Rngs(0))))
    data = np.load(pretrained.parent / "set.npz")
    images = (data["x_test"] / 255 - config.views.mean) / config.views.std

    @jax.jit
    def logits_of(images):
        return model.merge(graphdef, params, batch_stats)(images, train=False)

    ranked = np.argsort(-np.asarray(logits_of(images.astype(np.float32))), axis=1)
    hit = ranked == data["y_test"][:, None]
    got = scores(workdir)
    assert got["last", "top1"] == pytest.approx(hit[:, 0].mean())
    assert got["last", "top5"] == pytest.approx(hit[:, :5].any(1).mean())
    assert got["last", "top1"] > 2 / CLASSES  # it has learnt something


def test_the_trained_classifier_loads_and_reaches_its_results(pretrained, undisturbed):
    """The best one too, if it is another; from the uint8 images alone."""
    workdir, _ = undisturbed
    loaded, data = classifier.load(workdir), np.load(pretrained.parent / "set.npz")
    assert (loaded.size, loaded.channels, loaded.class_names, loaded.step) == (24, 3, None, 15)
    hits = np.asarray(loaded(data["x_test"])).argmax(1) == data["y_test"]
    assert hits.mean() == pytest.approx(scores(workdir)["last", "top1"]) == loaded.results["last"]["top1"]
    for images in (data["x_test"][:, :20], data["x_test"] / 255):
        with pytest.raises(UserError, match=r"the classifier takes uint8 or uint16 \[n, 24, 24, 3\], short side 24"):
            loaded(images)
    with pytest.raises(UserError, match="holds no trained classifier; give the --workdir of linear_eval.py"):
        classifier.load(pretrained)


def test_results_say_what_was_judged_and_how(pretrained, undisturbed):
    workdir, output = undisturbed
    lines = [line for line in commands.lines(workdir) if "top1" in line]
    assert [(line["epoch"], line["step"]) for line in lines] == [(k, 3 * k) for k in range(1, 6)]
    for result in results(workdir):
        want = {
            "protocol": "linear",
            "dataset": "set.npz:test",
            "n": VAL,
            "classes": CLASSES,
            "spread": None,
            "checkpoint": str(pretrained),
            "checkpoint_step": 6,
            "baseline": "",
            "seeds": [0],
        }
        assert {k: result[k] for k in want} == want
        settings = result["settings"]
        assert (settings["epochs"], settings["train"], settings["train_images"]) == (5, "set.npz:train", TRAIN)
        assert settings["departures"][:2] == ["epochs 5 instead of 100", "batch_size 16 instead of 256"]
        assert result["command"].startswith("python linear_eval.py --config=configs/linear_cifar10.py --checkpoint=")
    at = {(line["settings"]["result"], line["metric"]): line["settings"]["at_epoch"] for line in results(workdir)}
    got = scores(workdir)
    for k in ("top1", "top5"):  # each best for itself, the first of equals
        values = [line[k] for line in lines]
        assert (got["best", k], at["best", k]) == (max(values), [values.index(max(values)) + 1])
        assert (got["last", k], at["last", k]) == (values[-1], [5])
    assert "the frozen backbone has not moved" in output and f"{100 * got['last', 'top1']:.2f}" in output
    assert "not as linear has it: epochs 5 instead of 100" in output
    rates = [line["learning_rate_classifier"] for line in commands.lines(workdir) if "loss" in line]
    np.testing.assert_allclose(rates, np.repeat(0.025 * (1 + np.cos(np.pi * np.arange(5) / 5)), 3), rtol=1e-6)


def test_the_frozen_backbone_is_the_checkpoint_bit_for_bit(pretrained, undisturbed):
    given, given_stats, _ = restore_params(pretrained)
    params, batch_stats, _ = restore_params(undisturbed[0])
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], given["backbone"])
    jax.tree.map(np.testing.assert_array_equal, batch_stats["backbone"], given_stats["backbone"])
    assert params.keys() == {"backbone", "fc"} and params["fc"]["kernel"].shape == (256, CLASSES)


DRIVER = """
import os, signal, sys
import linear_eval
from barlow_jax.evaluation import classify
from barlow_jax.run import launch

number, last, evaluation = getattr(signal, sys.argv.pop(1)), int(sys.argv.pop(1)), int(sys.argv.pop(1))
make_train_step, made = classify.make_train_step, []

def make(*args, **options):
    train_step = make_train_step(*args, **options)
    made.append(train_step)
    def step(state, batch):
        if len(made) == evaluation and int(state.step) + 1 == last:
            os.kill(os.getpid(), number)
        return train_step(state, batch)
    return step

classify.make_train_step = make
launch.run(linear_eval.main, linear_eval.define_flags)
"""


def test_stopped_killed_and_started_again_it_ends_the_same(pretrained, undisturbed, tmp_path):
    """SIGTERM during step 5, SIGKILL during step 11 (a checkpoint lies at 6), then to the end."""
    driver, workdir = tmp_path / "driver.py", tmp_path / "linear"
    driver.write_text(DRIVER)
    status, output = commands.run(driver, "SIGTERM", 5, 1, *arguments(pretrained, workdir))
    assert status == 0 and "preempted at step 5" in output, output
    status, output = commands.run(driver, "SIGKILL", 11, 1, *arguments(pretrained, workdir))
    assert status == -9 and "going on from step 5 of 15" in output, output
    status, output = commands.run("linear_eval.py", *arguments(pretrained, workdir))
    assert status == 0 and "going on from step" in output and "has not moved" in output, output

    for got, want in zip(restore_params(workdir)[:2], restore_params(undisturbed[0])[:2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert commands.lines(workdir) == commands.lines(undisturbed[0])
    same = [[{**r, "command": ""} for r in results(w)] for w in (workdir, undisturbed[0])]
    assert same[0] == same[1]


def test_a_finished_evaluation_needs_no_checkpoint_and_writes_nothing_twice(pretrained, undisturbed):
    workdir, _ = undisturbed
    before, away = (workdir / "results.jsonl").read_text(), pretrained.with_name("away")
    pretrained.rename(away)
    try:
        status, output = commands.run("linear_eval.py", *arguments(pretrained, workdir))
    finally:
        away.rename(pretrained)
    assert status == 0 and "going on from step 15 of 15" in output, output
    assert (workdir / "results.jsonl").read_text() == before


def test_fine_tuning_moves_the_backbone_at_its_own_rate(pretrained, tmp_path):
    more = ("--config.weights=finetune", "--config.optimizer.learning_rate_backbone=0.01", "--config.epochs=1")
    status, output = commands.run("linear_eval.py", *arguments(pretrained, tmp_path, *more))
    assert status == 0 and "has not moved" not in output, output
    assert [result["protocol"] for result in results(tmp_path)] == 4 * ["fine-tuning"]
    line = commands.lines(tmp_path)[0]
    assert (line["learning_rate_backbone"], line["learning_rate_classifier"]) == (0.01, 0.05)
    given, given_stats, _ = restore_params(pretrained)
    params, batch_stats, _ = restore_params(tmp_path)
    for got, want in ((params, given), (batch_stats, given_stats)):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), got["backbone"], want["backbone"])
        assert all(jax.tree.leaves(moved))


def test_a_missing_checkpoint_is_refused_in_one_sentence(tmp_path):
    status, output = commands.run("linear_eval.py", *arguments(tmp_path / "nowhere", tmp_path / "linear"))
    assert status == 1 and "Traceback" not in output
    assert output.strip().splitlines()[-1].startswith(f"error: A checkpoint was expected in {tmp_path / 'nowhere'}")


def test_a_second_evaluation_in_a_folder_is_refused(pretrained, tmp_path):
    descriptor = lock.hold(tmp_path)
    status, output = commands.run("linear_eval.py", *arguments(pretrained, tmp_path))
    os.close(descriptor)
    assert status == 1 and "Traceback" not in output
    assert f"error: {tmp_path} is in use by another run (process {os.getpid()} on " in output.splitlines()[-1]


def test_folders_that_are_refused(pretrained, tmp_path):
    for checkpoint, workdir, sentence in (
        ("", tmp_path, "--checkpoint is missing"),
        (pretrained, "", "--workdir is missing"),
        (pretrained, pretrained, "holds the run that is judged; take a folder for it alone"),
        (pretrained / "checkpoints" / "6", pretrained, "holds the run that is judged"),
    ):
        with pytest.raises(UserError, match=sentence):
            linear_experiment.check_folders(str(checkpoint), str(workdir))
    linear_experiment.check_folders(str(pretrained), str(pretrained / "linear"))


def test_origins_that_are_refused(pretrained, undisturbed, tmp_path):
    for checkpoint, workdir, sentence in (
        (undisturbed[0], tmp_path, "is no checkpoint of a pre-training run"),
        (tmp_path / "another", undisturbed[0], "holds an evaluation of .*run, and --checkpoint is .*another"),
        (pretrained / "checkpoints" / "5", tmp_path, "A checkpoint was expected in .*5, which holds none"),
    ):
        with pytest.raises(UserError, match=sentence):
            linear_experiment.find_subject(str(checkpoint), [workdir])
    with pytest.raises(UserError, match="holds an evaluation of .*run, and --checkpoint is .* with --baseline=random;"):
        linear_experiment.find_subject(str(pretrained), [undisturbed[0]], "random")
    params, batch_stats, meta = restore_params(pretrained)
    batch_stats["backbone"]["norm"]["mean"][3] = np.nan
    with Checkpoints(tmp_path / "sick" / "checkpoints", asynchronous=False) as checkpoints:
        checkpoints.save(1, {"params": params, "batch_stats": batch_stats}, meta)
    with pytest.raises(UserError, match="sick holds 1 values that are nan or infinite in norm.mean"):
        linear_experiment.find_subject(str(tmp_path / "sick"), [tmp_path / "linear"])
    with Checkpoints(tmp_path / "foreign" / "checkpoints", asynchronous=False) as checkpoints:
        checkpoints.save(1, {"params": {"head": np.zeros(3)}, "batch_stats": {}}, {})
    with pytest.raises(UserError, match="foreign is no checkpoint of a pre-training run"):
        linear_experiment.find_subject(str(tmp_path / "foreign"), [tmp_path / "linear"])


def test_a_single_checkpoint_can_be_judged(pretrained, tmp_path):
    origin = linear_experiment.find_subject(str(pretrained / "checkpoints" / "6"), [tmp_path])
    assert (origin.step, origin.channels, origin.config["arch"]) == (6, 3, "convnet")


@pytest.mark.slow
def test_several_seeds_end_with_mean_and_spread(pretrained, undisturbed, tmp_path):
    """Stopped in the second seed; the same line goes on there. Each seed is what it is alone."""
    driver, workdir = tmp_path / "driver.py", tmp_path / "linear"
    driver.write_text(DRIVER)
    line = (*arguments(pretrained, workdir), "--config.seeds=2")
    status, output = commands.run(driver, "SIGTERM", 5, 2, *line)
    assert status == 0 and "preempted at step 5" in output, output
    assert not (workdir / "results.jsonl").exists()
    status, output = commands.run("linear_eval.py", *line)
    assert status == 0 and "going on from step 15 of 15" in output and "going on from step 5 of 15" in output, output
    first, second = scores(workdir / "seed_0"), scores(workdir / "seed_1")
    assert first == scores(undisturbed[0]) and first != second
    assert len(results(workdir)) == 4
    for result in results(workdir):
        pair = [alone[result["settings"]["result"], result["metric"]] for alone in (first, second)]
        assert result["seeds"] == [0, 1]
        assert result["value"] == pytest.approx(np.mean(pair))
        assert result["spread"] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    assert "seed 0, 1" in output


FINETUNED = ("--config.weights=finetune", "--config.optimizer.learning_rate_backbone=0.001")


@pytest.mark.parametrize(
    "baseline,features,more",
    [
        ("random", 256, ()),
        pytest.param("pixels", 24 * 24 * 3, (), marks=pytest.mark.slow),
        pytest.param("pixels", 24 * 24 * 3, FINETUNED, marks=pytest.mark.slow),
    ],
)
def test_baselines(pretrained, tmp_path, baseline, features, more):
    """They resume as the run itself does, from another evaluation's folder not."""
    line = (*arguments(pretrained, tmp_path, "--config.checkpoint_every_epochs=1"), f"--baseline={baseline}", *more)
    status, output = commands.run("linear_eval.py", *line, "--config.epochs=2")
    assert status == 0 and f"judging {baseline} in place of {pretrained}" in output, output
    params, batch_stats, _ = restore_params(tmp_path)
    assert params["fc"]["kernel"].shape == (features, CLASSES)
    if baseline == "random":
        backbone = experiment.backbone(ConfigDict(restore_params(pretrained)[2]["config"]), 3)
        _, fresh, fresh_stats = model.split(backbone(rngs=nnx.Rngs(0)))
        jax.tree.map(np.testing.assert_array_equal, params["backbone"], fresh)
        jax.tree.map(np.testing.assert_array_equal, batch_stats["backbone"], fresh_stats)
    assert {(line["baseline"], line["checkpoint_step"]) for line in results(tmp_path)} == {(baseline, 0)}
    status, output = commands.run("linear_eval.py", *line, "--config.epochs=2")
    assert status == 0 and "going on from step 6 of 6" in output, output
    assert classifier.load(tmp_path)(np.zeros((2, 24, 24, 3), np.uint8)).shape == (2, CLASSES)
