"""Sets of tensorflow-datasets in both file formats: names, order, resume, labels, faults. TFDS itself writes them."""

import io
import logging
import pathlib
import shutil

import numpy as np
import pytest
import tfds_sets
from PIL import Image

from barlow_jax import data, experiment
from barlow_jax.data import order, pixels, records
from barlow_jax.errors import UserError
from barlow_jax.evaluation import linear_experiment
from configs import linear_tfds, tfds

FORMATS = ("array_record", "tfrecord")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder for each format, with every set that configs/tfds.py names: 23 training images, 5 others."""
    roots = {form: tmp_path_factory.mktemp(form) for form in FORMATS}
    for form, root in roots.items():
        for name, (train, val) in tfds.SPLITS.items():
            splits = dict.fromkeys(train.split("+"), 23) | {val: 5}
            tfds_sets.prepare(name, root, form, splits)
    return roots


@pytest.fixture(params=FORMATS)
def root(request, prepared):
    return prepared[request.param]


def opened(root, name="imagenette", split="train", **options):
    return data.open_source("tfds", str(root), split, name=name, **options)


def train(source, **options):
    return data.train_batches(source, **{"batch_size": 8, "seed": 5, "canvas": 64, "threads": 2} | options)


def assert_same(one, other):
    for key in one:
        assert np.array_equal(one[key], other[key]), key


def one_sentence(caught):
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    return text


@pytest.mark.parametrize("name", tfds.SPLITS)
def test_every_set_that_a_config_names(name, root):
    config = tfds.get_config(name).unlock()
    config.data.path, config.data.canvas = str(root), 256
    experiment.check(config)
    train_source, val_source = experiment.sources(config)
    assert len(train_source) == 23 * (1 + (name == "voc/2007")) and len(val_source) == 5
    classes = {"voc/2007": None, "imagenette": 10, "cifar10": 10, "places365_small": 365, "i_naturalist2018": 8142}
    assert train_source.num_classes == val_source.num_classes == classes.get(name, 1000)
    assert isinstance(train_source, data.Arrays)  # so few images live on the devices
    linear = linear_tfds.get_config(name)
    assert (linear.data.name, linear.data.train, linear.data.val) == (name, config.data.train, config.data.val)


def test_images_and_labels_are_those_that_were_stored(root):
    source = opened(root)
    (batch,) = data.eval_batches(source, batch_size=23, canvas=64, resize_short=40, crop=40, threads=2)
    assert source.labels is None and source.class_names[0] == "n01440764" and batch["mask"].all()
    seen = {}
    for row in range(23):  # TFDS shuffles: the stored bytes tell which image it is
        encoded = source.encoded(row)
        number = next(k for k in range(23) if tfds_sets.photo(k) == encoded)
        seen[number] = row
        assert batch["label"][row] == number % 10
        top, left, h, w = batch["boxes"][row, 0]
        pixels = np.asarray(Image.open(io.BytesIO(encoded)))
        height, width = batch["extent"][row]
        start = np.round([20 - h / 2 - top, 24 - w / 2 - left]).astype(int)  # the window is central, 40 x 48 pixels
        window = pixels[start[0] : start[0] + height, start[1] : start[1] + width]
        assert np.array_equal(batch["canvas"][row, :height, :width], window)
    assert sorted(seen) == list(range(23))


@pytest.mark.parametrize("last", [pytest.param("drop", marks=pytest.mark.slow), "wrap"])
def test_the_order_is_that_of_every_other_source_on_any_number_of_processes(root, last):
    source = opened(root)
    whole = train(source, last=last)
    for step in range(4):
        batch = next(whole)
        epoch, index = order.batch_indices(23, 8, 5, step, last)
        assert np.array_equal(batch["index"], index), (step, epoch)
        for count in (2, 4) if step in (0, 3) else ():
            parts = [
                next(train(source, last=last, start_step=step, process_index=p, process_count=count))
                for p in range(count)
            ]
            assert_same(batch, {key: np.concatenate([part[key] for part in parts]) for key in batch})


def test_both_formats_are_read_alike(prepared):
    array, tf = (train(opened(prepared[form])) for form in FORMATS)
    for _ in range(3):
        assert_same(next(array), next(tf))


def test_a_run_opens_at_any_step(root):
    source = opened(root, "imagenet2012")
    batches = train(source, last="wrap")
    taken = [next(batches) for _ in range(40)]
    for step in np.random.default_rng(0).choice(38, 8, replace=False):
        part = train(source, last="wrap", start_step=int(step))
        for expected in taken[step : step + 2]:
            assert_same(expected, next(part))
        part.close()


def test_parts_of_splits(root):
    whole = opened(root)
    part = opened(root, split="train[4:9]+validation")
    assert len(part) == 10 and [part.read(k) for k in range(5)] == [whole.read(k) for k in range(4, 9)]
    few = data.sources.evenly_spaced(whole, 3)
    assert [few.read(k) for k in range(3)] == [whole.read(k) for k in (0, 11, 22)] and len(whole) == 23
    assert next(train(few, batch_size=3))["index"].max() == 2


def test_small_images_of_one_size_are_held_in_memory(root):
    source = opened(root, "cifar10")
    assert source.shape == (32, 32, 3)
    arrays = data.in_memory(source, max_bytes=23 * 32 * 32 * 3, canvas=512, threads=2)
    assert arrays.images.shape == (23, 32, 32, 3) and arrays.sizes is None and arrays.num_classes == 10
    for row in range(23):
        assert np.array_equal(arrays.images[row], pixels.pillow_pixels(source.encoded(row)))
    (batch,) = data.eval_batches(source, batch_size=23, canvas=32, resize_short=32, crop=32)
    assert np.array_equal(arrays.labels, batch["label"]) and np.array_equal(arrays.images, batch["canvas"])
    assert data.in_memory(source, max_bytes=23 * 32 * 32 * 3 - 1, canvas=512) is None


def test_a_split_whose_labels_are_secret_has_none(tmp_path):
    """As the test split of ImageNet: label -1 throughout. Such images can be learnt from, not evaluated on."""
    splits = {"train": 4, "validation": 3}
    tfds_sets.prepare("imagenette", tmp_path, "array_record", splits, unlabelled=("validation",))
    labelled, secret = (opened(tmp_path, split=split) for split in splits)
    assert (labelled.num_classes, secret.num_classes, secret.class_names) == (10, None, None)
    batch = next(train(secret, batch_size=3))
    assert batch["label"].tolist() == [-1, -1, -1]
    config = linear_tfds.get_config("imagenette").unlock()
    config.data.path, config.data.canvas, config.data.resident_bytes = str(tmp_path), 64, 0
    with pytest.raises(UserError, match="imagenette:validation has no labels; point config.data"):
        linear_experiment.sources(config, channels=3)


def test_grey(root):
    source = opened(root, channels=1)
    batch = next(train(source, canvas=48, scale=(1.0, 1.0)))
    assert batch["canvas"].shape == (8, 48, 48, 1)
    assert opened(root, channels=0).channels == 3


def test_an_unreadable_image_is_replaced_and_named(tmp_path, caplog):
    for form in FORMATS:
        tfds_sets.prepare(
            "imagenette",
            tmp_path / form,
            form,
            {"train": 23},
            image=lambda k: b"\xff\xd8\xff no image" if k == 7 else tfds_sets.photo(k),
        )
        source = opened(tmp_path / form)
        bad = next(k for k in range(23) if source.encoded(k) != tfds_sets.photo(0) and len(source.encoded(k)) < 20)
        with caplog.at_level(logging.WARNING):
            batches = train(source, max_bad_fraction=0.5, last="wrap")
            taken = np.concatenate([next(batches)["index"] for _ in range(3)])
        asked = np.concatenate([order.batch_indices(23, 8, 5, step, "wrap")[1] for step in range(3)])
        assert np.array_equal(taken, np.where(asked == bad, (asked + 1) % 23, asked)) and bad in asked
        assert list(batches.bad_files) == [f"imagenette:train, record {bad}"]
        assert f"imagenette:train, record {bad}" in caplog.text


def test_what_is_not_prepared_is_said_with_the_command(tmp_path):
    with pytest.raises(UserError) as caught:
        opened(tmp_path, "cifar10")
    text = one_sentence(caught)
    assert f"cifar10 is not prepared in {tmp_path}: run python -c" in text and "download_and_prepare()" in text
    assert f"data_dir={str(tmp_path)!r}" in text and "by hand" not in text
    with pytest.raises(UserError) as caught:
        opened(tmp_path, "imagenet2012_subset/10pct")
    text = one_sentence(caught)
    assert f"by hand to {tmp_path}/downloads/manual" in text and "ILSVRC2012_img_train.tar" in text
    compile(text[text.index('"') + 1 : text.rindex('"')], "command", "exec")


def test_names_and_splits_that_do_not_exist(root):
    for name, split, words in (
        ("imagenet_of_mars", "train", "no data set that TFDS knows"),
        ("imagenette", "test", "no split 'test' (train, validation are prepared)"),
        ("imagenette", "train[:1%]", "no example"),
        ("imagenette", "train[", "no split"),
        ("", "train", "needs config.data.name"),
    ):
        with pytest.raises(UserError) as caught:
            opened(root, name, split)
        assert words in one_sentence(caught), str(caught.value)


def test_the_newest_prepared_version_is_taken(tmp_path, prepared):
    folder = tmp_path / "imagenette" / "full-size-v2"
    shutil.copytree(prepared["tfrecord"] / "imagenette" / "full-size-v2" / "1.0.0", folder / "0.9.0")
    assert len(opened(tmp_path)) == 23  # older than the one that TFDS would prepare today
    tfds_sets.prepare("imagenette", tmp_path, "array_record", {"train": 4})
    assert len(opened(tmp_path)) == len(opened(tmp_path, "imagenette/full-size-v2")) == 4
    assert len(opened(tmp_path, "imagenette/full-size-v2:0.9.0")) == 23


def test_damaged_tfrecord_files(tmp_path, prepared):
    files = sorted((prepared["tfrecord"] / "imagenette" / "full-size-v2" / "1.0.0").glob("*train.tfrecord*"))
    content = files[1].read_bytes()
    shutil.copytree(prepared["tfrecord"] / "imagenette", tmp_path / "imagenette")
    damaged = tmp_path / files[1].relative_to(prepared["tfrecord"])
    for damage, words in (
        (content[:-9], "cut off"),
        (content[:5], "ends in record 0"),
        (content + content, "holds more than"),
        (b"\xff" * len(content), "cut off"),
    ):
        damaged.write_bytes(damage)
        with pytest.raises(UserError) as caught:
            opened(tmp_path)
        assert words in one_sentence(caught) and str(damaged) in str(caught.value)
    damaged.unlink()
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert str(damaged) in one_sentence(caught)


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_first_record_is_one_sentence(form, tmp_path, prepared):
    shutil.copytree(prepared[form] / "imagenette", tmp_path / "imagenette")
    damaged = sorted(tmp_path.rglob(f"*train.{form}*"))[0]
    content = bytearray(damaged.read_bytes())
    start = 12 if form == "tfrecord" else 100  # of the data of its first record; behind the first chunk's header
    content[start : start + 300] = b"\xff" * 300
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        opened(tmp_path)
    assert str(damaged) in one_sentence(caught)


def test_tfrecords_begin_where_they_are_said_to(prepared):
    """The positions against TensorFlow's own reader."""
    import tensorflow as tf

    source = opened(prepared["tfrecord"])
    files = sorted(str(p) for p in (prepared["tfrecord"] / "imagenette").rglob("*train.tfrecord*"))
    expected = [record.numpy() for record in tf.data.TFRecordDataset(files)]
    assert [source.read(k) for k in range(23)] == expected


def test_the_limit_of_open_files_is_raised(monkeypatch):
    limits = []
    monkeypatch.setattr(records.resource, "getrlimit", lambda kind: (1024, 4000))
    monkeypatch.setattr(records.resource, "setrlimit", lambda kind, limit: limits.append(limit))
    records._allow_open_files(1024)
    records._allow_open_files(9000)
    records._allow_open_files(0)
    assert limits == [(2048, 4000), (4000, 4000)]


def test_a_set_without_images(tmp_path):
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        name="numbers",
        version="1.0.0",
        data_dir=str(tmp_path),
        features=tfds.features.FeaturesDict({"x": np.int64}),
        split_datasets={"train": [(0, {"x": 1})]},
    )
    with pytest.raises(UserError) as caught:
        opened(pathlib.Path(tmp_path), "numbers")
    assert "has 0 image features (x)" in one_sentence(caught)
