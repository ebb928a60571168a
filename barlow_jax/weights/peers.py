"""Where the backbone is in the files of others: of their names, which are those of a ResNet, a ViT or a ConvNeXt.

    found = backbone(path, names)
    found.names       # {"module.encoder_q.conv1.weight": "conv1.weight", ...}
    found.prefix      # "encoder_q."
    found.aside       # ("module.encoder_q.fc.weight", "module.queue", ...)

A backbone is where a stem and a first block have one prefix, whatever the prefix; where there are several, `PREFERRED`
says which of them its authors evaluate.
"""

import logging
import re
from typing import NamedTuple

from barlow_jax.errors import UserError
from barlow_jax.weights import naming
from barlow_jax.weights.file_arrays import Array
from barlow_jax.weights.pickle_machine import Foreign

log = logging.getLogger(__name__)

# Where files keep their state_dict: the official code and ours; MoCo, solo-learn and Lightning; VISSL, twice; DINO.
_PLACES = (
    *(("model",), ("state_dict",), ("model_state_dict",), ("classy_state_dict", "base_model", "model", "trunk")),
    *(("teacher",), ("student",)),
)

# Wrappers of torch, wherever they stand in a name.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.")

# The children of torchvision's ResNet by their numbers, as lightly's examples have them in an nn.Sequential.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

# Of several backbones in one file, the first of these. MoCo evaluates the query encoder, DINO its teacher (lightly: a
# `backbone` beside a `student_backbone`), BYOL and solo-learn the online one beside a `momentum_backbone`.
PREFERRED = (
    *("", "backbone.", "model.backbone.", "encoder_q.", "base_encoder.", "teacher.backbone.", "teacher_backbone."),
    *("teacher.", "online_network.encoder.", "encoder.", "model.encoder.", "model.", "student.backbone.", "student."),
)

# Modules that stand behind a backbone, and may lie among its own names.
_HEADS = frozenset(
    "fc linear head heads projector projection_head predictor prediction_head prototypes classifier".split()
)
# The decoder of MAE, which lies among its encoder's names.
_DECODER = frozenset("mask_token decoder_embed decoder_pos_embed decoder_blocks decoder_norm decoder_pred".split())


class Found(NamedTuple):
    """A backbone among the names of a file."""

    prefix: str  # of its names, without torch's wrappers
    names: dict  # theirs -> ours (torchvision's; timm's of a ViT and a ConvNeXt)
    aside: tuple  # of the names, those that are not taken


def state_dict(path, tree):
    """The state_dict in what a pickle holds, and the pickle's tree if something lies around it.

    Returns:
      {name: Array}, dict.
    Raises:
      UserError: there is none, or parts of it would have to be made by a call.
    """
    found, place = tree, ()
    for keys in _PLACES:
        inner = tree
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            found, place = inner, keys
            break
    pairs = found.items() if isinstance(found, dict) else ()
    arrays = {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, Array)}
    rest = [tree, *(tree.values() if isinstance(tree, dict) else ()), *(value for _, value in pairs)]
    calls = dict.fromkeys(shown(value.name) for value in rest if isinstance(value, Foreign) and value.called)
    if calls and (not arrays or any(isinstance(value, Foreign) for _, value in pairs)):
        raise UserError(
            f"{path} wants {next(iter(calls))} called, and nothing in a file is; save its state_dict alone, by "
            "torch.save or as safetensors."
        )
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}; give a file with a state_dict.")
    if not arrays:
        keys = ", ".join(shown(key) for key in [*found][:4] if isinstance(key, str)) or "nothing with a name"
        raise UserError(f"{path} holds {keys} and no state_dict; give weights of a ResNet, a ViT or a ConvNeXt.")
    if calls:
        log.info("%s: left aside is what calls of %s would have made", path, ", ".join([*calls][:4]))
    if place and place[0] not in ("model", "state_dict"):
        log.info("%s: the state_dict is taken from %s", path, " / ".join(place))
    return arrays, tree if found is not tree else {}


def unwrapped(name):
    """A name without what torch's wrappers (DataParallel, torch.compile, FSDP) put into it."""
    return _WRAPPERS.sub("", name)


def backbone(path, names):
    """The backbone among the names of a state_dict.

    Args:
      path: of the file, for messages.
      names: of arrays.
    Returns:
      Found; with an empty prefix the names of a classifier's head too.
    Raises:
      UserError: there is none, there are several of equal right, or a name among its own is of no such network.
    """
    plain = {name: unwrapped(name) for name in names}
    prefix = _chosen(path, {*plain.values()})
    told = next((told for told in _KINDS if prefix + told in plain.values()), "conv1.weight")
    known, ours_of, behind = _KINDS[told]
    found, aside, seen = {}, [], {}
    for name, inner in plain.items():
        rest = inner.removeprefix(prefix)
        ours = ours_of(rest) if inner.startswith(prefix) else None
        is_head = ours is not None and ours.startswith("fc.")
        if ours is not None and (prefix == "" or not is_head):
            if ours in seen:
                raise UserError(
                    f"{path} holds {shown(name)} and {shown(seen[ours])}, which are one array; leave one out."
                )
            found[name], seen[ours] = ours, name
        elif is_head or not inner.startswith(prefix) or rest.split(".")[0] in behind:
            aside.append(name)
        else:
            raise UserError(f"{path} holds {shown(name)}, which is no part of a {known}.")
    return Found(prefix, found, tuple(aside))


def _chosen(path, names):
    """The prefix of the backbone."""
    ends = [(name.removesuffix(stem), block) for name in names for stem, block in _STEMS if name.endswith(stem)]
    prefixes = {prefix for prefix, block in ends if prefix + block in names and prefix[-1:] in ("", ".")}
    if len(prefixes) > 1:
        preferred = [prefix for prefix in PREFERRED if prefix in prefixes]
        if not preferred:
            several = ", ".join(map(shown, sorted(prefixes)[:4]))
            raise UserError(f"{path} holds several networks ({several}); save the state_dict of one of them.")
        return preferred[0]
    # What lacks its stem, or is a convnet of ours, is looked at more closely later.
    return prefixes.pop() if prefixes else "backbone." if any(name.startswith("backbone.") for name in names) else ""


# What a stem's name ends with, and the name in the first block that then has the same prefix.
_STEMS = (
    ("patch_embed.proj.weight", "blocks.0.norm1.weight"),
    ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    ("conv1.weight", "layer1.0.conv1.weight"),
    ("0.weight", "4.0.conv1.weight"),
    ("stem.conv1.weight", "res2.0.conv1.weight"),
)


def _ours(name):
    """torchvision's name of an array of a backbone or its classifier, or None."""
    first, dot, rest = name.partition(".")
    if first in _CHILDREN:
        name = _CHILDREN[first] + dot + rest
    elif first == "stem" or re.fullmatch(r"res[2-5]", first):
        name = naming.from_detectron2(name)
    return name if naming.path_of(name) and not name.startswith(("backbone.", "projector.", "bn.")) else None


def _ours_of_vit(name):
    """timm's name of an array of a ViT, or torchvision's of its classifier, or None."""
    if name in ("head.weight", "head.bias"):
        return name.replace("head", "fc")
    return name if naming.path_of(name) and not name.startswith(("backbone.", "projector.", "bn.", "fc.")) else None


def _ours_of_convnext(name):
    """timm's name of an array of a ConvNeXt, or torchvision's of its classifier, or None."""
    if name in ("head.fc.weight", "head.fc.bias"):
        return name.removeprefix("head.")
    return name if naming.path_of(name) and name.startswith(("stem.", "stages.", "head.norm.")) else None


# An array that tells a kind of network: (what a sentence calls it, our names, what may stand behind it). The head of a
# ConvNeXt is a part of it but for its last layer.
_KINDS = {
    "patch_embed.proj.weight": ("ViT as timm has it", _ours_of_vit, _HEADS | _DECODER),
    "stages.0.blocks.0.conv_dw.weight": ("ConvNeXt as timm has it", _ours_of_convnext, _HEADS - {"head"}),
    "conv1.weight": ("ResNet as torchvision has it", _ours, _HEADS),
}


def is_official(names):
    """Whether these are the names of the official model, wrappers taken off: a backbone, a projector, a last norm."""
    paths = [naming.path_of(name) for name in names]
    known = all(paths) and not any(path[-3:-2] == ("linears",) and path[-1] == "bias" for path in paths)
    return known and "bn.running_mean" in names and "backbone.conv1.weight" in names and "fc.weight" not in names


def shown(name):
    """A name for a sentence, whatever is in it."""
    return " ".join(name.split())[:100]


def summary(names, count=4):
    """Names for people: how many arrays lie under each of the first parts."""
    parts = {}
    for name in names:
        inner = unwrapped(name)
        part = shown(inner.split(".")[0])
        parts[part] = parts.get(part, 0) + 1
    largest = sorted(parts, key=parts.get, reverse=True)
    more = [f"{len(largest) - count} more"] * (len(largest) > count)
    return ", ".join([f"{part} ({parts[part]})" for part in largest[:count]] + more)
