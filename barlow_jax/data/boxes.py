"""Crop boxes: torchvision's RandomResizedCrop and Resize + CenterCrop, as arithmetic on image sizes.

A box is (top, left, height, width) in pixels of the stored image. The random numbers come from numpy
(`crop_draws`, a frozen stream); the size of an image is often known only once its header is read, inside a
tf.data graph, so the arithmetic takes the array module as `xp`: numpy or tensorflow.
Everything after the draws is IEEE float64 addition, multiplication, division, square root and rounding, so
both modules give the same box to the pixel.
"""

import numpy as np

from barlow_jax.data.order import uniforms
from barlow_jax.errors import UserError

TRIES = 10  # torchvision's
SMALL = 2**16  # number of the first small view; others are counted from 0


def check_crop(scale, ratio):
    """UserError unless 0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"crop_scale is {tuple(scale)}, but must be (smallest, largest) share of an image's area in (0, 1]; larger "
            "crops are for sets that live on the devices and a rotation above 0: see resident_bytes and rotation."
        )
    if not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"crop_ratio is {tuple(ratio)}, but must be (smallest, largest) width / height, both > 0.")


def crop_draws(seed, epoch, indices, *, views=2, first=0, scale, ratio):
    """The random numbers of RandomResizedCrop: float64 [b, views, 22], a function of (seed, epoch, index, view).

    Per view 10 tries of (share of the image's area, uniform in `scale`) and of (width / height, log-uniform in
    `ratio`), stored as 10 + 10, then the two uniforms in [0, 1) that place the box. first: number of the first view.
    """
    check_crop(scale, ratio)
    draws = uniforms(seed, epoch, indices, views, 2 * TRIES + 2, first)
    area, aspect = draws[..., :TRIES], draws[..., TRIES : 2 * TRIES]
    area[...] = scale[0] + (scale[1] - scale[0]) * area
    low, high = np.log(ratio)
    aspect[...] = np.exp(low + (high - low) * aspect)
    return draws


def draws_of_sizes(seed, epoch, indices, *, views, scale, small, small_scale, ratio):
    """`crop_draws` of the views of each image, and behind them of its small ones: float64 [b, views + small, 22]."""
    draws = crop_draws(seed, epoch, indices, views=views, scale=scale, ratio=ratio)
    if not small:
        return draws
    of_small = crop_draws(seed, epoch, indices, views=small, first=SMALL, scale=small_scale, ratio=ratio)
    return np.concatenate([draws, of_small], axis=1)


def random_crop(draws, height, width, ratio, xp=np):
    """Boxes of torchvision's RandomResizedCrop for given draws: float64 [..., 4], whole numbers.

    draws: float64 [..., 22] of `crop_draws`. height, width: float64, scalars or [..., 1].
    As torchvision does: the first try whose rounded box fits inside the image, else the largest central box
    within the aspect limits (12 % of the draws for a 4:1 image).
    """
    area = height * width * draws[..., :TRIES]
    aspect = draws[..., TRIES : 2 * TRIES]
    heights, widths = xp.round(xp.sqrt(area / aspect)), xp.round(xp.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    fits = xp.where(fits, np.float64(1), np.float64(0))
    first = xp.where(xp.cumsum(fits, axis=-1) == 1, fits, np.float64(0))  # one-hot, or all zero

    def chosen(values):  # the sum over the tries; cumsum goes by one name in both modules
        return xp.cumsum(first * values, axis=-1)[..., -1:]

    found = chosen(fits) > 0
    # Of the two fallback limits only the one that the image exceeds is smaller than the image.
    box_h = xp.where(found, chosen(heights), xp.minimum(height, xp.round(width / min(ratio))))
    box_w = xp.where(found, chosen(widths), xp.minimum(width, xp.round(height * max(ratio))))
    free_h, free_w = height - box_h, width - box_w
    top = xp.where(found, xp.floor(draws[..., -2:-1] * (free_h + 1)), xp.floor(free_h / 2))
    left = xp.where(found, xp.floor(draws[..., -1:] * (free_w + 1)), xp.floor(free_w / 2))
    return xp.concat([top, left, box_h, box_w], axis=-1)


def center_crop(height, width, resize_short, crop, xp=np):
    """The box that Resize(resize_short) followed by CenterCrop(crop) shows: float64 [..., 4], fractional.

    height, width: float64 or int [..., 1] of the stored image; the box is in its pixels. As torchvision does: the
    long side becomes int(resize_short * long / short), the offsets are Python's round() (half to even).
    """
    short = xp.minimum(height, width)
    resized_h, resized_w = resize_short * height // short, resize_short * width // short
    top, left = xp.round((resized_h - crop) / 2), xp.round((resized_w - crop) / 2)
    # One rounding each, at the end: in float32, of integers, the same as in float64.
    edges = top * height / resized_h, left * width / resized_w, crop * height / resized_h, crop * width / resized_w
    return xp.concat(edges, axis=-1)


def no_margin(boxes, xp=np):
    """The crop's own filter sees nothing outside the box (torchvision resizes a cropped image): 0.0."""
    return 0.0


def filter_margin(boxes, crop, xp=np):
    """How far around boxes [..., 4] an antialiased linear resize to `crop` pixels looks: float64 [..., 2].

    Its weights reach max(scale, 1) pixels to each side, scale = box / crop. Twice that, because a window which
    has to be reduced further (see window.read_window) is smoothed by pixels up to twice as far away.
    """
    scale = boxes[..., 2:] / crop
    return 2 * xp.floor(xp.maximum(scale, np.float64(1)) + 1)
