"""Where the pixels go: cropping, resizing, rotating and blurring one image, with Pillow's 8-bit rounding.

An image is a float32 array [H, W, C] of whole grey levels 0..255, before and after every operation. The official recipe
runs in Pillow, which rounds to 8 bits between operations and inside them, so the rounding is part of the augmentation.
Each function says how its result compares with Pillow's; tests/ops/test_ops.py checks it. Boxes, angles and sigma may
be traced. There is no batch axis: use jax.vmap. With fine=True levels are fractions, as of images of more than 8 bits,
and nothing is rounded.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import max_dim

# Of the weights of a resize, and of the image. The weights need more than the 8 (bfloat16) or 11 (TF32) bits that
# accelerators keep by default: 255 * 2**-9 is half a grey level. Levels are exact in 8: 3 products on a TPU, not 6.
_PRECISION = (jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT)
_FINE_PRECISION = jax.lax.Precision.HIGHEST  # of both, where levels have fractions


def divide(x: Array, whole: int) -> Array:
    """x / whole, rounded once as IEEE 754 has it, on any device and in jitted programs; 0 < whole <= 4096.

    In those XLA multiplies by the reciprocal of a constant, which is rounded itself: 196 / 224 becomes 0.87500006, and
    weights that are sixteenths, of which sums of grey levels are exact halves, become others. (A barrier before the
    constant is taken away by XLA on CPU, and the division of an accelerator is not exact.) So what is missing of the
    quotient is made up for: 12 bits of it at a time have exact products with `whole`, and the remainder is exact.
    """
    x, reciprocal = jnp.asarray(x, jnp.float32), np.float32(1 / whole)
    quotient = x * reciprocal
    high = jax.lax.reduce_precision(quotient, exponent_bits=8, mantissa_bits=11)
    remainder = (x - high * whole) - (quotient - high) * whole
    return quotient + remainder * reciprocal


def _round(image: Array, fine: bool = False) -> Array:
    """Nearest grey level, halves upwards (Pillow's fixed-point rounding), clipped to 0..255; fine: only clipped."""
    clipped = jnp.clip(image, 0.0, 255.0)
    return clipped if fine else jnp.floor(clipped + 0.5)


def _cubic(x: Array) -> Array:
    """Keys' cubic with a = -0.5, as in Pillow (Resample.c, bicubic_filter); support 2."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def _triangle(x: Array) -> Array:
    return jnp.maximum(1.0 - jnp.abs(x), 0.0)


KERNELS = {"cubic": _cubic, "linear": _triangle}


def _resize_weights(start, length, size, pixels, kernel, extent) -> Array:
    """Weights [size, pixels] that resample [start, start + length) of an axis to `size` samples.

    The kernel is stretched by the shrinking factor (antialiasing). A pixel counts by the share of it that lies inside
    the interval, or, with `extent`, fully if its index is below `extent`. Rows sum to 1; where no pixel counts (an
    interval of no length) they are zero.
    """
    scale = divide(length, size)
    centre = (jnp.arange(size) + 0.5) * scale
    pixel = jnp.arange(pixels) + 0.5
    weights = kernel((pixel - start - centre[:, None]) / jnp.maximum(scale, 1.0))
    if extent is None:
        right = jnp.minimum(pixel + 0.5, start + length)
        weights *= jnp.clip(right - jnp.maximum(pixel - 0.5, start), 0.0, 1.0)
    else:
        weights *= pixel < extent
    total = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(total == 0.0, 1.0, total)


def _rows_first(height, width, size, extent) -> Array:
    """Whether Pillow 13 takes the rows first: its rule, read off its results, is the same for all filters."""
    if extent is None:
        return height - size > 2 * jnp.maximum(width - size, 0)
    # The whole image is resized before it is cropped; its new sides are whole numbers.
    bottom, right = (jnp.asarray(limit, jnp.float32) for limit in extent)
    taken = [side - jnp.round(size * side / length) for side, length in ((bottom, height), (right, width))]
    return taken[0] > 2 * jnp.maximum(taken[1], 0)


def crop_resize(
    image: Array,
    box: Array,
    size: int,
    *,
    interpolation: str = "cubic",
    extent: Array | None = None,
    fine: bool = False,
) -> Array:
    """Cuts a box out of an image and resizes it, antialiased, to [size, size, C].

    Two matrix products, rounded to grey levels after each, so that their order shows. It is that of Pillow 13: from W
    columns to w first, but the rows from H to h first where that takes away much more, H - h > 2 max(W - w, 0). Pillow
    up to 12 always begins with the columns.

    Args:
      image: [H, W, C], grey levels (a canvas may be larger than its content; see `extent`).
      box: (top, left, height, width) in pixels; may be fractional. Samples whose filter meets no pixel of the image
        are 0, so the parts of a box outside the image are black.
      size: side of the result.
      interpolation: "cubic" (a = -0.5) or "linear".
      extent: None: the filter sees only pixels inside the box, as `crop(box).resize(size)` does.
        (height, width): it may look outside the box but not outside the first `height` rows and `width` columns. That
        is Resize followed by CenterCrop, with the crop expressed in source pixels: a 224-crop of an image resized to
        256 has height 224 * H / 256.
      fine: nothing is rounded.

    Returns:
      [size, size, C] grey levels. Where it differs from Pillow's 22-bit fixed point, it is by 1, for sums near an exact
      half; docs/views.md has the counts. Exact where length / size has few bits (196 to 224 pixels).

    Raises:
      ValueError: for an unknown `interpolation`.
    """
    if interpolation not in KERNELS:
        raise ValueError(f"interpolation must be one of {', '.join(sorted(KERNELS))}; got {interpolation!r}.")
    kernel = KERNELS[interpolation]
    top, left, height, width = jnp.asarray(box, jnp.float32)
    bottom_limit, right_limit = (None, None) if extent is None else extent
    # Rows first is columns first of the transposed image: one more copy of it instead of two more products.
    side = max_dim(*image.shape[:2])  # which knows the symbolic sizes of an exported program
    image = jnp.pad(image, ((0, side - image.shape[0]), (0, side - image.shape[1]), (0, 0)))
    rows = _resize_weights(top, height, size, side, kernel, bottom_limit)
    columns = _resize_weights(left, width, size, side, kernel, right_limit)
    transposed = _rows_first(height, width, size, extent)
    image = jnp.where(transposed, image.swapaxes(0, 1), image)
    first, second = jnp.where(transposed, rows, columns), jnp.where(transposed, columns, rows)
    # Not einsum, which may exchange the sides and leaves their precisions where they are.
    precision = _FINE_PRECISION if fine else _PRECISION
    image = _round(jnp.tensordot(first, image, (1, 1), precision=precision), fine).swapaxes(0, 1)
    image = _round(jnp.tensordot(second, image, (1, 0), precision=precision), fine)
    return jnp.where(transposed, image.swapaxes(0, 1), image)


def affine_crop(image: Array, box: Array, angle: Array, size: int, *, fine: bool = False) -> Array:
    """Bilinear samples [size, size, C] of a box that is turned about its centre.

    Coordinates are clamped to the image, so its edge pixels continue outwards and boxes may exceed it. There is no
    antialiasing: meant for small images and scale changes below 2.

    Args:
      image: [H, W, C], all of it content.
      box: (top, left, height, width) in pixels; may be fractional, negative or too large.
      angle: degrees; positive turns the picture counter-clockwise, as PIL.Image.rotate does.
      size: side of the result.
      fine: nothing is rounded.
    """
    top, left, height, width = jnp.asarray(box, jnp.float32)
    cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
    offset = (jnp.arange(size) + 0.5) / size - 0.5
    down, right = offset[:, None] * height, offset[None, :] * width
    y = top + height / 2 + right * sin + down * cos - 0.5  # pixel i has its centre at i + 0.5
    x = left + width / 2 + right * cos - down * sin - 0.5
    last_row, last_column = image.shape[0] - 1, image.shape[1] - 1
    y, x = jnp.clip(y, 0, last_row), jnp.clip(x, 0, last_column)
    y0, x0 = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    y1, x1 = jnp.minimum(y0 + 1, last_row), jnp.minimum(x0 + 1, last_column)
    fy, fx = (y - y0)[..., None], (x - x0)[..., None]
    upper = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    lower = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return _round(upper * (1 - fy) + lower * fy, fine)


def hflip(image: Array) -> Array:
    """Left and right exchanged."""
    return image[:, ::-1]


def _box_blur_weights(sigma, reach: int) -> Array:
    """Weights of Pillow's extended box blur by distance, uint32 [reach + 1], in units of 2**-24.

    Three of these boxes stand for a Gaussian. Each has 2 l + 1 full weights and a fractional one at either end (Gwosdek
    et al., SSVM 2011, equations 7, 11 and 14, https://www.mia.uni-saarland.de/Publications/gwosdek-ssvm11.pdf),
    truncated to integers as in Pillow's BoxBlur.c.
    """
    variance = divide(jnp.asarray(sigma, jnp.float32) ** 2, 3)
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    fraction = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    fraction /= 6.0 * (variance - (whole + 1.0) ** 2)
    one = 2.0**24
    full = jnp.floor(one / (2.0 * (whole + fraction) + 1.0))
    end = jnp.floor((one - (2.0 * whole + 1.0) * full) / 2.0)
    distance = jnp.arange(reach + 1)
    weights = jnp.where(distance <= whole, full, jnp.where(distance == whole + 1.0, end, 0.0))
    return weights.astype(jnp.uint32)


def gaussian_blur(image: Array, sigma: Array, *, max_sigma: float = 2.0, fine: bool = False) -> Array:
    """PIL.ImageFilter.GaussianBlur(sigma): three box blurs of the rows, then three of the columns.

    Rounded to 8 bits after each of the six, in integers as in Pillow, edge pixels repeated outwards. No value of 6
    million differed from Pillow's, for 400 sigmas. Any C.

    Args:
      image: [H, W, C].
      sigma: standard deviation in pixels, 0 (the identity) to max_sigma.
      max_sigma: static; bounds the width of the filter. Larger sigmas act as this one.
      fine: the same boxes in float32, and nothing is rounded.
    """
    # The loops keep XLA on CPU from fusing the six passes, each of which would then compute the one before it 5 times.
    # Measured there, in ms of CPU time for 16 images of 224 x 224 / 512 of 24 x 24: this 11 / 3, unrolled 97 / 45,
    # products with a banded matrix 50 / 4.
    reach = int((np.sqrt(4.0 * max_sigma**2 + 1.0) - 1.0) / 2.0) + 1
    weights = _box_blur_weights(jnp.minimum(sigma, max_sigma), reach)

    def blur_once(axis, image):
        length = image.shape[axis]
        margins = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(image, margins, mode="edge")

        def shifted(distance):
            start = reach + distance
            return jax.lax.slice_in_dim(padded, start, start + length, axis=axis)

        total = weights[0] * image + (0 if fine else 2**23)
        for distance in range(1, reach + 1):
            total += weights[distance] * (shifted(distance) + shifted(-distance))
        return total if fine else total >> 24

    if fine:
        weights = weights.astype(jnp.float32) * 2.0**-24
    image = image.astype(jnp.float32 if fine else jnp.uint32)
    for axis in (1, 0):
        image = jax.lax.fori_loop(0, 3, lambda _, x, axis=axis: blur_once(axis, x), image)
    return image.astype(jnp.float32)
