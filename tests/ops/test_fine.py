"""Views of more than 8 bits: the operations on fractions of grey levels, against float64 and Pillow's mode F."""

import colorsys

import jax
import numpy as np
import pytest
from PIL import Image

from barlow_jax import augment
from barlow_jax.ops import color as color_ops
from barlow_jax.ops import image as image_ops

DEEP = np.random.RandomState(0).randint(0, 65536, (20, 24, 3)).astype(np.uint16)


@pytest.mark.parametrize("interpolation, extent", [("cubic", None), ("linear", (20, 24))])
def test_a_crop_is_pillows_of_fractions(interpolation, extent):
    box, size = (0, 0, 20, 24) if extent else (3, 5, 14, 18), 9
    filters = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}
    planes = [Image.fromarray((DEEP[..., c] / 257).astype(np.float32)) for c in range(3)]
    top, left, height, width = box
    cut = [plane.crop((left, top, left + width, top + height)) for plane in planes]
    wanted = np.stack([np.asarray(one.resize((size, size), filters[interpolation])) for one in cut], -1)
    options = {"interpolation": interpolation, "extent": extent, "fine": True}
    found = jax.jit(lambda image: image_ops.crop_resize(color_ops.levels(image), box, size, **options))(DEEP)
    np.testing.assert_allclose(found, np.clip(wanted, 0, 255), atol=2e-3)  # half a step of 16 bits


def test_a_blur_is_three_boxes_each_way():
    sigma = 1.3
    variance = sigma**2 / 3
    whole = int((np.sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    kernel = np.r_[end, np.ones(2 * whole + 1), end] / (2 * whole + 1 + 2 * end)
    wanted = DEEP / 257
    for axis in (1, 1, 1, 0, 0, 0):
        margins = [(whole + 1, whole + 1) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(wanted, margins, mode="edge")
        wanted = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
    found = jax.jit(lambda image: image_ops.gaussian_blur(color_ops.levels(image), sigma, fine=True))(DEEP)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_colours_are_shifted_and_blended_in_fractions():
    image = DEEP[:5, :6] / 257.0
    image[0, :3] = [[7.25] * 3, [0, 0, 0], [200.5, 200.5, 3]]  # grey, black, two alike

    def luma(image):
        return image @ (np.array([19595, 38470, 7471]) / 65536)

    def blended(image, base, factor):
        return np.clip(base + factor * (image - base), 0, 255)

    hsv = np.array([[colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in row] for row in image])
    wanted = np.array([[colorsys.hsv_to_rgb((h + 0.07) % 1, s, v) for h, s, v in row] for row in hsv]) * 255
    wanted = blended(wanted, 0, 0.8)
    wanted = blended(wanted, luma(wanted).mean(), 1.3)
    wanted = blended(wanted, luma(wanted)[..., None], 0.6)
    jitter = jax.jit(lambda x: color_ops.color_jitter(x, np.array([3, 0, 1, 2]), [0.8, 1.3, 0.6, 0.07], fine=True))
    np.testing.assert_allclose(jitter(image.astype(np.float32)), wanted, atol=2e-3)
    grey = color_ops.grayscale(image.astype(np.float32), fine=True)
    np.testing.assert_allclose(grey, np.repeat(luma(image)[..., None], 3, -1), atol=1e-3)
    fine = color_ops.solarize(np.float32([[[127.4, 127.6, 255]]]), fine=True)
    np.testing.assert_allclose(fine, [[[127.4, 127.4, 0]]], atol=1e-4)


def views_of(channels, **fields):
    recipe = augment.Recipe(size=16, mean=(0,) * channels, std=(1 / 255,) * channels, **fields)
    keys, boxes = jax.random.split(jax.random.key(0), 2), np.float32([[[2, 3, 30, 33], [0, 0, 40, 48]]] * 2)
    return jax.jit(lambda canvas: augment.random_views(keys, canvas, boxes, recipe))


def test_views_keep_what_lies_between_two_levels():
    dark = np.zeros((2, 40, 48, 6), np.uint16)
    dark[:, 10:30] = 40  # less than a sixth of a level of 8 bits
    views = np.asarray(views_of(6, jitter=0.0, blur=(0, 0), solarize=(0, 0))(dark))
    assert np.ptp(views, (2, 3)).min() > 0.1 and views.max() < 0.17


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_a_view_of_16_bits_and_any_channels_is_that_of_8_bits_without_the_rounding(channels):
    """Each of the operations that round moves a level by up to one, so the views differ by a few, and not in all."""
    image = np.asarray(Image.fromarray(DEEP[..., 0].astype(np.float32)).resize((48, 40), Image.Resampling.BICUBIC))
    levels = np.clip(np.stack([np.roll(image, 3 * c, 1) for c in range(channels)], -1) / 257, 0, 255).astype(np.uint8)
    views = views_of(channels, jitter=1.0, blur=(1, 1))
    whole, fine = views(np.stack([levels] * 2)), views(np.stack([levels] * 2).astype(np.uint16) * np.uint16(257))
    moved = np.abs(np.asarray(fine) - np.asarray(whole))
    assert moved.mean() < 3 and np.quantile(moved, 0.99) < 12  # a hue of 8 bits moves a level by up to 6
    assert np.mean(np.abs(np.asarray(fine) - np.rint(fine)) > 0.01) > 0.5
    assert np.abs(np.asarray(whole) - np.rint(whole)).max() < 1e-3
