"""ResNets of other depths and widths, and without BatchNorm: against numpy, and the whole way."""

import functools

import frozen_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from saved_runs import filled, fresh_method, save_filled, unmoved_by_a_step

import barlow_jax
from barlow_jax import experiment, export, model
from barlow_jax.errors import UserError
from barlow_jax.evaluation import subject
from barlow_jax.networks import resnet
from barlow_jax.weights import architecture, as_run, files, naming

NARROW = {"depths": (1, 1, 1, 1), "width": 0.125, "norm": "none"}


def a_config(**changes):
    config = barlow_jax.config("imagenette32").unlock()
    config.arch, config.resnet, config.projector, config.batch_size = "resnet18", NARROW, (16, 16), 16
    config.update_from_flattened_dict(changes)
    return config


# In numpy, float64.


def convolved(x, kernel, stride):
    """[b, h, w, c] by [k, k, c, o], padded by k // 2."""
    k = len(kernel)
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    rows, columns = ((side - k) // stride + 1 for side in x.shape[1:3])
    shifted = (
        (x[:, i : i + stride * rows : stride, j : j + stride * columns : stride][:, :rows, :columns], kernel[i, j])
        for i in range(k)
        for j in range(k)
    )
    return sum(part @ weights for part, weights in shifted)


def pooled(x):
    """3 x 3 maximum, stride 2, of values that are not negative."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    side = (x.shape[1] - 3) // 2 + 1
    return np.max(
        [x[:, i : i + 2 * side : 2, j : j + 2 * side : 2][:, :side, :side] for i in range(3) for j in range(3)], 0
    )


def features(params, images):
    """Of bottlenecks with offsets and scalars in the place of norms."""
    x = pooled(np.maximum(convolved(images, params["conv1"]["kernel"], 2) + params["bn1"]["bias"], 0))
    for number in (1, 2, 3, 4):
        for name, block in params[f"layer{number}"].items():
            stride = 2 if (number > 1 and name == "0") else 1
            y = np.maximum(convolved(x, block["conv1"]["kernel"], 1) + block["bn1"]["bias"], 0)
            y = np.maximum(convolved(y, block["conv2"]["kernel"], stride) + block["bn2"]["bias"], 0)
            y = block["bn3"]["scale"] * convolved(y, block["conv3"]["kernel"], 1) + block["bn3"]["bias"]
            if "downsample" in block:
                x = convolved(x, block["downsample"]["conv"]["kernel"], stride) + block["downsample"]["bn"]["bias"]
            x = np.maximum(x + y, 0)
    return x.mean((1, 2))


def test_features_without_norms_equal_those_in_numpy(x64):
    own = {"depths": (1, 1, 1, 1), "width": 1 / 16, "norm": "none", "dtype": jnp.float64}
    make = model.make_backbone("resnet50", image_size=32, **own)
    graphdef, params, batch_stats = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    assert not batch_stats and params["conv1"]["kernel"].shape == (7, 7, 3, 4)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape), params)
    images = rng.normal(size=(2, 2, 32, 32, 3))
    want = features(params, images.reshape(4, 32, 32, 3))
    found = jax.jit(lambda p, x: model.merge(graphdef, p, batch_stats)(x, train=True))(params, images).reshape(4, 128)
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize(("zero", "start"), [(True, 0.0), (False, 5**-0.5)])
def test_residual_branches_start_at_a_scalar(monkeypatch, zero, start):
    """SkipInit: one number a block, of one axis, so that it neither decays nor is adapted by LARS."""
    monkeypatch.setattr(resnet, "conv_init", lambda key, shape: np.zeros(shape, np.float32))  # whose draws cost seconds
    make = model.make_backbone("resnet18", image_size=32, **NARROW | {"depths": (1, 2, 1, 1)}, zero_init_residual=zero)
    params = model.split(make(rngs=nnx.Rngs(0)))[1]
    scalars = [block["bn2"]["scale"] for k in (1, 2, 3, 4) for block in params[f"layer{k}"].values()]
    np.testing.assert_allclose(scalars, np.full((5, 1), start), rtol=1e-6)


def test_what_no_resnet_is():
    for wrong in ({"norm": "layer"}, {"width": 0.01}, {"depths": (1, 1)}):
        with pytest.raises(UserError, match="config.resnet has norm"):
            nnx.eval_shape(lambda w=wrong: model.make_backbone("resnet18", image_size=32, **w)(rngs=nnx.Rngs(0)))


# The whole way.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Work folder of a run that nobody had to wait for."""
    folder = tmp_path_factory.mktemp("narrow")
    config = a_config(**{"data.path": str(frozen_runs.write_set(folder / "set.npz"))})
    experiment.check(config)
    save_filled(folder / "run", config, images=frozen_runs.TRAIN)
    return folder / "run"


@pytest.mark.slow
def test_a_step_moves_everything():
    assert not unmoved_by_a_step(a_config(warmup_epochs=0))


@pytest.mark.slow
def test_a_run_is_trained_and_judged(tmp_path):
    data = frozen_runs.write_set(tmp_path / "set.npz")
    small = {"resnet": NARROW, "arch": "resnet18", "projector": (16, 16), "batch_size": 16, "eval": {"knn_k": 5}}
    short = {"epochs": 1, "warmup_epochs": 0, "remat": "blocks", "microbatches": 2, "microbatch_statistics": "batch"}
    assert barlow_jax.train("imagenette32", data=data, workdir=tmp_path / "run", **small, **short)
    linear = {"config": "linear_cifar10", "epochs": 1, "batch_size": 16}
    assert barlow_jax.evaluate(tmp_path / "run", by="linear", workdir=tmp_path / "linear", **linear)


@pytest.mark.parametrize("layout", ["safetensors", pytest.param("stablehlo", marks=pytest.mark.slow)])
def test_it_is_exported_and_read_again(run, tmp_path, layout):
    source, path = export.read(run), tmp_path / "x.safetensors"
    export.check(source, layout)
    report = export.export(source, layout, path)
    assert max(report["differences"].values()) < 1e-5
    assert report["shapes"]["layer4.0.bn2.weight"] == "1" and report["shapes"]["conv1.weight"] == "8 x 3 x 7 x 7"
    if layout == "safetensors":
        found, judged = subject.load(path), subject.load(run)
        assert found.config["resnet"] == {"depths": [1, 1, 1, 1], "width": 0.125, "norm": "none"}
        jax.tree.map(np.testing.assert_array_equal, found.params, judged.params)
        state = fresh_method(a_config())[1]
        begun = as_run.begin(path, state, a_config(), 3, 5)
        jax.tree.map(np.testing.assert_array_equal, begun.params["backbone"], judged.params)
        with pytest.raises(
            UserError, match="config.resnet.width is 0.25 and .* holds 0.125; set --config.resnet.width"
        ):
            as_run.begin(path, state, a_config(**{"resnet.width": 0.25}), 3, 5)


def test_what_it_cannot_be_exported_as(run):
    source = export.read(run)
    for layout in ("torchvision", "timm", "detectron2", "huggingface", "official"):
        sentence = rf"is a resnet18 with config.resnet.depths=\(1, 1, 1, 1\), of which {layout} has no network; take"
        with pytest.raises(UserError, match=sentence):
            export.check(source, layout)
    wide = source._replace(config=source.config | {"resnet": {"width": 2.0}})
    with pytest.raises(UserError, match="with config.resnet.width=2.0, of which torchvision has no"):
        export.check(wide, "torchvision")


@pytest.mark.parametrize(
    ("arch", "own", "told"),
    [
        ("resnet34", NARROW, ("resnet18", {**NARROW})),
        ("wide_resnet50_2", {"depths": (1, 1, 1, 1), "width": 0.25}, None),
        ("resnet50", {"width": 0.125}, None),
    ],
)
def test_its_arrays_tell_what_it_is(arch, own, told):
    make = functools.partial(model.make_backbone, arch, image_size=32, stem="cifar", channels=1, **own)
    _, *shapes = model.split(nnx.eval_shape(lambda: make()(rngs=nnx.Rngs(0))))
    named = naming.state_dict(*map(filled, shapes))
    params, batch_stats = naming.trees(named)
    found = architecture.of(files.Weights("backbone", {"backbone": params}, {"backbone": batch_stats}), "x")
    arch, own = told or (arch, {"depths": (), "norm": "batch"} | own)
    assert found == (arch, "cifar", 1, {f"resnet.{name}": value for name, value in own.items()})
    del params["conv1"]
    with pytest.raises(UserError, match="in any depth and width"):
        architecture.of(files.Weights("backbone", {"backbone": params}, {"backbone": batch_stats}), "x")
