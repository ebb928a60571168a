"""Near-duplicates against all pairs in float64, on blocks and devices, cut and uncut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import precisions

from barlow_jax import sharding
from barlow_jax.evaluation import embedded, pairs


def rows_with_duplicates(n=203, width=12, seed=0):
    """Rows of very different lengths; every fifth is nearly the one before it, two are zeros, three are equal."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, width))
    rows[5::5] = rows[4:-1:5] + 0.1 * rng.standard_normal(rows[5::5].shape)
    rows *= rng.lognormal(0, 4, (n, 1))
    rows[[17, 60]] = 0
    rows[[31, 90, 201]] = rows[30] * np.array([[1], [2], [0.5]])
    return rows.astype(np.float32)


def in_float64(rows, threshold):
    """(first, second, similarity) of all pairs, the most similar first."""
    rows = rows.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    similarity = np.round(unit @ unit.T, 6)
    first, second = np.nonzero(np.triu(similarity >= threshold, 1))
    order = np.lexsort((second, first, -similarity[first, second]))
    return first[order], second[order], similarity[first, second][order]


def mesh_of(devices):
    return sharding.make_mesh(jax.devices()[:devices])


@pytest.mark.parametrize(("devices", "block"), [(1, 64), (8, 4096), (2, 50)])
def test_all_pairs_are_found_on_any_blocks_and_devices(devices, block):
    rows = rows_with_duplicates()
    for threshold in (0.8, 1.0):
        first, second, similarity = in_float64(rows, threshold)
        assert len(first) == (3 + 3 if threshold == 1 else len(first)) and len(first) >= 6
        found = pairs.above(rows, threshold, most=10**4, mesh=mesh_of(devices), block=block)
        assert found.found == len(found.first) == len(first)
        np.testing.assert_allclose(found.similarity, similarity, atol=1.5e-6)
        assert {*zip(found.first, found.second, strict=True)} == {*zip(first, second, strict=True)}


def test_the_most_similar_are_kept_and_all_are_counted():
    rows = rows_with_duplicates()
    for most, devices, block in ((1, 1, 64), (37, 2, 50), (300, 8, 4096)):
        whole = pairs.above(rows, 0.3, most=10**4, mesh=mesh_of(devices), block=block)
        assert whole.found == len(in_float64(rows, 0.3)[0]) > 500 and np.all(np.diff(whole.similarity) <= 0)
        cut = pairs.above(rows, 0.3, most=most, mesh=mesh_of(devices), block=block)
        assert cut.found == whole.found
        for name in ("first", "second", "similarity"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:most], name)


def test_a_threshold_below_zero_finds_every_pair():
    """And nothing of what fills up the last block, which resembles all by 0."""
    rows = rows_with_duplicates()
    assert pairs.above(rows, -1.0, most=5, mesh=mesh_of(2), block=50).found == 203 * 202 // 2


@pytest.mark.parametrize(("devices", "block"), [(1, 64), (8, 4096)])
def test_of_equal_pairs_the_first_are_kept(devices, block):
    """A set of one image many times over: neither memory nor order goes astray."""
    rows = np.tile(np.arange(12, dtype=np.float32), (203, 1))
    found = pairs.above(rows, 1.0, most=250, mesh=mesh_of(devices), block=block)
    first, second = np.triu_indices(203, 1)
    assert found.found == len(first) and np.all(found.similarity == 1)
    np.testing.assert_array_equal(found.first, first[:250])
    np.testing.assert_array_equal(found.second, second[:250])


def test_no_more_than_blocks_are_in_memory():
    class OnDisk:
        shape, taken = (400, 12), 0

        def __len__(self):
            return 400

        def __getitem__(self, rows):
            self.taken = max(self.taken, rows.stop - rows.start)
            return np.random.default_rng(rows.start).standard_normal((min(rows.stop, 400) - rows.start, 12))

    rows = OnDisk()
    kept = pairs._Best(100, 0, 400)
    assert pairs.above(rows, 0.5, most=100, mesh=mesh_of(1), block=64).found > 100 and rows.taken == 64
    for _ in range(50):
        kept.add(np.arange(60), np.arange(60) + 1, np.arange(60))
        assert kept._count <= 200


def test_nothing_is_found_among_rows_that_differ():
    rows = np.random.default_rng(0).standard_normal((203, 12))
    found = pairs.above(rows, 0.999, most=10, mesh=mesh_of(1), block=64)
    assert found.found == 0 and len(found.similarity) == 0 and len(pairs.groups(found, 203)) == 0


def test_groups_are_what_is_connected():
    """Against union by hand; numbered as they come in the list."""
    found = pairs.Pairs(np.array([7, 1, 3, 2]), np.array([9, 2, 7, 5]), np.array([1, 0.99, 0.98, 0.97]), 4)
    assert pairs.groups(found, 10).tolist() == [1, 2, 1, 2]


def test_rows_at_length_1():
    rows = np.array([[1e37, 1e37], [1e-30, 0], [0, 0], [3, -4]])
    for found in (embedded.unit(rows), np.asarray(embedded.unit(jnp.asarray(rows, jnp.float32), jnp))):
        np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [1, 0], [0, 0], [0.6, -0.8]], rtol=1e-6)


def test_usual_similarities_are_of_different_rows():
    found = pairs.usual(np.eye(3), count=500)
    assert np.all(found == 0)
    rows = rows_with_duplicates()
    assert abs(np.median(pairs.usual(rows)) - np.median(in_float64(rows, -2)[2])) < 0.02


def test_products_are_asked_for_in_full():
    arguments = np.zeros((4, 3), np.float32), np.arange(4), np.zeros((5, 3), np.float32), np.arange(5), 1
    assert precisions(jax.make_jaxpr(pairs._tile)(*arguments)) == [jax.lax.Precision.HIGHEST]
