"""`python train.py` as a user types it: what a run computes, and what is refused."""

import commands
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from train_runs import arguments

import barlow_jax
from barlow_jax import experiment, optim, pretrain, sharding
from barlow_jax.data import Arrays
from barlow_jax.errors import UserError
from barlow_jax.evaluation import online
from barlow_jax.results import kept
from configs import cifar10


@pytest.mark.slow
def test_one_and_eight_devices_have_the_same_losses(tmp_path):
    """Ten steps of the demo, views and all: the loss at step 0 and after each.

    With a long warm-up: at the demo's own rate float32 rounding, which differs with the devices, grows threefold a step
    (views stay bit-equal). In float64 and at full rates tests/test_pretrain.py has equality to 1e-9.
    """
    losses = []
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        process = commands.start(
            "train.py",
            "--config=configs/demo.py",
            f"--workdir={workdir}",
            "--config.log_every_steps=1",
            "--config.warmup_epochs=90",
            devices=devices,
        )
        commands.wait_for(process, lambda w=workdir: (w / "metrics.jsonl").exists() and len(commands.lines(w)) >= 12)
        process.end()
        losses.append([line["loss"] for line in commands.lines(workdir) if "loss" in line][:11])
    assert len(set(losses[0])) == 11  # it moves
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "devices", "sentence"),
    [
        (45, 8, "last='keep' the last batch of an epoch has 13 of 16 rows, which 8 devices do not divide"),
        (33, 1, "1 of 16 rows, too few for batch statistics; take config.data.last='wrap'"),
    ],
)
def test_a_last_batch_that_cannot_be_kept_is_refused(n, devices, sentence):
    config = ConfigDict({"batch_size": 16, "reference_world_size": 1, "microbatches": 1, "data": {"last": "keep"}})
    mesh = sharding.make_mesh(jax.devices()[:devices])
    with pytest.raises(UserError, match=sentence):
        experiment.check_last_batch(config, n, mesh)
    experiment.check_last_batch(config, 40, mesh)
    config.data.last = "wrap"
    experiment.check_last_batch(config, n, mesh)


@pytest.mark.parametrize(("last", "rows"), [("wrap", 16), ("keep", 8)])
def test_a_batch_that_repeats_images_is_told(caplog, last, rows):
    """Five images in a batch of 16 are no 16 images; one alone is refused."""
    config = ConfigDict({"batch_size": 16, "reference_world_size": 8, "microbatches": 1, "data": {"last": last}})
    mesh = sharding.make_mesh(jax.devices()[:1])
    experiment.check_last_batch(config, 5, mesh)
    assert f"a batch of {rows} rows holds each of the 5 images {rows // 5} times or more" in caplog.text
    assert "lower config.batch_size to 5 or less" in caplog.text
    caplog.clear()
    for n in (16, 17, 21, 300):
        experiment.check_last_batch(config, n, mesh)
    assert not caplog.records
    with pytest.raises(UserError, match="There is 1 image, .* point config.data.path to more"):
        experiment.check_last_batch(config, 1, mesh)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"path": "gs://bucket/images", "cache_bytes": 0}, "config.data.cache_bytes is 0"),
        ({"path": "x", "value_range": (3, 1)}, r"config.data.value_range is \(3, 1\)"),
        ({"path": "x", "max_pixels": 0}, "config.data.max_pixels is 0"),
    ],
)
def test_impossible_images(fields, words):
    config = barlow_jax.config("barlow_twins").unlock()
    config.data.update(fields)
    with pytest.raises(UserError, match=words):
        experiment.check(config)


def test_the_fields_reach_the_source(tmp_path):
    """And a config that is older than the fields reads as it did."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    config = barlow_jax.config("image_folder").unlock()
    config.data.update({"path": str(tmp_path), "train": ".", "val": "", "resident_bytes": 0})
    assert experiment.sources(config)[0].reading[:3] == (3, (), 2**26)
    config.data.update({"value_range": (0, 4095), "max_pixels": 99, "channels": 1})
    assert experiment.sources(config)[0].reading[:3] == (1, (0, 4095), 99)
    del config.data["value_range"], config.data["max_pixels"]
    assert experiment.sources(config)[0].reading[:3] == (1, (), 2**26)


def test_unlabelled_images_count_for_nothing_in_knn_and_probe():
    """With a third of the labels taken away on both sides, the scores are those without these images."""
    config = cifar10.get_config().unlock()
    config.update({"arch": "convnet", "projector": (8,), "precision": "float32", "image_size": 8})
    config.eval.update({"batch_size": 16, "resize": 8, "crop": 8, "knn_k": 5, "knn_bank": 25, "lidar_images": 0})
    rng, mesh = np.random.default_rng(0), sharding.make_mesh()
    label, known = np.arange(90) % 3, rng.random(90) > 1 / 3
    images = rng.normal(128 + 50 * np.eye(3)[label][:, None, None], 40, (90, 8, 8, 3)).clip(0, 255).astype(np.uint8)
    sides = np.arange(90) < 45, np.arange(90) >= 45

    tx = optim.sgd(0.0, 0.0)
    graphdef, state = pretrain.create_state(experiment.network(config, 3), tx, num_classes=3, probe_tx=tx)
    head = {"kernel": rng.normal(size=(256, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    state = jax.device_put(state._replace(probe={"params": head}), sharding.replicated(mesh))

    def scores(label, *sides):
        source, val_source = (Arrays(images[rows], label[rows]) for rows in sides)
        return online.make_evaluation(config, graphdef, source, val_source, mesh)(state)

    partly, without = scores(np.where(known, label, -1), *sides), scores(label, *(side & known for side in sides))
    assert (partly["knn"], partly["probe"]) == (without["knn"], without["probe"])
    assert 0.4 < partly["knn"] < 1 and 0 < partly["probe"] < 1
    # Labels on one side only compare with nothing.
    for side in sides:
        assert scores(np.where(side, label, -1), *sides).keys() == {"effective_rank"}
    with pytest.raises(UserError, match="knn_k is 5, and there are 3 labelled images"):
        scores(np.where((np.arange(90) < 3) | sides[1], label, -1), *sides)


def test_lidar_is_of_the_same_views_each_time():
    config = cifar10.get_config().unlock()
    config.update({"arch": "convnet", "projector": (8,), "precision": "float32", "image_size": 8, "batch_size": 4})
    config.views.update({"jitter": 0.0, "grayscale": 0.0, "blur": (0.0, 0.0), "solarize": (0.0, 0.0)})
    config.eval.lidar_images = 7
    mesh, tx = sharding.make_mesh(jax.devices()[:1]), optim.sgd(0.0, 0.0)
    graphdef, state = pretrain.create_state(experiment.network(config, 3), tx)
    images = Arrays(np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8))
    lidar = online.make_lidar(config, graphdef, images, mesh)
    found = [lidar(state.params, state.batch_stats) for _ in range(2)]
    assert found[0] == found[1] and 1 < found[0]["lidar"] <= 6  # seven means have six differences
    config.eval.lidar_images = 0
    assert online.make_lidar(config, graphdef, images, mesh)(state.params, state.batch_stats) == {}


@pytest.mark.slow
def test_images_of_many_channels(tmp_path):
    """A multi-spectral set: one mean and std a channel, no operation that is for colours."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 24, 24, 5), np.uint8)
    np.savez(tmp_path / "bands.npz", x_train=images, y_train=np.arange(40) % 2)
    line = [
        "train.py",
        "--config=configs/cifar10.py",
        f"--config.data.path={tmp_path / 'bands.npz'}",
        f"--workdir={tmp_path / 'run'}",
        *commands.SMALL,
        "--config.epochs=2",
        "--config.data.val=",
    ]
    status, output = commands.run(*line)
    assert status == 1 and "have 5 channels and config.views.mean 3 values" in output, output
    five = ["--config.views.mean=" + "(" + "0.5," * 5 + ")", "--config.views.std=" + "(" + "0.25," * 5 + ")"]
    status, output = commands.run(*line, *five)
    assert status == 0 and "5 channels: saturation, hue and grayscale are for 3" in output, output
    assert (tmp_path / "run" / "views.png").exists()


@pytest.mark.slow
def test_float16_micro_batches_split_state_and_skip_in_one_run(photographs, tmp_path):
    """The fields together, stopped and gone on with: by the command."""
    more = (
        "--config.precision=float16",
        "--config.microbatches=2",
        "--config.shard_params=True",
        "--config.on_nonfinite=skip",
        "--config.epochs=2",
        "--config.projector=(256,256)",
    )
    command = ("train.py", *arguments(photographs, tmp_path / "run", *more))
    status, output = commands.run(*command, devices=2)
    assert status == 0, output
    steps = [line for line in commands.lines(tmp_path / "run") if "loss" in line]
    assert all(line["loss_scale"] == 2.0 ** (16 - line["overflows"]) for line in steps)
    assert all(line["skipped"] == line["overflows"] for line in steps) and np.isfinite(steps[-1]["loss"])
    # What does not change the result may change when the run goes on, the number of devices too.
    status, output = commands.run(*command, "--config.shard_params=False", "--config.on_nonfinite=stop", devices=1)
    assert status == 0 and "going on from step 6 of 6" in output, output


@pytest.mark.slow
def test_a_run_that_diverges_names_step_tensor_and_checkpoint(photographs, tmp_path):
    more = (
        "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate_weights=1000.0",
        "--config.optimizer.weight_decay=10.0",  # every step multiplies the weights by -624
        "--config.epochs=9",
        "--config.checkpoint_every_steps=1",
        "--config.data.val=",
    )
    status, output = commands.run("train.py", *arguments(photographs, tmp_path / "run", *more))
    commands.assert_refused(status, output, r"At step \d+ \S+ is not finite.*\(last checkpoint: step \d+\)")


@pytest.mark.slow
def test_a_run_that_fails_is_saved_and_ended_where_it_is_told_to(photographs, tmp_path):
    """Both views are the image itself, so that there is nothing to learn; going on is one field away."""
    alike = ("crop_scale=(1.0,1.0)", "crop_ratio=(1.0,1.0)", "flip=0.0", "jitter=0.0", "grayscale=0.0")
    views = [f"--config.views.{field}" for field in (*alike, "blur=(0.0,0.0)", "solarize=(0.0,0.0)")]
    command = ("train.py", *arguments(photographs, tmp_path / "run", *views, "--config.epochs=2"))
    status, output = commands.run(*command, "--config.on_collapse=stop")
    commands.assert_refused(status, output, "at step 3, which is saved, the run is overfitted to augmentation. .* 0.26")
    assert "epoch 1 of 2: loss" in output and (tmp_path / "run" / "checkpoints" / "3" / "manifest.json").exists()
    status, output = commands.run(*command)
    assert status == 0 and "going on from step 3 of 6" in output and "python -m barlow_jax.knn" in output, output


def test_a_damaged_image_is_replaced_and_named(photographs, tmp_path):
    """The line is that of the other runs, whose programs serve this one too."""
    folder = commands.photographs(tmp_path / "photographs")
    (folder / "class1" / "003.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    status, output = commands.run("train.py", *arguments(folder, tmp_path / "run"))
    assert status == 0 and "class1/003.jpg" in output, output
    page = (tmp_path / "run" / kept.FILE).read_text()
    assert "unreadable image" in page and "class1/003.jpg" in page and '"title":"loss"' in page


REFUSALS = {
    "unknown field": (["--config.batchsize=16"], "batchsize"),
    "wrong type": (["--config.batch_size=many"], "batch_size"),
    "missing folder": (["--config.data.path=nowhere"], "nowhere is not a folder"),
    "batch that the devices do not divide": (["--config.batch_size=12"], "config.batch_size is 12.*take 8 or 16"),
    "no longer than its warm-up": (["--config.warmup_epochs=9"], "config.epochs is 8 with config.warmup_epochs 9"),
    "unknown network": (["--config.arch=resnet51"], "config.arch is 'resnet51'"),
    "unknown optimiser": (["--config.optimizer.name=adam"], "config.optimizer.name is 'adam'"),
    "unknown precision": (["--config.precision=float8"], "config.precision is 'float8'"),
    "impossible probability": (["--config.views.flip=2.0"], "flip"),
    "micro-batches that do not fit": (["--config.microbatches=4"], "config.microbatches is 4.*take a divisor of 2"),
    "remat without blocks": (["--config.remat=blocks"], "config.remat is 'blocks'.*take 'none'"),
    "missing workdir": (["--workdir="], "--workdir is missing"),
    "a word that is no flag": (["train"], "'train' is no flag"),
    "reference that does not divide the batch": (
        ["--config.data.last=keep", "--config.reference_world_size=3"],
        "config.reference_world_size is 3 with config.batch_size 16 .*last='wrap'",
    ),
    "batch larger than the set": (["--config.batch_size=64", "--config.data.last=drop"], "batch_size 64"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence(photographs, tmp_path, case):
    more, pattern = REFUSALS[case]
    status, output = commands.run("train.py", *arguments(photographs, tmp_path / "run", *more), devices=8)
    commands.assert_refused(status, output, pattern)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    status, output = commands.run("train.py", *arguments(tmp_path / "empty", tmp_path / "run"))
    commands.assert_refused(status, output, "empty holds no image")


def test_a_folder_of_damaged_images_is_refused(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for k in range(40):
        (folder / f"{k}.jpg").write_bytes(b"not an image")
    status, output = commands.run("train.py", *arguments(folder, tmp_path / "run", "--config.data.val="))
    commands.assert_refused(status, output, "could not be read")
