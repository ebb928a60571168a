"""ConvNeXts as timm's `convnext_tiny`, `convnext_small` and `convnext_base` are (Liu et al., arXiv 2201.03545).

Attributes carry timm's names (stem[0], stages[1].downsample[1], stages[1].blocks[0].conv_dw, head.norm), so that
weights map by one rule. There is no BatchNorm in them, and the view axis is one more leading axis: images are
[B, V, H, W, C] or [B, H, W, C].

They are for images of about 224 pixels, of which the four stages have maps of 56, 28, 14 and 7. Of 32 pixels, the
fewest, the last stage has one position, and most of the 7x7 windows before it lie on padding.

Initial values are timm's too: normal(0, 0.02), biases 0, layer scale 1e-6. Stochastic depth, which the paper trains
with and timm leaves off by default, is not here: a step draws no random numbers inside the network.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from barlow_jax.errors import UserError
from barlow_jax.networks import windows
from barlow_jax.networks.resnet import precision_of
from barlow_jax.networks.vit import MLP, Patches, layer_norm, linear_init

LAYER_SCALE = 1e-6


class Depthwise(nnx.Module):
    """A 7x7 window for each channel, padded by 3 on every side."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(linear_init(rngs.params(), (7, 7, 1, width)))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """[..., H, W, width] -> the same."""
        maps, kernel = x.reshape(-1, *x.shape[-3:]).astype(self.dtype), self.kernel[...].astype(self.dtype)
        y: Any = windows.depthwise(maps, kernel, precision_of(self.dtype))
        return y.reshape(x.shape) + self.bias[...].astype(self.dtype)


class Block(nnx.Module):
    """Depthwise convolution, LayerNorm and an MLP, scaled channel by channel, beside a shortcut."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv_dw = Depthwise(width, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, dtype, rngs)
        self.mlp = MLP(width, dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(width, LAYER_SCALE))

    def __call__(self, x: Array) -> Array:
        """[..., H, W, width] -> the same."""
        y = self.mlp(self.norm(self.conv_dw(x)))
        return x + (self.gamma[...] * y).astype(x.dtype)  # scaled in float32: 1e-6 is hardly a number of float16


class Stage(nnx.Module):
    """Blocks of one width, behind a LayerNorm and windows of 2x2 where they begin at half the resolution."""

    def __init__(self, before: int | None, width: int, depth: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.downsample = nnx.List([])
        if before is not None:
            self.downsample.append(layer_norm(before, dtype, rngs))
            self.downsample.append(Patches(2, before, width, dtype=dtype, rngs=rngs))
        self.blocks = nnx.List([Block(width, dtype=dtype, rngs=rngs) for _ in range(depth)])


class Head(nnx.Module):
    """What stands between the last map and a classifier: the mean over positions, and a LayerNorm of it."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = layer_norm(width, jnp.promote_types(dtype, jnp.float32), rngs)

    def __call__(self, x: Array) -> Array:
        """[..., H, W, width] -> [..., width], float32 or wider."""
        return self.norm(x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((-3, -2)))


class ConvNeXt(nnx.Module):
    """A ConvNeXt without its classifier: images of any size to features.

    Args:
      depths: blocks in each stage.
      widths: channels of each stage.
      channels: of the images.
      remat: keep only the inputs of the blocks for the backward pass, and compute the rest again there.
      dtype: compute dtype; parameters are float32, and LayerNorm and the mean compute in float32 or wider.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        channels: int = 3,
        remat: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.remat, self.dtype, self.num_features = remat, dtype, widths[-1]
        self.smallest = 4 * 2 ** (len(depths) - 1)
        stem = Patches(4, channels, widths[0], dtype=dtype, rngs=rngs)
        self.stem = nnx.List([stem, layer_norm(widths[0], dtype, rngs)])
        stages = zip((None, *widths[:-1]), widths, depths, strict=True)
        self.stages = nnx.List([Stage(*stage, dtype=dtype, rngs=rngs) for stage in stages])
        self.head = Head(widths[-1], dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Features.

        Args:
          images: [B, V, H, W, C] or [B, H, W, C]; normalised.
        Returns:
          [B, V, num_features] or [B, num_features], float32 or wider.
        """
        height, width = images.shape[-3:-1]
        if min(height, width) < self.smallest:
            raise UserError(
                f"The images have {height} x {width} pixels and nothing of them is left in the last stage of this "
                f"ConvNeXt; set config.image_size and config.eval.crop to {self.smallest} or more."
            )

        def run(block, x):
            return block(x)

        run = nnx.remat(run) if self.remat and train else run
        x = self.stem[1](self.stem[0](images))
        for stage in self.stages:
            for layer in stage.downsample:
                x = layer(x)
            for block in stage.blocks:
                x = run(block, x)
        return self.head(x)


convnext_tiny = functools.partial(ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768))
convnext_small = functools.partial(ConvNeXt, (3, 3, 27, 3), (96, 192, 384, 768))
convnext_base = functools.partial(ConvNeXt, (3, 3, 27, 3), (128, 256, 512, 1024))
