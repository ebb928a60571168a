"""Weights of others: names, the official files, files that are not what they should be, and training that goes on."""

import collections
import json
import os
import pickle
import zipfile

import commands
import detw
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from flax import nnx
from saved_runs import a_config, save_run

from barlow_jax import export, model, optim, pretrain, sharding
from barlow_jax.errors import UserError
from barlow_jax.evaluation import subject
from barlow_jax.weights import as_run, files, naming, pickle_reader, pickle_writer
from barlow_jax.weights.file_arrays import Array
from configs import barlow_twins

TINY = commands.FIXTURES / "ckpt_tiny"


@pytest.fixture(scope="module")
def expected():
    return json.loads((TINY / "expected.json").read_text())


def listing(golden, arch):
    """Names and shapes of a full model, in the official order."""
    described = golden("state_dicts")[1][arch]
    named = [(f"backbone.{name}", shape) for name, shape, _ in described["backbone"]]
    rest = [(name, shape) for name, shape, _ in described["full_model_projector_8192"]]
    return named + [(name, shape) for name, shape in rest if not name.startswith("backbone.")]


def write_backbone(golden, path, arch="resnet18", wrap=lambda arrays: arrays, **replaced):
    """A state_dict of a whole backbone, under the names of the listing: our mapping has no part in it."""
    described = golden("state_dicts")[1][arch]["backbone"]
    arrays = detw.state_dict([(name, shape) for name, shape, _ in described], 3) | replaced
    pickle_writer.save(path, wrap({name: value for name, value in arrays.items() if value is not None}))
    return arrays


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_names_layouts_and_order_of_the_official_model(golden, arch):
    names = listing(golden, arch)
    # Two of each dimension are enough, but a batch's count stays a number.
    arrays = {name: np.random.rand(*(min(n, 3) + k for k, n in enumerate(shape))) for name, shape in names}
    back = naming.state_dict(*naming.trees(arrays), batches=7)
    assert [*back] == [name for name, _ in names]
    for name, value in back.items():
        np.testing.assert_array_equal(value, 7 if name.endswith("num_batches_tracked") else arrays[name])


def test_names_of_detectron2():
    """As detectron2's own conversion of torchvision's models names them."""
    for ours, theirs in {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_mean": "stem.conv1.norm.running_mean",
        "layer1.0.conv2.weight": "res2.0.conv2.weight",
        "layer4.2.bn3.bias": "res5.2.conv3.norm.bias",
        "layer2.0.downsample.0.weight": "res3.0.shortcut.weight",
        "layer2.0.downsample.1.running_var": "res3.0.shortcut.norm.running_var",
    }.items():
        assert naming.to_detectron2(ours) == theirs
        assert naming.from_detectron2(theirs) == ours


def check_summary(array, summary):
    array = array.astype(np.float64)
    assert list(array.shape) == summary["shape"]
    np.testing.assert_allclose([array.sum(), np.linalg.norm(array)], [summary["sum"], summary["norm"]], rtol=1e-12)
    np.testing.assert_allclose(array.ravel()[:3], summary["first"], rtol=1e-12)


def test_the_official_full_checkpoint(expected):
    weights = files.load(TINY / "checkpoint.pth")
    assert (weights.kind, weights.epoch, weights.step) == ("pretraining", expected["epoch"], expected["steps"])
    arrays = naming.state_dict(weights.params, weights.batch_stats)
    for name, summary in expected["tensors"].items():
        check_summary(arrays.pop(name), summary)
    assert all(name.endswith("num_batches_tracked") for name in arrays)
    momentum = naming.state_dict(weights.momentum, {})
    assert momentum.keys() == expected["mu"].keys()
    for name, summary in expected["mu"].items():
        check_summary(momentum[name], summary)


def test_the_official_backbone(expected):
    weights = files.load(TINY / "resnet50.pth")
    full = files.load(TINY / "checkpoint.pth", whole=False)
    assert weights.kind == "backbone" and full.momentum is None and [*full.params] == ["backbone"]
    for one, other in ((weights.params, full.params), (weights.batch_stats, full.batch_stats)):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def plain(tree):
    """A tree of a file with numpy arrays in it."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return tree.numpy() if isinstance(tree, Array) else tree


def test_checkpoints_that_pickle_functions_or_hold_one_group(tmp_path, expected):
    want = files.load(TINY / "checkpoint.pth")

    with pickle_reader.opened(TINY / "checkpoint.pth") as tree:
        tree = plain(tree)
    state, (group, _) = tree["optimizer"]["state"], tree["optimizer"]["param_groups"]
    number = {f"module.{name}": k for k, name in enumerate(expected["group0"] + expected["group1"])}
    names = [name for name in tree["model"] if name in number]
    tree["optimizer"] = {
        "state": {k: state[number[name]] for k, name in enumerate(names)},
        "param_groups": [{**group, "params": [*range(len(names))]}],
    }
    pickle_writer.save(tmp_path / "one_group.pth", tree)
    # The same bytes, but for the flag, which becomes a function of __main__.
    with zipfile.ZipFile(tmp_path / "one_group.pth") as old, zipfile.ZipFile(tmp_path / "function.pth", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                flag = b"lars_adaptation_filter"
                before, after = data.split(flag)
                memo = after.index(pickle.NEWTRUE)
                data = before + flag + after[:memo] + b"c__main__\nexclude_bias_and_norm\n" + after[memo + 1 :]
            new.writestr(name.replace("one_group", "function"), data)
    for name in ("one_group.pth", "function.pth"):
        found = files.load(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, (found.params, found.momentum), (want.params, want.momentum))


class Evil:
    """A pickle of it writes a file when it is read the usual way."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_malicious_file_executes_nothing(tmp_path, golden):
    target = tmp_path / "written"
    plain = pickle.dumps({"model": Evil(target)})
    pickle.loads(plain)
    assert target.exists()  # so the file would do harm
    target.unlink()
    (tmp_path / "plain.pkl").write_bytes(plain)
    for protocol in (0, 2, 4):
        with zipfile.ZipFile(tmp_path / f"zip{protocol}.pth", "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps({"weight": Evil(target)}, protocol))
    (tmp_path / "built.pth").write_bytes(b"\x80\x02c__builtin__\neval\nX\x04\x00\x00\x00evil\x85R.")
    (tmp_path / "class.pth").write_bytes(b"\x80\x02csubprocess\nPopen\nX\x02\x00\x00\x00ls\x85\x81.")
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=r"wants \w+\.\w+ called, and nothing in a file is"):
            files.load(path)
    assert not target.exists()


def test_a_pickle_cannot_change_the_classes_that_it_names(tmp_path):
    attack = b"\x80\x02ccollections\nOrderedDict\n(N}X\x0c\x00\x00\x00__setstate__Nst\x86b."
    (tmp_path / "x.pth").write_bytes(attack.replace(b"st\x86", b"st"))
    with pytest.raises(UserError, match="x.pth is damaged"):
        files.load(tmp_path / "x.pth")
    assert files.load(TINY / "resnet50.pth").kind == "backbone"


def test_damaged_and_foreign_files(tmp_path):
    whole = (TINY / "resnet50.pth").read_bytes()
    data = whole.index(np.float32(0.4761412739753723).tobytes())  # the first number of the first tensor
    cases = {
        "missing": (None, "cannot be read"),
        "empty": (b"", "is no file of weights"),
        "text": (b"not weights", "is no file of weights"),
        "cut": (whole[: len(whole) // 2], "is damaged or cut off"),
        "flipped": (whole[:data] + b"\xff" + whole[data + 1 :], "is damaged or cut off"),
        "pickle": (pickle.dumps([1, 2]), "holds a list"),
        "words": (pickle.dumps({"epoch": 3, "loss": 0.1}), "holds epoch, loss and no state_dict"),
        "safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00{nonsense", "is damaged or cut off"),
    }
    for name, (content, sentence) in cases.items():
        path = tmp_path / f"{name}.pth"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=sentence) as caught:
            files.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="an archive of other things"):
        files.load(tmp_path / "arrays.npz")


def test_tensors_that_reach_beyond_their_bytes(tmp_path):
    pickle_writer.save(tmp_path / "x.pth", {"a": np.arange(6, dtype=np.float32)})
    for was, now in ((b"(K\x06t", b"(K\x07t"), (b"(K\x01t", b"(K\x02t")):  # its shape, its strides
        with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "y.pth", "w") as new:
            for member in old.namelist():
                content = old.read(member)
                assert (was in content) == member.endswith("pkl")
                new.writestr(member, content.replace(was, now))
        with pickle_reader.opened(tmp_path / "y.pth") as tree, pytest.raises(UserError, match="damaged .* 6 numbers"):
            tree["a"].numpy()


def test_wrong_architectures_are_named(tmp_path, golden):
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"holds \(3, 4, 6, 3\) blocks of width 3 .* is none of resnet18"):
        files.architecture(files.load(TINY / "resnet50.pth"), path)
    write_backbone(golden, path, **{"layer3.1.bn2.running_var": None})
    with pytest.raises(UserError, match="layer3.1.bn2.running_var, in our layout, is absent there"):
        files.architecture(files.load(path), path)
    write_backbone(golden, path, **{"layer2.1.conv2.weight": np.zeros((128, 64, 3, 3), np.float32)})
    with pytest.raises(UserError, match=r"layer2.1.conv2.weight, in our layout, is \(3, 3, 64, 128\) there"):
        files.architecture(files.load(path), path)
    write_backbone(golden, path, **{"conv1.weight": np.zeros((64, 3), np.float32)})
    with pytest.raises(UserError, match="behind a convolution of 0 x 0"):
        files.architecture(files.load(path), path)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match="folder.pth is no file"):
        files.load(tmp_path / "folder.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UserError, match="pipe.pth is no file"):
        files.load(tmp_path / "pipe.pth")


def test_files_of_classifiers_and_wrapped_files(tmp_path, golden):
    fc = {"fc.weight": np.zeros((5, 512), np.float32), "fc.bias": np.arange(5, dtype=np.float32)}
    probe = {"epoch": 3, "best_acc": {"top1": 1.0}, "scheduler": {}, "optimizer": {"state": {}, "param_groups": []}}
    wraps = {
        "classifier": lambda a: collections.OrderedDict(a | fc),
        "probe": lambda a: probe | {"model": {f"module.{name}": value for name, value in (a | fc).items()}},
        "backbone": lambda a: {"state_dict": {name: value.astype(np.float16) for name, value in a.items()}},
    }
    for kind, wrap in wraps.items():
        arrays = write_backbone(golden, tmp_path / "x.pth", wrap=wrap)
        weights = files.load(tmp_path / "x.pth")
        assert weights.kind == kind and ("fc" in weights.params) == (kind != "backbone")
        assert files.architecture(weights, "x") == ("resnet18", "imagenet", 3)
        kernel = weights.params["backbone"]["layer1"]["0"]["conv1"]["kernel"]
        assert kernel.dtype == np.float32
        given = arrays["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(kernel, given.astype(np.float16) if kind == "backbone" else given)


def test_an_origin_from_a_file(tmp_path, golden):
    """What every evaluation judges: architecture from the arrays, sizes and normalisation from configs/."""
    arrays = write_backbone(golden, tmp_path / "r18.pth")
    found = subject.load(tmp_path / "r18.pth")
    assert (found.config["arch"], found.config["image_size"], found.channels) == ("resnet18", 224, 3)
    np.testing.assert_array_equal(found.params["bn1"]["scale"], arrays["bn1.weight"])
    assert subject.load(tmp_path / "r18.pth").sha256 == found.sha256
    assert subject.load(tmp_path / "r18.pth", "random").sha256 != found.sha256
    write_backbone(golden, tmp_path / "cifar.pth", **{"conv1.weight": np.ones((64, 3, 3, 3), np.float32)})
    assert subject.load(tmp_path / "cifar.pth").config["image_size"] == 32
    write_backbone(golden, tmp_path / "grey.pth", **{"conv1.weight": np.ones((64, 1, 7, 7), np.float32)})
    with pytest.raises(UserError, match="images of 1 channels and does not say how"):
        subject.load(tmp_path / "grey.pth")


# Training that goes on.


def minitrain_file(golden, path, epoch=0):
    """The model that the official minitrain begins with, as its full checkpoint, in float64."""
    described = golden("minitrain")[1]
    config = described["configs"]["gentle"]
    arrays = detw.state_dict(
        described["state_dict_order"], config["weights_seed"], zero_init_residual=True, fresh_stats=True
    )
    floating = {name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in arrays.items()}
    tree = {
        "epoch": epoch,
        "model": {f"module.{name}": value for name, value in floating.items()},
        "optimizer": {"state": {}, "param_groups": [{"params": [0]}, {"params": [1]}]},
    }
    pickle_writer.save(path, tree)
    return described, config


def minitrain_config(described):
    config = barlow_twins.get_config().unlock()
    config.arch, config.epochs = "resnet18", described["epochs"]
    config.projector = tuple(int(width) for width in described["projector"].split("-"))
    return config


def test_ten_official_steps_through_two_checkpoints(golden, x64, tmp_path):
    """Five steps from an official checkpoint, a full checkpoint written, and five more from that one."""
    described, config = minitrain_file(golden, tmp_path / "0.pth")
    want = golden("minitrain")[0]["gentle.f64.losses"]
    network, *_ = official.official_model(
        described["state_dict_order"], described["projector"], config["weights_seed"], jnp.float64
    )
    scale = config["B"] / 256
    rates = [optim.warmup_cosine(config[k] * scale, 10, described["epochs"]) for k in ("lw", "lb")]
    tx = optim.make_optimizer("lars", *rates, weight_decay=config["wd"])
    views = [official.two_views(i["seed"], config["B"], config["noise"], jnp.float64) for i in config["inputs"]]
    mesh = sharding.make_mesh(jax.devices()[:1])
    graphdef, fresh = pretrain.create_state(network, tx)
    fresh = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype.kind == "f" else a, fresh)
    step = pretrain.make_train_step(graphdef, tx, lambda _, batch: batch["views"], lambd=config["lambd"], mesh=mesh)
    losses = []
    for first in (0, 5):
        state = as_run.begin(tmp_path / f"{first}.pth", fresh, minitrain_config(described), 3, 1)
        assert int(state.step) == first
        state = jax.device_put(jax.tree.map(jnp.array, state), sharding.replicated(mesh))  # a copy: it is donated
        for batch in views[first : first + 5]:
            batch = {"views": batch, "label": np.full(len(batch), -1, np.int32)}
            state, report = step(state, sharding.put(batch, mesh))
            losses.append(float(report["loss"]))
        momentum = state.opt_state[1][1].trace
        reached = files.Weights("pretraining", state.params, state.batch_stats, momentum, first + 5, first + 5)
        files.save(tmp_path / f"{first + 5}.pth", "official", reached)
    np.testing.assert_allclose(losses, want[:10], rtol=1e-9)


def test_five_official_ddp_steps_from_a_checkpoint(golden, x64, tmp_path):
    arrays, _, config, (network, params, batch_stats, tx, views) = official.ddp_setup(golden, 4)
    files.save(tmp_path / "x.pth", "official", files.Weights("pretraining", params, batch_stats))
    weights = files.load(tmp_path / "x.pth")
    losses, *_ = official.run(network, weights.params, weights.batch_stats, tx, views, lambd=config["lambd"])
    np.testing.assert_allclose(losses, arrays["W4.losses_5_steps"], rtol=1e-9)


def test_a_run_does_not_go_on_from_what_does_not_fit(golden, tmp_path):
    described, _ = minitrain_file(golden, tmp_path / "x.pth", epoch=20)
    config = minitrain_config(described)

    def begin(path=tmp_path / "x.pth", channels=3, optimizer="lars", **fields):
        changed = config.copy_and_resolve_references()
        changed.update(fields)
        widths = tuple(changed.projector)
        network = model.BarlowTwins(
            model.make_backbone(changed.arch, image_size=32, channels=channels), widths, rngs=nnx.Rngs(0)
        )
        _, state = pretrain.create_state(network, optim.make_optimizer(optimizer, 0.1, 0.1))
        return as_run.begin(path, state, changed, channels, 5)

    for fields, sentence in (
        ({"arch": "resnet34"}, "config.arch is 'resnet34' and .* holds 'resnet18'; set --config.arch=resnet18"),
        ({"projector": (8, 8)}, "config.projector is .* set --config.projector="),
        ({"channels": 1}, "is for images of 3 channels, and those of this run have 1"),
        ({}, "has finished 20 epochs and config.epochs is 20"),
    ):
        with pytest.raises(UserError, match=sentence):
            begin(**fields)
    state = begin(epochs=30)
    assert state.step == 100
    files.save(
        tmp_path / "momentum.pth",
        "official",
        files.Weights("pretraining", state.params, state.batch_stats, state.params, 2, 10),
    )
    with pytest.raises(UserError, match="config.optimizer.name has no use for"):
        begin(tmp_path / "momentum.pth", optimizer="adamw")
    write_backbone(golden, tmp_path / "backbone.pth")
    assert begin(tmp_path / "backbone.pth").step == 0


def test_a_run_begins_with_the_backbone_of_others(golden, tmp_path):
    """Files with names of a projector that is not ours, or of none: the backbone is taken, at step 0."""
    described, _ = minitrain_file(golden, tmp_path / "x.pth")
    config = minitrain_config(described)
    make = model.make_backbone("resnet18", image_size=32)
    network = model.BarlowTwins(make, tuple(config.projector), rngs=nnx.Rngs(0))
    _, fresh = pretrain.create_state(network, optim.make_optimizer("lars", 0.1, 0.1))
    for beside in ({}, {"projector.0.weight": np.zeros((8, 512), np.float32), "projector.0.bias": np.zeros(8)}):
        wrap = lambda a, beside=beside: {"backbone." + name: value for name, value in a.items()} | beside  # noqa: E731
        arrays = write_backbone(golden, tmp_path / "x.pth", wrap=wrap)
        state = as_run.begin(tmp_path / "x.pth", fresh, config, 3, 5)
        assert state.step == 0 and state.params.keys() == fresh.params.keys()
        kernel = arrays["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(state.params["backbone"]["layer1"]["0"]["conv1"]["kernel"], kernel)
        with pytest.raises(UserError, match="has no projector, so no full checkpoint"):
            export.check(export.read(tmp_path / "x.pth", whole=True), "official")


def test_train_begins_with_a_file_and_goes_on_from_its_own_checkpoint(tmp_path):
    """train.py --init with a full checkpoint of two epochs: it trains the third, and no more when started again."""
    config = a_config(projector=(32, 32))
    save_run(tmp_path / "run", config)
    source = export.read(tmp_path / "run", whole=True)
    assert source.weights.epoch == 2
    files.save(tmp_path / "checkpoint.pth", "official", source.weights, groups=export.groups(source.config))
    images = np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images)
    plain = ("jitter=0.0", "grayscale=0.0", "solarize=(0.0,0.0)")  # of what there is no need to compile
    line = (
        "train.py",
        "--config=configs/cifar10.py",
        f"--config.data.path={tmp_path / 'set.npz'}",
        *commands.SMALL,
        "--config.arch=resnet18",
        "--config.stem=imagenet",
        "--config.data.val=",
        "--config.epochs=3",
        f"--workdir={tmp_path / 'on'}",
        f"--init={tmp_path / 'checkpoint.pth'}",
        *(f"--config.views.{field}" for field in plain),
    )
    status, output = commands.run(*line)
    assert status == 0 and "2 epochs are finished, 4 steps, momentum of the file" in output, output
    assert [found["step"] for found in commands.lines(tmp_path / "on") if "loss" in found] == [5, 6]
    status, output = commands.run(*line)
    assert status == 0 and "going on from step 6 of 6" in output and "epochs are finished" not in output, output
    status, output = commands.run(*(text for text in line if "stem" not in text), f"--workdir={tmp_path / 'other'}")
    assert status == 1 and "error: config.stem is 'cifar' and" in output and "Traceback" not in output, output
