"""The colours of one image: jitter, grayscale, solarise, normalise, equal to Pillow's 8-bit arithmetic.

An image is a float32 array [H, W, C] of whole grey levels 0..255, before and after every operation but `normalize`.
The official recipe runs in Pillow, which rounds to 8 bits after each operation, so the rounding is part of the
augmentation. All of this is float32 arithmetic on whole numbers below 2**24, hence exact on any device and in any order
of summation, except where a comment says otherwise; tests/ops/test_ops.py compares it with Pillow's output. Factors
may be traced. There is no batch axis: use jax.vmap. With fine=True levels are fractions, as of images of more than 8
bits, and nothing is rounded.

Inside, an image is a list of C planes [H, W]. A last axis of length 3 would leave most of a vector register (and 125 of
128 TPU lanes) idle.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Channels = Array | np.ndarray | Sequence[float]  # a number for each channel

# Steps of the colour jitter: torchvision's numbers in ColorJitter, and one that does nothing.
BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = range(5)


def _planes(image: Array) -> list[Array]:
    return [image[..., c] for c in range(image.shape[-1])]


def _rgb(image: Array, operation: str) -> list[Array]:
    if image.shape[-1] != 3:
        raise ValueError(f"{operation} needs images of 3 channels; got {image.shape[-1]}.")
    return _planes(image)


def _luma(planes: list[Array], fine: bool = False) -> Array:
    """Pillow's convert("L") [H, W]: ITU-R 601 in 16-bit fixed point. Other than 3 channels: mean.

    The sums stay below 2**24, so float32 holds them exactly.
    """
    if len(planes) != 3:
        mean = sum(planes) / len(planes)
        return jnp.asarray(mean) if fine else jnp.floor(mean + 0.5)
    r, g, b = planes
    if fine:
        return (19595.0 * r + 38470.0 * g + 7471.0 * b) / 65536.0
    return jnp.floor((19595.0 * r + 38470.0 * g + 7471.0 * b + 32768.0) / 65536.0)


def _rounded_mean(plane: Array, fine: bool = False) -> Array:
    """int(mean + 0.5), in integers: a float32 sum of 224 x 224 levels is close to its limit."""
    if fine:
        return jnp.mean(plane)
    total, count = jnp.sum(plane.astype(jnp.int32)), plane.size
    return ((2 * total + count) // (2 * count)).astype(jnp.float32)


def _blend(base, planes: list[Array], factor, fine: bool = False) -> list[Array]:
    """base + factor * (plane - base), truncated, as PIL.Image.blend computes it in C floats.

    Pillow rounds the product to float32 before it adds. A compiler may fuse the two (XLA on CPU does), and then
    factors such as 0.8 or 1.2 are off by a grey level for 1 or 2 in 100 pairs of levels. Two halves of the factor make
    both products exact, so that their sum is the rounded product.
    """
    factor = jnp.asarray(factor, jnp.float32)
    high = jax.lax.reduce_precision(factor, exponent_bits=8, mantissa_bits=11)
    low = factor - high

    def blend(plane):
        step = plane - base
        blended = jnp.clip(base + (high * step + low * step), 0.0, 255.0)
        return blended if fine else jnp.floor(blended)

    return [blend(plane) for plane in planes]


# Bit n is set where Pillow's float32 hue 255 * h of a colour whose exact value is the whole number n comes out just
# below n, and is truncated to n - 1. Read off Pillow's output for all 2**24 colours; all other hues and all saturations
# of Pillow are the exact quotients, rounded down.
_HUE_FALLS_SHORT = np.zeros(256, bool)
_HUE_FALLS_SHORT[[*range(1, 32), *range(88, 105, 4), *range(129, 148, 2), *range(149, 210, 4)]] = 1
_HUE_FALLS_SHORT[[176, 184]] = 1
_HUE_WORDS = np.packbits(_HUE_FALLS_SHORT, bitorder="little").view("<i4")


def _falls_short(level: Array) -> Array:
    """Looks up _HUE_FALLS_SHORT with 8 selects; a gather per pixel is slow on TPU."""
    word = jnp.zeros_like(level)
    for i, bits in enumerate(_HUE_WORDS):
        word = jnp.where(level >> 5 == i, bits, word)
    return (word >> (level & 31)) & 1


def _shift_hue(planes: list[Array], shift) -> list[Array]:
    """RGB -> Pillow's 8-bit HSV -> hue + int(255 * shift) mod 256 -> RGB.

    Quotients of whole numbers are floored as floor((a + 0.5) / b): the half keeps exact quotients clear of the rounding
    errors of the division, which differ from device to device.
    """
    r, g, b = planes
    value = jnp.maximum(r, jnp.maximum(g, b))
    chroma = value - jnp.minimum(r, jnp.minimum(g, b))
    # The position on the colour hexagon is turn / chroma, in 0..6.
    turn = jnp.where(g == value, 2 * chroma + b - r, 4 * chroma + r - g)
    turn = jnp.where(r == value, g - b, turn)
    turn = 85.0 * jnp.where(turn < 0, turn + 6 * chroma, turn)
    divisor = 2.0 * jnp.maximum(chroma, 1.0)
    hue_level = jnp.floor((turn + 0.5) / divisor)
    short = _falls_short(hue_level.astype(jnp.int32))
    hue_level -= jnp.where(hue_level * divisor == turn, short, 0)
    saturation_level = jnp.floor((255.0 * chroma + 0.5) / jnp.maximum(value, 1.0))

    hue_level += jnp.trunc(jnp.asarray(shift, jnp.float32) * 255.0)
    hue_level -= 256.0 * jnp.floor(hue_level / 256.0)

    def channel(sector):
        # value * (1 - saturation * ramp), ramp a trapezoid of the hue, in units of 1 / 85.
        position = 85.0 * sector + 2.0 * hue_level
        position = jnp.where(position >= 510.0, position - 510.0, position)
        ramp = jnp.clip(jnp.minimum(position, 340.0 - position), 0.0, 85.0)
        return jnp.floor((value * (21675.0 - saturation_level * ramp) + 10837.5) / 21675.0)

    return [channel(sector) for sector in (5.0, 3.0, 1.0)]


def _shift_fine_hue(planes: list[Array], shift) -> list[Array]:
    """RGB -> HSV -> hue + shift -> RGB, of levels with fractions."""
    r, g, b = planes
    value = jnp.maximum(r, jnp.maximum(g, b))
    chroma = value - jnp.minimum(r, jnp.minimum(g, b))
    turn = jnp.where(g == value, 2 * chroma + b - r, 4 * chroma + r - g)
    turn = jnp.where(r == value, g - b, turn)
    hue = turn / jnp.where(chroma > 0, chroma, 1.0) + 6.0 * jnp.asarray(shift, jnp.float32)  # sixths of a turn

    def channel(sector):
        position = jnp.mod(sector + hue, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)

    return [channel(sector) for sector in (5.0, 3.0, 1.0)]


def brightness(image: Array, factor: Array) -> Array:
    """PIL.ImageEnhance.Brightness: a blend with black. Exact. Any C."""
    return jnp.stack(_blend(0.0, _planes(image), factor), axis=-1)


def contrast(image: Array, factor: Array) -> Array:
    """PIL.ImageEnhance.Contrast: a blend with the image's rounded mean luma. Exact. Any C."""
    planes = _planes(image)
    return jnp.stack(_blend(_rounded_mean(_luma(planes)), planes, factor), axis=-1)


def saturation(image: Array, factor: Array) -> Array:
    """PIL.ImageEnhance.Color: a blend with each pixel's luma. Exact. C = 3, else ValueError."""
    planes = _rgb(image, "saturation")
    return jnp.stack(_blend(_luma(planes), planes, factor), axis=-1)


def hue(image: Array, shift: Array) -> Array:
    """torchvision's adjust_hue of a PIL image, `shift` in -0.5..0.5 turns. C = 3, else ValueError.

    Exact for all 2**24 colours on CPU. A shift of 0 is not the identity: HSV has 8 bits.
    """
    return jnp.stack(_shift_hue(_rgb(image, "hue"), shift), axis=-1)


def color_jitter(image: Array, order: Array, factors: Array, *, with_hue: bool = True, fine: bool = False) -> Array:
    """torchvision's ColorJitter of a PIL image with its random numbers given. Exact.

    Brightness, contrast and saturation are one blend with different bases, so a step is one blend, one hue shift and a
    select. (lax.switch under vmap would compute all four operations in each step.)

    Args:
      image: [H, W, C]; with C != 3 saturation and hue leave the image alone.
      order: int32 [4], a permutation of (BRIGHTNESS, CONTRAST, SATURATION, HUE) = (0, 1, 2, 3), the first entry
        applied first. Entries may also be NOTHING = 4.
      factors: float32 [4], (brightness, contrast, saturation, hue shift), in this order always.
      with_hue: False leaves the hue alone, as torchvision does for a strength of 0.
      fine: nothing is rounded, and a hue shift of 0 is the identity.
    """
    planes = _planes(image)
    colour = len(planes) == 3
    factors = jnp.asarray(factors, jnp.float32)

    def step(planes, operation):
        luma = _luma(planes, fine)
        base = jnp.where(operation == CONTRAST, _rounded_mean(luma, fine), 0.0)
        base = jnp.where(operation == SATURATION, luma, base)
        blends = (operation < HUE) if colour else (operation < SATURATION)
        blended = _blend(base, planes, jnp.where(blends, factors[operation], 1.0), fine)  # 1: identity
        if not (colour and with_hue):
            return blended, None
        shifted = (_shift_fine_hue if fine else _shift_hue)(planes, factors[HUE])
        return [jnp.where(operation == HUE, s, b) for s, b in zip(shifted, blended, strict=True)], None

    # A loop, not four copies of the step: XLA on CPU would fuse those and compute each step again for every use of its
    # result (1,000 times slower was seen; it ignores optimization_barrier), and compile for twice as long.
    planes, _ = jax.lax.scan(step, planes, order)
    return jnp.stack(planes, axis=-1)


def grayscale(image: Array, *, fine: bool = False) -> Array:
    """Luma in all 3 channels (torchvision's RandomGrayscale). Exact. C = 3, else ValueError."""
    return jnp.stack([_luma(_rgb(image, "grayscale"), fine)] * 3, axis=-1)


def solarize(image: Array, *, fine: bool = False) -> Array:
    """PIL.ImageOps.solarize: levels of 128 and more are inverted; fine: of 127.5 and more. Exact. Any C."""
    return jnp.where(image >= (127.5 if fine else 128.0), 255.0 - image, image)


def invert(image: Array) -> Array:
    """255 - image. Exact. Any C."""
    return 255.0 - image


def levels(image: Array) -> Array:
    """Grey levels 0..255, float32, of uint8 or whole numbers as they are; of uint16 with fractions, 65535 being 255."""
    return image.astype(jnp.float32) / 257.0 if image.dtype == jnp.uint16 else image.astype(jnp.float32)


def normalize(image: Array, mean: Channels, std: Channels) -> Array:
    """torchvision's ToTensor and Normalize, channels last: (image / 255 - mean) / std, [C] each."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (image / 255.0 - mean) / std
