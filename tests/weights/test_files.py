"""Weights of others: names, the official files, files that are not what they should be."""

import collections
import json
import os
import pickle
import zipfile

import commands
import jax
import numpy as np
import pytest
from official import write_backbone

from barlow_jax.errors import UserError
from barlow_jax.evaluation import subject
from barlow_jax.weights import architecture, files, naming, pickle_reader, pickle_writer
from barlow_jax.weights.file_arrays import Array

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
    with pytest.raises(UserError, match=r"not hold a resnet50: layer1.0.conv3.weight, .* is \(1, 1, 3, 3\) there and"):
        architecture.of(files.load(TINY / "resnet50.pth"), path)
    write_backbone(golden, path, **{"layer3.1.bn2.running_var": None})
    with pytest.raises(UserError, match="layer3.1.bn2.running_var, in our layout, is absent there"):
        architecture.of(files.load(path), path)
    write_backbone(golden, path, **{"layer2.1.conv2.weight": np.zeros((128, 64, 3, 3), np.float32)})
    with pytest.raises(UserError, match=r"layer2.1.conv2.weight, in our layout, is \(3, 3, 64, 128\) there"):
        architecture.of(files.load(path), path)
    write_backbone(golden, path, **{"conv1.weight": np.zeros((64, 3), np.float32)})
    with pytest.raises(UserError, match="behind a convolution of 0 x 0"):
        architecture.of(files.load(path), path)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match="folder.pth is no file"):
        files.load(tmp_path / "folder.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UserError, match="pipe.pth is no file"):
        files.load(tmp_path / "pipe.pth")


def test_plain_pickles_are_read_by_numpy_alone(tmp_path):
    """Of detectron2's form; its types are numpy's own, which say that they hold no objects."""
    tree = {"model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}, "author": "x"}
    pickle_writer.save_pickle(tmp_path / "x.pkl", tree)
    found = pickle.loads((tmp_path / "x.pkl").read_bytes())
    assert found["author"] == "x"
    for name, array in tree["model"].items():
        np.testing.assert_array_equal(found["model"][name], array)
        assert found["model"][name].dtype == array.dtype and found["model"][name].dtype.flags == 0


def test_files_of_classifiers_and_wrapped_files(tmp_path, golden):
    fc = {"fc.weight": np.zeros((5, 512), np.float32), "fc.bias": np.arange(5, dtype=np.float32)}
    probe = {"epoch": 3, "best_acc": {"top1": 1.0}, "scheduler": {}, "optimizer": {"state": {}, "param_groups": []}}
    wraps = {
        "classifier": lambda a: collections.OrderedDict(a | fc),
        "probe": lambda a: probe | {"model": {f"module.{name}": value for name, value in (a | fc).items()}},
        "backbone": lambda a: {"state_dict": {name: value.astype(np.float16) for name, value in a.items()}},
    }
    for kind, wrap in wraps.items():
        arrays = write_backbone(golden, tmp_path / "x.pth", wrap=wrap, **{"bn1.num_batches_tracked": np.array(7)})
        weights = files.load(tmp_path / "x.pth")
        assert weights.step == (7 if kind == "classifier" else 3)  # in pre-training the official code counts each view
        assert weights.kind == kind and ("fc" in weights.params) == (kind != "backbone")
        assert architecture.of(weights, "x")[:3] == ("resnet18", "imagenet", 3)
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
