"""A ViT the whole way: trained by train.py's loop, judged, embedded, exported, read again. Two blocks, 24 pixels."""

import functools
import json

import frozen_runs
import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from saved_runs import save_filled, unmoved_by_a_step

import barlow_jax
from barlow_jax import experiment, export, model, plan, sharding
from barlow_jax.errors import UserError
from barlow_jax.evaluation import linear_experiment, subject
from barlow_jax.networks import vit
from barlow_jax.weights import architecture, as_run, files, naming, pickle_writer

FIELDS = {
    "arch": "vit_tiny",
    "stem": "imagenet",
    "vit": {"patch": 8, "positions": "fixed", "pooling": "mean"},
    "projector": (16, 16),
    "precision": "float32",
    "image_size": 24,
    "batch_size": 16,
    "warmup_epochs": 0,
    "epochs": 1,
    "optimizer": {"name": "adamw", "weight_decay": 0.05},
    "eval": {"resize": 24, "crop": 24, "batch_size": 16, "knn_k": 5},
}


@pytest.fixture(scope="module")
def tinier():
    """vit_tiny with two blocks of 16 numbers a token, two heads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.BACKBONES, "vit_tiny", functools.partial(vit.ViT, 16, 2, 2))
        patch.setitem(architecture._VITS, (16, 2), "vit_tiny")
        yield


def a_config(**changes):
    config = barlow_jax.config("cifar10").unlock()
    config.update(FIELDS)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory, tinier):
    """(work folder of a run that nobody had to wait for, the .npz that it would be of)."""
    folder = tmp_path_factory.mktemp("vit")
    data = frozen_runs.write_set(folder / "set.npz")
    config = a_config(**{"data.path": str(data)})
    save_filled(folder / "run", config, images=frozen_runs.TRAIN)
    return folder / "run", data


@pytest.mark.slow
def test_a_step_moves_everything_but_fixed_positions(tinier):
    """The step of train.py, on one device."""
    assert [path[-1].key for path in unmoved_by_a_step(a_config())] == ["pos_embed"]


@pytest.mark.slow
def test_a_run_begins_as_timms_is_trained_judged_and_exported(tinier, tmp_path):
    data = frozen_runs.write_set(tmp_path / "set.npz")
    assert barlow_jax.train("cifar10", data=data, workdir=tmp_path / "run", **FIELDS)
    judged = subject.load(tmp_path / "run")
    _, start, _ = model.split(experiment.backbone(ConfigDict(judged.config), 3)(rngs=nnx.Rngs(judged.config["seed"])))
    flat = zip(jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(judged.params), strict=True)
    assert [path[-1].key for (path, before), now in flat if np.array_equal(before, now)] == ["pos_embed"]
    for block in start["blocks"].values():
        for layer in (*block["attn"].values(), *block["mlp"].values()):
            kernel = np.asarray(layer["kernel"])
            assert abs(kernel.std() / 0.02 - 1) < 4 / np.sqrt(2 * kernel.size) and not layer["bias"].any()
    assert 0 < np.abs(start["cls_token"]).max() < 1e-5
    bound = 1 / np.sqrt(8 * 8 * 3)
    assert 0.99 * bound < np.abs(start["patch_embed"]["proj"]["kernel"]).max() <= bound
    assert 0.5 * bound < np.abs(start["patch_embed"]["proj"]["bias"]).max() <= bound
    sizes = {"image_size": 0, "eval": {"resize": 0, "crop": 0}}
    linear = {"config": "linear_cifar10", "epochs": 1, "batch_size": 16, **sizes}
    assert barlow_jax.evaluate(tmp_path / "run", by="linear", workdir=tmp_path / "linear", **linear)
    export.export(export.read(tmp_path / "linear"), "timm", tmp_path / "head.pth")
    assert files.load(tmp_path / "head.pth").params["fc"]["kernel"].shape == (16, frozen_runs.CLASSES)


def test_it_is_judged(run, tmp_path):
    run, _ = run
    found = barlow_jax.evaluate(run, by="knn", workdir=tmp_path / "knn", k=(5,), shot_seeds=0)
    assert {line["metric"] for line in found} >= {"top1"}
    for fields, sentence in (
        (
            {"eval": {"resize": 32, "crop": 32}},
            "config.eval.crop is 32, and the vit_tiny of the pre-training run is for",
        ),
        ({"image_size": 32}, "config.image_size is 32, and the vit_tiny .* take --config.image_size=24"),
    ):
        with pytest.raises(UserError, match=sentence):
            barlow_jax.evaluate(run, by="knn", workdir=tmp_path / "other", k=(5,), shot_seeds=0, **fields)
    config = barlow_jax.config("linear").unlock()
    config.image_size = 24
    with pytest.raises(
        UserError, match="config.eval.crop is 224, and the vit_tiny of the pre-training run is for imag"
    ):
        linear_experiment.classifier(config, ConfigDict(subject.load(run).config), 3, 4)


@pytest.mark.parametrize("layout", ["timm", "safetensors", pytest.param("stablehlo", marks=pytest.mark.slow)])
def test_it_is_exported(run, tmp_path, layout):
    source, path = export.read(run[0]), tmp_path / "x.safetensors"
    export.check(source, layout)
    report = export.export(source, layout, path)
    assert max(report["differences"].values()) < 1e-5
    assert report["shapes"]["blocks.1.attn.qkv.weight"] == "48 x 16" and report["shapes"]["pos_embed"] == "1 x 10 x 16"
    if layout == "safetensors":
        found, judged = subject.load(path), subject.load(run[0])
        assert found.sha256 == judged.sha256 and found.config["vit"] == judged.config["vit"]
        told = json.loads(files.load(path).about["config"])
        for name, value in (("patch", 5), ("patch", 0), ("patch", "x"), ("pooling", "max"), ("positions", "none")):
            about = files.load(path).about | {"config": json.dumps(told | {"vit": told["vit"] | {name: value}})}
            files.save(tmp_path / "y", "safetensors", source.weights, about=about)
            with pytest.raises(UserError, match=f"config.vit.{name} is"):
                as_run.restore(tmp_path / "y")


def test_what_it_cannot_be_exported_as(run):
    for layout in ("torchvision", "detectron2", "official"):
        with pytest.raises(UserError, match=f"is a vit_tiny under timm's names, which {layout} does not have; take ti"):
            export.check(export.read(run[0]), layout)


def test_a_plan_tells_its_groups(run):
    config = ConfigDict(subject.load(run[0]).config)
    text = "\n".join(plan.meaning(config, plan.Images(100, 3, 4, 24, "said")))
    assert "and the class token and positions" in text
    biases = next(line for line in text.splitlines() if line.startswith("biases")).split()
    assert biases[1] == str(2 * 8 + 5 + 2)  # of two blocks; patches, last norm, two tokens; the projector's norm


def of(arch, **options):
    """Names and arrays of no memory, as timm has them, of a whole network."""
    make = model.make_backbone(arch, **options)
    _, params, _ = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return naming.state_dict(jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), params), {})


@pytest.mark.parametrize(
    ("arch", "own"),
    [
        ("vit_small", {"image_size": 32, "vit.patch": 16, "vit.pooling": "token"}),
        ("vit_base", {"image_size": 24, "vit.patch": 8, "vit.pooling": "mean"}),
    ],
)
def test_its_arrays_tell_what_it_is(arch, own):
    named = of(arch, image_size=own["image_size"], patch=own["vit.patch"], pooling=own["vit.pooling"], channels=1)
    params, batch_stats = naming.trees(named)
    weights = files.Weights("backbone", {"backbone": params}, {"backbone": batch_stats})
    assert architecture.of(weights, "x") == (arch, "imagenet", 1, own)
    assert [*named][:4] == ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert [*named][4:8] == [
        "blocks.0.norm1.weight",
        "blocks.0.norm1.bias",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.qkv.bias",
    ]


@pytest.fixture(scope="module")
def arrays():
    """The state_dict of a small ViT, as of vit_tiny with 16 numbers a token."""
    params = model.split(nnx.eval_shape(lambda: vit.ViT(16, 2, 2, image_size=24, patch=8, rngs=nnx.Rngs(0))))[1]
    rng = np.random.default_rng(0)
    return naming.state_dict(jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), params), {})


def under(prefix, arrays):
    return {prefix + name: value for name, value in arrays.items()}


OTHER = np.full((2, 2), 7, np.float32)
# facebookresearch/mae (models_mae.py), dino (main_dino.py), moco-v3 (moco/builder.py), timm.
LAYOUTS = {
    "timm": (lambda a: a | {"head.weight": np.ones((5, 16), np.float32), "head.bias": np.ones(5, np.float32)}, ()),
    "MAE": (
        lambda a: {
            "model": a | dict.fromkeys(("mask_token", "decoder_blocks.0.norm1.weight", "decoder_pred.bias"), OTHER)
        },
        ("mask_token", "decoder_blocks", "decoder_pred"),
    ),
    "DINO": (lambda a: {"teacher": under("backbone.", a) | {"head.mlp.0.weight": OTHER}}, ("head",)),
    "MoCo v3": (
        lambda a: {
            "state_dict": under("module.momentum_encoder.", under("", a))
            | under("module.base_encoder.", a | {"head.0.weight": OTHER})
            | {"module.predictor.0.weight": OTHER}
        },
        ("momentum_encoder", "base_encoder", "predictor"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_of_others(tmp_path, caplog, arrays, layout):
    make, aside = LAYOUTS[layout]
    pickle_writer.save(tmp_path / "x.pth", make(arrays))
    with caplog.at_level("INFO"):
        found = files.load(tmp_path / "x.pth")
    assert found.kind == ("classifier" if layout == "timm" else "backbone")
    jax.tree.map(np.testing.assert_array_equal, found.params["backbone"], naming.trees(arrays)[0])
    assert all(f"{name} (" in caplog.text for name in aside)
    if layout == "timm":
        assert found.params["fc"]["kernel"].shape == (16, 5)
        files.save(tmp_path / "y.pth", "timm", found)
        again = files.load(tmp_path / "y.pth")
        jax.tree.map(np.testing.assert_array_equal, found.params, again.params)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda a: a | {"blocks.0.ls1.gamma": OTHER},
            "holds blocks.0.ls1.gamma, which is no part of a ViT as timm has",
        ),
        (lambda a: a | {"reg_token": OTHER}, "holds reg_token, which is no part of a ViT as timm has it"),
        (lambda a: a | {"pos_embed": a["pos_embed"][:, 1:]}, "with 9 positions, which is none of vit_tiny, vit_small"),
        (lambda a: a | {"pos_embed": OTHER}, "with 0 positions, which is none of vit_tiny"),
        (lambda a: {n: v for n, v in a.items() if "blocks.1" not in n}, "a ViT of 1 blocks of width 16"),
        (lambda a: a | {"patch_embed.proj.weight": OTHER}, "a ViT of 2 blocks of width 0"),
        (lambda a: {n: v for n, v in a.items() if n != "norm.bias"}, "norm.bias, in our layout, is absent there"),
        (
            lambda a: under("base_encoder.", a | {"cls_token": np.zeros((1, 1, 384), np.float32)}),
            "holds the ViT-S of MoCo v3, whose attention has 12 heads where timm's and ours has 6",
        ),
    ],
)
def test_what_is_refused_of_others(tinier, tmp_path, arrays, change, sentence):
    pickle_writer.save(tmp_path / "x.pth", change(arrays))
    with pytest.raises(UserError, match=sentence):
        architecture.of(files.load(tmp_path / "x.pth"), "x.pth")


def test_a_run_begins_from_a_file(run, tmp_path, arrays):
    """With a backbone of the same patches, size and pooling; a file without a config is judged at its own size."""
    pickle_writer.save(tmp_path / "x.pth", arrays)
    _, config, _ = as_run.restore(tmp_path / "x.pth")
    assert config["image_size"] == config["eval"]["crop"] == config["eval"]["resize"] == 24
    assert config["vit"] == {"patch": 8, "positions": "learned", "pooling": "token"}
    config = ConfigDict(subject.load(run[0]).config).unlock()
    for change, sentence in (
        ({}, "config.vit.pooling is 'mean' and .* holds 'token'; set --config.vit.pooling=token"),
        (
            {"vit.pooling": "token", "image_size": 48},
            "config.image_size is 48 and .* holds 24; set --config.image_size=24",
        ),
        ({"vit.pooling": "token", "image_size": 24, "vit.patch": 4}, "config.vit.patch is 4 and .* holds 8"),
    ):
        config.update_from_flattened_dict(change)
        with pytest.raises(UserError, match=sentence):
            as_run.begin(tmp_path / "x.pth", None, config, 3, 5)
    config.vit.patch = 8
    parts = {"channels": 3, "num_classes": 4, "steps_per_epoch": 5, "mesh": sharding.make_mesh(jax.devices()[:1])}
    _, shapes = experiment.method(config, **parts, abstract=True)
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    begun = as_run.begin(tmp_path / "x.pth", state, config, 3, 5)
    assert int(begun.step) == 0
    jax.tree.map(np.testing.assert_array_equal, begun.params["backbone"], naming.trees(arrays)[0])
