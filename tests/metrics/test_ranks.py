"""Effective rank, LiDAR and distinct rows against numpy in float64, and at their limits."""

import numpy as np
import pytest
import scipy.linalg

from barlow_jax import metrics


def test_effective_rank_equals_numpy_and_its_limits():
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((300, 40)) * np.logspace(0, -3, 40) + 0.3).astype(np.float32)
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = values / values.sum() + 1e-7
    np.testing.assert_allclose(metrics.effective_rank(features), np.exp(-np.sum(share * np.log(share))), rtol=1e-5)
    np.testing.assert_allclose(metrics.effective_rank(np.eye(64)), 64, rtol=1e-4)
    np.testing.assert_allclose(metrics.effective_rank(np.outer(np.arange(1.0, 50), np.ones(20))), 1, atol=1e-3)
    np.testing.assert_allclose(metrics.effective_rank(np.zeros((50, 20))), 1, atol=1e-3)


def test_lidar_equals_a_generalised_eigenproblem_and_knows_what_views_hide():
    rng = np.random.default_rng(0)
    n, views, width = 60, 4, 12
    means = rng.normal(size=(n, 1, width)) * np.logspace(0, -1, width)
    features = (means + 0.3 * rng.normal(size=(n, views, width)) * np.linspace(0.2, 2, width)).astype(np.float32)

    def expected(features):
        rows = features - features.mean(1, keepdims=True)
        within = rows.reshape(-1, width).T @ rows.reshape(-1, width) / (n * (views - 1)) + 1e-4 * np.eye(width)
        values = scipy.linalg.eigh(np.cov(features.mean(1), rowvar=False), within, eigvals_only=True)
        share = values / values.sum()
        return np.exp(-np.sum(share * np.log(share)))

    wide = features.astype(np.float64)
    assert metrics.lidar(features) == pytest.approx(expected(wide), rel=1e-6)
    # However little the images differ.
    assert metrics.lidar(1e-3 * wide) == pytest.approx(expected(1e-3 * wide), rel=1e-6)
    # Ten directions of one size: all of them, whatever noise there is; where the views hide eight, two.
    images = np.eye(10)[np.arange(100) % 10][:, None] + 1e-3 * rng.normal(size=(100, 5, 10))
    assert 8.5 < metrics.lidar(images) < 9.01  # nine differences of ten corners
    assert metrics.lidar(images + 9 * rng.normal(size=images.shape) * (np.arange(10) > 1)) < 2.5
    assert metrics.lidar(np.ones((5, 2, 3))) == 1.0


def test_distinct_rows_see_copies_through_rounding():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 64)) + 5
    assert metrics.distinct_rows(rows) == 30
    copies = rows[:4].repeat(25, 0) * (1 + 1e-7 * rng.normal(size=(100, 64)))
    assert 4 <= metrics.distinct_rows(copies) <= 6  # a copy in fifty may fall on an edge of the grid
    assert metrics.distinct_rows(rows[:1].repeat(100, 0) * (1 + 1e-6 * rng.normal(size=(100, 64)))) == 1
    assert metrics.distinct_rows(np.zeros((9, 4))) == 1
