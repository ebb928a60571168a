"""Vision Transformers as timm's `vit_tiny`, `vit_small` and `vit_base` are (Dosovitskiy et al., arXiv 2010.11929).

Attributes carry timm's names (cls_token, pos_embed, patch_embed.proj, blocks[0].attn.qkv), so that weights map by one
rule. There is no BatchNorm in them, and the view axis is one more leading axis: images are [B, V, H, W, C] or
[B, H, W, C].

Initial values are timm's too: normal(0, 0.02) for linear layers and positions, zero for their biases, PyTorch's own for
the projection of the patches.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from barlow_jax.errors import UserError
from barlow_jax.networks import windows
from barlow_jax.networks.resnet import precision_of

POSITIONS = ("learned", "fixed")
POOLINGS = ("token", "mean")
LAYER_NORM_EPS = 1e-6

linear_init = nnx.initializers.normal(0.02)


def uniform_init(fan_in: int) -> nnx.Initializer:
    """PyTorch's own for a convolution's kernel and bias: uniform in +-1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def draw(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def sincos_positions(side: int, width: int) -> Array:
    """The fixed positions of MAE (arXiv 2111.06377): sines and cosines of both coordinates of a patch.

    With w_k = 10000^(-4k / width), k < width / 4, patch (row y, column x) has sin(x w), cos(x w), sin(y w), cos(y w);
    the class token, in front, has zeros. MoCo v3 has x and y the other way round.

    Args:
      side: patches along each side.
      width: of the network, a multiple of 4.
    Returns:
      [1, 1 + side^2, width].
    """
    frequencies = 10_000.0 ** (-jnp.arange(width // 4) / (width // 4))
    y, x = (axis.reshape(-1, 1) * frequencies for axis in jnp.mgrid[:side, :side])
    grid = jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], 1)
    return jnp.concatenate([jnp.zeros_like(grid[:1]), grid])[None]


def attention(q: Array, k: Array, v: Array) -> Array:
    """Attention of every token to every other: [..., T, heads, C] each -> [..., T, heads, C].

    The products ask for what `precision_of` says; the softmax is in float32 or wider. `jax.nn.dot_product_attention`
    makes the same program of it, but rounds to float32 in double precision too, and to bfloat16 what an accelerator is
    to multiply in float32.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    precision = precision_of(q.dtype)
    logits = jnp.einsum("...tnc,...snc->...nts", q, k, precision=precision, preferred_element_type=wide)
    shares = jax.nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
    return jnp.einsum("...nts,...snc->...tnc", shares, v, precision=precision)


class Patches(nnx.Module):
    """A convolution of windows side by side, its stride their size; what is left at the far edges is not seen.

    Args:
      initial: of the kernel and of the bias; the kernel normal(0, 0.02) and the bias 0 where it is None.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        width: int,
        *,
        initial: nnx.Initializer | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param((initial or linear_init)(rngs.params(), (side, side, channels, width)))
        self.bias = nnx.Param(initial(rngs.params(), (width,)) if initial else jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """[..., H, W, channels] -> [..., H // side, W // side, width]."""
        side, *_, width = self.kernel.shape
        kernel = self.kernel[...].astype(self.dtype).reshape(-1, width)
        y = jnp.matmul(windows.patches(x.astype(self.dtype), side), kernel, precision=precision_of(self.dtype))
        return y + self.bias[...].astype(self.dtype)


class PatchEmbed(nnx.Module):
    """Patches as tokens: `patch_embed`."""

    def __init__(self, patch: int, channels: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        initial = uniform_init(patch * patch * channels)
        self.proj = Patches(patch, channels, width, initial=initial, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        """[..., H, W, C] -> [..., H W / patch^2, width], row by row."""
        x = self.proj(images)
        return x.reshape(*x.shape[:-3], -1, x.shape[-1])


class Attention(nnx.Module):
    """Self-attention of several heads, queries, keys and values by one layer with a bias."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = _linear(width, 3 * width, dtype, rngs)
        self.proj = _linear(width, width, dtype, rngs)

    def __call__(self, x: Array) -> Array:
        """[..., T, width] -> the same."""
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        q, k, v = (qkv[..., n, :, :] for n in range(3))
        return self.proj(attention(q, k, v).reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers, four times as wide between them, and the exact GELU."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = _linear(width, 4 * width, dtype, rngs)
        self.fc2 = _linear(4 * width, width, dtype, rngs)

    def __call__(self, x: Array) -> Array:
        """[..., width] -> the same."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """Attention and an MLP, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, dtype, rngs)
        self.attn = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype, rngs)
        self.mlp = MLP(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[..., T, width] -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """A Vision Transformer without its classifier: images of one size to features.

    Args:
      width: of a token.
      heads: of the attention; a head has width / heads numbers.
      depth: blocks.
      image_size: side of the images, a multiple of patch.
      patch: side of a patch, in pixels.
      channels: of the images.
      positions: "learned", from normal(0, 0.02), or "fixed", `sincos_positions`, which training leaves as they are.
      pooling: "token", the class token behind the last norm; or "mean", a norm of the mean of the patches' tokens, as
        timm's global_pool="avg", which keeps a class token for them to attend to.
      remat: keep only the inputs of the blocks for the backward pass, and compute the rest again there.
      dtype: compute dtype; parameters are float32, and softmax and LayerNorm compute in float32 or wider.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 12,
        *,
        image_size: int,
        patch: int = 16,
        channels: int = 3,
        positions: str = "learned",
        pooling: str = "token",
        remat: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(image_size, patch, positions, pooling)
        side = image_size // patch
        self.side, self.positions, self.pooling = image_size, positions, pooling
        self.remat, self.dtype = remat, dtype
        self.num_features = width
        self.cls_token = nnx.Param(nnx.initializers.normal(1e-6)(rngs.params(), (1, 1, width)))
        learned = linear_init(rngs.params(), (1, 1 + side * side, width))
        self.pos_embed = nnx.Param(learned if positions == "learned" else sincos_positions(side, width))
        self.patch_embed = PatchEmbed(patch, channels, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, dtype=dtype, rngs=rngs) for _ in range(depth)])
        if pooling == "token":
            self.norm = layer_norm(width, dtype, rngs)
        else:
            self.fc_norm = layer_norm(width, dtype, rngs)

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Features.

        Args:
          images: [B, V, H, W, C] or [B, H, W, C], H = W = image_size; normalised.
        Returns:
          [B, V, width] or [B, width], float32 or wider.
        """
        if images.shape[-3:-1] != (self.side, self.side):
            raise UserError(
                f"The images have {images.shape[-3]} x {images.shape[-2]} pixels and this ViT is for {self.side} x "
                f"{self.side}; set config.image_size and config.eval.crop to {self.side}."
            )
        patches = self.patch_embed(images)
        token = jnp.broadcast_to(
            self.cls_token[...].astype(self.dtype), (*patches.shape[:-2], *self.cls_token.shape[1:])
        )
        places = self.pos_embed[...] if self.positions == "learned" else jax.lax.stop_gradient(self.pos_embed[...])
        x = jnp.concatenate([token, patches], -2) + places[0].astype(self.dtype)

        def run(block, x):
            return block(x)

        run = nnx.remat(run) if self.remat and train else run
        for block in self.blocks:
            x = run(block, x)
        x = self.norm(x[..., 0, :]) if self.pooling == "token" else self.fc_norm(x[..., 1:, :].mean(-2))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check(image_size: int, patch: int, positions: str = "learned", pooling: str = "token") -> None:
    """Raises UserError unless there is such a ViT; the fields of config.vit."""
    if patch < 1 or image_size % patch:
        raise UserError(
            f"config.vit.patch is {patch}, which does not divide config.image_size={image_size}; take a divisor of it."
        )
    for name, value, known in (("positions", positions, POSITIONS), ("pooling", pooling, POOLINGS)):
        if value not in known:
            raise UserError(f"config.vit.{name} is {value!r}; it is one of {', '.join(known)}.")


def _linear(in_features, features, dtype, rngs):
    precision = precision_of(dtype)
    return nnx.Linear(in_features, features, kernel_init=linear_init, dtype=dtype, precision=precision, rngs=rngs)


def layer_norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Of the last axis, computed in float32 or wider."""
    # The variance in two passes: E[x^2] - E[x]^2 cancels where the mean is large.
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPS, use_fast_variance=False, dtype=dtype, rngs=rngs)


vit_tiny = functools.partial(ViT, 192, 3)
vit_small = functools.partial(ViT, 384, 6)
vit_base = functools.partial(ViT, 768, 12)
