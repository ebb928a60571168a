"""The vote of the nearest neighbours against scikit-learn, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.neighbors
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from programs import precisions

from barlow_jax import metrics
from barlow_jax.errors import UserError
from barlow_jax.metrics import neighbours


def clusters(n, seed, classes=5, dim=12):
    """Overlapping classes whose rows have very different norms, which cosine similarity must not see."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    rows = np.random.default_rng(99).standard_normal((classes, dim))[labels] + 1.5 * rng.standard_normal((n, dim))
    return (rows * rng.lognormal(0, 2, (n, 1))).astype(np.float32), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.07), (20, 10.0)])
def test_knn_equals_scikit_learn(k, temperature):
    (train, train_labels), (test, test_labels) = clusters(500, 0), clusters(150, 1)
    reference = sklearn.neighbors.KNeighborsClassifier(
        k, weights=lambda d: np.exp((1 - d) / temperature), metric="cosine", algorithm="brute"
    ).fit(train.astype(np.float64), train_labels)
    expected = reference.predict(test.astype(np.float64))
    assert 0.3 < (expected == test_labels).mean() < 0.9  # neither trivial nor hopeless
    predicted = metrics.knn_predict(train, train_labels, test, k=k, temperature=temperature)
    np.testing.assert_array_equal(predicted, expected)
    accuracy = metrics.knn_accuracy(train, train_labels, test, test_labels, k=k, temperature=temperature)
    assert accuracy == (expected == test_labels).mean()


def test_knn_does_not_depend_on_the_block_or_the_place_of_the_data():
    (train, train_labels), (test, test_labels) = clusters(203, 0), clusters(50, 1)
    options = {"k": (1, 5, 203), "temperature": 1.0}  # of all rows, the last have negative similarities
    whole = metrics.knn_predict(train, train_labels, test, **options)
    assert whole.shape == (3, 50)
    for block in (64, 203):
        np.testing.assert_array_equal(metrics.knn_predict(train, train_labels, test, **options, block=block), whole)
    replicated = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P())
    on_device = jax.device_put((train, train_labels, test), replicated)
    np.testing.assert_array_equal(metrics.knn_predict(*on_device, **options, block=64), whole)
    rates = metrics.knn_accuracy(train, train_labels, test, test_labels, **options)
    assert rates == {k: (np.asarray(p) == test_labels).mean() for k, p in zip(options["k"], whole, strict=True)}


@pytest.mark.parametrize("devices", [2, 8])
def test_knn_is_the_same_on_any_number_of_devices(devices):
    """700 test rows are two blocks, which neither 2 nor 8 devices share evenly without padding."""
    (train, train_labels), (test, _) = clusters(203, 0), clusters(700, 1)
    options = {"k": (1, 20, 203), "block": 64}
    alone = metrics.knn_predict(train, train_labels, test, **options)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    np.testing.assert_array_equal(metrics.knn_predict(train, train_labels, test, **options, mesh=mesh), alone)


def test_every_process_is_told_the_whole_vote():
    """Each device votes for its own rows; on several processes nobody could read the others' part."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    similarities, labels = np.ones((2, 3, 1), np.float32), np.arange(6, dtype=np.int32).reshape(2, 3, 1)
    vote = neighbours._voter(mesh, (1,), 6)(similarities, labels, 0.07)
    assert vote.sharding.is_fully_replicated
    np.testing.assert_array_equal(vote, [[[0, 1, 2], [3, 4, 5]]])


def test_similarities_are_asked_for_in_full():
    """On a CPU nothing else would show it; TF32 or bfloat16 swaps neighbours."""
    arrays = jnp.zeros((1, 4, 2)), jnp.zeros((1, 4, 2), jnp.int32), jnp.ones((1, 4, 3)), jnp.ones((8, 3)), jnp.zeros(8)
    assert precisions(jax.make_jaxpr(neighbours._merge_block)(*arrays)) == [jax.lax.Precision.HIGHEST]


def test_knn_with_extremes():
    train = np.array([[1, 0], [0, 1], [-1, 0.0], [0, 0]])
    labels = np.array([3, 1, 2, 0])
    for temperature in (1e-4, 1e4):  # the first overflows exp in float32
        predicted = metrics.knn_predict(train, labels, np.array([[5.0, 1], [1, 9]]), k=4, temperature=temperature)
        # Nearly equal weights: nobody has two votes, so the nearest still wins.
        np.testing.assert_array_equal(predicted, [3, 1])
    with pytest.raises(UserError, match="k is 5, but there are 4 training rows"):
        metrics.knn_predict(train, labels, train, k=5)


def test_knn_equal_similarities_prefer_the_lower_index():
    train, labels = np.ones((300, 4)), np.arange(300) // 100
    for block in (64, 4096):
        assert metrics.knn_predict(train, labels, train[:1], k=100, block=block).tolist() == [0]
