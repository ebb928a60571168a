"""Many heads at once against SGD in float64, one head at a time; few-shot classifiers against scikit-learn."""

import jax
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.neighbors
from jax.sharding import AxisType

from barlow_jax.errors import UserError
from barlow_jax.evaluation import few_shot, heads

N, WIDTH, CLASSES, BATCH = 37, 5, 3, 8  # 5 batches, the last with 5 rows
GRID = [(0.5, 0.0), (0.1, 0.01), (2.0, 1e-3)]
OPTIONS = {"num_classes": CLASSES, "grid": GRID, "epochs": 4, "batch_size": BATCH, "seed": 3}


def data(n=N, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    features = np.eye(CLASSES, WIDTH)[labels] + 0.7 * rng.standard_normal((n, WIDTH))
    features[:, 3] = 7  # constant
    return (features * [1, 10, 0.1, 1, 1]).astype(np.float32), labels


def mesh(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def reference(passes, labels, rate, decay, *, epochs, momentum=0.9, seed):
    """The head that `heads.fit` should give, [F, C] and [C], by a plain loop."""
    mean, std = passes[0].mean(0, dtype=np.float64), passes[0].std(0, dtype=np.float64)
    std[3] = 1
    kernel, bias = np.zeros((WIDTH, CLASSES)), np.zeros(CLASSES)
    moved, done, steps = [0, 0], 0, epochs * -(-len(labels) // BATCH)
    for epoch in range(epochs):
        order = np.random.default_rng((seed, 1 + epoch)).permutation(len(labels))
        for start in range(0, len(labels), BATCH):
            rows = order[start : start + BATCH]
            x = (passes[epoch % len(passes)][rows] - mean) / std
            logits = x @ kernel + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            error = (p / p.sum(1, keepdims=True) - np.eye(CLASSES)[labels[rows]]) / len(rows)
            grads = x.T @ error + decay * kernel, error.sum(0) + decay * bias
            moved = [momentum * m + g for m, g in zip(moved, grads, strict=True)]
            now = rate * 0.5 * (1 + np.cos(np.pi * done / steps))
            kernel, bias, done = kernel - now * moved[0], bias - now * moved[1], done + 1
    return kernel, bias


@pytest.mark.parametrize("passes", [1, 2])
def test_every_head_is_sgd_by_itself(passes, monkeypatch):
    monkeypatch.setattr(heads, "CHUNK_BYTES", 3 * 4 * BATCH * WIDTH)  # 3 steps at a time, then 2
    features, labels = data()
    views = [features, features + np.float32(0.1)][:passes]
    trained = heads.fit(views, labels, **OPTIONS, mesh=mesh(1))
    for number, (rate, decay) in enumerate(GRID):
        kernel, bias = reference(views, labels, rate, decay, epochs=4, seed=3)
        head = heads.chosen(trained, number, mesh(1))
        np.testing.assert_allclose(head.kernel, kernel, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(head.bias, bias, rtol=2e-4, atol=2e-5)
        logits = (features - features.mean(0)) / np.where(np.arange(WIDTH) == 3, 1, features.std(0)) @ kernel + bias
        np.testing.assert_allclose(head(features), logits, rtol=1e-3, atol=1e-3)
        right = (logits.argmax(1) == labels).sum()
        assert heads.count_hits(trained, features, labels, batch_size=7, mesh=mesh(1))[number] == right


def test_heads_are_the_same_on_any_number_of_devices():
    """3 heads on 1, 2 and 8 devices: some get a spare one, some nothing else."""
    (features, labels), (test, targets) = data(), data(29, seed=1)
    found = []
    for devices in (1, 2, 8):
        trained = heads.fit([features], labels, **OPTIONS, mesh=mesh(devices))
        hits = heads.count_hits(trained, test, targets, batch_size=BATCH, mesh=mesh(devices))[: len(GRID)]
        found.append((*heads.chosen(trained, 2, mesh(devices))[:2], hits))
    for kernel, bias, hits in found[1:]:
        np.testing.assert_allclose(kernel, found[0][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(bias, found[0][1], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(hits, found[0][2])


def test_rows_are_the_only_ones_that_count():
    """Of 37 examples every third: the same head as from these alone, and none of the others' hits."""
    features, labels = data()
    rows = np.arange(0, N, 3)
    some = heads.fit([features], labels, rows, **OPTIONS, mesh=mesh(1))
    alone = heads.fit([features[rows]], labels[rows], **OPTIONS, mesh=mesh(1))
    np.testing.assert_array_equal(some.kernel, alone.kernel)
    options = {"batch_size": BATCH, "mesh": mesh(1)}
    left = np.setdiff1d(np.arange(N), rows)
    parts = [heads.count_hits(some, features, labels, part, **options) for part in (rows, left)]
    np.testing.assert_array_equal(sum(parts), heads.count_hits(some, features, labels, **options))
    np.testing.assert_array_equal(parts[0], heads.count_hits(some, features[rows], labels[rows], **options))


def test_a_head_that_diverged_gets_none_right():
    features, labels = data()
    options = OPTIONS | {"grid": [(0.1, 0.0), (1e30, 1e10)]}
    trained = heads.fit([features], labels, **options, mesh=mesh(1))
    assert not np.isfinite(heads.chosen(trained, 1, mesh(1)).kernel).all()
    hits = heads.count_hits(trained, features, labels, batch_size=BATCH, mesh=mesh(1))
    assert hits[0] > N / 2 and hits[1] == 0


def test_a_saved_head_comes_back(tmp_path):
    head = heads.Head(np.ones((2, 3)), np.zeros(3), np.ones(2), np.full(2, 2.0), ("a", "b", "c"))
    heads.save(tmp_path / "head.npz", head, step=7)
    back = heads.load(tmp_path / "head.npz")
    assert back.class_names == head.class_names
    np.testing.assert_array_equal(back(np.array([[3.0, 5.0]])), [[3.0, 3.0, 3.0]])
    whole = (tmp_path / "head.npz").read_bytes()
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for content in (b"", b"PK", b"[]", whole[:-40], bytes(9), (tmp_path / "other.npz").read_bytes()):
        (tmp_path / "head.npz").write_bytes(content)
        with pytest.raises(UserError, match="head.npz holds no head .*; give a fast_probe.npz"):
            heads.load(tmp_path / "head.npz")


def test_held_out_takes_its_share_of_every_class():
    labels = np.repeat([0, 1, 2, 3], [100, 21, 2, 1])
    aside = heads.held_out(labels, 0.1, seed=0)
    assert np.bincount(labels[aside], minlength=4).tolist() == [10, 2, 1, 0]
    np.testing.assert_array_equal(aside, heads.held_out(labels, 0.1, seed=0))
    assert (aside != heads.held_out(labels, 0.1, seed=1)).any()


def test_nothing_to_train_on_is_one_sentence():
    with pytest.raises(UserError, match="no labelled image"):
        heads.fit([np.zeros((0, 4), np.float32)], np.zeros(0, int), **OPTIONS, mesh=mesh(1))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [12, 200])  # fewer rows than dimensions, and more
def test_ridge_equals_scikit_learn(n):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, 30))
    labels, targets = np.arange(n) % 4 * 2, rng.integers(0, 4, 150) * 2  # classes 0, 2, 4, 6
    features, queries = (centres[y // 2] + 2 * rng.standard_normal((len(y), 30)) for y in (labels, targets))
    expected = sklearn.linear_model.RidgeClassifier(few_shot.RIDGE).fit(unit(features), labels).predict(unit(queries))
    predicted = few_shot.predict("ridge", features.astype(np.float32), labels, queries.astype(np.float32))
    np.testing.assert_array_equal(predicted, expected)
    assert 0.3 < (predicted == targets).mean() < 1
    means = np.stack([unit(features)[labels == c].mean(0) for c in (0, 2, 4, 6)])
    nearest = sklearn.neighbors.KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(means, [0, 2, 4, 6])
    np.testing.assert_array_equal(few_shot.predict("nearest mean", features, labels, queries), nearest.predict(queries))


def test_a_draw_takes_each_class_alike_and_no_row_twice():
    labels = np.random.default_rng(0).permutation(np.repeat([1, 4, 5], [9, 6, 20]))
    assert few_shot.most_shots(labels) == 6
    draws = [few_shot.draw(labels, 6, seed) for seed in range(3)]
    for rows in draws:
        assert len(set(rows)) == 18 and np.bincount(labels[rows]).tolist() == [0, 6, 0, 0, 6, 6]
    assert set(draws[0]) != set(draws[1])


def test_a_feature_that_is_constant_is_divided_by_one():
    """Constant but for the last bit too, as nothing may be divided by rounding. What is small is not constant."""
    features, labels = data(1000)
    features[:, 1] = np.where(np.arange(1000) % 2, np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(1)))
    features[:, 4] *= 1e-4
    options = OPTIONS | {"epochs": 1, "batch_size": 500, "mesh": mesh(1)}
    std = np.asarray(heads.fit([features], labels, **options).std)
    assert std[1] == std[3] == 1
    others = [0, 2, 4]
    np.testing.assert_allclose(std[others], features[:, others].std(0, dtype=np.float64), rtol=1e-6)
    same = np.asarray(heads.fit([np.full((40, WIDTH), 2.0, np.float32)], labels[:40], **options).std)
    np.testing.assert_array_equal(same, 1)
