"""Clusters, outliers, what to label next and maps: against numpy in float64 and by hand."""

import sys

import jax
import numpy as np
import pytest
import sklearn.decomposition
import sklearn.metrics
from programs import precisions

from barlow_jax import sharding
from barlow_jax.errors import UserError
from barlow_jax.evaluation import atlas, clusters, embedded, label_next, maps, nearest


def blobs(sizes, width=6, seed=0, noise=0.1):
    """Rows around as many random directions, of very different lengths, and which is around which."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(len(sizes)), sizes)
    rows = rng.standard_normal((len(sizes), width))[number] + noise * rng.standard_normal((len(number), width))
    return (rows * rng.lognormal(0, 2, (len(number), 1))).astype(np.float32), number


def test_clusters_are_found_by_direction_the_largest_first():
    features, number = blobs((10, 40, 25))
    found, similarity = clusters.k_means(embedded.on_sphere(features), 3)
    assert np.array_equal(found, np.array([2, 0, 1])[number])
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    for k in range(3):
        mean = unit[found == k].mean(0)
        np.testing.assert_allclose(similarity[found == k], unit[found == k] @ mean / np.linalg.norm(mean), atol=1e-5)
        order = np.flatnonzero(found == k)[np.argsort(-similarity[found == k], kind="stable")]
        np.testing.assert_array_equal(clusters.central(found, similarity, 4)[k], order[:4])


def test_the_same_rows_make_the_same_clusters():
    """Where there are none to be found, and so every start ends elsewhere."""
    rows = embedded.unit(np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32))
    once, again, otherwise = (clusters.k_means(rows, 20, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert (once != otherwise).any()


def test_fewer_different_rows_than_clusters():
    rows = np.repeat(np.eye(3, dtype=np.float32), (1, 5, 2), axis=0)
    found, similarity = clusters.k_means(rows, 5)
    assert found.tolist() == [2] + [0] * 5 + [1] * 2
    np.testing.assert_allclose(similarity, 1, rtol=1e-6)
    with pytest.raises(UserError, match="--clusters is 9, but there are 8 rows"):
        clusters.k_means(rows, 9)


def test_how_far_off_rows_are():
    """In parts of 32 rows; equal rows, of which itself is not among the nearest, and a row of zeros."""
    features, _ = blobs((40, 31))
    features[:12], features[50] = features[0], 0
    wide = features.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    expected = np.sort(distance, 1)[:, :5].mean(1)
    mesh = sharding.make_mesh(jax.devices()[:8])
    np.testing.assert_allclose(clusters.loneliness(features, 5, mesh=mesh, rows=32), expected, atol=1e-6)
    assert expected.argmax() == 50
    with pytest.raises(UserError, match="--nearest is 71, but there are 71 rows, so 70 others"):
        clusters.loneliness(features, 71, mesh=mesh)


def test_nearest_rows_equal_float64():
    """Of equal rows the first comes first; two devices share the queries unevenly, in blocks."""
    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, 12)).astype(np.float32) for n in (203, 301))
    bank[200] = 2 * bank[7]
    mesh = sharding.make_mesh(jax.devices()[:2])
    similarity, places = nearest.nearest_rows(bank, queries, 20, block=64, mesh=mesh)
    wide, asked = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (bank, queries)
    )
    expected = np.argsort(-(asked @ wide.T).round(12), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(similarity, np.take_along_axis(asked @ wide.T, expected, 1), atol=1e-6)
    with pytest.raises(UserError, match="k is 4, but there are 3 rows; take a k from 1 to 3"):
        nearest.nearest_rows(bank[:3], queries, 4, mesh=mesh)
    arrays = np.zeros((4, 2), np.float32), np.zeros((4, 2), np.int32), np.ones((4, 3)), np.ones((8, 3)), np.arange(8)
    assert precisions(jax.make_jaxpr(nearest._merge)(*arrays)) == [jax.lax.Precision.HIGHEST]


def furthest_first(unit, chosen, count):
    places, distances = [], []
    for _ in range(count):
        distance = np.round(1 - (unit @ unit[chosen].T).max(1), 6)
        distance[chosen] = -1
        places.append(int(distance.argmax()))
        distances.append(distance.max())
        chosen = [*chosen, places[-1]]
    return places, distances


def test_the_furthest_from_what_is_labelled_comes_next():
    """On eight devices, of which the last has a row too few; on one below."""
    features, _ = blobs((30, 20, 21), noise=0.4)
    features[40:43] = features[40]  # chosen once
    rows = embedded.on_sphere(features)
    mesh = sharding.make_mesh(jax.devices()[:8])
    labelled = np.isin(np.arange(71), [3, 44])
    places, distances = label_next.k_centre(rows, 20, labelled, mesh=mesh)
    expected = furthest_first(rows.astype(np.float64), [3, 44], 20)
    np.testing.assert_array_equal(places, expected[0])
    np.testing.assert_allclose(distances, expected[1], atol=2e-6)
    first = int((rows.astype(np.float64) @ rows.mean(0, dtype=np.float64)).argmax())
    places, distances = label_next.k_centre(rows, 21, np.zeros(71, bool), mesh=mesh)
    assert places[0] == first and np.isnan(distances[0])
    np.testing.assert_array_equal(places[1:], furthest_first(rows.astype(np.float64), [first], 20)[0])


def test_all_can_be_chosen_each_once():
    rows, mesh = embedded.on_sphere(np.tile(blobs((3, 3))[0], (2, 1))), sharding.make_mesh(jax.devices()[:1])
    places, distances = label_next.k_centre(rows, 12, np.zeros(12, bool), mesh=mesh)
    assert sorted(places) == [*range(12)] and distances[-6:] == pytest.approx(np.zeros(6), abs=1e-6)
    assert label_next.k_centre(rows, 1, np.zeros(12, bool), mesh=mesh)[0].tolist() == [places[0]]
    with pytest.raises(UserError, match="--label_next is 11, but 10 of 12 images have no label"):
        label_next.k_centre(rows, 11, np.arange(12) < 2, mesh=mesh)


def test_products_of_the_choice_are_asked_for_in_full():
    arrays = np.zeros((8, 3), np.float32), np.zeros(8, np.int32)
    found = precisions(jax.make_jaxpr(lambda *x: label_next._greedy(*x, count=2))(*arrays))
    assert found == [jax.lax.Precision.HIGHEST]


def test_components_equal_scikit_learn(monkeypatch):
    monkeypatch.setattr(embedded, "BLOCK", 16)
    features, _ = blobs((30, 20), noise=1)
    expected = sklearn.decomposition.PCA(2, svd_solver="full").fit_transform(features.astype(np.float64))
    found = atlas.components(features)
    assert found.dtype == np.float32 and found.shape == (50, 2)
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(atlas.components(-features), -found)  # no sign but that of the weights


@pytest.mark.slow  # numba compiles for half a minute
def test_umap_keeps_neighbours_together():
    pytest.importorskip("umap")
    features, number = blobs((30, 30, 30), noise=0.05)
    xy = maps.umap(embedded.on_sphere(features))
    assert xy.shape == (90, 2) and sklearn.metrics.silhouette_score(xy, number) > 0.5


def test_umap_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="--map=umap needs umap-learn; pip install umap-learn, or take --map=pca."):
        maps.umap(np.eye(6))
