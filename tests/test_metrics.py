"""Metrics against scikit-learn, numpy in float64, brute force and simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import sklearn.metrics
import sklearn.neighbors
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from programs import precisions

from barlow_jax import loss, metrics
from barlow_jax.errors import UserError


def test_topk_equals_the_official_code(golden):
    arrays, _ = golden("linear_eval")
    counts = metrics.topk_accuracy(arrays["topk.logits"], arrays["topk.target"])
    assert counts["count"] == 37
    assert counts["top1"] / 37 * 100 == pytest.approx(arrays["topk.acc1"], rel=1e-6)
    assert counts["top5"] / 37 * 100 == pytest.approx(arrays["topk.acc5"], rel=1e-6)


def test_topk_counts_only_labelled_rows_in_the_mask():
    logits = jnp.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [3, 2, 1], [3, 2, 1]])
    labels = jnp.array([0, 1, 2, -1, 0])
    counts = metrics.topk_accuracy(logits, labels, ks=(1, 2, 5), mask=jnp.array([True, True, True, True, False]))
    assert {k: int(v) for k, v in counts.items()} == {"top1": 1, "top2": 2, "top5": 3, "count": 3}


def test_topk_of_a_collapsed_or_broken_network_is_chance():
    labels = jnp.arange(10)
    for value in (0.0, jnp.nan, jnp.inf):
        assert metrics.topk_accuracy(jnp.full((10, 10), value), labels)["top1"] == 1


def test_topk_adds_up_over_batches_and_devices():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((64, 10)).astype(np.float32), rng.integers(-1, 10, 64)
    whole = metrics.topk_accuracy(logits, labels)
    parts = [metrics.topk_accuracy(logits[i : i + 7], labels[i : i + 7]) for i in range(0, 64, 7)]
    assert jax.tree.map(lambda *x: int(sum(x)), *parts) == jax.tree.map(int, whole)
    split = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
    spread = jax.jit(metrics.topk_accuracy)(*jax.device_put((logits, labels), split))
    assert jax.tree.map(int, spread) == jax.tree.map(int, whole)


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
    vote = metrics._voter(mesh, (1,), 6)(similarities, labels, 0.07)
    assert vote.sharding.is_fully_replicated
    np.testing.assert_array_equal(vote, [[[0, 1, 2], [3, 4, 5]]])


def test_similarities_are_asked_for_in_full():
    """On a CPU nothing else would show it; TF32 or bfloat16 swaps neighbours."""
    arrays = jnp.zeros((1, 4, 2)), jnp.zeros((1, 4, 2), jnp.int32), jnp.ones((1, 4, 3)), jnp.ones((8, 3)), jnp.zeros(8)
    assert precisions(jax.make_jaxpr(metrics._merge_block)(*arrays)) == [jax.lax.Precision.HIGHEST]


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


def voc10(scores, targets):
    """The area below the highest precision at each recall or above, by brute force."""
    thresholds = np.unique(scores)[::-1]
    hits = np.array([(scores >= t)[targets].sum() for t in thresholds])
    precision = hits / np.array([(scores >= t).sum() for t in thresholds])
    steps = np.diff(hits, prepend=0) / targets.sum()
    return sum(step * precision[i:].max() for i, step in enumerate(steps))


def voc07(scores, targets):
    """The 11 points by brute force: every threshold, every recall, in exact fractions."""
    points = []
    for tenth in range(11):
        best = 0
        for threshold in scores:
            chosen = scores >= threshold
            hits = (chosen & targets).sum()
            if 10 * hits >= tenth * targets.sum():
                best = max(best, hits / chosen.sum())
        points.append(best)
    return np.mean(points)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision(ties):
    rng = np.random.default_rng(0)
    targets = rng.random((120, 6)) < np.array([0.5, 0.1, 0.03, 0.25, 0.9, 0.2])
    targets[:, 5] = np.arange(120) % 12 == 0  # 10 positives: recalls are whole tenths
    scores = targets + 1.5 * rng.standard_normal((120, 6))
    scores = np.round(scores) if ties else scores
    area = metrics.average_precision(scores, targets.astype(np.int32))
    points = metrics.average_precision(scores, targets, method="voc07")
    below = metrics.average_precision(scores, targets, method="voc10")
    for i in range(6):
        expected = sklearn.metrics.average_precision_score(targets[:, i], scores[:, i])
        assert area[i] == pytest.approx(expected, abs=1e-12)
        assert points[i] == pytest.approx(voc07(scores[:, i], targets[:, i]), abs=1e-12)
        assert below[i] == pytest.approx(voc10(scores[:, i], targets[:, i]), abs=1e-12)
    assert metrics.average_precision(scores[:, 1], targets[:, 1]) == area[1]
    shuffled = rng.permutation(120)
    np.testing.assert_array_equal(metrics.average_precision(scores[shuffled], targets[shuffled]), area)


def test_average_precision_leaves_out_masked_entries():
    scores, targets = np.array([4.0, 3, 2, 1]), np.array([0, 1, 0, 1])
    assert metrics.average_precision(scores, targets, mask=np.array([False, True, True, True])) == pytest.approx(5 / 6)
    assert np.isnan(metrics.average_precision(scores, np.zeros(4)))
    assert np.isnan(metrics.average_precision(np.zeros(0), np.zeros(0)))
    with pytest.raises(UserError, match='"area", "voc07" or "voc10"'):
        metrics.average_precision(scores, targets, method="voc12")


def test_embedding_stats():
    rng = np.random.default_rng(0)
    shape = (64, 10)
    z1 = (rng.standard_normal(shape) * np.linspace(0.5, 2, 10) + 100).astype(np.float32)
    z2 = (rng.standard_normal(shape) - 100).astype(np.float32)
    z2[:, 3] = 7  # dead in one view
    z1[:, 4] = z2[:, 4] = rng.standard_normal(64) * 1e-3  # alive to the eye, dead to the loss
    wide = np.stack([z1, z2]).astype(np.float64)
    split = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
    stats = jax.jit(metrics.embedding_stats)(*jax.device_put((z1, z2), split))
    np.testing.assert_allclose(stats["z_mean"], np.abs(wide.mean(1)).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["z_std"], wide.std(1).mean(), rtol=1e-5)
    assert stats["dead_dims"] == 2
    c = loss.cross_correlation(jnp.asarray(z1), jnp.asarray(z1))
    assert c[4, 4] < 0.5 and c[5, 5] > 0.999


@pytest.mark.parametrize("distribution", ["normal", "exponential"])
def test_expected_at_init_is_what_the_loss_is_for_unrelated_views(distribution, x64):
    """Also for embeddings that are neither Gaussian nor uncorrelated over dimensions."""
    n, d, lambd, trials = 12, 5, 0.0051, 4000
    draw = getattr(np.random.default_rng(0), distribution)
    mix = np.random.default_rng(1).standard_normal((d, d))
    z1, z2 = (jnp.asarray(draw(size=(trials, n, d)) @ mix) for _ in range(2))
    terms = jax.vmap(lambda a, b: loss.barlow_twins_loss(a, b, lambd=lambd, eps=0.0, form="direct"))
    total, parts = jax.jit(terms)(z1, z2)
    expected = metrics.expected_at_init(n, d, lambd)
    for observed, name in [(total, "loss"), (parts["on_diag"], "on_diag"), (parts["off_diag"], "off_diag")]:
        standard_error = float(observed.std()) / trials**0.5
        assert standard_error < 0.02 * expected[name]
        assert abs(float(observed.mean()) - expected[name]) < 3.5 * standard_error, name
