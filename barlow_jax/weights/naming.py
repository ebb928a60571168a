"""PyTorch's names and layouts <-> ours (docs/names.md).

Our trees carry torchvision's names already, so that one rule maps them:

    layer2.0.conv1.weight           layer2 / 0 / conv1 / kernel           [out, in, h, w] -> [h, w, in, out]
    layer2.0.downsample.1.weight    layer2 / 0 / downsample / bn / scale
    projector.3.weight              projector / linears / 1 / kernel      [out, in] -> [in, out]
    projector.4.running_var         projector / norms / 1 / var

A ViT's are timm's, whose classifier is called head:

    blocks.3.attn.qkv.weight        blocks / 3 / attn / qkv / kernel     [out, in] -> [in, out]
    patch_embed.proj.weight         patch_embed / proj / kernel          as a convolution
    cls_token, pos_embed            the same                             [1, tokens, width]

So are a ConvNeXt's, whose classifier is called head.fc:

    stages.1.downsample.0.weight    stages / 1 / downsample / 0 / scale
    stages.1.downsample.1.weight    stages / 1 / downsample / 1 / kernel as a convolution
    stages.1.blocks.2.conv_dw.weight    ... / conv_dw / kernel           [channels, 1, h, w] -> [h, w, 1, channels]
    stages.1.blocks.2.gamma         the same
"""

import re

import numpy as np

_MODULE = (
    r"(?:backbone\.)?(?:conv1|bn1|layer[1-4]\.[0-9]{1,3}\.(?:conv[123]|bn[123]|downsample\.[01])|convs\.[0-9]{1,3}|norms\.[0-9]{1,3}|dense|norm)"
    r"|projector\.[0-9]{1,3}|bn|fc"
)
_TOKENS = ("cls_token", "pos_embed")
_OF_VIT = (
    rf"(?:backbone\.)?(?:{'|'.join(_TOKENS)}|(?:patch_embed\.proj|fc_norm"
    r"|blocks\.[0-9]{1,3}\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))\.(?:weight|bias))"
)
_BLOCK = r"stages\.[0-9]{1,3}\.blocks\.[0-9]{1,3}"
_OF_CONVNEXT = (
    rf"(?:backbone\.)?(?:{_BLOCK}\.gamma|(?:stem\.[01]|stages\.[0-9]{{1,3}}\.downsample\.[01]|head\.norm"
    rf"|{_BLOCK}\.(?:conv_dw|norm|mlp\.fc1|mlp\.fc2))\.(?:weight|bias))"
)
_NAME = re.compile(
    rf"(?:{_MODULE})\.(?:weight|bias|running_mean|running_var|num_batches_tracked)|{_OF_VIT}|{_OF_CONVNEXT}"
)
_LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
_NAMES = {"mean": "running_mean", "var": "running_var", "bias": "bias", "kernel": "weight", "scale": "weight"}

# The order in which PyTorch lists what a module holds: that of its constructor.
_ORDER = (
    *("backbone", "projector", "predictor", "bn", "conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
    *("layer1", "layer2", "layer3", "layer4", "convs", "norms", "dense", *_TOKENS, "patch_embed", "stem", "stages"),
    *("downsample", "blocks", "gamma", "conv_dw", "norm1", "attn", "qkv", "proj", "norm2", "norm", "mlp", "fc1", "fc2"),
    *("fc_norm", "head", "fc"),
    *("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def path_of(name):
    """'layer2.0.downsample.1.weight' -> ('layer2', '0', 'downsample', 'bn', 'scale'); None for a name of no kind."""
    if not _NAME.fullmatch(name):
        return None
    *modules, leaf = name.split(".")
    if leaf in (*_TOKENS, "gamma"):
        return (*modules, leaf)
    if modules[0] == "projector":
        index, kind = divmod(int(modules[1]), 3)
        if kind == 2:  # a ReLU
            return None
        modules = ["projector", ("linears", "norms")[kind], str(index)]
    in_convnext = "stages" in modules
    norms = (["stem", "1"], ["downsample", "0" if in_convnext else "1"])
    norm = modules[-1].startswith(("bn", "norm", "fc_norm")) or modules[-2:] in norms or "norms" in modules
    if modules[-2:-1] == ["downsample"] and not in_convnext:
        modules[-1] = "bn" if norm else "conv"
    return (*modules, _LEAVES.get(leaf) or ("scale" if norm else "kernel"))


def name_of(path):
    """The inverse of `path_of`."""
    *modules, leaf = path
    if modules[:1] in (["projector"], ["predictor"]):  # the second by our own name: nobody else has it in a file
        modules = [modules[0], str(3 * int(modules[2]) + (modules[1] == "norms"))]
    if modules[-2:-1] == ["downsample"]:
        modules[-1] = {"conv": "0", "bn": "1"}.get(modules[-1], modules[-1])
    return ".".join((*modules, _NAMES.get(leaf, leaf)))


def to_ours(array):
    """OIHW -> HWIO, [out, in] -> [in, out]; others as they are."""
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim)))


def to_torch(array):
    """HWIO -> OIHW, [in, out] -> [out, in]; others as they are."""
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim)))


def trees(state_dict):
    """A state_dict of numpy arrays, all of whose names `path_of` knows -> params, batch_stats."""
    params, batch_stats = {}, {}
    for name, value in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        tree = batch_stats if name.endswith(STATISTICS) else params
        *modules, leaf = path_of(name)
        for module in modules:
            tree = tree.setdefault(module, {})
        tree[leaf] = to_ours(np.asarray(value))
    return params, batch_stats


def state_dict(params, batch_stats, batches=0):
    """The inverse of `trees`: PyTorch's names, layout and order.

    Args:
      batches: for num_batches_tracked of every BatchNorm.
    """
    found = {
        name_of(path): to_torch(np.asarray(value)) for tree in (params, batch_stats) for path, value in leaves(tree)
    }
    for name in [name for name in found if name.endswith("running_var")]:
        found[name.removesuffix("running_var") + "num_batches_tracked"] = np.array(batches)
    return {name: found[name] for name in sorted(found, key=place)}


def leaves(tree, path=()):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


def place(name):
    return [int(part) if part.isdigit() else _ORDER.index(part) for part in name.split(".")]


def to_detectron2(name):
    """layer1.0.bn1.weight -> res2.0.conv1.norm.weight, conv1.weight -> stem.conv1.weight."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name if name.startswith("res") else f"stem.{name}"


def from_detectron2(name):
    """The inverse of `to_detectron2`."""
    name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name.removeprefix("stem."))
    name = re.sub(r"\bconv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
