"""Weights under the names of others: the official checkpoints, torchvision's and timm's networks, detectron2's.

weights = load("checkpoint.pth")             # .pth or .safetensors; what it is stands in weights.kind
save("resnet50.pth", "torchvision", weights)
"""

import json
import logging
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.run.buckets import reading as buckets
from barlow_jax.weights import finite, naming, peers, pickle_reader, pickle_writer, safetensors_reader
from barlow_jax.weights.file_arrays import reading

log = logging.getLogger(__name__)

# What a file can be. In all but "classifier" every training step has sent two views through the network.
KINDS = {
    "pretraining": "a full checkpoint of the official code",
    "probe": "a linear probe of the official code",
    "classifier": "a classifier",
    "backbone": "a backbone",
}
LAYOUTS = ("torchvision", "timm", "detectron2", "official", "safetensors")
ENDINGS = (".pth", ".pt", ".pkl", ".safetensors")
HUB_FILE = "model.safetensors"  # in a folder as the Hugging Face Hub has them


class Weights(NamedTuple):
    """What a file of weights, or a run, holds; arrays are numpy's, in our layout, as nested dicts with string keys."""

    kind: str  # a key of KINDS
    params: Any  # {"backbone"} and, as the kind has them, "projector", "fc"
    batch_stats: Any  # {"backbone"} and "bn", "projector"
    momentum: Any = None  # of the optimiser, like params; None where there is none
    epoch: int = 0  # epochs finished, of a full checkpoint
    step: int = 0  # training steps, as far as the file tells
    about: Any = {}  # strings that a safetensors file says about itself


def backbone(weights):
    """params, batch_stats of the backbone of Weights; the second is empty where there are no batch statistics."""
    return weights.params["backbone"], weights.batch_stats.get("backbone", {})


# Reading.


def file_of(path):
    """The file of weights that a path means: itself, or the one in a folder as the Hugging Face Hub has them.

    Of an address it is brought down.
    """
    if buckets.is_address(path):
        return buckets.file(path if path.endswith(ENDINGS) else f"{path}/{HUB_FILE}")
    path = pathlib.Path(path).expanduser()
    return path / HUB_FILE if (path / HUB_FILE).is_file() else path


def load(path, *, whole=True, only_finite=True):
    """The weights in a file, .pth, .pkl or .safetensors, whatever its name, here or in a bucket; see `file_of`.

    Of the files of others the backbone is taken (`peers`); a line of the log says from where, and what was left aside.

    Args:
      whole: False leaves the projector and the momentum of a full checkpoint, seven eighths of its bytes, unread.
      only_finite: False takes arrays that hold nan or infinite values too.
    Raises:
      UserError: there is no such file, it is damaged, holds something else, or values that are not finite.
    """
    path = file_of(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file; give a file of weights.")
    if _is_safetensors(path):
        with safetensors_reader.opened(path) as (arrays, about):
            return _weights(path, arrays, about, {}, whole=whole, only_finite=only_finite)
    with pickle_reader.opened(path) as tree:
        found, around = peers.state_dict(path, tree)
        return _weights(path, found, {}, around, whole=whole, only_finite=only_finite)


def _is_safetensors(path):
    try:
        with path.open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError:
        return False  # what is wrong with it, the next reader says


def _weights(path, arrays, about, around, *, whole, only_finite):
    """Weights of the arrays of a state_dict and of what lies around it in a full checkpoint."""
    plain = {peers.unwrapped(name): name for name in arrays}
    if len(plain) == len(arrays) and peers.is_official(plain):
        kind = "pretraining"
        wanted = {name: theirs for name, theirs in plain.items() if whole or name.startswith("backbone.")}
    else:
        found = peers.backbone(path, arrays)
        wanted = {ours: theirs for theirs, ours in found.names.items()}
        _check_heads(path, found, arrays)
        kind = ("probe" if "best_acc" in around else "classifier") if "fc.weight" in wanted else "backbone"
        if found.prefix or found.aside:
            log.info(
                "%s: %d arrays are taken, of %s; left aside are %s",
                path,
                len(wanted),
                f"{found.prefix}*" if found.prefix else "those without a prefix",
                f"{len(found.aside)}: {peers.summary(found.aside)}" if found.aside else "none",
            )
    reader = _Reader(path, only_finite)
    read = {name: reader.read(theirs, arrays[theirs]) for name, theirs in wanted.items()}
    params, batch_stats = naming.trees(read)
    if kind != "pretraining":
        fc = {"fc": params.pop("fc")} if "fc" in params else {}
        params, batch_stats = {"backbone": params} | fc, {"backbone": batch_stats}

    batches = next((_count(value) for name, value in read.items() if name.endswith("bn1.num_batches_tracked")), 0)
    step = batches if kind == "classifier" else batches // 2
    if "step" in about:
        if not re.fullmatch("[0-9]{1,18}", about["step"]):
            raise UserError(f"{path} has damaged metadata (step is {about['step'][:40]!r}); export it again.")
        step = int(about["step"])
    official = kind == "pretraining"
    momentum = _momentum(reader, {n: arrays[t] for n, t in plain.items()}, around) if whole and official else None
    epoch = around.get("epoch", 0) if official else 0
    if not isinstance(epoch, int) or epoch < 0:
        raise UserError(f"{path} does not say how many epochs are finished; give a checkpoint of the official code.")
    reader.check_finite()
    return Weights(kind, params, batch_stats, momentum, epoch, step, about)


def _check_heads(path, found, arrays):
    """Raises UserError for the one ViT whose heads are known to be of another number, which no array tells."""
    tokens = next((theirs for theirs, ours in found.names.items() if ours == "cls_token"), None)
    moco = found.prefix in ("base_encoder.", "momentum_encoder.")
    if moco and tokens and tuple(arrays[tokens].shape)[-1:] == (384,):
        raise UserError(
            f"{path} holds the ViT-S of MoCo v3, whose attention has 12 heads where timm's and ours has 6; give its "
            "ViT-B, or another file."
        )


def _count(values):
    """The number of batches that an array says; 0 if it says none, as in half precision beyond 65,504."""
    return int(values.item()) if values.size == 1 and 0 <= values.item() < 2**62 else 0


class _Reader:
    """Reads the arrays of a file, no more than it holds twice, and notes which are not finite.

    Args:
      only_finite: whether `check_finite` minds them.
    """

    def __init__(self, path, only_finite):
        self.path, self.only_finite, self._left, self._bad = path, only_finite, 2 * path.stat().st_size, {}

    def read(self, name, array):
        """A numpy array; floating-point numbers in float32 or wider."""
        self._left -= array.nbytes
        if self._left < 0:
            raise UserError(f"{self.path} names the same bytes more than twice; save its state_dict alone.")
        with reading(self.path):
            values = array.numpy()
        if values.dtype.kind not in "iub" and values.dtype.itemsize < 4:
            values = values.astype(np.float32)
        if self.only_finite and not name.endswith("num_batches_tracked"):
            self._bad |= finite.found_bad({name: values})
        return values

    def check_finite(self):
        if self._bad:
            raise UserError(finite.in_words(self.path, self._bad))


def _momentum(reader, arrays, around):
    """The official optimiser's momentum as a tree like params; None where it has not begun.

    It numbers the parameters: those of ndim != 1 first where there are two groups, as the model lists them where there
    is one (files of its first weeks).
    """
    path, optimizer = reader.path, around.get("optimizer")
    if not isinstance(optimizer, dict) or not optimizer.get("state"):
        return None
    parameters = [name for name in arrays if not name.endswith(naming.STATISTICS)]
    try:
        groups = [group["params"] for group in optimizer["param_groups"][:3]]
        if len(groups) == 2:
            parameters.sort(key=lambda name: len(arrays[name].shape) == 1)
        numbers = [number for group in groups for number in group]
        if len(groups) > 2 or not all(type(number) is int for number in numbers):
            raise ValueError("other groups of parameters")
        moments = {name: optimizer["state"][n]["mu"] for name, n in zip(parameters, numbers, strict=True)}
        fits = all(moments[name].shape == arrays[name].shape for name in parameters)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} has an optimiser other than the official LARS ({error!r}); give a checkpoint of the official code."
        ) from error
    if not fits:
        raise UserError(f"{path} has a momentum of other shapes than its parameters; copy it again from its source.")
    return naming.trees({name: reader.read(f"the momentum of {name}", value) for name, value in moments.items()})[0]


# Writing.


def save(path, layout, weights, *, groups=({}, {}), about=None):
    """Writes weights for others, to be given their name when they are complete: see `run.writing.whole`.

    Args:
      layout: "torchvision" or "timm": a state_dict of the backbone, with fc if there is one (the two are the same for
        a ResNet; ViTs and ConvNeXts are timm's, and their fc is called head and head.fc);
        "detectron2": a pickle for its C4 and FPN models; "official": the full checkpoint; "safetensors": the backbone.
      groups: official: what the optimiser's two groups, weights and biases, say besides their parameters.
      about: safetensors: strings to keep beside the arrays.
    """
    batches = weights.step * (1 if weights.kind == "classifier" else 2)
    if layout == "official":
        pickle_writer.save(path, official(weights, batches, groups))
        return
    params, batch_stats = backbone(weights)
    params = params | ({"fc": weights.params["fc"]} if "fc" in weights.params else {})
    found = naming.state_dict(params, batch_stats, batches)
    head = "head." if "patch_embed" in params else "head.fc." if "stages" in params else "fc."
    found = {re.sub(r"^fc\.", head, name): value for name, value in found.items()}
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


def groups_of(config):
    """The official optimiser's two parameter groups, without the parameters.

    lr is the highest of the run; the official code sets it anew at every step.
    """
    optimizer = config["optimizer"]
    return tuple(
        {
            "lr": optimizer[f"learning_rate_{group}"] * config["batch_size"] / 256,
            "weight_decay": optimizer["weight_decay"],
            "momentum": optimizer["momentum"],
            "eta": optimizer["eta"],
            "weight_decay_filter": True,
            "lars_adaptation_filter": True,
        }
        for group in ("weights", "biases")
    )
