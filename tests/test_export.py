"""`python -m barlow_jax.export`: what is written, what is verified, and what is refused."""

import hashlib
import json
import pickle
import re
import subprocess
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from saved_runs import STEP, a_config, save_run

from barlow_jax import export, model
from barlow_jax.data import boxes
from barlow_jax.errors import UserError
from barlow_jax.evaluation import encoder, linear_experiment, subject
from barlow_jax.weights import architecture, as_run, files, naming, pickle_reader


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its folder and state."""
    folder = tmp_path_factory.mktemp("run")
    return folder, save_run(folder, a_config())


def exported(folder, layout, path):
    source = export.read(folder, whole=layout == "official")
    export.check(source, layout)
    return export.export(source, layout, path)


@pytest.mark.parametrize("layout", ["torchvision", "timm", "detectron2", "safetensors"])
def test_a_backbone_comes_back_to_the_bit(run, tmp_path, layout):
    folder, state = run
    report = exported(folder, layout, tmp_path / "x")
    assert report == json.loads((tmp_path / "x.json").read_text())
    assert report["sha256"] == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    assert report["differences"]["read back"] == 0 and report["step"] == STEP
    assert report["shapes"]["layer4.1.conv2.weight"] == "512 x 512 x 3 x 3"
    found = subject.load(tmp_path / "x")
    for mine, back in (
        (state.params["backbone"], found.params),
        (state.batch_stats["backbone"], found.batch_stats),
    ):
        jax.tree.map(np.testing.assert_array_equal, mine, back)
    assert found.step == STEP and found.sha256 == subject.load(folder).sha256


def test_a_command_prints_its_report_and_writes_the_same_bytes_twice(run, tmp_path):
    folder, _ = run
    line = ("-m", "barlow_jax.export", folder, "--format=torchvision", f"--out={tmp_path / 'a.pth'}")
    status, output = commands.run(*line)
    assert status == 0 and re.search(r"differences +read back 0.0e\+00", output), output
    assert re.search(r"shapes +120 arrays", output)
    exported(folder, "torchvision", tmp_path / "b.pth")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_the_file_of_detectron2_holds_plain_numpy_under_its_names(run, tmp_path):
    folder, state = run
    exported(folder, "detectron2", tmp_path / "x.pkl")
    with (tmp_path / "x.pkl").open("rb") as stream:
        tree = pickle.load(stream, encoding="latin1")  # as detectron2 does
    assert tree["matching_heuristics"] is True and isinstance(tree["__author__"], str)
    assert all(isinstance(value, np.ndarray) for value in tree["model"].values())
    assert {value.dtype.flags for value in tree["model"].values()} == {0}  # none holds objects
    kernel = state.params["backbone"]["layer2"]["0"]["downsample"]["conv"]["kernel"]
    np.testing.assert_array_equal(tree["model"]["res3.0.shortcut.weight"], kernel.transpose(3, 2, 0, 1))


def test_the_official_full_checkpoint_goes_there_and_back(run, tmp_path):
    folder, state = run
    # A ResNet-18, which the official code has not, is written sooner; `check` would refuse it.
    export.export(export.read(folder, whole=True), "official", tmp_path / "x.pth")
    with pickle_reader.opened(tmp_path / "x.pth") as tree:
        weights, biases = tree["optimizer"]["param_groups"]
        assert tree["epoch"] == 2 and int(tree["model"]["module.bn.num_batches_tracked"].numpy()) == 2 * STEP
        assert weights["params"] + biases["params"] == [*range(len(weights["params"] + biases["params"]))]
        assert {len(tree["optimizer"]["state"][k]["mu"].shape) for k in biases["params"]} == {1}
        assert weights["lr"] == pytest.approx(0.3 * 8 / 256) and weights["lars_adaptation_filter"] is True
        assert weights["weight_decay_filter"] is True
    back = files.load(tmp_path / "x.pth")
    momentum = state.opt_state[1][1].trace
    for mine, found in ((state.params, back.params), (state.batch_stats, back.batch_stats), (momentum, back.momentum)):
        jax.tree.map(np.testing.assert_array_equal, mine, found)


def test_safetensors_say_what_they_are(tmp_path):
    """Config and normalisation travel with the arrays, so that even a network of one size can be judged from a file."""
    config = a_config("convnet", image_size=24)
    config.eval.resize, config.eval.crop, config.views.mean = 24, 24, (0.1, 0.2, 0.3)
    state = save_run(tmp_path, config)
    exported(tmp_path, "safetensors", tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors")["convs.0.weight"].shape == (32, 3, 3, 3)
    found = subject.load(tmp_path / "x.safetensors")
    assert found.config["views"]["mean"] == [0.1, 0.2, 0.3] and found.step == STEP
    jax.tree.map(np.testing.assert_array_equal, found.params, state.params["backbone"])
    make = linear_experiment.classifier(ConfigDict(found.config), ConfigDict(found.config), 3, 4)
    assert make().backbone.num_features == 256

    # And so that a run can go on from it, which no array of such a network would allow.
    fresh = state._replace(params=jax.tree.map(np.zeros_like, state.params))
    begun = as_run.begin(tmp_path / "x.safetensors", fresh, config, 3, 12)
    jax.tree.map(np.testing.assert_array_equal, begun.params["backbone"], state.params["backbone"])
    assert not np.any(begun.params["projector"]["linears"]["0"]["kernel"]) and int(begun.step) == 0
    config.image_size = 32
    with pytest.raises(UserError, match="config.image_size is 32 and .* holds 24; set --config.image_size=24"):
        as_run.begin(tmp_path / "x.safetensors", fresh, config, 3, 12)


@pytest.mark.slow
def test_a_network_of_many_bands_and_16_bits(tmp_path):
    """Weights, program and card of it; images of both types are taken, and those of 16 bits are not rounded."""
    config = a_config("convnet", image_size=24)
    config.eval.resize, config.eval.crop, config.views.mean, config.views.std = 26, 24, (0.4,) * 6, (0.2,) * 6
    config.data.bits, config.data.value_range = 16, (0, 4095)
    save_run(tmp_path, config, channels=6)
    exported(tmp_path, "safetensors", tmp_path / "x.safetensors")
    report = exported(tmp_path, "stablehlo", tmp_path / "x.stablehlo")
    assert report["differences"][f"jax {jax.__version__}"] < 1e-5
    program = jax.export.deserialize(bytearray((tmp_path / "x.stablehlo").read_bytes()))
    assert program.in_avals[0].dtype == np.uint16 and program.in_avals[0].shape[-1] == 6
    network, images = encoder.load(tmp_path / "x.safetensors"), export.pixels(2, 30, 31, 6)
    fine = images * np.uint16(257)
    assert 1e-5 < export.difference(network.features(fine), network.features(images)) < 0.02  # a level or less apart
    assert export.difference(program.call(fine), network.features(fine)) < 1e-5
    with pytest.raises(UserError, match="or uint16, whose white is 65535"):
        network.features(images.astype(np.float32))


def test_a_trained_classifier_keeps_its_head(tmp_path):
    save_run(tmp_path, a_config(stem="cifar"), classifier=5)
    report = exported(tmp_path, "torchvision", tmp_path / "x.pth")
    assert report["differences"]["read back"] == 0 and report["stem"] == "cifar"
    back = files.load(tmp_path / "x.pth")
    assert back.kind == "classifier" and back.params["fc"]["kernel"].shape == (512, 5) and back.step == STEP


def test_stablehlo_runs_with_jax_alone(run, tmp_path):
    """The lines of docs/pytorch.md, without this project, on another batch and size than export verifies."""
    folder, _ = run
    report = exported(folder, "stablehlo", tmp_path / "encoder.stablehlo")
    assert report["differences"][f"jax {jax.__version__}"] < 1e-5
    source = export.read(folder)
    weights = source.weights.params["backbone"], source.weights.batch_stats["backbone"]
    code = (
        commands.documented("deserialize") + "import sys\nassert not {'flax', 'optax', 'barlow_jax'} & {*sys.modules}"
    )
    images = export.pixels(2, 65, 72, 3)
    np.save(tmp_path / "images.npy", images)
    environment = commands.environment() | {"PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    wanted = export.features_of(source)(*weights, export.evaluation_views(source.config, images))
    assert export.difference(np.load(tmp_path / "features.npy"), wanted) < 1e-5


@pytest.mark.parametrize("size", [(300, 411), (500, 375), (47, 90), (289, 520), (64, 64)])
def test_the_program_sees_what_evaluations_see(size):
    """The box computed on the device, in float32, is the host's to the last bit."""
    shown = jnp.asarray(size, jnp.int32)
    found = boxes.center_crop(shown[:1], shown[1:], 256, 224, xp=jnp)
    wanted = boxes.center_crop(*(np.float64([side]) for side in size), 256, 224)
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_a_file_that_gives_other_features_is_not_given_its_name(run, tmp_path, monkeypatch):
    folder, _ = run
    source, save = export.read(folder), files.save

    def wrong(path, layout, weights, **more):
        params = jax.tree.map(np.array, weights.params)
        params["backbone"]["layer3"]["1"]["bn2"]["scale"][7] += 1e-3
        save(path, layout, weights._replace(params=params), **more)

    monkeypatch.setattr(files, "save", wrong)
    with pytest.raises(UserError, match="holds another backbone.layer3.1.bn2.weight than the source"):
        export.export(source, "torchvision", tmp_path / "x.pth")
    monkeypatch.setattr(export, "check_equal", lambda *_: None)
    monkeypatch.setattr(export, "BOUND", 1e-7)
    with pytest.raises(UserError, match=r"file gives features that are .* away \(read back\), .* was removed"):
        export.export(source, "torchvision", tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_refusals(run, tmp_path):
    folder, _ = run
    save_run(tmp_path / "convnet", a_config("convnet", image_size=24))
    save_run(tmp_path / "cifar", a_config(stem="cifar"))
    save_run(tmp_path / "imagenet", a_config())
    for name, layout, sentence in (
        ("convnet", "torchvision", "is a convnet, which torchvision does not have; take safetensors"),
        ("cifar", "official", "has the cifar stem, which the official code has not"),
        ("imagenet", "official", "is a resnet18 for images of 3 channels, and the official code has a resnet50 for 3"),
    ):
        with pytest.raises(UserError, match=sentence):
            export.check(export.read(tmp_path / name), layout)
    exported(folder, "timm", tmp_path / "x.pth")
    with pytest.raises(UserError, match="has no projector, so no full checkpoint"):
        export.check(export.read(tmp_path / "x.pth", whole=True), "official")
    for line, sentence in (
        ((), "There is one argument besides flags, a run or a file of weights, and here are 0"),
        ((folder,), "--format and --out are needed; the formats are torchvision"),
        ((folder, "--format=timm", f"--out={tmp_path}/no/x.pth"), "is in a folder that does not exist"),
    ):
        status, output = commands.run("-m", "barlow_jax.export", *line)
        assert status == 1 and sentence in output and "Traceback" not in output, output


class Plain(nnx.Module):
    """A backbone without batch statistics."""

    def __init__(self, *, channels, image_size, dtype, rngs):
        self.num_features = 8
        self.dense = nnx.Linear(image_size * image_size * channels, 8, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        return self.dense(images.reshape(*images.shape[:-3], -1))


@pytest.mark.parametrize("layout", ["safetensors", "stablehlo"])
def test_a_network_without_batch_statistics(tmp_path, monkeypatch, layout):
    monkeypatch.setitem(model.BACKBONES, "plain", Plain)
    monkeypatch.setattr(model, "OF_ONE_SIZE", (*model.OF_ONE_SIZE, "plain"))
    config = a_config("plain", image_size=24)
    config.eval.resize, config.eval.crop = 24, 24
    state = save_run(tmp_path / "run", config)
    assert "backbone" not in state.batch_stats
    report = exported(tmp_path / "run", layout, tmp_path / "x.safetensors")
    assert max(report["differences"].values()) < 1e-5 and report["shapes"] == {"dense.weight": "8 x 1728"}
    if layout == "safetensors":
        found = subject.load(tmp_path / "x.safetensors")
        np.testing.assert_array_equal(found.params["dense"]["kernel"], state.params["backbone"]["dense"]["kernel"])
        assert not found.batch_stats and found.sha256 == subject.load(tmp_path / "run").sha256


def test_every_architecture_is_told_by_its_arrays():
    kinds = [("imagenet", 3), ("cifar", 1)]
    for k, arch in enumerate(sorted(model.RESNETS)):
        stem, channels = kinds[k % 2]
        make = model.make_backbone(arch, image_size=32, channels=channels, stem=stem)
        _, *shapes = model.split(nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0))))
        params, batch_stats = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), shapes)
        weights = files.Weights("backbone", {"backbone": params}, {"backbone": batch_stats})
        assert architecture.of(weights, "x")[:3] == (arch, stem, channels)
        names = naming.state_dict(params, batch_stats)
        back = {naming.path_of(name) for name in names if "batches" not in name}
        assert len(back) == len(jax.tree.leaves(shapes))


def test_a_file_of_ours_with_damaged_metadata(run, tmp_path):
    folder, _ = run
    exported(folder, "safetensors", tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "y.safetensors").write_bytes(data.replace(b'"config":"{', b'"config":" ', 1))
    with pytest.raises(UserError, match="has damaged metadata"):
        as_run.restore(tmp_path / "y.safetensors")
    weights, config, _ = as_run.restore(tmp_path / "x.safetensors")
    views = config["views"]
    for about, sentence in (
        ({"config": "[]"}, "metadata .config is a list.; export it again"),
        ({"channels": "three"}, "metadata .channels is 'three'.; export it again"),
        ({"step": "many"}, "metadata .step is 'many'.; export it again"),
        ({"config": json.dumps(config | {"arch": "resnet19"})}, "metadata .config.arch is resnet19"),
        ({"config": json.dumps(config | {"image_size": 10**9})}, "metadata .config.image_size is 1000000000"),
        ({"config": json.dumps(config | {"eval": 3})}, "metadata .config.eval is a int"),
        (
            {"config": json.dumps({k: v for k, v in config.items() if k != "eval"})},
            "metadata .config.eval.resize is missing",
        ),
        (
            {"config": json.dumps(config | {"views": views | {"std": [0, 1, 1]}})},
            r"metadata .config.views.std is \[0, 1, 1\]",
        ),
        (
            {"config": json.dumps(config | {"views": views | {"mean": [0]}})},
            "metadata .config.views.mean and std are not of 3",
        ),
    ):
        files.save(tmp_path / "w.safetensors", "safetensors", weights, about=weights.about | about)
        with pytest.raises(UserError, match=sentence):
            as_run.restore(tmp_path / "w.safetensors")
    older = {name: value for name, value in config.items() if name != "max_skipped"}
    about = weights.about | {"config": json.dumps(older)}
    files.save(tmp_path / "w.safetensors", "safetensors", weights, about=about)
    assert as_run.restore(tmp_path / "w.safetensors")[1] == config  # a field that is younger than the file
    conv1 = weights.params["backbone"]["conv1"]
    conv1["kernel"] = conv1["kernel"][:, :, :1]
    about = weights.about | {"config": json.dumps(config | {"views": views | {"mean": [0.5], "std": [0.25]}})}
    files.save(tmp_path / "w.safetensors", "safetensors", weights, about=about | {"channels": "1"})
    assert as_run.restore(tmp_path / "w.safetensors")[2] == 1
    (tmp_path / "z.safetensors").write_bytes(data[:-1000])
    with pytest.raises(UserError, match="z.safetensors is damaged or cut off"):
        as_run.restore(tmp_path / "z.safetensors")
