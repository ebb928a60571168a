"""ONNX files in onnxruntime: every network of ours, its features, its logits, and what is refused.

`make test-torch` installs what it needs.
"""

import json
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from barlow_jax import experiment, export, model
from barlow_jax.errors import UserError
from barlow_jax.weights import files, layouts, onnx_graph
from configs import barlow_twins

NETWORKS = {
    "resnet18": {"arch": "resnet18"},
    "resnet50": {"arch": "resnet50"},
    "small stem": {"arch": "resnet18", "stem": "cifar"},
    "of a depth of its own": {"arch": "resnet50", "resnet.depths": (1, 2, 1, 1), "resnet.width": 0.25},
    "no BatchNorm": {"arch": "resnet18", "resnet.norm": "none", "zero_init_residual": False},
    "vit": {"arch": "vit_tiny", "image_size": 32, "vit.patch": 8},
    "vit, mean, fixed": {"arch": "vit_tiny", "image_size": 32, "vit.pooling": "mean", "vit.positions": "fixed"},
    "convnext": {"arch": "convnext_tiny"},
    "convnet": {"arch": "convnet", "image_size": 24},
}


def a_source(channels=3, classes=0, meta=None, **changes):
    """A network with statistics and scales as after some training."""
    config = barlow_twins.get_config().unlock()
    config.update_from_flattened_dict(changes)
    side = changes.get("image_size", 64)
    config.eval.crop, config.eval.resize = side, side + 10
    config.views.mean, config.views.std = (channels * (0.4,), channels * (0.3,))
    backbone = experiment.backbone(config, channels)(rngs=nnx.Rngs(0))
    _, *trees = model.split(backbone)
    rng = np.random.RandomState(0)

    def shaken(path, array):
        array = np.asarray(array)
        if array.ndim > 1:
            return array
        return (array * rng.uniform(0.5, 2, array.shape) + rng.uniform(0, 0.1, array.shape)).astype(np.float32)

    params, batch_stats = (jax.tree.map_with_path(shaken, tree) for tree in trees)
    params, batch_stats = {"backbone": params}, {"backbone": batch_stats} if batch_stats else {}
    if classes:
        kernel = rng.standard_normal((backbone.num_features, classes)).astype(np.float32)
        params["fc"] = {"kernel": kernel, "bias": np.arange(classes, dtype=np.float32)}
    weights = files.Weights("classifier" if classes else "pretraining", params, batch_stats, step=7)
    return export.Source("a run", weights, config.to_dict(), channels, meta or {})


@pytest.fixture
def libraries():
    pytest.importorskip("onnx", reason="onnx is not installed; run `make test-torch`")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; run `make test-torch`")
    return onnx_graph.libraries()


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_ours(name, libraries, tmp_path):
    source = a_source(**NETWORKS[name])
    layouts.check(source, "onnx")
    report = export.export(source, "onnx", tmp_path / "x.onnx")
    assert 0 < max(report["differences"].values()) < 1e-5
    assert json.loads((tmp_path / "x.onnx.json").read_text()) == report


def test_logits_and_what_the_file_says_of_itself(libraries, tmp_path):
    classifier = {"class_names": ["b", "a", "c"], "config": {"eval": {"resize": 40, "crop": 32}}}
    source = a_source(classes=3, meta={"classifier": classifier}, arch="resnet18", stem="cifar")
    report = export.export(source, "onnx", tmp_path / "x.onnx")
    assert max(report["differences"].values()) < 1e-5
    images = export.pixels(4, 32, 32, 3)
    given = onnx_graph.run(tmp_path / "x.onnx", images)
    fc = source.weights.params["fc"]
    np.testing.assert_allclose(given["logits"], given["features"] @ fc["kernel"] + fc["bias"], rtol=1e-4, atol=1e-4)
    session = libraries[1].InferenceSession(tmp_path / "x.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert told == {
        "arch": "resnet18",
        "stem": "cifar",
        "channels": "3",
        "mean": "[0.4, 0.4, 0.4]",
        "std": "[0.3, 0.3, 0.3]",
        "step": "7",
        "resize": "40",
        "crop": "32",
        "class_names": '["b", "a", "c"]',
    }
    assert [(one.name, one.shape, one.type) for one in (*session.get_inputs(), *session.get_outputs())] == [
        ("images", ["batch", "height", "width", 3], "tensor(uint8)"),
        ("features", ["batch", 512], "tensor(float)"),
        ("logits", ["batch", 3], "tensor(float)"),
    ]


def test_sixteen_bits_and_six_bands(libraries, tmp_path):
    source = a_source(channels=6, **{"arch": "vit_tiny", "image_size": 32, "data.bits": 16})
    assert max(export.export(source, "onnx", tmp_path / "x.onnx")["differences"].values()) < 1e-5
    (taken,) = libraries[1].InferenceSession(tmp_path / "x.onnx").get_inputs()
    assert (taken.shape, taken.type) == (["batch", 32, 32, 6], "tensor(uint16)")


def test_the_same_weights_give_the_same_bytes(libraries, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        export.export(a_source(arch="resnet18"), "onnx", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_file_that_computes_something_else_is_refused(libraries, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph.Graph, "relu", lambda graph, x: x)
    with pytest.raises(UserError, match="onnx file gives features that are"):
        export.export(a_source(arch="resnet18"), "onnx", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_packages_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'barlow-jax\[onnx\]'"):
        export.export(a_source(arch="resnet18"), "onnx", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_without_a_graph_is_refused():
    with pytest.raises(UserError, match="is a pixels, of which there is no ONNX graph; take --format=stablehlo"):
        layouts.check(a_source(arch="pixels", image_size=8), "onnx")
