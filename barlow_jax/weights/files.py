"""Weights under the names of others: the official checkpoints, torchvision's and timm's ResNets, detectron2's.

weights = load("checkpoint.pth")             # .pth or .safetensors; what it is stands in weights.kind
found = architecture(weights, "checkpoint.pth")
save("resnet50.pth", "torchvision", weights)
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from barlow_jax import model
from barlow_jax.errors import UserError
from barlow_jax.networks import resnet
from barlow_jax.tree import differences
from barlow_jax.weights import naming, pickle_reader, pickle_writer

# What a file can be. In all but "classifier" every training step has sent two views through the network.
KINDS = {
    "pretraining": "a full checkpoint of the official code",
    "probe": "a linear probe of the official code",
    "classifier": "a classifier",
    "backbone": "a backbone",
}
LAYOUTS = ("torchvision", "timm", "detectron2", "official", "safetensors")


class Weights(NamedTuple):
    """What a file of weights, or a run, holds; arrays are numpy's, in our layout, as nested dicts with string keys."""

    kind: str  # a key of KINDS
    params: Any  # {"backbone"} and, as the kind has them, "projector", "fc"
    batch_stats: Any  # {"backbone"} and "bn", "projector"
    momentum: Any = None  # of the optimiser, like params; None where there is none
    epoch: int = 0  # epochs finished, of a full checkpoint
    step: int = 0  # training steps, as far as the file tells
    about: Any = {}  # strings that a safetensors file says about itself


class Architecture(NamedTuple):
    """Of a backbone, as its arrays tell."""

    arch: str  # a key of model.BACKBONES
    stem: str  # one of resnet.STEMS
    channels: int  # of the images


# Reading.


def load(path, *, whole=True):
    """The weights in a file, .pth, .pkl or .safetensors, whatever its name.

    Args:
      whole: False leaves the projector and the momentum of a full checkpoint, seven eighths of its bytes, unread.
    Raises:
      UserError: there is no such file, it is damaged, holds something else, or wants something called.
    """
    path = pathlib.Path(path).expanduser()
    if _is_safetensors(path):
        return _weights(path, *_read_safetensors(path), {}, whole)
    with pickle_reader.opened(path) as tree:
        if not isinstance(tree, dict):
            raise UserError(f"{path} holds a {type(tree).__name__}; give a file with a state_dict.")
        found = next((tree[key] for key in ("model", "state_dict") if isinstance(tree.get(key), dict)), tree)
        arrays = {name: value for name, value in found.items() if _is_named_array(name, value)}
        if len(arrays) < len(found) or not arrays:
            keys = ", ".join(map(str, [*found][:4])) or "nothing"
            raise UserError(f"{path} holds {keys} and no state_dict; give a file of a ResNet's weights.")
        return _weights(path, arrays, {}, tree if found is not tree else {}, whole)


def _is_named_array(name, value):
    return isinstance(name, str) and isinstance(value, pickle_reader.Array)


def _is_safetensors(path):
    try:
        with path.open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError:
        return False  # what is wrong with it, the next reader says


def _read_safetensors(path):
    """{name: array}, metadata."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}); copy it again from where it came.") from error


def _weights(path, arrays, about, around, whole):
    """Weights of the arrays of a state_dict and of what lies around it in a full checkpoint."""
    names = {name: name.removeprefix("module.") for name in arrays}
    if any(name.startswith(("stem.", "res2.")) for name in names.values()):
        names = {name: naming.from_detectron2(plain) for name, plain in names.items()}
    for name, plain in names.items():
        if naming.path_of(plain) is None:
            raise UserError(f"{path} holds {name}, which is no part of a ResNet as torchvision has it.")
    arrays = {plain: arrays[name] for name, plain in names.items()}

    if any(name.startswith("backbone.") for name in arrays):
        kind = "pretraining"
    elif "fc.weight" in arrays:
        kind = "probe" if "best_acc" in around else "classifier"
    else:
        kind = "backbone"
    wanted = [name for name in arrays if whole or name.startswith("backbone.") or kind != "pretraining"]
    read = {name: _numpy(arrays[name]) for name in wanted}
    params, batch_stats = naming.trees(read)
    if kind != "pretraining":
        fc = {"fc": params.pop("fc")} if "fc" in params else {}
        params, batch_stats = {"backbone": params} | fc, {"backbone": batch_stats}

    batches = next((int(value) for name, value in read.items() if name.endswith("bn1.num_batches_tracked")), 0)
    step = int(about.get("step", batches if kind == "classifier" else batches // 2))
    momentum = _momentum(path, arrays, around.get("optimizer")) if whole and kind == "pretraining" else None
    epoch = around.get("epoch", 0)
    if not isinstance(epoch, int) or epoch < 0:
        raise UserError(f"{path} says that {epoch!r} epochs are finished; give a checkpoint of the official code.")
    return Weights(kind, params, batch_stats, momentum, epoch, step, about)


def _numpy(value):
    """A numpy array; floating-point numbers in float32 or wider."""
    array = value.numpy() if isinstance(value, pickle_reader.Array) else value
    wide = array.dtype.kind in "iub" or array.dtype.itemsize >= 4
    return array if wide else array.astype(np.float32)


def _momentum(path, arrays, optimizer):
    """The official optimiser's momentum as a tree like params; None where it has not begun.

    It numbers the parameters: those of ndim != 1 first where there are two groups, as the model lists them where there
    is one (files of its first weeks).
    """
    if not isinstance(optimizer, dict) or not optimizer.get("state"):
        return None
    parameters = [name for name in arrays if not name.endswith(naming.STATISTICS)]
    try:
        groups = [group["params"] for group in optimizer["param_groups"]]
        if len(groups) == 2:
            parameters.sort(key=lambda name: len(arrays[name].shape) == 1)
        numbers = [number for group in groups for number in group]
        moments = {name: optimizer["state"][n]["mu"] for name, n in zip(parameters, numbers, strict=True)}
        fits = all(moments[name].shape == arrays[name].shape for name in parameters)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} has an optimiser other than the official LARS ({error!r}); give a checkpoint of the official code."
        ) from error
    if not fits:
        raise UserError(f"{path} has a momentum of other shapes than its parameters; copy it again from its source.")
    return naming.trees({name: _numpy(value) for name, value in moments.items()})[0]


def architecture(weights, path):
    """What network the backbone of Weights is for, every array checked.

    Raises:
      UserError: it is none of ours; the sentence names the array.
    """
    backbone = weights.params["backbone"]
    if "convs" in backbone:
        raise UserError(f"{path} holds a convnet, which fits images of one size only; give the run that it came from.")
    depths = tuple(len(backbone.get(f"layer{k}", ())) for k in (1, 2, 3, 4))
    first = backbone.get("layer1", {}).get("0", {})
    block = resnet.Bottleneck if "conv3" in first else resnet.BasicBlock
    _, _, _, width = _kernel_shape(first)
    side, _, channels, _ = _kernel_shape(backbone)
    arch, stem = _RESNETS.get((block, depths, width)), {7: "imagenet", 3: "cifar"}.get(side)
    if arch is None or stem is None:
        raise UserError(
            f"{path} holds {depths} blocks of width {width} behind a convolution of {side} x {side}, which is none of "
            f"{', '.join(_RESNETS.values())}; give one of these."
        )
    found = Architecture(arch, stem, channels)
    make = model.make_backbone(arch, image_size=32, channels=channels, stem=stem)
    check_fit(path, arch, make, backbone, weights.batch_stats["backbone"])
    return found


def check_fit(path, arch, make, params, batch_stats):
    """Raises UserError unless the arrays are those of a network; make: rngs -> module."""
    _, *wanted = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    wanted, given = (
        {naming.name_of(path): value for arrays in kinds for path, value in naming.leaves(arrays)}
        for kinds in (wanted, (params, batch_stats))
    )
    wrong = differences(wanted, given)
    if wrong:
        name = min(wrong, key=naming.place)
        here, there = wrong[name]
        raise UserError(
            f"{path} does not hold a {arch}: {name}, in our layout, is {there} there and {here} here; give another "
            "file."
        )


def _kernel_shape(module):
    return module.get("conv1", {}).get("kernel", np.zeros((0, 0, 0, 0))).shape


_RESNETS = {
    (make.args[0], make.args[1], make.keywords.get("base_width", 64)): arch  # (block, depths, width of the first block)
    for arch, make in model.BACKBONES.items()
    if arch not in model.OF_ONE_SIZE
}


# Writing.


def save(path, layout, weights, *, groups=({}, {}), about=None):
    """Writes weights for others.

    Args:
      layout: "torchvision" or "timm": a state_dict of the backbone, with fc if there is one (the two are the same);
        "detectron2": a pickle for its C4 and FPN models; "official": the full checkpoint; "safetensors": the backbone.
      groups: official: what the optimiser's two groups, weights and biases, say besides their parameters.
      about: safetensors: strings to keep beside the arrays.
    """
    batches = weights.step * (1 if weights.kind == "classifier" else 2)
    if layout == "official":
        pickle_writer.save(path, official(weights, batches, groups))
        return
    params = weights.params["backbone"] | ({"fc": weights.params["fc"]} if "fc" in weights.params else {})
    found = naming.state_dict(params, weights.batch_stats["backbone"], batches)
    if layout == "safetensors":
        from safetensors.numpy import save as in_bytes  # its save_file makes a file that only its owner can read

        contiguous = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in found.items()}
        pathlib.Path(path).write_bytes(in_bytes(contiguous, metadata=about))
    elif layout == "detectron2":
        named = {naming.to_detectron2(name): value for name, value in found.items() if not name.startswith("fc.")}
        pickle_writer.save_pickle(path, {"model": named, "__author__": "barlow-jax", "matching_heuristics": True})
    else:
        pickle_writer.save(path, found)


def official(weights, batches, groups):
    """The full checkpoint of the official code, as a tree."""
    model_ = naming.state_dict(weights.params, weights.batch_stats, batches)
    names = [name for name in model_ if not name.endswith(naming.STATISTICS)]
    by_group = [name for name in names if model_[name].ndim != 1], [name for name in names if model_[name].ndim == 1]
    moments = naming.state_dict(weights.momentum, {}) if weights.momentum is not None else {}
    numbers = {name: number for number, name in enumerate(by_group[0] + by_group[1])}
    return {
        "epoch": weights.epoch,
        "model": {f"module.{name}": value for name, value in model_.items()},
        "optimizer": {
            "state": {numbers[name]: {"mu": moments[name]} for name in moments},
            "param_groups": [
                {**group, "params": [numbers[name] for name in names]}
                for group, names in zip(groups, by_group, strict=True)
            ],
        },
    }


def about_of(config, channels, step, epoch):
    """What a safetensors file of ours says about itself; strings, as the format has it.

    Args:
      config: of the run, a plain nested dict.
    """
    return {
        "format": "pt",
        "source": "barlow-jax",
        "arch": config["arch"],
        "stem": config["stem"],
        "channels": str(channels),
        "mean": json.dumps(config["views"]["mean"]),
        "std": json.dumps(config["views"]["std"]),
        "step": str(step),
        "epoch": str(epoch),
        "config": json.dumps(config),
    }
