"""Operations on one image against Pillow's output and float64 references."""

import emulated
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision
from levels import affine_crop, assert_levels, crop_resize
from programs import precisions

from barlow_jax import augment
from barlow_jax.ops import color as color_ops
from barlow_jax.ops import image as image_ops

# Compiled once for all tests of the same shapes.
color_jitter = jax.jit(color_ops.color_jitter, static_argnames="with_hue")


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colour_operations_equal_pillow(pillow, name):
    arrays, parameters = pillow
    operation = jax.jit(getattr(color_ops, name))
    for k, factor in enumerate(parameters["factors"][name]):
        assert_levels(operation(arrays["chart"], factor), arrays[f"{name}{k}"])


def test_grayscale_solarize_invert_flip(pillow):
    arrays, _ = pillow
    chart = jnp.asarray(arrays["chart"])
    assert_levels(color_ops.grayscale(chart), arrays["grayscale"])
    assert_levels(color_ops.solarize(chart), arrays["solarize"])
    assert_levels(color_ops.invert(chart), 255 - arrays["chart"])
    assert_levels(image_ops.hflip(chart), np.fliplr(arrays["chart"]))


def test_color_jitter_equals_pillow_in_every_order(pillow):
    arrays, parameters = pillow
    for k, (order, factors) in enumerate(parameters["jitters"]):
        result = color_jitter(arrays["photo"], np.array(order), np.array(factors, np.float32))
        assert_levels(result, arrays[f"jitter{k}"])
    nothing = color_jitter(arrays["photo"], np.full(4, color_ops.NOTHING), np.array(factors, np.float32))
    assert_levels(nothing, arrays["photo"])


def test_color_jitter_without_hue_is_the_other_three(pillow):
    arrays, _ = pillow
    factors = np.array([1.3, 0.7, 1.15, 0.2], np.float32)
    result = color_jitter(arrays["photo"], np.array([3, 1, 0, 2]), factors, with_hue=False)
    nothing_for_hue = np.array([color_ops.NOTHING, 1, 0, 2])
    assert_levels(result, np.asarray(color_jitter(arrays["photo"], nothing_for_hue, factors)))


def test_one_channel_is_jittered_like_grey_rgb(pillow):
    """Saturation and hue leave grey alone, so that grey RGB and one channel must agree in every order."""
    luma = pillow[0]["grayscale"][:60, :80]
    factors = np.array([1.2, 0.7, 1.2, 0.1], np.float32)
    for order in ([0, 1, 2, 3], [3, 1, 2, 0]):
        rgb = color_jitter(luma, np.array(order), factors)
        assert_levels(color_jitter(luma[..., :1], np.array(order), factors), np.asarray(rgb)[..., :1])


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_colour_operations_refuse_one_channel(name):
    with pytest.raises(ValueError, match=f"{name} needs images of 3 channels; got 1"):
        getattr(color_ops, name)(jnp.zeros((4, 4, 1)), 0.1)
    with pytest.raises(ValueError, match="grayscale needs images of 3 channels; got 2"):
        color_ops.grayscale(jnp.zeros((4, 4, 2)))


def test_normalize(pillow):
    recipe = augment.Recipe()
    expected = (pillow[0]["chart"].astype(np.float64) / 255 - recipe.mean) / np.array(recipe.std)
    result = color_ops.normalize(jnp.asarray(pillow[0]["chart"]), recipe.mean, recipe.std)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_blur_equals_pillow(pillow):
    arrays, parameters = pillow
    blur = jax.jit(image_ops.gaussian_blur)
    for k, sigma in enumerate(parameters["sigmas"]):
        assert_levels(blur(arrays["photo"], sigma), arrays[f"blur{k}"])
    assert_levels(blur(arrays["photo"], 0.0), arrays["photo"])
    assert_levels(blur(arrays["photo"], 9.0), np.asarray(blur(arrays["photo"], 2.0)))  # max_sigma


# Not exact: 60 x 84 to 32 and 55 x 46 to 40, where the weights are no sums of a few powers of 2 but many sums of levels
# are exact halves all the same, see crop_resize.
HALVES = {0: dict(most=1, share=0.005), 4: dict(most=1, share=0.015)}


@pytest.mark.parametrize("resize", [image_ops.crop_resize, crop_resize], ids=["eager", "jit"])
def test_crop_resize_equals_pillow(pillow, resize):
    """In either order of the two passes, and where XLA would multiply by the rounded reciprocal of the size."""
    arrays, parameters = pillow
    for k, (*box, size, interpolation) in enumerate(parameters["crops"]):
        result = resize(arrays["photo"], np.array(box, np.float32), size, interpolation=interpolation)
        assert_levels(result, arrays[f"crop{k}"], **HALVES.get(k, {}))


def test_quotients_are_rounded_once_in_jitted_programs():
    x = np.append(np.arange(1025), np.random.RandomState(0).uniform(0, 2000, 3000)).astype(np.float32)
    for whole in (1, 3, 7, 48, 96, 224, 255, 1000, 4095):
        quotients = jax.jit(lambda x, whole=whole: image_ops.divide(x, whole))(x)
        np.testing.assert_array_equal(quotients, x / np.float32(whole))


@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_the_crop_keeps_its_levels_on_accelerators(pillow, device):
    """All bits of the weights; of the image, whose levels are exact in 8 bits, what a device keeps by default."""
    (*box, size, interpolation), photo = pillow[1]["crops"][1], pillow[0]["photo"]

    def crop(photo):
        return image_ops.crop_resize(photo, np.array(box, np.float32), size, interpolation=interpolation)

    program = jax.make_jaxpr(jax.vmap(crop))(photo[None])
    assert precisions(program) == [(Precision.HIGHEST, Precision.DEFAULT)] * 2
    exact = np.asarray(jax.jit(crop)(photo))
    off = {asked: (emulated.on(device, crop, asked)(photo) != exact).mean() for asked in (None, Precision.DEFAULT)}
    # A sum near an exact half may round otherwise where a TPU adds up the parts of the weights; TF32 is 2 % off.
    assert off[None] <= 1e-3 and off[Precision.DEFAULT] > 1e-2


def test_crop_resize_ignores_pixels_outside_the_box(pillow):
    photo = pillow[0]["photo"]
    canvas = np.full((90, 100, 3), 255, np.float32)
    canvas[:60, :84] = photo
    whole = np.array([0, 0, 60, 84], np.float32)
    assert_levels(crop_resize(canvas, whole, 32), np.asarray(crop_resize(photo, whole, 32)))
    assert np.all(np.asarray(crop_resize(canvas, np.zeros(4, np.float32), 32)) == 0)
    with pytest.raises(ValueError, match="interpolation must be one of cubic, linear; got 'nearest'"):
        crop_resize(canvas, whole, 32, interpolation="nearest")


def numpy_resize(plane, start, length, size, support, kernel):
    """Rows of a plane resampled over a fractional interval, a loop in float64."""
    result, scale = [], length / size
    for k in range(size):
        position, total, weighted = start + (k + 0.5) * scale, 0.0, 0.0
        for i, row in enumerate(plane):
            inside = max(0.0, min(i + 1, start + length) - max(i, start))
            distance = abs(i + 0.5 - position) / max(scale, 1.0)
            weight = inside * kernel(distance) if distance < support else 0.0
            total, weighted = total + weight, weighted + weight * row
        result.append(weighted / total)
    return np.floor(np.clip(np.stack(result), 0, 255) + 0.5)


def keys_cubic(d):
    return 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2


@pytest.mark.parametrize("box", [(3.25, 7.5, 41.75, 30.1), (10.4, 20.6, 5.3, 8.9), (30.2, 11.3, 0.4, 0.7)])
def test_crop_resize_of_a_fractional_box(pillow, box):
    photo = pillow[0]["photo"]
    top, left, height, width = box
    columns = numpy_resize(photo.transpose(1, 0, 2), left, width, 16, 2, keys_cubic).transpose(1, 0, 2)
    expected = numpy_resize(columns, top, height, 16, 2, keys_cubic)
    result = crop_resize(photo, np.array(box, np.float32), 16)
    assert_levels(result, expected, most=1, share=0.01)


def test_affine_crop_rotates_as_pillow(pillow):
    arrays, parameters = pillow
    left, top, right, bottom = parameters["square"]
    square = arrays["photo"][top:bottom, left:right]
    box = np.array([0, 0, *square.shape[:2]], np.float32)
    result = affine_crop(square, box, parameters["angle"], 60)
    inner = slice(14, 46)  # farther out Pillow fills with black, we with the edge
    difference = np.asarray(result)[inner, inner] - arrays["rotate"][inner, inner]
    assert set(np.unique(difference)) == {0, 1}  # Pillow truncates here, we round
    assert 0.4 < difference.mean() < 0.6


def test_affine_crop_beyond_the_image(pillow):
    photo = pillow[0]["photo"][:20, :24]
    top, left, height, width = box = np.array([-3.37, -4.21, 29.9, 36.3], np.float32)
    row = np.clip(top + (np.arange(18) + 0.5) * height / 18 - 0.5, 0, 19)
    column = np.clip(left + (np.arange(18) + 0.5) * width / 18 - 0.5, 0, 23)
    between_rows = np.stack([np.interp(row, range(20), line) for line in photo.reshape(20, -1).T], 1).reshape(18, 24, 3)
    lines = between_rows.transpose(0, 2, 1).reshape(-1, 24)
    expected = np.stack([np.interp(column, range(24), line) for line in lines]).reshape(18, 3, 18).transpose(0, 2, 1)
    assert_levels(affine_crop(photo, box, 0.0, 18), np.floor(expected + 0.5), most=1, share=1e-3)
    turned = affine_crop(photo[:20, :20], np.array([0, 0, 20, 20], np.float32), 90.0, 20)
    assert_levels(turned, np.rot90(photo[:20, :20]))


def test_which_axis_goes_first():
    """Pillow 13's rule: the rows if more than twice as many of them go away as columns; of a whole image that is made
    smaller before it is cropped, of its new sides."""
    for height, width, size in ((25, 24, 24), (24, 24, 24), (30, 26, 24), (29, 26, 24), (26, 23, 24), (24, 40, 24)):
        want = height - size > 2 * max(width - size, 0)
        assert bool(image_ops._rows_first(height, width, size, None)) == want
    for bottom, right, side in (
        (100, 24, 24.2),
        (101, 50, 50),
        (100, 50, 50),
        (24, 24, 24),
        (50, 100, 50),
        (20, 40, 20),
    ):
        rows, columns = (length - round(24 * length / side) for length in (bottom, right))
        got = image_ops._rows_first(side, side, 24, (bottom, right))
        assert bool(got) == (rows > 2 * max(columns, 0)), (bottom, right, side)
