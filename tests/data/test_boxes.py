"""Crop boxes against torchvision: quantiles of 10,000 of its own draws, and its code restated in plain Python."""

import json
import math

import commands
import numpy as np
import pytest

from barlow_jax.data import boxes, order
from barlow_jax.errors import UserError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
TORCHVISION = json.loads((commands.ROOT / "tests" / "fixtures" / "random_resized_crop.json").read_text())
SIZES = {name: tuple(int(part[1:]) for part in name.split("_")[1:]) for name in TORCHVISION if name[:3] == "rrc"}


def draw(n, height, width, seed=3):
    draws = boxes.crop_draws(seed, 1, np.arange(n), views=1, scale=SCALE, ratio=RATIO)
    return boxes.random_crop(draws, float(height), float(width), RATIO)[:, 0]


@pytest.mark.parametrize("name", SIZES)
def test_boxes_are_distributed_as_torchvisions(name):
    (height, width), expected = SIZES[name], TORCHVISION[name]
    top, left, h, w = draw(10_000, height, width).T
    assert np.all((top >= 0) & (left >= 0) & (h >= 1) & (w >= 1) & (top + h <= height) & (left + w <= width))

    def close(values, key, tolerance):
        for q, value in expected[key].items():
            if 0 < float(q) < 1:  # the extremes are noise
                assert abs(np.quantile(values, float(q)) - value) < tolerance, (key, q)

    close(h * w / (height * width), "area_fraction", 0.04 if height == 32 else 0.02)
    close(np.log(w / h), "log_aspect_w_over_h", 0.03)
    with np.errstate(invalid="ignore"):  # 0 / 0 where the box is as high as the image
        for values, key in ((top / (height - h), "i_over_H_minus_h"), (left / (width - w), "j_over_W_minus_w")):
            assert abs(np.nanmean(values) - 0.5) < 0.02, key
    fallback = np.mean(np.all(np.stack([top, left, h, w]).T == expected["fallback_box_i_j_h_w"], axis=1))
    assert abs(fallback - expected["freq_of_fallback_box"]) < 0.02
    for values, key in ((top, "i"), (left, "j"), (h, "h"), (w, "w")):
        error = 5 * max(values.std(), 0.01) * math.sqrt(2 / 10_000)  # five standard errors of a difference
        assert abs(values.mean() - expected["mean"][key]) < error, key


def one_box(draws, height, width):
    """torchvision's RandomResizedCrop.get_params in plain Python, with the draws as its random numbers."""
    for k in range(10):
        area = height * width * draws[k]
        w, h = round(math.sqrt(area * draws[10 + k])), round(math.sqrt(area / draws[10 + k]))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(draws[20] * (height - h + 1)), math.floor(draws[21] * (width - w + 1)), h, w
    if width / height < min(RATIO):
        w, h = width, round(width / min(RATIO))
    elif width / height > max(RATIO):
        h, w = height, round(height * max(RATIO))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(375, 500), (1, 1), (1, 1000), (100, 400), (7, 3), (600, 60), (33, 33)])
def test_every_single_box(size):
    draws = boxes.crop_draws(8, 0, np.arange(500), views=2, scale=SCALE, ratio=RATIO)
    found = boxes.random_crop(draws, float(size[0]), float(size[1]), RATIO)
    expected = [[one_box(view, *size) for view in example] for example in draws]
    assert np.array_equal(found, expected)


def test_the_tf_graph_computes_the_same_boxes():
    from barlow_jax.data.decode import tf

    draws = boxes.crop_draws(8, 0, np.arange(200), scale=SCALE, ratio=RATIO)
    height, width = np.random.RandomState(0).randint(1, 700, (2, 200, 1, 1)).astype(np.float64)
    expected = boxes.random_crop(draws, height, width, RATIO)
    assert np.array_equal(boxes.random_crop(tf.constant(draws), height, width, RATIO, xp=tf), expected)
    found = boxes.center_crop(tf.constant(height), tf.constant(width), 256, 224, xp=tf)
    assert np.array_equal(found, boxes.center_crop(height, width, 256, 224))


def test_a_box_depends_on_seed_epoch_index_and_view_alone():
    def at(seed=1, epoch=2, index=(5,), views=2):
        draws = boxes.crop_draws(seed, epoch, index, views=views, scale=SCALE, ratio=RATIO)
        return boxes.random_crop(draws, 375.0, 500.0, RATIO)

    base = at()[0]
    assert np.array_equal(at(index=(9, 5))[1], base)
    assert np.array_equal(at(views=1)[0], base[:1]) and np.array_equal(at(views=5)[0, :2], base)
    others = [base[1], at(seed=2)[0, 0], at(epoch=3)[0, 0], at(index=(6,))[0, 0]]
    assert all(not np.array_equal(base[0], other) for other in others)


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (256, 256), (56, 91), (1600, 1063), (333, 501)])
@pytest.mark.parametrize(("short", "crop"), [(256, 224), (64, 56), (32, 32), (73, 50)])
def test_center_crop_is_torchvisions(size, short, crop):
    height, width = size
    if height <= width:
        resized = short, int(short * width / height)
    else:
        resized = int(short * height / width), short
    top, left = int(round((resized[0] - crop) / 2.0)), int(round((resized[1] - crop) / 2.0))
    scale = np.divide(size, resized)
    expected = [top * scale[0], left * scale[1], crop * scale[0], crop * scale[1]]
    found = boxes.center_crop(np.asarray([float(height)]), np.asarray([float(width)]), short, crop)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("scale", [(0, 1), (0.5, 0.1), (0.1, 1.5)])
def test_impossible_scale(scale):
    with pytest.raises(UserError, match="crop_scale is"):
        boxes.check_crop(scale, RATIO)


@pytest.mark.parametrize("ratio", [(0, 1), (2, 1)])
def test_impossible_ratio(ratio):
    with pytest.raises(UserError, match="ratio is"):
        boxes.check_crop(SCALE, ratio)


def test_draws_come_from_the_frozen_stream():
    draws = boxes.crop_draws(0, 0, [7], views=1, scale=SCALE, ratio=RATIO)[0, 0]
    uniform = order.uniforms(0, 0, [7], 1, 22)[0, 0]
    np.testing.assert_allclose(draws[:10], 0.08 + 0.92 * uniform[:10], rtol=1e-15)
    np.testing.assert_allclose(np.log(draws[10:20]) / np.log(4 / 3), 2 * uniform[10:20] - 1, atol=1e-13)
    assert np.array_equal(draws[20:], uniform[20:])


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.3, 2.0, 3.7, 6.0])
def test_the_margin_holds_every_cell_that_a_filter_sees(scale):
    """The resize to `crop` pixels, and that of a window which was first averaged over cells of up to 2 x 2 scales.

    The first sample lies half a scale inside the box, and its filter sees pixels, or cells, whose centre is nearer than
    the larger of the scale and the cell.
    """
    box = np.array([[10.0, 20.0, 50 * scale, 50 * scale]])
    margin = boxes.filter_margin(box, 50)
    assert margin.shape == (1, 2)
    for cell in range(1, max(math.floor(2 * scale), 1) + 1):
        assert np.all(margin >= max(scale, cell) - scale / 2), cell
    assert np.all(margin <= 2 * max(scale, 1) + 2)  # what is read for nothing
