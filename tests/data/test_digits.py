"""Scattered digits: a pure function, disjoint splits, and the properties its docstring promises."""

import numpy as np
import pytest

from barlow_jax import data
from barlow_jax.data import digits
from barlow_jax.errors import UserError


@pytest.fixture(scope="module")
def splits():
    return {split: digits.scattered_digits(split) for split in digits.SPLITS}


def test_shapes(splits):
    for split, n in digits.SPLITS.items():
        source = splits[split]
        assert source.images.shape == (3 * n, 24, 24, 3) and source.images.dtype == np.uint8
        assert source.labels.shape == (3 * n,) and set(source.labels) == set(range(10))
        assert source.class_names == tuple("0123456789") and source.name == f"digits:{split}"
    assert digits.scattered_digits("val", size=32, renderings=2).images.shape == (400, 32, 32, 3)


def test_no_source_digit_is_in_two_splits():
    every = np.concatenate([digits.source_digits(split) for split in digits.SPLITS])
    assert np.array_equal(np.sort(every), np.arange(1797))


def test_a_pure_function_of_its_arguments(splits):
    again = data.open_source("digits", split="val")
    assert np.array_equal(again.images, splits["val"].images) and np.array_equal(again.labels, splits["val"].labels)
    other = digits.scattered_digits("val", seed=1)
    assert np.array_equal(other.labels, again.labels) and not np.array_equal(other.images, again.images)
    # A change here changes every published figure on this set.
    assert [int(splits[split].images.sum(dtype=np.int64)) for split in digits.SPLITS] == FROZEN_SUMS


FROZEN_SUMS = [790897618, 131527420, 261458023]


def test_two_colours_of_either_polarity_and_enough_contrast():
    source = digits.scattered_digits("val", noise=0.0)
    pixels = source.images.reshape(len(source), -1, 3) / 255
    corner = pixels[np.arange(len(source)), 0]  # background, but for the few digits that reach the corner
    furthest = np.abs(pixels - corner[:, None]).sum(2).argmax(1)
    ink = pixels[np.arange(len(source)), furthest]
    difference = (ink - corner) @ digits.LUMA
    assert np.mean(np.abs(difference) > 0.28) > 0.97  # interpolation rarely shows the full ink: > .3 less a little
    assert 0.4 < np.mean(difference > 0) < 0.6


def test_an_upright_digit_is_scikit_learns():
    from sklearn.datasets import load_digits

    # 16 pixels for 8, not turned: every 2 x 2 cell's mean is a blur of the source, so they correlate highly.
    source = digits.scattered_digits("val", size=16, renderings=1, box=(16, 16), rotation=0, shear=0, noise=0)
    stored = load_digits().images[digits.source_digits("val")].reshape(200, -1)
    cells = source.images.astype(float).reshape(200, 8, 2, 8, 2, 3).mean((2, 4)) @ digits.LUMA
    for one, other in zip(cells.reshape(200, -1), stored, strict=True):
        assert abs(np.corrcoef(one, other)[0, 1]) > 0.93


def test_digits_lie_anywhere_and_turn(splits):
    source = digits.scattered_digits("train", noise=0.0)
    difference = np.abs(source.images.astype(int) - source.images[:, :1, :1]).sum(3)
    weight = difference / np.maximum(difference.sum((1, 2), keepdims=True), 1)
    centre_y = (weight * np.arange(24)[:, None]).sum((1, 2))
    centre_x = (weight * np.arange(24)).sum((1, 2))
    for centre in (centre_y, centre_x):  # the box has 1 to 7 pixels of play, uniformly used
        assert abs(centre.mean() - 11.5) < 0.5 and 0.9 < centre.std() < 2.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "all"}, "'train', 'val', 'test'"),
        ({"box": (17, 30)}, "within the 24 pixels"),
        ({"renderings": 0}, "renderings is 0"),
    ],
)
def test_impossible_arguments(options, words):
    with pytest.raises(UserError, match=words):
        digits.scattered_digits(**options)
