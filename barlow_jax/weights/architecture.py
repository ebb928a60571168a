"""What network a file of weights is for, as its arrays tell: found = architecture.of(files.load(path), path)."""

import math
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from barlow_jax import model
from barlow_jax.errors import UserError
from barlow_jax.fields import together
from barlow_jax.networks import resnet
from barlow_jax.run.trees import differences
from barlow_jax.weights import files, naming


class Architecture(NamedTuple):
    """Of a backbone, as its arrays tell."""

    arch: str  # a key of model.BACKBONES
    stem: str  # one of resnet.STEMS
    channels: int  # of the images
    # Fields of its config that the arrays tell: of a ViT "image_size", "vit.patch" and "vit.pooling", of a ResNet other
    # than that of its name those of `resnet`.
    own: Any = {}


def of(weights, path):
    """What network the backbone of Weights is for, every array checked.

    Raises:
      UserError: it is none of ours; the sentence names the array.
    """
    params, batch_stats = files.backbone(weights)
    if "convs" in params:
        raise UserError(f"{path} holds a convnet, which fits images of one size only; give the run that it came from.")
    if "patch_embed" in params:
        return _vit(path, params, batch_stats)
    if "stages" in params:
        return _convnext(path, params, batch_stats)
    return _resnet(path, params, batch_stats)


def _resnet(path, params, batch_stats):
    """`of` for a ResNet: one that has a name, or its blocks in another number or of another width."""
    depths = tuple(len(params.get(f"layer{k}", ())) for k in (1, 2, 3, 4))
    first = params.get("layer1", {}).get("0", {})
    block = resnet.Bottleneck if "conv3" in first else resnet.BasicBlock
    _, _, _, inner = _kernel_shape(first)
    side, _, channels, width = _kernel_shape(params)
    base_width, stem = 64 * inner / max(width, 1), {7: "imagenet", 3: "cifar"}.get(side)
    named = _RESNETS.get((block, depths, base_width))
    alike = [arch for (kind, _, base), arch in _RESNETS.items() if (kind, base) == (block, base_width)]
    if not alike or stem is None or 0 in depths:
        raise UserError(
            f"{path} holds {depths} blocks of width {inner} behind a convolution of {side} x {side} and {width} "
            f"channels, which is none of {', '.join(_RESNETS.values())} in any depth and width; give one of these."
        )
    own = {"resnet.depths": () if named else depths, "resnet.width": width / 64}
    own["resnet.norm"] = "batch" if "scale" in params.get("bn1", {"scale"}) else "none"
    options = {name.removeprefix("resnet."): value for name, value in own.items()}
    arch = named or alike[0]
    make = model.make_backbone(arch, image_size=32, channels=channels, stem=stem, **options)
    check_fit(path, arch, make, params, batch_stats)
    return Architecture(arch, stem, channels, {} if own == OF_NAMED else own)


def _vit(path, params, batch_stats):
    """`of` for a ViT."""
    kernel, positions = params["patch_embed"].get("proj", {}).get("kernel"), params.get("pos_embed")
    patch, _, channels, width = np.shape(kernel) if np.ndim(kernel) == 4 else (0, 0, 0, 0)
    tokens = np.shape(positions)[1] if np.ndim(positions) == 3 else 0
    side, depth = math.isqrt(max(tokens - 1, 0)), len(params.get("blocks", ()))
    arch = _VITS.get((width, depth))
    if arch is None or side < 1 or 1 + side * side != tokens:
        raise UserError(
            f"{path} holds a ViT of {depth} blocks of width {width} with {tokens} positions, which is none of "
            f"{', '.join(model.VITS)} with a class token and a square of patches; give one of these."
        )
    own = {"image_size": side * patch, "vit.patch": patch, "vit.pooling": "mean" if "fc_norm" in params else "token"}
    options = {name.removeprefix("vit."): value for name, value in own.items()}
    check_fit(path, arch, model.make_backbone(arch, channels=channels, **options), params, batch_stats)
    return Architecture(arch, "imagenet", channels, own)


def _convnext(path, params, batch_stats):
    """`of` for a ConvNeXt."""
    stages = [params["stages"][k] for k in sorted(params["stages"], key=int)]
    depths = tuple(len(stage.get("blocks", ())) for stage in stages)
    firsts = [stage.get("blocks", {}).get("0", {}).get("conv_dw", {}).get("kernel") for stage in stages]
    widths = tuple(np.shape(kernel)[-1] if np.ndim(kernel) == 4 else 0 for kernel in firsts)
    kernel = params.get("stem", {}).get("0", {}).get("kernel")
    arch, channels = _CONVNEXTS.get((depths, widths)), np.shape(kernel)[2] if np.ndim(kernel) == 4 else 0
    if arch is None or channels < 1:
        raise UserError(
            f"{path} holds a ConvNeXt of {depths} blocks of widths {widths} for {channels} channels, which is none of "
            f"{', '.join(model.CONVNEXTS)}; give one of these."
        )
    check_fit(path, arch, model.make_backbone(arch, image_size=224, channels=channels), params, batch_stats)
    return Architecture(arch, "imagenet", channels)


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
    shape = module.get("conv1", {}).get("kernel", np.zeros(())).shape
    return shape if len(shape) == 4 else (0, 0, 0, 0)


OF_NAMED = together.OF_RESNETS  # what the fields of `resnet` are of those that have a name
_RESNETS = {
    (make.args[0], make.args[1], make.keywords.get("base_width", 64)): arch  # (block, depths, its base_width)
    for arch, make in model.RESNETS.items()
}
_VITS = {(make.args[0], 12): arch for arch, make in model.VITS.items()}  # (width, blocks)
_CONVNEXTS = {make.args: arch for arch, make in model.CONVNEXTS.items()}  # (blocks, widths) of the stages
