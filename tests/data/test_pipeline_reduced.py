"""Images larger than the canvas: read smaller, and their boxes with them."""

import numpy as np
import pytest
from batches import SCALE, expected_boxes, photograph, take, train
from PIL import Image

from barlow_jax import data
from barlow_jax.data import order


def gradient(height, width):
    """Red says how far down a pixel lies, green how far right."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 / height, x * 255 / width, 0 * y + 128], -1).round().astype(np.uint8)


@pytest.mark.parametrize("form", ["jpg", "png"])
@pytest.mark.parametrize(("size", "canvas"), [((320, 400), 210), ((320, 400), 64), ((1000, 700), 40), ((901, 333), 30)])
def test_a_union_larger_than_the_canvas_is_reduced_and_its_boxes_with_it(tmp_path, form, size, canvas):
    quality = {"quality": 100, "subsampling": 0} if form == "jpg" else {}
    for k in range(8):
        Image.fromarray(gradient(*size)).save(tmp_path / f"{k}.{form}", **quality)
    source = data.ImageFolder(tmp_path)
    factors = []
    for step, batch in enumerate(take(3, train(source, canvas=canvas, scale=(0.2, 0.9)))):
        truth = expected_boxes(source, *order.batch_indices(8, 8, 5, step), (0.2, 0.9))
        for shown, found, real in zip(batch["canvas"], batch["boxes"], truth, strict=True):
            factor = round(real[0, 2] / found[0, 2])
            np.testing.assert_allclose(real[:, 2:] / found[:, 2:], factor, rtol=1e-5)
            np.testing.assert_allclose(real[1] - real[0], factor * (found[1] - found[0]), atol=1e-3)
            assert np.all(found >= 0) and np.all(found[:, :2] + found[:, 2:] <= canvas + 1e-3)
            factors.append(factor)
            # The place that the colours name, at the middle of each box.
            for (top, left, h, w), (real_top, real_left, *_) in zip(found, real, strict=True):
                pixel = np.asarray([top + h / 2, left + w / 2]).astype(int)
                place = shown[tuple(pixel)][:2] / 255 * size + 0.5
                expected = [real_top, real_left] + (pixel + 0.5 - [top, left]) * factor
                assert np.all(np.abs(place - expected) < 2.5 * max(size) / 255)
    union = np.ceil(max(size) / canvas)
    assert max(factors) > 1 and max(factors) <= (2 * union if form == "jpg" else union)
    if form == "jpg" and union <= 8:
        assert set(factors) <= {1, 2, 4, 8}


def test_a_reduced_jpeg_is_pillows_draft_of_it(tmp_path):
    """Image.draft is libjpeg's own reduction; on the canvas lies its part from floor(union / factor) on."""
    for k in range(8):
        Image.fromarray(photograph(301 + k, 395 - k, seed=k)).save(tmp_path / f"{k}.jpg", subsampling=k % 3)
    source, found_factors = data.ImageFolder(tmp_path), set()
    for canvas in (170, 90, 47):
        for step, batch in enumerate(take(2, train(source, canvas=canvas))):
            _, index = order.batch_indices(8, 8, 5, step)
            for row, real in enumerate(expected_boxes(source, step, index, SCALE)):
                factor = round(real[0, 2] / batch["boxes"][row, 0, 2])
                found_factors.add(factor)
                image = Image.open(source.paths[index[row]])
                image.draft("RGB", (image.width // factor, image.height // factor))
                start = np.floor(real[:, :2].min(0) / factor).astype(int)
                stop = np.ceil((real[:, :2] + real[:, 2:]).max(0) / factor).astype(int)
                expected = np.asarray(image)[start[0] : stop[0], start[1] : stop[1]]
                assert np.array_equal(batch["canvas"][row, : len(expected), : expected.shape[1]], expected)
                np.testing.assert_allclose(batch["boxes"][row, :, :2], real[:, :2] / factor - start, atol=1e-4)
    assert found_factors >= {2, 4, 8}


def test_a_reduced_png_is_the_mean_of_its_cells(tmp_path):
    pixels = photograph(211, 330)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = data.ImageFolder(tmp_path)
    for step, batch in enumerate(take(6, train(source, batch_size=1, canvas=50))):
        real = expected_boxes(source, step, [0], SCALE)[0].astype(int)
        start, stop = real[:, :2].min(0), (real[:, :2] + real[:, 2:]).max(0)
        factor = -(-max(stop - start) // 50)
        union = pixels[start[0] : stop[0], start[1] : stop[1]].astype(float)
        short = -np.asarray(union.shape[:2]) % factor
        cells = np.pad(union, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge")
        height, width = np.asarray(cells.shape[:2]) // factor
        mean = cells.reshape(height, factor, width, factor, 3).mean((1, 3))
        assert np.abs(batch["canvas"][0, :height, :width] - mean).max() <= 0.501
        np.testing.assert_allclose(batch["boxes"][0], (real - [*start, 0, 0]) / factor, atol=1e-5)
