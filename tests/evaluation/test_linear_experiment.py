"""What a config of linear_eval.py means, what of it is refused, and the protocols that the configs keep."""

import importlib

import commands
import numpy as np
import pytest
from linear_runs import CLASSES, TRAIN, VAL, write_set

from barlow_jax import experiment
from barlow_jax.data import Arrays
from barlow_jax.errors import UserError
from barlow_jax.evaluation import linear_experiment
from barlow_jax.results import protocols, published


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
        (
            {"optimizer.schedule": "steps", "optimizer.milestones": (50, 100)},
            "config.epochs 100; .* below config.epochs",
        ),
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
