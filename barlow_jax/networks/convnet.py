"""A convolutional network for images of a few dozen pixels: what the demo trains in a minute or two on a CPU.

And `Pixels`, which leaves the images as they are: what any network has to beat.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from barlow_jax.networks import batch_norm
from barlow_jax.networks.batch_norm import BatchNorm
from barlow_jax.networks.resnet import Conv, precision_of


class ConvNet(nnx.Module):
    """Three strided 3x3 convolutions, flattened, and one dense layer.

    Flattened and not pooled: on tiny images the place of a stroke carries as much as its presence.

    Args:
      image_size: side of the images, a multiple of 8.
      channels: of the images.
      widths: of the three convolutions.
      num_features: width of the representation.
      dtype: compute dtype; parameters are float32.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int = 3,
        widths: Sequence[int] = (32, 64, 64),
        num_features: int = 256,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.num_features = dtype, num_features
        self.convs, self.norms = nnx.List([]), nnx.List([])
        side = image_size
        for in_features, width in zip((channels, *widths[:-1]), widths, strict=True):
            self.convs.append(Conv(in_features, width, 3, 2, dtype=dtype, rngs=rngs))
            self.norms.append(BatchNorm(width))
            side = (side + 1) // 2
        width = side * side * widths[-1]
        options = {"use_bias": False, "dtype": dtype, "precision": precision_of(dtype)}
        self.dense = nnx.Linear(width, num_features, **options, rngs=rngs)
        self.norm = BatchNorm(num_features)

    def __call__(self, images: Array, *, train: bool) -> Array:
        """images [B, V, H, W, C] in training, [B, H, W, C] in evaluation -> [B(, V), num_features] float32."""
        x = images.astype(self.dtype)
        for convolution, norm in zip(self.convs, self.norms, strict=True):
            x = batch_norm.relu(norm.normalised(convolution(x), train=train))
        x = self.dense(x.reshape(*x.shape[:-3], -1))
        x = batch_norm.relu(self.norm.normalised(x, train=train))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Pixels(nnx.Module):
    """No network: the features are the pixels, [H * W * channels]. Arguments as of ConvNet."""

    def __init__(self, *, image_size: int, channels: int = 3, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        del rngs
        self.dtype, self.num_features = dtype, image_size * image_size * channels

    def __call__(self, images: Array, *, train: bool) -> Array:
        """images [..., H, W, C] -> [..., H * W * C] float32."""
        del train
        x = images.astype(self.dtype).reshape(*images.shape[:-3], -1)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
