"""ResNets as torchvision has them (v1.5), wide variants included.

Attributes carry torchvision's names (conv1, bn1, layer1[0].conv2, downsample), so that weights map by one rule.

In training every array has a *view axis*, see `batch_norm`: images are [B, V, H, W, C]; in evaluation [B, H, W, C].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from barlow_jax.errors import UserError
from barlow_jax.networks import batch_norm, windows
from barlow_jax.networks.batch_norm import BatchNorm, Normalised

# He initialisation by fan-out, plain normal (not truncated), as torchvision's.
conv_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

STEMS = ("imagenet", "cifar")
NORMS = ("batch", "none")


def precision_of(dtype: DTypeLike) -> str | None:
    """What products of numbers of this dtype ask for: float32 means float32.

    Left to itself an accelerator rounds float32 to bfloat16 (TPU) or TF32 (GPU) before it multiplies, and a ResNet's
    features are off by 5e-3 or 7e-4 (docs/precision.md). A CPU rounds none, and numbers of 16 bits need nothing.
    """
    return "highest" if jnp.dtype(dtype).itemsize >= 4 else None


class Conv(nnx.Module):
    """k x k convolution without bias, padded by k // 2 on every side.

    The padding is spelled out because XLA's "SAME" pads strided convolutions of even sizes unevenly, and PyTorch does
    not: features would be 60 % off.
    """

    def __init__(
        self, in_features: int, out_features: int, kernel: int, stride: int = 1, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(conv_init(rngs.params(), (kernel, kernel, in_features, out_features)))
        self.stride, self.padding, self.dtype = stride, kernel // 2, dtype
        self.precision = precision_of(dtype)

    def __call__(self, x: Array) -> Array:
        """[..., H, W, in_features] -> [..., H', W', out_features], for any leading axes."""
        maps = x.reshape(-1, *x.shape[-3:]).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        y: Any = windows.convolve(maps, kernel, self.stride, self.padding, self.precision)
        return y.reshape(*x.shape[:-3], *y.shape[1:])


def max_pool_3x3(x: Array) -> Array:
    """3x3 maximum with stride 2 and padding 1 over the two axes before the last, for any leading axes."""
    # The leading axes as one, as the convolutions around it have them: with the view axis apart, XLA for TPUs copies
    # the largest activation of the network into another layout and back, in float32.
    pooled = windows.max_pool(x.reshape(-1, *x.shape[-3:]))
    return pooled.reshape(*x.shape[:-3], *pooled.shape[1:])


class Offset(nnx.Module):
    """What stands in the place of a BatchNorm where there is none: x + bias, without statistics.

    Args:
      features: size C of the last axis.
      scaled: scale * x + bias, with one scale for all: the scalar of SkipInit, at the end of a residual branch.
    """

    def __init__(self, features: int, *, scaled: bool = False):
        self.scale: Any = nnx.Param(jnp.ones(1)) if scaled else None
        self.bias: Any = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array, *, train: bool) -> Array:
        """x: [..., C], and so is the result, in its dtype."""
        return batch_norm.value(self.normalised(x, train=train)).astype(x.dtype)

    def normalised(self, x: Array, *, train: bool) -> Normalised:
        """The same, not yet computed, as `BatchNorm.normalised`."""
        del train
        bias = self.bias[...]
        gain = jnp.ones_like(bias) if self.scale is None else jnp.broadcast_to(self.scale[...], bias.shape)
        return Normalised(x, jnp.zeros_like(bias), gain, bias)


Norm = Callable[[int], BatchNorm | Offset]  # channels -> what stands behind a convolution


class Downsample(nnx.Module):
    """1x1 convolution and BatchNorm on the shortcut, where a block changes the shape."""

    def __init__(self, in_features: int, features: int, stride: int, *, norm: Norm, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(in_features, features, 1, stride, dtype=dtype, rngs=rngs)
        self.bn = norm(features)

    def __call__(self, x: Array, *, train: bool) -> Normalised:
        return self.bn.normalised(self.conv(x), train=train)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions: the block of ResNet-18 and 34."""

    expansion = 1

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        base_width: int,
        norm: Norm = BatchNorm,
        last_norm: Norm = BatchNorm,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        del base_width  # torchvision widens bottlenecks only
        self.conv1 = Conv(in_features, width, 3, stride, dtype=dtype, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = Conv(width, width, 3, dtype=dtype, rngs=rngs)
        self.bn2 = last_norm(width)
        reshape = stride != 1 or in_features != width
        self.downsample = Downsample(in_features, width, stride, norm=norm, dtype=dtype, rngs=rngs) if reshape else None

    @property
    def last_bn(self) -> BatchNorm | Offset:
        return self.bn2

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = batch_norm.relu(self.bn1.normalised(self.conv1(x), train=train))
        y = self.bn2.normalised(self.conv2(y), train=train)
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        return batch_norm.relu_of_sum(y, shortcut)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1: the block of ResNet-50 and deeper. The stride sits in the 3x3 ("v1.5")."""

    expansion = 4

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        base_width: int,
        norm: Norm = BatchNorm,
        last_norm: Norm = BatchNorm,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        inner, out = width * base_width // 64, width * self.expansion
        self.conv1 = Conv(in_features, inner, 1, dtype=dtype, rngs=rngs)
        self.bn1 = norm(inner)
        self.conv2 = Conv(inner, inner, 3, stride, dtype=dtype, rngs=rngs)
        self.bn2 = norm(inner)
        self.conv3 = Conv(inner, out, 1, dtype=dtype, rngs=rngs)
        self.bn3 = last_norm(out)
        reshape = stride != 1 or in_features != out
        self.downsample = Downsample(in_features, out, stride, norm=norm, dtype=dtype, rngs=rngs) if reshape else None

    @property
    def last_bn(self) -> BatchNorm | Offset:
        return self.bn3

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = batch_norm.relu(self.bn1.normalised(self.conv1(x), train=train))
        y = batch_norm.relu(self.bn2.normalised(self.conv2(y), train=train))
        y = self.bn3.normalised(self.conv3(y), train=train)
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        return batch_norm.relu_of_sum(y, shortcut)


class ResNet(nnx.Module):
    """ResNet without its classifier: images to pooled features.

    Args:
      block: BasicBlock or Bottleneck.
      depths: blocks in each of the four stages.
      base_width: 64; 128 makes the bottlenecks of the wide variants twice as wide inside.
      stem: "imagenet" (7x7 stride 2 and a max-pool) or "cifar" (3x3 stride 1, no pool) for images of about 32 pixels.
      channels: of the images.
      stages: blocks in each of the four stages instead of `depths`; () leaves those.
      width_factor: of the channels of every layer; 64 times it is a whole number.
      norm: "batch", or "none": an offset stands in the place of every BatchNorm, and a scalar at the end of each
        residual branch, which starts at 0 (SkipInit, De and Smith 2020, arXiv 2002.10444) or, without
        zero_init_residual, at 1 / sqrt(blocks), the largest that its authors can train.
      zero_init_residual: start each block as the identity (last BatchNorm scale 0), as the official code does.
      remat: keep only the inputs of the residual blocks for the backward pass, and compute the rest again there.
      dtype: compute dtype; parameters are float32.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        base_width: int = 64,
        stem: str = "imagenet",
        channels: int = 3,
        stages: Sequence[int] = (),
        width_factor: float = 1.0,
        norm: str = "batch",
        zero_init_residual: bool = True,
        remat: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if stem not in STEMS:
            raise UserError(f"config.stem is {stem!r}; it is one of {', '.join(STEMS)}.")
        if norm not in NORMS or width_factor <= 0 or 64 * width_factor % 1 or (stages and len(stages) != 4):
            raise UserError(
                f"config.resnet has norm {norm!r}, width {width_factor} and depths {tuple(stages)}; these are "
                f"one of {', '.join(NORMS)}, a multiple of 1/64 and four numbers of blocks or ()."
            )
        self.stem, self.remat, self.dtype = stem, remat, dtype
        width = round(64 * width_factor)
        self.num_features = 8 * width * block.expansion
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        plain: Norm = BatchNorm if norm == "batch" else Offset
        last: Norm = BatchNorm if norm == "batch" else functools.partial(Offset, scaled=True)
        self.conv1 = Conv(channels, width, kernel, stride, dtype=dtype, rngs=rngs)
        self.bn1 = plain(width)
        options = {"base_width": base_width, "norm": plain, "last_norm": last, "dtype": dtype, "rngs": rngs}

        def stage(in_features, width, depth, stride):
            blocks = [block(in_features, width, stride, **options)]
            for _ in range(depth - 1):
                blocks.append(block(width * block.expansion, width, 1, **options))
            return nnx.List(blocks)

        depths, out = tuple(stages) or tuple(depths), block.expansion * width
        self.layer1 = stage(width, width, depths[0], 1)
        self.layer2 = stage(out, 2 * width, depths[1], 2)
        self.layer3 = stage(2 * out, 4 * width, depths[2], 2)
        self.layer4 = stage(4 * out, 8 * width, depths[3], 2)
        if zero_init_residual or norm == "none":
            start = 0.0 if zero_init_residual else sum(depths) ** -0.5
            for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
                for residual in layer:
                    residual.last_bn.scale[...] = jnp.full_like(residual.last_bn.scale[...], start)

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Pooled features.

        Args:
          images: [B, V, H, W, C] in training, [B, H, W, C] in evaluation; normalised.
        Returns:
          [B, V, num_features] or [B, num_features], float32 or wider.
        """
        x = self.bn1(self.conv1(images.astype(self.dtype)), train=train)
        if self.stem == "imagenet":
            # Before the ReLU, with which it commutes, gradients included: the mask is then of the smaller maps.
            x = max_pool_3x3(x)
        x = nnx.relu(x)

        def run(block, x):
            return block(x, train=train)

        run = nnx.remat(run) if self.remat and train else run
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = run(block, x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((-3, -2))


resnet18 = functools.partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = functools.partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = functools.partial(ResNet, Bottleneck, (3, 4, 6, 3))
resnet101 = functools.partial(ResNet, Bottleneck, (3, 4, 23, 3))
resnet152 = functools.partial(ResNet, Bottleneck, (3, 8, 36, 3))
wide_resnet50_2 = functools.partial(ResNet, Bottleneck, (3, 4, 6, 3), base_width=128)
wide_resnet101_2 = functools.partial(ResNet, Bottleneck, (3, 4, 23, 3), base_width=128)
