"""Weights in and out, against PyTorch, torchvision and timm themselves; `make test-torch` installs and runs this."""

import argparse
import collections
import importlib
import json
import re
import sys
import warnings

import commands
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from flax import nnx
from PIL import Image
from saved_runs import a_config, save_run

from barlow_jax import export, model, optim, pretrain, sharding
from barlow_jax.training import feed
from barlow_jax.weights import architecture, as_run, files, hub, in_torch, naming, pickle_writer
from configs import barlow_twins


def imported():
    """torch and torchvision, or a reason to skip.

    torchvision registers what it compiled and then looks for it in torch; a build for another torch finds nothing and
    gives up, although its networks, which are plain Python, would run. So what it looks for is declared here.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; run `make test-torch`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(50):
            try:
                return torch, importlib.import_module("torchvision")
            except ImportError:
                pytest.skip("torchvision is not installed; run `make test-torch`", allow_module_level=True)
            except RuntimeError as error:
                name = re.search(r"operator (torchvision::\w+) does not exist", str(error))
                torch.library.define(name[1], "(Tensor x) -> Tensor")
                for part in [part for part in sys.modules if part.startswith("torchvision")]:
                    del sys.modules[part]
    raise RuntimeError("torchvision cannot be imported")


torch, torchvision = imported()
sys.path.insert(0, str(commands.ROOT / "benchmarks"))
import torch_step  # networks and optimiser of the official code, written anew

SIZES = ((64, 64), (65, 97))


def shaken(network, seed=0):
    """A fresh network with running statistics and scales as after some training."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            noise = 0.2 * torch.rand(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(noise + (0.9 if name.endswith(("weight", "var")) else -0.1))
    return network.eval()


def theirs(network, images):
    with torch.no_grad():
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def ours(arch, weights, images, dtype):
    make = model.make_backbone(arch, image_size=64, dtype=dtype)
    graphdef, *_ = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    trees = jax.tree.map(lambda a: a.astype(dtype), (weights.params["backbone"], weights.batch_stats["backbone"]))
    features = jax.jit(lambda trees, x: model.merge(graphdef, *trees)(x, train=False))
    return np.asarray(features(trees, images))


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"])
def test_features_of_torchvisions_networks(arch, tmp_path):
    """In: their weights here. Out: written again by us, they load there strictly and are the same to the bit."""
    network = shaken(getattr(torchvision.models, arch)(zero_init_residual=False).double())
    network.fc = torch.nn.Identity()
    torch.save(network.state_dict(), tmp_path / "in.pth")
    weights = files.load(tmp_path / "in.pth")
    assert architecture.of(weights, "x")[:3] == (arch, "imagenet", 3)
    images = [np.random.default_rng(n).normal(size=(2, *size, 3)) for n, size in enumerate(SIZES)]
    with jax.enable_x64(True):
        for shown in images:
            assert export.difference(ours(arch, weights, shown, jnp.float64), theirs(network, shown)) < 1e-9
    files.save(tmp_path / "out.pth", "torchvision", weights)
    again = getattr(torchvision.models, arch)().double()
    again.fc = torch.nn.Identity()
    again.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    network = network.float()
    for shown in images:
        shown = shown.astype(np.float32)
        assert export.difference(ours(arch, weights, shown, jnp.float32), theirs(network, shown)) < 1e-4


def test_ours_in_theirs(tmp_path, monkeypatch):
    """The other direction from the start: weights that were made here, features there, by the lines of the docs."""
    monkeypatch.chdir(tmp_path)
    make = model.make_backbone("resnet50", image_size=64, zero_init_residual=False)
    with jax.enable_x64(True):
        _, *trees = model.split(make(rngs=nnx.Rngs(3)))
        rng = np.random.default_rng(0)
        trees = jax.tree.map(lambda a: np.float64(a) + (a.ndim < 2) * rng.uniform(0.1, 0.2, a.shape), trees)
        weights = files.Weights("backbone", {"backbone": trees[0]}, {"backbone": trees[1]})
        files.save("r50.pth", "torchvision", weights)
        scope = {"torch": torch, "torchvision": torchvision}
        torch.set_default_dtype(torch.float64)
        exec(commands.documented("torchvision.models"), scope)
        torch.set_default_dtype(torch.float32)
        network = scope["network"].eval()
        for n, size in enumerate(SIZES):
            shown = np.random.default_rng(n).normal(size=(2, *size, 3))
            assert export.difference(ours("resnet50", weights, shown, jnp.float64), theirs(network, shown)) < 1e-9


VITS = {
    "vit_small": {},
    "vit_base": {},
    "vit_tiny": {"img_size": 32, "patch_size": 4, "global_pool": "avg", "in_chans": 1},
}


def timms_vit(arch, **options):
    """A fresh network in double precision, shaken in all its arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(f"{arch}_patch16_224", **{"num_classes": 0} | VITS[arch] | options).double()
    for value in network.parameters():
        value.data += 0.05 * torch.randn(value.shape, dtype=value.dtype)
    return network.eval()


def our_vit(found, params, images):
    own = {name.removeprefix("vit."): value for name, value in found.own.items()}
    make = model.make_backbone(found.arch, channels=found.channels, dtype=jnp.float64, **own)
    graphdef, *_ = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return np.asarray(jax.jit(lambda p, x: model.merge(graphdef, p, {})(x, train=False))(params, images))


@pytest.mark.parametrize("arch", VITS)
def test_timms_vits(arch, tmp_path):
    """In: their weights here. Out: written again by us, they load there strictly and are the same to the bit."""
    network = timms_vit(arch)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    weights = files.load(tmp_path / "in.pth")
    found = architecture.of(weights, "x")
    options = VITS[arch]
    assert (found.arch, found.channels) == (arch, options.get("in_chans", 3)) and weights.kind == "backbone"
    side = options.get("img_size", 224)
    pooling = "mean" if "global_pool" in options else "token"
    assert found.own == {"image_size": side, "vit.patch": options.get("patch_size", 16), "vit.pooling": pooling}
    images = np.random.default_rng(0).normal(size=(2, side, side, found.channels))
    with jax.enable_x64(True):
        assert export.difference(our_vit(found, weights.params["backbone"], images), theirs(network, images)) < 1e-9
    files.save(tmp_path / "out.pth", "timm", weights)
    again = timms_vit(arch)
    again.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert [*again.state_dict()] == [*torch.load(tmp_path / "out.pth", weights_only=True)]
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_our_vit_in_timm(tmp_path, monkeypatch):
    """From the start: weights that were made here, features there, by the lines of the docs; with a classifier too."""
    timms_vit("vit_tiny")  # or skip
    monkeypatch.chdir(tmp_path)
    make = model.make_backbone("vit_small", image_size=32, patch=4, pooling="mean", positions="fixed")
    with jax.enable_x64(True):
        _, params, _ = model.split(make(rngs=nnx.Rngs(3)))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda a: np.float64(a) + rng.normal(0, 0.05, a.shape), params)
        weights = files.Weights("backbone", {"backbone": params}, {})
        files.save("vit.pth", "timm", weights)
        scope = {"torch": torch, "timm": importlib.import_module("timm")}
        torch.set_default_dtype(torch.float64)
        exec(commands.documented("vit_small_patch16_224"), scope)
        torch.set_default_dtype(torch.float32)
        shown = rng.normal(size=(2, 32, 32, 3))
        ours_ = our_vit(architecture.of(weights, "x"), params, shown)
        assert export.difference(ours_, theirs(scope["network"].eval(), shown)) < 1e-9
    fc = {"kernel": rng.normal(size=(384, 5)), "bias": rng.normal(size=5)}
    files.save("head.pth", "timm", weights._replace(params={"backbone": params, "fc": fc}))
    options = {"img_size": 32, "patch_size": 4, "global_pool": "avg"}
    judge = timms_vit("vit_small", num_classes=5, **options)
    judge.load_state_dict(torch.load("head.pth", weights_only=True), strict=True)
    want = np.asarray(ours_) @ fc["kernel"] + fc["bias"]
    assert export.difference(theirs(judge, shown), want) < 1e-9


def test_an_exported_vit_is_verified_in_timm(tmp_path):
    timms_vit("vit_tiny")  # or skip
    config = a_config("vit_tiny", image_size=32)
    config.vit.patch, config.vit.pooling = 4, "mean"
    save_run(tmp_path / "run", config)
    report = export.export(export.read(tmp_path / "run"), "timm", tmp_path / "x.pth")
    [difference] = [value for name, value in report["differences"].items() if name.startswith("timm")]
    assert 0 < difference < 1e-5


CONVNEXTS = {"convnext_tiny": ((64, 64), 3), "convnext_small": ((70, 45), 1)}  # sizes of the images, their channels


def timms_convnext(arch, channels=3, num_classes=0):
    """A fresh network in double precision, shaken in all its arrays, layer scales and all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(arch, num_classes=num_classes, in_chans=channels).double()
    for value in network.parameters():
        value.data += 0.05 * torch.randn(value.shape, dtype=value.dtype)
    return network.eval()


def our_convnext(arch, params, images):
    make = model.make_backbone(arch, image_size=224, channels=images.shape[-1], dtype=jnp.float64)
    graphdef, *_ = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return np.asarray(jax.jit(lambda p, x: model.merge(graphdef, p, {})(x, train=False))(params, images))


@pytest.mark.parametrize("arch", CONVNEXTS)
def test_timms_convnexts(arch, tmp_path):
    """In: their weights here, head and all. Out: written again by us, they are the same to the bit, in their order."""
    size, channels = CONVNEXTS[arch]
    network = timms_convnext(arch, channels, num_classes=5)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    weights = files.load(tmp_path / "in.pth")
    assert architecture.of(weights, "x") == (arch, "imagenet", channels, {}) and weights.kind == "classifier"
    images = np.random.default_rng(0).normal(size=(2, *size, channels))
    with jax.enable_x64(True):
        features = our_convnext(arch, weights.params["backbone"], images)
    head = weights.params["fc"]
    assert export.difference(features @ head["kernel"] + head["bias"], theirs(network, images)) < 1e-9
    network.reset_classifier(0)
    assert export.difference(features, theirs(network, images)) < 1e-9
    files.save(tmp_path / "out.pth", "timm", weights)
    again = timms_convnext(arch, channels, num_classes=5)
    again.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert [*again.state_dict()] == [*torch.load(tmp_path / "out.pth", weights_only=True)]
    for name, value in torch.load(tmp_path / "in.pth", weights_only=True).items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_our_convnext_in_timm(tmp_path, monkeypatch):
    """From the start: weights that were made here, features there, by the lines of the docs."""
    timms_convnext("convnext_tiny")  # or skip
    monkeypatch.chdir(tmp_path)
    make = model.make_backbone("convnext_tiny", image_size=224)
    _, shapes, _ = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(0, 0.05, a.shape), shapes)
    files.save("convnext.pth", "timm", files.Weights("backbone", {"backbone": params}, {}))
    scope = {"torch": torch, "timm": importlib.import_module("timm")}
    torch.set_default_dtype(torch.float64)
    exec(commands.documented("convnext_tiny"), scope)
    torch.set_default_dtype(torch.float32)
    shown = rng.normal(size=(2, 64, 96, 3))
    with jax.enable_x64(True):
        assert (
            export.difference(our_convnext("convnext_tiny", params, shown), theirs(scope["network"].eval(), shown))
            < 1e-9
        )


def test_an_exported_convnext_is_verified_in_timm(tmp_path):
    timms_convnext("convnext_tiny")  # or skip
    save_run(tmp_path / "run", a_config("convnext_tiny", image_size=32))
    report = export.export(export.read(tmp_path / "run"), "timm", tmp_path / "x.pth")
    [difference] = [value for name, value in report["differences"].items() if name.startswith("timm")]
    assert 0 < difference < 1e-5


def timm_or_skip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm")


@pytest.mark.parametrize("arch", ["resnet18", "wide_resnet50_2", "vit_tiny", "convnext_tiny"])
def test_a_folder_for_the_hub_in_timm(arch, tmp_path):
    """Made of the folder alone, the head with it; and config.json is what timm itself writes of such a network."""
    timm = timm_or_skip()
    config = a_config(arch, image_size=32).to_dict()
    config["eval"] |= {"resize": 36, "crop": 32}
    config["vit"] |= {"patch": 8, "pooling": "mean"}
    own = {"patch": 8, "pooling": "mean"} if arch == "vit_tiny" else {"zero_init_residual": False}  # each reads its own
    (tmp_path / "ours").mkdir()
    with jax.enable_x64(True):
        make = model.make_backbone(arch, image_size=32, channels=1, dtype=jnp.float64, **own)
        graphdef, *trees = model.split(make(rngs=nnx.Rngs(3)))
        rng = np.random.default_rng(0)
        trees = jax.tree.map(lambda a: np.float64(a) + (a.ndim < 2) * rng.uniform(0.1, 0.2, a.shape), trees)
        shown = rng.normal(size=(2, 32, 32, 1))
        features = np.asarray(jax.jit(lambda trees, x: model.merge(graphdef, *trees)(x, train=False))(trees, shown))
    fc = {"kernel": rng.normal(size=(features.shape[1], 5)), "bias": rng.normal(size=5)}
    weights = files.Weights("classifier", {"backbone": trees[0], "fc": fc}, {"backbone": trees[1]}, step=3)
    config["views"] |= {"mean": (0.4,), "std": (0.2,)}
    hub.save(tmp_path / "ours", weights, config, 1, {})
    torch.set_default_dtype(torch.float64)
    network = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    torch.set_default_dtype(torch.float32)
    assert export.difference(theirs(network, shown), features @ fc["kernel"] + fc["bias"]) < 1e-9
    timm.models.save_for_hf(network, str(tmp_path / "theirs"), safe_serialization=True)
    mine, other = (json.loads((tmp_path / name / hub.CONFIG).read_text()) for name in ("ours", "theirs"))
    given, all_ = mine.pop("model_args"), other.pop("model_args")  # theirs have what the rest of the file says too
    assert mine == other and all_ | {k: [v] * 2 if k == "img_size" else v for k, v in given.items()} == all_
    arrays = [files.load(tmp_path / name) for name in ("ours", "theirs")]
    jax.tree.map(np.testing.assert_array_equal, arrays[0].params, arrays[1].params)
    network.reset_classifier(0)
    assert export.difference(theirs(network, shown), features) < 1e-9


def test_an_exported_folder_by_the_lines_of_its_card(tmp_path, monkeypatch):
    """A photograph gives the same features by both, up to what two ways of resampling make of it."""
    timm = timm_or_skip()
    monkeypatch.chdir(tmp_path)
    config = a_config()
    config.eval.resize, config.eval.crop = 72, 64
    save_run(tmp_path / "run", config)
    report = export.export(export.read(tmp_path / "run"), "huggingface", tmp_path / "pets")
    [difference] = [value for name, value in report["differences"].items() if name.startswith("timm")]
    assert 0 < difference < 1e-5
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((150, 120), Image.BICUBIC).save("photo.jpg", quality=95)
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "pets" / "README.md").read_text(), re.S)
    scopes = {}, {"images": np.asarray(Image.open("photo.jpg"))[None]}
    for block, scope in zip(blocks, scopes, strict=True):
        exec(block, scope)
    found = [scopes[0]["features"].detach().numpy(), scopes[1]["features"]]
    assert found[0].shape == (1, 512) and export.difference(*found) < 0.01
    monkeypatch.setattr(timm.models, "parse_model_name", lambda name: int(name))  # of before there was local-dir:
    assert in_torch.features(config.to_dict(), 3, "huggingface", tmp_path / "pets", []) == {}


def test_timm(tmp_path):
    """Its files here, as .pth and safetensors, and ours there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    network = shaken(timm.create_model("resnet34", num_classes=7))
    torch.save(network.state_dict(), tmp_path / "x.pth")
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    found = [files.load(tmp_path / name) for name in ("x.pth", "x.safetensors")]
    assert [weights.kind for weights in found] == ["classifier"] * 2
    jax.tree.map(np.testing.assert_array_equal, found[0].params, found[1].params)
    shown = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    features = ours("resnet34", found[0], shown, jnp.float32)
    head = found[0].params["fc"]
    assert export.difference(features @ head["kernel"] + head["bias"], theirs(network, shown)) < 1e-4
    files.save(tmp_path / "back.pth", "timm", found[0])
    again = timm.create_model("resnet34", num_classes=7, checkpoint_path=str(tmp_path / "back.pth")).eval()
    assert np.array_equal(theirs(again, shown), theirs(network, shown))


class Callback:
    """What a checkpoint of a trainer pickles beside the weights."""

    def __init__(self):
        self.best, self.monitor = torch.tensor(0.5), {"loss"}


def test_modules_of_others_as_torch_saves_them(tmp_path):
    """A Sequential of children, a query encoder, a compiled network; with optimiser, callbacks and arguments beside."""
    network = shaken(torchvision.models.resnet18())
    adam = torch.optim.AdamW(network.parameters())
    network(torch.zeros(2, 3, 32, 32)).sum().backward()
    adam.step()
    network.fc = torch.nn.Identity()
    children = torch.nn.Sequential(*list(network.children())[:-1])
    modules = {
        "backbone.": torch.nn.ModuleDict({"backbone": children, "projection_head": torch.nn.Linear(8, 8)}),
        "encoder_q.": torch.nn.ModuleDict({"encoder_q": network, "encoder_k": torchvision.models.resnet18()}),
        "compiled": torch.compile(network),
        "Parallel": torch.nn.DataParallel(network),
    }
    beside = {
        "epoch": 3,
        "optimizer_states": [adam.state_dict()],
        "callbacks": {"Callback": Callback()},
        "hyper_parameters": argparse.Namespace(
            device=torch.device("cpu"), dtype=torch.float32, size=torch.Size([3, 4])
        ),
        "states": collections.defaultdict(dict, a={"b": np.float32(3), "c": np.arange(3)}),
    }
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    wanted = naming.trees(arrays)
    for module in modules.values():
        for modern in (True, False):
            tree = {"state_dict": module.state_dict(), **beside}
            torch.save(tree, tmp_path / "x.ckpt", _use_new_zipfile_serialization=modern)
            found = files.load(tmp_path / "x.ckpt")
            assert architecture.of(found, "x")[:3] == ("resnet18", "imagenet", 3)
            for mine, theirs_ in ((found.params, wanted[0]), (found.batch_stats, wanted[1])):
                jax.tree.map(np.testing.assert_array_equal, mine, {"backbone": theirs_})


def test_what_torch_save_writes(tmp_path):
    """Old and new formats, half precision, memory formats, Parameters, Namespaces; and it reads what we write."""
    network = torchvision.models.resnet18().to(memory_format=torch.channels_last)
    state = network.state_dict()
    probe = {"epoch": 2, "best_acc": argparse.Namespace(top1=1.0, top5=2.0), "scheduler": {}, "optimizer": {}}
    probe["model"] = {f"module.{name}": torch.nn.Parameter(value, False) for name, value in state.items()}
    torch.save(state, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(probe, tmp_path / "probe.pth")
    torch.save({name: value.bfloat16() if value.ndim else value for name, value in state.items()}, tmp_path / "b.pth")
    want = files.load(tmp_path / "new.pth")
    np.testing.assert_array_equal(want.params["backbone"]["conv1"]["kernel"], state["conv1.weight"].permute(2, 3, 1, 0))
    for name, kind in (("old.pth", "classifier"), ("probe.pth", "probe")):
        found = files.load(tmp_path / name)
        assert found.kind == kind
        jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
    half = files.load(tmp_path / "b.pth").params["fc"]["kernel"]
    np.testing.assert_array_equal(half, state["fc.weight"].bfloat16().float().T)
    tree = {"a": [np.arange(6.0).reshape(2, 3), (np.array(3), {"b": np.float32([1]) > 0})], "c": (1, 2.5, None, "é")}
    pickle_writer.save(tmp_path / "ours.pth", tree)
    for how in ({}, {"mmap": True}):
        read = torch.load(tmp_path / "ours.pth", weights_only=True, **how)
        assert read["c"] == tree["c"] and torch.equal(read["a"][0], torch.from_numpy(tree["a"][0]))
        assert read["a"][1][0].item() == 3 and read["a"][1][1]["b"].item() is True


BATCH, SIZE, WIDTHS, RATES, DECAY, LAMBD = 8, 32, (16, 16, 12), (0.2, 0.05), 1e-4, 0.01


def views_of(step):
    rng = np.random.default_rng(step)
    base = rng.normal(size=(BATCH, 1, SIZE, SIZE, 3))
    return base + 0.4 * rng.normal(size=(BATCH, 2, SIZE, SIZE, 3))


def official_run(seed=0):
    """The official network and optimiser, in double precision."""
    torch.manual_seed(seed)
    network = torch_step.BarlowTwins("resnet18", WIDTHS, LAMBD).double().train()
    groups = [[p for p in network.parameters() if (p.ndim == 1) == bias] for bias in (False, True)]
    optimizer = torch_step.Lars([{"params": group} for group in groups], weight_decay=DECAY)
    for group, rate in zip(optimizer.param_groups, RATES, strict=True):
        group["lr"] = rate
    return network, optimizer


def official_steps(network, optimizer, steps):
    losses = []
    for step in steps:
        y1, y2 = (torch.from_numpy(view.transpose(0, 3, 1, 2).copy()) for view in np.moveaxis(views_of(step), 1, 0))
        optimizer.zero_grad()
        loss = network(y1, y2)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save_official(path, network, optimizer, epoch):
    wrapped = torch.nn.Module()
    wrapped.module = network  # the prefix that DistributedDataParallel gives
    torch.save({"epoch": epoch, "model": wrapped.state_dict(), "optimizer": optimizer.state_dict()}, path)


def test_a_run_goes_on_here_and_there_again(tmp_path):
    """Three official steps, five here, two there: the losses of ten official steps."""
    network, optimizer = official_run()
    wanted = official_steps(network, optimizer, range(10))
    network, optimizer = official_run()
    losses = official_steps(network, optimizer, range(3))
    save_official(tmp_path / "3.pth", network, optimizer, 3)

    config = barlow_twins.get_config().unlock()
    config.arch, config.projector = "resnet18", WIDTHS
    with jax.enable_x64(True):
        make = model.make_backbone("resnet18", image_size=SIZE, dtype=jnp.float64)
        tx = optim.make_optimizer("lars", *(lambda _, r=r: jnp.float64(r) for r in RATES), weight_decay=DECAY)
        graphdef, state = pretrain.create_state(
            model.BarlowTwins(make, WIDTHS, dtype=jnp.float64, rngs=nnx.Rngs(0)), tx
        )
        state = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype.kind == "f" else a, state)
        state = as_run.begin(tmp_path / "3.pth", state, config, 3, 1)
        assert state.step == 3
        mesh = sharding.make_mesh(jax.devices()[:1])
        step = official.step_on_views(graphdef, tx, mesh, lambd=LAMBD)
        state = jax.device_put(state, sharding.replicated(mesh))
        for k in range(3, 8):
            batch = feed.put({"views": views_of(k), "label": np.full(BATCH, -1, np.int32)}, mesh)
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        momentum = state.opt_state[1][1].trace
        reached = files.Weights("pretraining", state.params, state.batch_stats, momentum, 8, 8)
        files.save(tmp_path / "8.pth", "official", reached, groups=[{"lr": r} for r in RATES])
    np.testing.assert_allclose(losses, wanted[:8], rtol=1e-9)

    network, optimizer = official_run(seed=1)
    read = torch.load(tmp_path / "8.pth", weights_only=True)
    wrapped = torch.nn.Module()
    wrapped.module = network
    wrapped.load_state_dict(read["model"], strict=True)
    read["optimizer"]["param_groups"] = [
        {**group, "weight_decay": DECAY, "momentum": 0.9, "eta": 0.001} for group in read["optimizer"]["param_groups"]
    ]
    optimizer.load_state_dict(read["optimizer"])
    assert read["epoch"] == 8 and int(network.bn.num_batches_tracked) == 16
    np.testing.assert_allclose(official_steps(network, optimizer, range(8, 10)), wanted[8:], rtol=1e-9)
