"""The classifier's steps, rates and top-k against the official evaluate.py and against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_classifiers import head

from barlow_jax import metrics, sharding
from barlow_jax.evaluation import classify
from barlow_jax.training import feed

TOLERANCE = {jnp.float64: 1e-9, jnp.float32: 1e-5}


def official_run(golden, name, dtype, *, filled_up=False, devices=1):
    """A run of the fixture: per epoch the weights [E, out, in], biases and momenta, and the losses of all batches."""
    arrays, described = golden("linear_eval")
    run = next(run for run in described["runs"] if run["name"] == name)
    features, labels = arrays[f"{name}.features"].astype(dtype), arrays[f"{name}.labels"].astype(np.int32)
    n, size = run["N"], run["bs"]
    steps_per_epoch = -(-n // size)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    rate = classify.cosine_by_epoch(run["lr"], run["epochs"], steps_per_epoch)
    tx = classify.sgd({"fc": rate}, weight_decay=run["wd"])
    classifier = head(run["D"], run["C"])
    graphdef, state = classify.create_state(classifier, tx, backbone=({}, {}), weights="freeze")
    fc = {"kernel": jnp.asarray(arrays[f"{name}.w0_out_in"].T, dtype), "bias": jnp.zeros(run["C"], dtype)}
    state = state._replace(params={"fc": fc, "backbone": {}}, opt_state=tx.init({"fc": fc}))
    state = jax.device_put(state, sharding.replicated(mesh))
    step = classify.make_train_step(
        graphdef,
        tx,
        lambda step, batch: batch["features"],
        weights="freeze",
        mesh=mesh,
        images_per_epoch=n if filled_up else None,
        schedules={"rate": rate},
    )
    got = {"weight": [], "bias": [], "momentum": [], "losses": [], "rates": [], "accuracy": []}
    for _ in range(run["epochs"]):
        for start in range(0, n, size):
            rows = np.arange(start, start + size) % n if filled_up else slice(start, start + size)
            state, report = step(state, feed.put({"features": features[rows], "label": labels[rows]}, mesh))
            got["losses"].append(float(report["loss"]))
        got["rates"].append(float(report["rate"]))
        got["weight"].append(np.asarray(state.params["fc"]["kernel"]).T)
        got["bias"].append(np.asarray(state.params["fc"]["bias"]))
        got["momentum"].append(np.asarray(optax.tree.get(state.opt_state, "trace")["fc"]["kernel"]).T)
        ranked = np.argsort(-(features @ got["weight"][-1].T + got["bias"][-1]), axis=1)
        hit = ranked == labels[:, None]
        got["accuracy"].append([100 * hit[:, :k].any(1).mean() for k in (1, 5)])
    return got, {key.removeprefix(f"{name}.f64."): value for key, value in arrays.items() if key.startswith(name)}


def assert_official(got, want, tolerance):
    for mine, theirs in [("weight", "weight"), ("bias", "bias"), ("momentum", "momentum_weight")]:
        theirs = want[f"{theirs}_after_epoch"]
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.stack(got[mine]) / scale, theirs / scale, rtol=0, atol=tolerance, err_msg=mine)
    np.testing.assert_allclose(got["accuracy"], want["train_acc1_acc5"], rtol=1e-6)  # there in float32
    np.testing.assert_allclose(got["losses"], want["losses"], rtol=tolerance)
    np.testing.assert_allclose(got["rates"], want["lr_per_epoch_then_final"][:-1], rtol=max(tolerance / 10, 1e-12))


@pytest.mark.parametrize("name,filled_up", [("freeze", False), ("freeze", True), ("wd", False)])
def test_official_runs_in_float64(golden, x64, name, filled_up):
    """Weights, biases, momenta, losses, accuracies; the rows that fill up the last batch of "freeze" leave no trace."""
    assert_official(*official_run(golden, name, jnp.float64, filled_up=filled_up), TOLERANCE[jnp.float64])


@pytest.mark.parametrize("name", ["freeze", "wd"])
def test_official_runs_in_float32(golden, name):
    assert_official(*official_run(golden, name, jnp.float32, filled_up=True), TOLERANCE[jnp.float32])


def test_official_run_on_four_devices(golden, x64):
    got = official_run(golden, "freeze", jnp.float64, filled_up=True, devices=4)
    assert_official(*got, TOLERANCE[jnp.float64])


def test_the_fixture_sees_a_repeated_row_that_counts(golden, x64, monkeypatch):
    """The checks above can fail: with the filled-up rows in the mean, the weights are others."""
    monkeypatch.setattr(classify, "rows_that_count", lambda step, batch_size, images_per_epoch: batch_size)
    got, want = official_run(golden, "freeze", jnp.float64, filled_up=True)
    assert np.abs(got["weight"][-1] - want["weight_after_epoch"][-1]).max() > 1e-3


def test_learning_rates_of_the_documented_commands(golden, x64):
    _, described = golden("linear_eval")
    for command, rows in described["cosine_lr_by_epoch"].items():
        peaks = [float(x) for x in command[command.index("[") + 1 : -1].split(",")]
        for group, peak in enumerate(peaks):
            schedule = classify.cosine_by_epoch(peak, len(rows), 7)
            got = [[float(schedule(7 * epoch + k)) for k in (0, 6)] for epoch in range(len(rows))]
            np.testing.assert_allclose(got, np.array(rows)[:, [group, group]], rtol=1e-11)
    assert float(schedule(7 * len(rows))) == 0


def multistep_sgd_in_numpy(features, labels, w, *, peak, milestones, factor, epochs, batch_size, decay, nesterov):
    """torch's SGD under MultiStepLR in float64: the weights after each epoch, [E, D + 1, C], the last row the bias."""
    x, n, moved, after = np.c_[features, np.ones(len(features))], len(features), 0, []
    momentum = np.zeros_like(w)
    for epoch in range(epochs):
        rate = peak
        for milestone in milestones:
            if epoch >= milestone:
                rate *= factor
        for start in range(0, n, batch_size):
            rows = slice(start, min(start + batch_size, n))
            p = np.exp(x[rows] @ w - (x[rows] @ w).max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(p)), labels[rows]] -= 1
            grad = x[rows].T @ p / len(p) + decay * w
            momentum = 0.9 * momentum + grad if moved else grad
            moved += 1
            w = w - rate * (grad + 0.9 * momentum if nesterov else momentum)
        after.append(w)
    return np.stack(after)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_and_nesterov_in_float64(x64, nesterov):
    """Five epochs of three batches, the last smaller; the rate falls after the second and after the fourth epoch."""
    rng = np.random.default_rng(0)
    n, dim, classes, epochs, size = 11, 6, 4, 5, 4
    features, labels = rng.normal(size=(n, dim)), rng.integers(0, classes, n).astype(np.int32)
    start = 0.1 * rng.normal(size=(dim + 1, classes))
    rules = {"milestones": (2, 4), "factor": 0.2}
    want = multistep_sgd_in_numpy(
        features, labels, start, peak=0.3, epochs=epochs, batch_size=size, decay=0.01, nesterov=nesterov, **rules
    )
    mesh = sharding.make_mesh(jax.devices()[:1])
    rate = classify.steps_by_epoch(0.3, steps_per_epoch=-(-n // size), **rules)
    tx = classify.sgd({"fc": rate}, weight_decay=0.01, nesterov=nesterov)
    graphdef, state = classify.create_state(head(dim, classes), tx, backbone=({}, {}), weights="freeze")
    fc = {"kernel": jnp.asarray(start[:-1]), "bias": jnp.asarray(start[-1])}
    state = state._replace(params={"fc": fc, "backbone": {}}, opt_state=tx.init({"fc": fc}))
    state = jax.device_put(state, sharding.replicated(mesh))
    step = classify.make_train_step(
        graphdef, tx, lambda step, batch: batch["features"], weights="freeze", mesh=mesh, images_per_epoch=n
    )
    got, rates = [], []
    for _ in range(epochs):
        for first in range(0, n, size):
            rows = np.arange(first, first + size) % n
            rates.append(float(rate(state.step)))
            state, _ = step(state, feed.put({"features": features[rows], "label": labels[rows]}, mesh))
        fc = jax.device_get(state.params["fc"])
        got.append(np.r_[fc["kernel"], fc["bias"][None]])
    np.testing.assert_allclose(np.stack(got), want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rates, np.repeat([0.3, 0.3, 0.06, 0.06, 0.012], 3), rtol=1e-12)


def test_topk_of_the_official_code(golden):
    arrays, _ = golden("linear_eval")
    hits = metrics.topk_accuracy(jnp.asarray(arrays["topk.logits"]), jnp.asarray(arrays["topk.target"], jnp.int32))
    for k in (1, 5):
        np.testing.assert_allclose(100 * int(hits[f"top{k}"]) / int(hits["count"]), arrays[f"topk.acc{k}"], rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_image_once(golden, devices):
    """The official top-k from padded batches, whose padding would be right if it counted."""
    arrays, _ = golden("linear_eval")
    logits, target = arrays["topk.logits"], arrays["topk.target"].astype(np.int32)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    classes = logits.shape[1]
    tx = classify.sgd({"fc": 0.1})
    graphdef, state = classify.create_state(head(classes, classes), tx, backbone=({}, {}), weights="freeze")
    state = state._replace(params={"fc": {"kernel": jnp.eye(classes), "bias": jnp.zeros(classes)}, "backbone": {}})
    step = classify.make_eval_step(graphdef, lambda batch: batch["features"], mesh=mesh)
    batches = []
    for start in range(0, len(logits), 16):
        rows = np.arange(start, start + 16)
        mask, rows = rows < len(logits), np.minimum(rows, len(logits) - 1)
        right = np.where(mask, target[rows], logits[rows].argmax(1)).astype(np.int32)
        batches.append({"features": logits[rows], "label": right, "mask": mask, "index": np.where(mask, rows, -1)})
    scores = classify.evaluate(step, state, batches, mesh)
    assert scores["images"] == len(logits)
    np.testing.assert_allclose(100 * scores["top1"], arrays["topk.acc1"], rtol=1e-6)
    np.testing.assert_allclose(100 * scores["top5"], arrays["topk.acc5"], rtol=1e-6)
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    np.testing.assert_allclose(scores["val_loss"], -log_softmax[np.arange(len(logits)), target].mean(), rtol=1e-5)


def test_fresh_head_is_the_official_one():
    """fc normal(0, 0.01), bias 0."""
    tx = classify.sgd({"fc": 0.1})
    _, state = classify.create_state(head(2048, 1000), tx, backbone=({}, {}), weights="freeze")
    kernel = np.asarray(state.params["fc"]["kernel"])
    assert kernel.shape == (2048, 1000) and not np.any(state.params["fc"]["bias"])
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 0.01], atol=2e-5)
    assert np.abs(kernel).max() > 0.04  # not truncated
