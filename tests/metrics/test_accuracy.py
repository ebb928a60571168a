"""Top-k accuracy against the official code, average precision against scikit-learn and the definition of VOC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax import metrics
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
