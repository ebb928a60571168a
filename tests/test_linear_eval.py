"""`python linear_eval.py` as a user types it, on a run that train.py has just made; and its refusals."""

import importlib
import json
import os

import commands
import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from barlow_jax import experiment, model
from barlow_jax.data import Arrays
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classifier, linear_experiment
from barlow_jax.results import protocols, published
from barlow_jax.run import lock
from barlow_jax.run.checkpoint import Checkpoints, restore_params

CLASSES, TRAIN, VAL = 6, 44, 30


def write_set(path, *, seed=0, classes=CLASSES, **changes):
    """An .npz of noisy colours, the colour telling the class, so that top-5 of 6 classes says something too."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 200, size=(classes, 1, 1, 3))
    arrays = {}
    for split, n in (("train", TRAIN), ("test", VAL)):
        labels = np.arange(n) % classes
        cast = rng.integers(-60, 60, size=(n, 1, 1, 3))  # so that not every image is told right
        images = colours[labels] + cast + rng.integers(-40, 40, size=(n, 24, 24, 3))
        arrays |= {f"x_{split}": images.clip(0, 255).astype(np.uint8), f"y_{split}": labels}
    np.savez(path, **(arrays | changes))
    return path


def arguments(pretrained, workdir, *more):
    """5 epochs of 3 steps, the last batch of each smaller."""
    return (
        "--config=configs/linear_cifar10.py",
        f"--checkpoint={pretrained}",
        f"--workdir={workdir}",
        "--config.epochs=5",
        "--config.batch_size=16",
        "--config.image_size=0",
        "--config.eval.resize=0",
        "--config.eval.crop=0",
        "--config.eval.batch_size=16",
        "--config.log_every_steps=1",
        "--config.checkpoint_every_epochs=2",
        "--config.optimizer.learning_rate_classifier=0.05",
        *more,
    )


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


def results(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def scores(workdir):
    """{("last", "top1"): value, ...} of the results of one seed."""
    return {(line["settings"]["result"], line["metric"]): line["value"] for line in results(workdir)}


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
        with pytest.raises(UserError, match=r"the classifier takes uint8 \[n, 24, 24, 3\], short side 24"):
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
launch.run(linear_eval.main)
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
            linear_experiment.find_origin(str(checkpoint), [workdir])
    with pytest.raises(UserError, match="holds an evaluation of .*run, and --checkpoint is .* with --baseline=random;"):
        linear_experiment.find_origin(str(pretrained), [undisturbed[0]], "random")
    params, batch_stats, meta = restore_params(pretrained)
    batch_stats["backbone"]["norm"]["mean"][3] = np.nan
    with Checkpoints(tmp_path / "sick" / "checkpoints", asynchronous=False) as checkpoints:
        checkpoints.save(1, {"params": params, "batch_stats": batch_stats}, meta)
    with pytest.raises(UserError, match="has values in batch_stats.norm.mean that are not finite, so its features"):
        linear_experiment.find_origin(str(tmp_path / "sick"), [tmp_path / "linear"])
    with Checkpoints(tmp_path / "foreign" / "checkpoints", asynchronous=False) as checkpoints:
        checkpoints.save(1, {"params": {"head": np.zeros(3)}, "batch_stats": {}}, {})
    with pytest.raises(UserError, match="foreign is no checkpoint of a pre-training run"):
        linear_experiment.find_origin(str(tmp_path / "foreign"), [tmp_path / "linear"])


def test_a_single_checkpoint_can_be_judged(pretrained, tmp_path):
    origin = linear_experiment.find_origin(str(pretrained / "checkpoints" / "6"), [tmp_path])
    assert (origin.step, origin.channels, origin.config["arch"]) == (6, 3, "convnet")


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
    "baseline,features,more", [("random", 256, ()), ("pixels", 24 * 24 * 3, ()), ("pixels", 24 * 24 * 3, FINETUNED)]
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


def linear_config(**changes):
    config = importlib.import_module("configs.linear").get_config()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def digits_run():
    return importlib.import_module("configs.demo").get_config()


def test_what_is_empty_is_as_in_the_pre_training_run():
    config = linear_experiment.filled_in(linear_config(**{"image_size": 0, "data.val": "val"}), digits_run())
    assert (config.data.kind, config.data.path, config.data.train, config.data.val) == ("digits", "", "train", "val")
    assert (config.image_size, config.eval.resize, config.eval.crop) == (24, 256, 224)
    # Of other images, nothing can be taken over.
    config = linear_experiment.filled_in(linear_config(**{"data.kind": "npz", "data.path": "x.npz"}), digits_run())
    assert (config.data.kind, config.data.path, config.data.train, config.data.val) == ("npz", "x.npz", "", "")


@pytest.mark.parametrize(
    "change,sentence",
    [
        ({"weights": "frozen"}, "config.weights is 'frozen'; it is one of freeze, finetune"),
        ({"weights": "finetune"}, "learning_rate_backbone is 0.0 with config.weights 'finetune'"),
        ({"optimizer.learning_rate_backbone": 0.1}, "learning_rate_backbone is 0.1 with config.weights 'freeze'"),
        ({"precision": "float8"}, "config.precision is 'float8'"),
        ({"epochs": 0}, "config.epochs is 0; it must be at least 1"),
        ({"eval.every_epochs": 0}, "config.eval.every_epochs is 0; it must be at least 1"),
        ({"seeds": 0}, "config.seeds is 0; it must be at least 1"),
        ({"optimizer.schedule": "step"}, "config.optimizer.schedule is 'step'; it is one of cosine, steps"),
        ({"optimizer.schedule": "steps"}, "config.optimizer.milestones is .* with config.optimizer.schedule 'steps'"),
        ({"optimizer.milestones": (3,)}, "milestones is .3,. with config.optimizer.schedule 'cosine'"),
        ({"optimizer.schedule": "steps", "optimizer.milestones": (9, 3)}, "they are numbers of epochs, rising"),
        ({"optimizer.schedule": "steps", "optimizer.milestones": (50, 100)}, "below config.epochs .100."),
        ({"optimizer.factor": 0.0}, "config.optimizer.factor is 0.0"),
        ({"flip": 2.0}, "config.flip is 2.0"),
        ({"crop_scale": (0.5, 1.5)}, "config.crop_scale is"),
    ],
)
def test_impossible_values_are_refused(change, sentence):
    linear_experiment.check(linear_config())
    with pytest.raises(UserError, match=sentence):
        linear_experiment.check(linear_config(**change))


LABELS = np.arange(TRAIN) % CLASSES


@pytest.mark.parametrize(
    "arrays,sentence",
    [
        ({"y_train": np.full(TRAIN, -1)}, "set.npz:train has no labels; point config.data.path"),
        ({"y_train": np.where(LABELS == 0, -1, LABELS)}, "8 of the 44 images of set.npz:train have no label"),
        ({"y_train": LABELS % 4}, "set.npz:test has images of class 5, but set.npz:train has only the classes 0 to 3"),
        ({"y_train": LABELS * 0, "y_test": np.zeros(VAL, int)}, "set.npz:train has one class only"),
        (
            {"x_test": np.zeros((VAL, 24, 24), np.uint8)},
            "set.npz:test has images of 1 channels and the checkpoint is for",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path, arrays, sentence):
    path = str(write_set(tmp_path / "set.npz", **arrays))
    config = {"data.kind": "npz", "data.path": path, "data.train": "train", "data.val": "test"}
    with pytest.raises(UserError, match=sentence):
        linear_experiment.sources(linear_config(**config), channels=3)


def test_a_class_folder_that_is_missing_in_val_is_named(tmp_path):
    commands.photographs(tmp_path / "train", each=2)
    (commands.photographs(tmp_path / "val", each=2) / "class1").rename(tmp_path / "elsewhere")
    config = linear_config(
        **{
            "data.kind": "folder",
            "data.path": str(tmp_path),
            "data.train": "train",
            "data.val": "val",
            "data.resident_bytes": 0,
        }
    )
    with pytest.raises(UserError, match="val has no class folder 'class1', and .*train has one .1 of 3 classes are"):
        linear_experiment.sources(config, channels=3)
    (tmp_path / "elsewhere").rename(tmp_path / "val" / "another")
    with pytest.raises(UserError, match="The class folder .*another is none of the 3 classes asked for"):
        linear_experiment.sources(config, channels=3)


def test_a_list_of_files_names_the_images_of_a_semi_supervised_run(tmp_path):
    """As SimCLR's lists do, by bare name; the classes stay those of the folders, and validation is whole."""
    for split in ("train", "val"):
        for name in commands.photographs(tmp_path / split, each=3).rglob("*.jpg"):
            name.rename(name.with_name(f"{name.parent.name}_{name.name}"))
    (tmp_path / "list.txt").write_text("class2_001.jpg\nclass0_000.jpg\n")
    config = importlib.import_module("configs.semi_supervised").get_config("1")
    with config.unlocked():
        config.data.kind, config.data.path, config.data.file_list = "folder", str(tmp_path), str(tmp_path / "list.txt")
        config.data.train, config.data.val = "train", "val"
    source, val, classes = linear_experiment.sources(config, channels=3)
    assert (classes, source.labels.tolist(), len(val)) == (3, [0, 2], 9)


def test_other_classes_and_missing_validation_are_refused(tmp_path, monkeypatch):
    config = linear_config(**{"data.kind": "npz", "data.path": str(write_set(tmp_path / "set.npz"))})
    with config.unlocked():
        config.data.train, config.data.val = "train", ""
    with pytest.raises(UserError, match="config.data.val is empty"):
        linear_experiment.sources(config, channels=3)
    with config.unlocked():
        config.data.path = ""
    with pytest.raises(UserError, match="config.data.path is empty"):
        linear_experiment.sources(config, channels=3)
    pair = (
        Arrays(np.zeros((2, 4, 4, 3), np.uint8), np.arange(2), class_names=names, name="".join(names))
        for names in (("a", "b"), ("b", "a"))
    )
    monkeypatch.setattr(experiment, "sources", lambda config: tuple(pair))
    with config.unlocked():
        config.data.path = "somewhere"
    with pytest.raises(UserError, match="ab and ba name their classes differently"):
        linear_experiment.sources(config, channels=3)


SEMI = [("1", "1 %"), ("10", "10 %"), ("1_paper", "1 %, paper"), ("10_paper", "10 %, paper")]
TRANSFER = [
    ("places205", "Places205"),
    ("inaturalist18", "iNaturalist18"),
    ("places205_vissl", "Places205, VISSL"),
    ("inaturalist18_vissl", "iNaturalist18, VISSL"),
]
NAMED = [("linear", None, "linear"), ("linear_tfds", "imagenet2012", "linear")]
NAMED += [("semi_supervised", row, f"semi-supervised {name}") for row, name in SEMI]
NAMED += [("transfer", row, f"linear {name}") for row, name in TRANSFER]


@pytest.mark.parametrize("name,row,protocol", NAMED)
def test_configs_keep_the_protocol_they_name(name, row, protocol):
    config = importlib.import_module(f"configs.{name}").get_config(*([row] if row else []))
    linear_experiment.check(config)
    assert protocols.name_of(config) == protocol and protocol in protocols.PROTOCOLS
    assert protocols.departures(config) == []
    with config.unlocked():
        config.batch_size, config.flip = 512, 0.0
    assert protocols.departures(config) == ["batch_size 512 instead of 256", "flip 0 instead of 0.5"]


def test_every_protocol_has_a_config_and_every_result_a_protocol():
    assert {protocol for *_, protocol in NAMED} == set(protocols.PROTOCOLS)
    named = {name for result in published.RESULTS for name in result.protocols}
    assert named == {*protocols.PROTOCOLS, "voc07 svm"}


def test_rates_of_the_papers_semi_supervised_setting():
    """Backbone 0.002 and classifier 0.5, times 0.2 after the 12th and the 16th epoch."""
    config = importlib.import_module("configs.semi_supervised").get_config("1_paper")
    _, rates = linear_experiment.optimizer(config, 10)
    for name, peak in (("learning_rate_backbone", 0.002), ("learning_rate_classifier", 0.5)):
        got = [float(rates[name](10 * epoch + k)) for epoch in range(20) for k in (0, 9)]
        np.testing.assert_allclose(got, np.repeat([peak, 0.2 * peak, 0.04 * peak], [24, 8, 8]), rtol=1e-6)


@pytest.mark.parametrize("name,row", [("semi_supervised", "2"), ("semi_supervised", "1_code"), ("transfer", "voc07")])
def test_unknown_rows_are_refused(name, row):
    with pytest.raises(ValueError, match=f"configs/{name}.py:{row} is unknown; take "):
        importlib.import_module(f"configs.{name}").get_config(row)


def test_a_protocol_without_rules_departs_from_none():
    config = linear_config(**{"protocol": "mine", "epochs": 3})
    assert protocols.name_of(config) == "mine" and protocols.departures(config) == []


@pytest.mark.parametrize("name", ["linear", "linear_cifar10", "linear_image_folder", "linear_demo"])
def test_every_linear_config_builds(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    linear_experiment.check(config)
    filled = linear_experiment.filled_in(config, digits_run())
    tx, rates = linear_experiment.optimizer(filled, 10)
    assert rates.keys() == {"learning_rate_classifier"}
    assert float(rates["learning_rate_classifier"](9)) == np.float32(0.3)
    recipe = linear_experiment.recipe(filled, digits_run())
    assert recipe.mean == (0.5, 0.5, 0.5) and recipe.interpolation == "linear" and recipe.size == filled.image_size
    tx.init({"fc": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}})


def test_every_field_of_the_first_config_is_explained():
    text = (commands.ROOT / "configs" / "linear.py").read_text()
    for block in text[text.index("def get_config") :].split("\n\n"):
        assert "#" in block.split("return")[0] or not block.strip(), block
