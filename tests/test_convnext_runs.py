"""A ConvNeXt the whole way: stepped by train.py's step, judged, exported, read again. Two narrow stages, 32 pixels."""

import functools

import frozen_runs
import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from saved_runs import filled, fresh_method, save_filled, unmoved_by_a_step

import barlow_jax
from barlow_jax import export, model
from barlow_jax.errors import UserError
from barlow_jax.evaluation import subject
from barlow_jax.networks import convnext
from barlow_jax.weights import architecture, as_run, files, naming, pickle_writer

NARROW = ((1, 1), (8, 12))
FIELDS = {
    "arch": "convnext_tiny",
    "stem": "imagenet",
    "projector": (16, 16),
    "precision": "float32",
    "image_size": 32,
    "batch_size": 16,
    "warmup_epochs": 0,
    "epochs": 1,
    "optimizer": {"name": "adamw", "weight_decay": 0.05},
    "eval": {"resize": 32, "crop": 32, "batch_size": 16, "knn_k": 5},
}


@pytest.fixture(scope="module")
def narrower():
    """convnext_tiny with one block in each of two stages, 8 and 12 channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.BACKBONES, "convnext_tiny", functools.partial(convnext.ConvNeXt, *NARROW))
        patch.setitem(architecture._CONVNEXTS, NARROW, "convnext_tiny")
        yield


def a_config(**changes):
    config = barlow_jax.config("cifar10").unlock()
    config.update(FIELDS)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory, narrower):
    """Work folder of a run that nobody had to wait for."""
    folder = tmp_path_factory.mktemp("convnext")
    config = a_config(**{"data.path": str(frozen_runs.write_set(folder / "set.npz"))})
    save_filled(folder / "run", config, images=frozen_runs.TRAIN)
    return folder / "run"


@pytest.mark.slow
def test_a_step_moves_everything(narrower):
    assert not unmoved_by_a_step(a_config())


@pytest.mark.slow
def test_a_run_is_trained_judged_and_exported(narrower, tmp_path):
    data = frozen_runs.write_set(tmp_path / "set.npz")
    assert barlow_jax.train("cifar10", data=data, workdir=tmp_path / "run", **FIELDS, remat="blocks")
    sizes = {"image_size": 0, "eval": {"resize": 0, "crop": 0}}
    linear = {"config": "linear_cifar10", "epochs": 1, "batch_size": 16, **sizes}
    assert barlow_jax.evaluate(tmp_path / "run", by="linear", workdir=tmp_path / "linear", **linear)
    export.export(export.read(tmp_path / "linear"), "timm", tmp_path / "head.pth")
    assert files.load(tmp_path / "head.pth").params["fc"]["kernel"].shape == (12, frozen_runs.CLASSES)


@pytest.mark.slow
def test_it_is_judged_at_any_size(run, tmp_path):
    """One that it was not trained at, here."""
    asked = {"by": "knn", "k": (5,), "shot_seeds": 0, "eval": {"resize": 40, "crop": 40}}
    found = barlow_jax.evaluate(run, workdir=tmp_path / "40", **asked)
    assert {line["metric"] for line in found} >= {"top1"}


@pytest.mark.parametrize("layout", ["timm", "safetensors", pytest.param("stablehlo", marks=pytest.mark.slow)])
def test_it_is_exported(run, tmp_path, layout):
    source, path = export.read(run), tmp_path / "x.safetensors"
    export.check(source, layout)
    report = export.export(source, layout, path)
    assert max(report["differences"].values()) < 1e-5
    assert report["shapes"]["stages.1.blocks.0.conv_dw.weight"] == "12 x 1 x 7 x 7"
    if layout != "stablehlo":
        found, judged = subject.load(path), subject.load(run)
        assert found.config["arch"] == "convnext_tiny"
        jax.tree.map(np.testing.assert_array_equal, found.params, judged.params)


def test_what_it_cannot_be_exported_as(run):
    for layout in ("torchvision", "detectron2", "official"):
        with pytest.raises(UserError, match=f"is a convnext_tiny under timm's names, which {layout} does not have; ta"):
            export.check(export.read(run), layout)


def arrays_of(make):
    """Names and arrays, as timm has them, in our order."""
    params = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[1]
    return naming.state_dict(filled(params), {})


@pytest.fixture(scope="module")
def arrays():
    return arrays_of(functools.partial(convnext.ConvNeXt, *NARROW))


@pytest.mark.parametrize("arch", ["convnext_tiny", pytest.param("convnext_base", marks=pytest.mark.slow)])
def test_its_arrays_tell_what_it_is(arch):
    make = model.make_backbone(arch, image_size=224, channels=1)
    params = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[1]
    named = naming.state_dict(jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), params), {})
    weights = files.Weights("backbone", {"backbone": naming.trees(named)[0]}, {"backbone": {}})
    assert architecture.of(weights, "x") == (arch, "imagenet", 1, {})


def test_names_in_timms_order(arrays):
    leaves = ("weight", "bias")
    block = ["gamma", *(f"{name}.{leaf}" for name in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2") for leaf in leaves)]
    assert [*arrays] == [
        *(f"stem.{k}.{leaf}" for k in (0, 1) for leaf in leaves),
        *(f"stages.0.blocks.0.{name}" for name in block),
        *(f"stages.1.downsample.{k}.{leaf}" for k in (0, 1) for leaf in leaves),
        *(f"stages.1.blocks.0.{name}" for name in block),
        *(f"head.norm.{leaf}" for leaf in leaves),
    ]


def under(prefix, arrays):
    return {prefix + name: value for name, value in arrays.items()}


HEAD = {"head.fc.weight": np.ones((5, 12), np.float32), "head.fc.bias": np.ones(5, np.float32)}
OTHER = np.full((2, 2), 7, np.float32)


@pytest.mark.parametrize(
    ("make", "kind", "aside"),
    [
        (lambda a: a | HEAD, "classifier", ()),
        (
            lambda a: {"state_dict": under("module.encoder_q.", a | HEAD) | under("module.encoder_k.", a)},
            "backbone",
            ("encoder_q (2)", f"encoder_k ({2 * 9 + 4 + 4 + 2})"),
        ),
        (lambda a: {"teacher": under("backbone.", a) | {"head.mlp.0.weight": OTHER}}, "backbone", ("head (1)",)),
    ],
)
def test_the_files_of_others(tmp_path, caplog, arrays, make, kind, aside):
    pickle_writer.save(tmp_path / "x.pth", make(arrays))
    with caplog.at_level("INFO"):
        found = files.load(tmp_path / "x.pth")
    assert found.kind == kind and all(said in caplog.text for said in aside)
    jax.tree.map(np.testing.assert_array_equal, found.params["backbone"], naming.trees(arrays)[0])
    if kind == "classifier":
        assert found.params["fc"]["kernel"].shape == (12, 5)
        files.save(tmp_path / "y.pth", "timm", found)
        jax.tree.map(np.testing.assert_array_equal, found.params, files.load(tmp_path / "y.pth").params)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda a: a | {"stages.0.blocks.0.mlp.grn.weight": OTHER},  # version 2
            "holds stages.0.blocks.0.mlp.grn.weight, which is no part of a ConvNeXt as timm has it",
        ),
        (lambda a: a | {"norm_pre.weight": OTHER}, "holds norm_pre.weight, which is no part of a ConvNeXt as timm"),
        (lambda a: a | {"head.pre_logits.fc.weight": OTHER}, "holds head.pre_logits.fc.weight, which is no part of a"),
        (
            lambda a: {name: value for name, value in a.items() if "stages.1" not in name},
            r"a ConvNeXt of \(1,\) blocks of widths \(8,\) for 3 channels, which is none of convnext_tiny, conv",
        ),
        (lambda a: a | {"stem.0.weight": OTHER}, "for 0 channels, which is none of"),
        (lambda a: a | {"stages.0.blocks.0.conv_dw.weight": OTHER}, r"of widths \(0, 12\) for 3 channels"),
        (
            lambda a: (
                a | {"stages.1.blocks.0.gamma": a["stages.1.blocks.0.gamma"][:, None, None]}
            ),  # torchvision's form
            r"stages.1.blocks.0.gamma, in our layout, is .*12.*1.*1.* there",
        ),
        (lambda a: {n: v for n, v in a.items() if n != "head.norm.bias"}, "head.norm.bias, in our layout, is absent"),
    ],
)
def test_what_is_refused_of_others(narrower, tmp_path, arrays, change, sentence):
    pickle_writer.save(tmp_path / "x.pth", change(arrays))
    with pytest.raises(UserError, match=sentence):
        architecture.of(files.load(tmp_path / "x.pth"), "x.pth")


def test_a_run_begins_from_a_file(run, tmp_path, arrays):
    pickle_writer.save(tmp_path / "x.pth", arrays)
    _, config, channels = as_run.restore(tmp_path / "x.pth")
    assert (config["arch"], config["stem"], config["image_size"], channels) == ("convnext_tiny", "imagenet", 224, 3)
    config = ConfigDict(subject.load(run).config)
    begun = as_run.begin(tmp_path / "x.pth", fresh_method(config)[1], config, 3, 5)
    assert int(begun.step) == 0
    jax.tree.map(np.testing.assert_array_equal, begun.params["backbone"], naming.trees(arrays)[0])
    with pytest.raises(UserError, match="config.arch is 'resnet18' and .* set --config.arch=convnext_tiny"):
        as_run.begin(tmp_path / "x.pth", None, a_config(arch="resnet18"), 3, 5)
