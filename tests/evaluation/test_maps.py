"""Principal components against numpy's singular values, over parts."""

import numpy as np
import pytest

from barlow_jax.errors import UserError
from barlow_jax.evaluation import maps


def parts_of(features, *ends):
    return lambda: iter(np.split(features, ends))


def test_the_first_two_components_over_parts():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(90, 7)) * (5, 3, 1, 1, 1, 1, 1) @ rng.normal(size=(7, 7)) + 100).astype(np.float32)
    points, shares = maps.principal(parts_of(features, 40, 41))
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    left, values, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(left * values)[:, :2], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:2], rtol=1e-9)
    signs = np.sign(axes[:2][[0, 1], np.abs(axes[:2]).argmax(1)])
    np.testing.assert_allclose(points, signs * (left * values)[:, :2], rtol=1e-6, atol=1e-8)


def test_features_without_variance_and_too_few():
    points, shares = maps.principal(parts_of(np.ones((5, 3), np.float32)))
    np.testing.assert_array_equal(points, np.zeros((5, 2)))
    np.testing.assert_array_equal(shares, 0)
    points, shares = maps.principal(parts_of(np.arange(5, dtype=np.float32)[:, None]))
    np.testing.assert_allclose(points, [[-2, 0], [-1, 0], [0, 0], [1, 0], [2, 0]], atol=1e-12)
    np.testing.assert_allclose(shares, [1, 0])
    with pytest.raises(UserError, match="too few images for a map"):
        maps.principal(parts_of(np.ones((1, 3), np.float32)))
    with pytest.raises(UserError, match="not finite"):
        maps.principal(parts_of(np.full((2, 3), np.nan, np.float32)))
