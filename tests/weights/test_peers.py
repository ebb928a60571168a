"""The files of others as they write them: the backbone is found, and what is left aside is said.

Names are those of facebookresearch/moco (moco/builder.py), facebookresearch/vissl (vissl/models/trunks/resnext.py,
vissl/hooks/log_hooks.py), vturrisi/solo-learn (solo/methods) and lightly-ai/lightly (examples, benchmarks).
"""

import logging
import pickle
import struct
import sys
import zipfile

import commands
import jax
import numpy as np
import pytest

from barlow_jax.errors import UserError
from barlow_jax.weights import files, naming, peers, pickle_writer

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
import weight_files

CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
OTHER = np.full((2, 2), 7, np.float32)


@pytest.fixture(scope="module")
def arrays():
    return weight_files.tiny_names()


def under(prefix, arrays, shift=0):
    return {prefix + name: np.asarray(value + value.dtype.type(shift)) for name, value in arrays.items()}


def as_children(arrays):
    return {".".join([CHILDREN[(parts := name.split("."))[0]], *parts[1:]]): value for name, value in arrays.items()}


def rest(*names):
    return dict.fromkeys(names, OTHER)


HEAD = ("projector.0.weight", "projector.0.bias", "projector.1.weight", "projector.6.weight", "projector.6.bias")

# The tree of each file, from the arrays of a backbone and others; and how many arrays are left aside.
LAYOUTS = {
    "DataParallel": (lambda a: under("module.", a), 0),
    "bare backbone": (lambda a: under("backbone.", a), 0),
    "torch.compile": (lambda a: under("_orig_mod.", a), 0),
    "torch.compile inside": (lambda a: under("model._orig_mod.backbone.", a), 0),
    "Lightning": (lambda a: {"state_dict": under("model.backbone.", a), "epoch": 3, "callbacks": {}, "loops": None}, 0),
    "solo-learn": (
        lambda a: {"state_dict": under("backbone.", a) | rest(*HEAD, "classifier.weight", "classifier.bias")},
        7,
    ),
    "solo-learn with momentum": (
        lambda a: {"state_dict": under("momentum_backbone.", a, 1) | under("backbone.", a) | rest(*HEAD, "queue")},
        120 + 6,
    ),
    "solo-learn of old": (lambda a: {"state_dict": under("encoder.", a) | rest("projector.0.weight")}, 1),
    "lightly": (lambda a: under("backbone.", as_children(a)) | rest("projection_head.layers.0.weight"), 1),
    "lightly's DINO": (
        lambda a: (
            under("student_backbone.", as_children(a), 1)
            | under("backbone.", as_children(a))
            | rest("student_projection_head.layers.0.weight")
        ),
        121,
    ),
    "MoCo v1": (
        lambda a: {
            "arch": "resnet18",
            "state_dict": under("module.encoder_k.", a, 1)
            | under("module.encoder_q.", a)
            | rest("module.encoder_q.fc.weight", "module.encoder_q.fc.bias", "module.queue", "module.queue_ptr"),
        },
        120 + 4,
    ),
    "MoCo v2": (
        lambda a: {"state_dict": under("module.encoder_q.", a) | rest("module.encoder_q.fc.0.weight", "module.queue")},
        2,
    ),
    "a teacher and a student": (lambda a: under("student.backbone.", a, 1) | under("teacher.backbone.", a), 120),
    "DINO": (
        lambda a: {
            "student": under("module.backbone.", a, 1),
            "teacher": under("backbone.", a) | rest("head.mlp.0.weight"),
            "epoch": 3,
        },
        1,
    ),
    "VISSL": (
        lambda a: {
            "phase_idx": 3,
            "classy_state_dict": {
                "base_model": {"model": {"trunk": under("_feature_blocks.", a), "heads": rest("0.clf.weight")}}
            },
        },
        0,
    ),
    "VISSL's other": (lambda a: {"model_state_dict": under("trunk._feature_blocks.", a) | rest("heads.0.x")}, 1),
    "SwAV": (lambda a: under("module.", a) | rest("module.projection_head.0.weight", "module.prototypes.weight"), 2),
    "some other": (lambda a: under("net.feature_extractor.", a) | rest("net.temperature"), 1),
    "detectron2 inside": (
        lambda a: {"model": {f"backbone.bottom_up.{naming.to_detectron2(k)}": v for k, v in a.items()}},
        0,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backbone_is_found_and_the_rest_is_said(tmp_path, arrays, layout, caplog):
    make, aside = LAYOUTS[layout]
    wanted = naming.trees(arrays)
    pickle_writer.save(tmp_path / "x.pth", make(arrays))
    with caplog.at_level(logging.INFO):
        found = files.load(tmp_path / "x.pth")
    assert found.kind == "backbone"
    jax.tree.map(
        np.testing.assert_array_equal, (found.params, found.batch_stats), tuple({"backbone": w} for w in wanted)
    )
    if aside:
        assert f"left aside are {aside}: " in caplog.text and "120 arrays are taken" in caplog.text


def test_which_of_two_is_said(tmp_path, arrays, caplog):
    with caplog.at_level(logging.INFO):
        pickle_writer.save(tmp_path / "x.pth", LAYOUTS["MoCo v1"][0](arrays))
        files.load(tmp_path / "x.pth")
        pickle_writer.save(tmp_path / "y.pth", LAYOUTS["DINO"][0](arrays))
        files.load(tmp_path / "y.pth")
    assert "of encoder_q.*; left aside are 124: encoder_k (120), encoder_q (2), queue (1), queue_ptr (1)" in caplog.text
    assert "y.pth: the state_dict is taken from teacher" in caplog.text


def test_what_no_rule_decides_is_refused(tmp_path, arrays):
    for made, sentence in (
        (
            under("left.", arrays) | under("right.", arrays),
            r"several networks \(left., right.\); save the state_dict of",
        ),
        (
            under("visual.", arrays) | {"visual.conv2.weight": OTHER},
            "visual.conv2.weight, which is no part of a ResNet",
        ),
        (arrays | {"conv2.weight": OTHER}, "holds conv2.weight, which is no part of a ResNet"),
        (arrays | {"module.conv1.weight": OTHER}, "holds module.conv1.weight and conv1.weight, which are one array"),
        ({"a\n.b": OTHER}, "holds a .b, which is no part of a ResNet"),
        ({"layer1." + "9" * 5000 + ".conv1.weight": OTHER}, "which is no part of a ResNet"),
    ):
        pickle_writer.save(tmp_path / "x.pth", made)
        with pytest.raises(UserError, match=sentence) as caught:
            files.load(tmp_path / "x.pth")
        assert len(str(caught.value)) < 400


def test_pickled_classes_beside_the_weights_are_left_aside(tmp_path, arrays, caplog):
    """A checkpoint of Lightning: what its callbacks and hyper-parameters are instances of is never looked for."""
    pickle_writer.save(tmp_path / "x.pth", {"state_dict": arrays, "callbacks": "HERE", "hyper_parameters": "THERE"})
    here, there = (pickle.dumps(word, 2)[2:-1] for word in ("HERE", "THERE"))
    callback = b"clightning.fabric\nModelCheckpoint\n)\x81}" + weight_files.text("best") + b"Nsb"
    keyed = b"}" + callback + b"Ns"
    called = b"comegaconf.dictconfig\nDictConfig\n" + b"(Nt" + b"R"
    data = weight_files.zipped(
        (tmp_path / "x.pth").read_bytes(), lambda program: program.replace(here, keyed).replace(there, called)
    )
    (tmp_path / "x.pth").write_bytes(data)
    with caplog.at_level(logging.INFO):
        found = files.load(tmp_path / "x.pth")
    np.testing.assert_array_equal(found.params["backbone"]["bn1"]["scale"], arrays["bn1.weight"])
    assert "left aside is what calls of omegaconf.dictconfig.DictConfig would have made" in caplog.text


def test_the_official_names_are_told_from_those_that_look_alike():
    official = [
        "backbone.conv1.weight",
        "projector.0.weight",
        "projector.1.weight",
        "bn.running_mean",
        "bn.running_var",
    ]
    assert peers.is_official(official)
    assert not peers.is_official([*official, "projector.0.bias"])
    assert not peers.is_official(official[:3])
    assert not peers.is_official([*official, "classifier.weight"])


def test_members_that_lie_upon_each_other_are_not_read(tmp_path, arrays):
    pickle_writer.save(tmp_path / "x.pth", arrays)
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    data = (tmp_path / "x.pth").read_bytes()
    place = data.index(b"PK\x01\x02")
    (tmp_path / "x.pth").write_bytes(data[: place + 42] + struct.pack("<I", 2**31) + data[place + 46 :])
    with pytest.raises(UserError, match="is damaged or cut off"):
        files.load(tmp_path / "x.pth")
