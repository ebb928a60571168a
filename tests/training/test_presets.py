"""What is chosen by the number and the size of the images, and that what people set holds."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

import barlow_jax
from barlow_jax import experiment, fields, plan
from barlow_jax.data import Arrays, ImageFolder
from barlow_jax.errors import UserError
from barlow_jax.run import workdir
from barlow_jax.training import presets
from barlow_jax.training.presets import Images


def a_config(path="photos", **changes):
    config = barlow_jax.config("image_folder").unlock()
    config.data.path = str(path)
    config.update(changes)
    return config.lock()


def chosen(config, *images):
    """The config with its open fields filled in."""
    presets.fill(config, presets.by_images(presets.asked(config), Images(*images)))
    return config


# (images, short side, features): projector, lambd, batch, rate, epochs, warm-up, steps between checkpoints.
SETS = {
    (619, 375, 512): ((512,) * 3, 0.0204, 128, 0.7, 1000, 10, 250),
    (40, 375, 2048): ((512,) * 3, 0.0204, 32, 0.7, 1000, 10, 100),
    (9_469, 375, 2048): ((2048,) * 3, 0.0051, 256, 0.4, 1000, 10, 1000),
    (50_000, 32, 512): ((2048,) * 3, 0.0051, 256, 0.4, 1000, 10, 1000),  # solo-learn's CIFAR-10
    (126_689, 375, 512): ((2048,) * 3, 0.0051, 256, 0.4, 400, 10, 1000),  # solo-learn's ImageNet-100
    (1_281_167, 375, 2048): ((8192,) * 3, 0.0051, 256, 0.4, 300, 10, 1000),  # the authors' ablations
    (1_281_167, 375, 512): ((2048,) * 3, 0.0051, 256, 0.4, 300, 10, 1000),
}


def test_lambd_times_the_dimensions_is_that_of_2048_below_them():
    images = Images(100, 32, 16, "cpu")
    assert [presets.lambd({"projector": (d,)}, images) for d in (64, 512, 8192)] == [0.1632, 0.0204, 0.0051]


@pytest.mark.parametrize(("batch", "rate"), [(128, 0.7), (256, 0.4), (512, 0.3), (1024, 0.25), (2048, 0.2), (64, 0.7)])
def test_the_learning_rate_is_that_of_the_batch_size(batch, rate):
    config = chosen(a_config(batch_size=batch), 10**6)
    assert config.optimizer.learning_rate_weights == rate


@pytest.mark.parametrize("images", SETS)
def test_the_rules_give_what_the_sources_have(images):
    config = chosen(a_config(), *images)
    want = (
        *(config.projector, config.lambd, config.batch_size, config.optimizer.learning_rate_weights),
        *(config.epochs, config.warmup_epochs, config.checkpoint_every_steps),
    )
    assert want == SETS[images]
    experiment.check(config)


@pytest.mark.parametrize(
    ("side", "sizes"),
    [
        (20, (32, 32, 32, "cifar")),
        (63, (32, 32, 32, "cifar")),
        (64, (64, 64, 64, "imagenet")),
        (100, (96, 96, 96, "imagenet")),
        (200, (160, 160, 182, "imagenet")),
        (375, (224, 224, 256, "imagenet")),
    ],
)
def test_the_size_of_the_images_says_that_of_the_views(side, sizes):
    config = chosen(a_config(), 1000, side)
    assert (config.image_size, config.eval.crop, config.eval.resize, config.stem) == sizes
    assert config.views.blur == ((0.0, 0.0) if config.stem == "cifar" else (1.0, 0.1))
    assert chosen(a_config(), 1000, side, 512, "cpu").precision == "float32"
    assert chosen(a_config(), 1000, side, 512, "gpu").precision == "bfloat16"


def test_what_is_set_holds_and_the_rest_goes_by_it():
    config = chosen(a_config(epochs=5, image_size=64, batch_size=600, projector=(128, 256)), 619, 375)
    assert (config.epochs, config.image_size, config.batch_size, config.projector) == (5, 64, 600, (128, 256))
    assert (config.warmup_epochs, config.eval.every_epochs, config.eval.crop) == (1, 1, 64)
    assert (config.optimizer.learning_rate_weights, config.lambd) == (0.3, 0.0408)
    assert chosen(a_config(warmup_epochs=0), 619).warmup_epochs == 0
    by_batch = barlow_jax.config("image_folder:2048")
    assert chosen(by_batch, 10**6).optimizer.learning_rate_weights == 0.2 and by_batch.batch_size == 2048


def test_whatever_the_images_the_config_can_be_trained():
    for count, side in ((1, 1), (2, 33), (3, 10_000), (127, 31), (1023, 200), (4_999, 64), (500_000, 96), (10**8, 500)):
        for epochs in (None, 1, 2, 11, 10**6):
            config = chosen(a_config(epochs=epochs), count, side, 192)
            fields.check(config, fields.PRETRAINING)
            assert not presets.left_open(config) and config.batch_size <= max(count, 2)


def test_settled_by_the_folder_itself_and_told_in_a_line(photographs, caplog, monkeypatch):
    """48 photographs of 40 x 48 pixels, looked through once."""
    config, opened, open_fields = a_config(photographs, arch="convnet", epochs=3), [], experiment.open_fields
    monkeypatch.setattr(experiment, "open_fields", lambda *a, **more: opened.append(a) or open_fields(*a, **more))
    with caplog.at_level(logging.INFO):
        source, _ = experiment.sources(config, experiment.settle(config))
    assert len(source) == 48 and [split for _, split, _ in opened] == [config.data.train]
    assert (config.image_size, config.batch_size, config.warmup_epochs) == (32, 32, 1)
    assert config.precision == "float32" and not presets.left_open(config)
    line = next(record.getMessage() for record in caplog.records if "chosen for" in record.getMessage())
    assert "48 images of about 40 pixels" in line and "batch_size=32" in line and "epochs=3" not in line.split(":")[1]


def test_a_config_that_leaves_nothing_open_stays_as_it_is():
    config = barlow_jax.config("barlow_twins").unlock()
    config.data.path = "nowhere"  # is not looked at
    before = config.to_dict()
    experiment.settle(config)
    assert config.to_dict() == before


def test_a_run_that_goes_on_keeps_what_it_began_with(photographs, tmp_path, monkeypatch):
    """Also one that began before there were rules, with the published projector."""
    config = barlow_jax.config("barlow_twins").to_dict() | {"image_size": 48, "lambd": 0.02}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = a_config(photographs, arch="convnet")
    experiment.settle(again, str(tmp_path))  # no checkpoint there: it begins anew
    assert again.projector == (512, 512, 512)
    monkeypatch.setattr(workdir, "holds_checkpoints", lambda folder: True)
    again = a_config(photographs, arch="convnet", epochs=77)
    experiment.settle(again, str(tmp_path))
    assert again.projector == (8192, 8192, 8192) and again.views.blur == (1.0, 0.1)
    assert (again.image_size, again.lambd, again.epochs) == (48, 0.02, 77)
    changes = workdir.changed_fields(*(json.loads(json.dumps(one)) for one in (config, again.to_dict())))
    assert {*changes} & {*presets.RULES} == {"epochs"}
    (tmp_path / "config.json").write_text("{")
    assert workdir.began_with(str(tmp_path), presets.RULES) == {}


def test_only_these_fields_may_be_open():
    assert {*fields.PRETRAINING.may_be_open} == {*presets.RULES}
    config = a_config()
    fields.check(config, fields.PRETRAINING)
    with config.unlocked():
        config.arch = None
    with pytest.raises(UserError, match=r"config.arch is None; it is one of"):
        fields.check(config, fields.PRETRAINING)


def test_the_short_side_of_arrays_files_and_unreadable_ones(tmp_path):
    assert presets.short_side(Arrays(np.zeros((3, 20, 30, 3), np.uint8))) == 20
    sizes = np.asarray([[20, 8], [12, 30], [18, 19]], np.int32)
    assert presets.short_side(Arrays(np.zeros((3, 20, 30, 3), np.uint8), sizes=sizes)) == 12
    for k, size in enumerate(((50, 70), (80, 60), (90, 100))):
        Image.new("RGB", size).save(tmp_path / f"{k}.png")
    (tmp_path / "3.jpg").write_bytes(b"no image")
    assert presets.short_side(ImageFolder(tmp_path)) == 60
    for file in tmp_path.glob("*.png"):
        file.unlink()
    assert presets.short_side(ImageFolder(tmp_path)) == 224


def test_plan_prints_what_is_chosen(photographs):
    config = a_config(photographs, arch="convnet")
    images = plan.images_of(config, 619)
    text = "\n".join([*plan.settled(config, images, ""), *plan.meaning(config, images)])
    assert "chosen for 619 images of about 40 pixels: image_size=32" in text and "On CPUs, precision=float32" in text
    assert "5 an epoch, 5,000 in 1000 epochs; warm-up 50" in text
    assert config.precision == "bfloat16" and plan.settled(config, images, "") == []
