"""The classifier's steps: what they train and what not, images, several devices, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_classifiers import head, moved_backbone, small_classifier

from barlow_jax import augment, model, sharding, views
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classify
from barlow_jax.training import feed


def batch_of(n=16):
    """Images whose brightness tells their class."""
    rng = np.random.default_rng(0)
    label = (np.arange(n) % 5).astype(np.int32)
    canvas = (rng.integers(0, 60, size=(n, 12, 12, 3)) + 40 * label[:, None, None, None]).astype(np.uint8)
    box = np.array([2, 1, 9, 10], np.float32)
    return {"canvas": canvas, "boxes": np.tile(box, (n, 1, 1)), "index": np.arange(n, dtype=np.int32), "label": label}


def plain_images(step, batch):
    """Without augmentation."""
    del step
    return batch["canvas"][:, :8, :8] / 64.0 - 2.0


RECIPE = augment.Recipe(
    size=8,
    interpolation="linear",
    jitter=0,
    grayscale=0,
    blur=(0, 0),
    solarize=(0, 0),
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)


def train(weights, rates, *, devices=2, steps=1, weight_decay=1e-6, images_per_epoch=None):
    """graphdef, state and losses after some steps on one batch."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    tx = classify.sgd(rates, weight_decay=weight_decay)
    graphdef, state = classify.create_state(small_classifier, tx, backbone=moved_backbone(), weights=weights)
    state = jax.device_put(state, sharding.replicated(mesh))
    step = classify.make_train_step(
        graphdef, tx, plain_images, weights=weights, mesh=mesh, images_per_epoch=images_per_epoch
    )
    losses = []
    for _ in range(steps):
        state, report = step(state, feed.put(batch_of(), mesh))
        losses.append(float(report["loss"]))
    return graphdef, state, losses


def test_freeze_trains_fc_and_moves_no_bit_of_the_backbone():
    given, given_stats = moved_backbone()
    before = classify.fingerprint({"backbone": given}, {"backbone": given_stats})
    _, state, losses = train("freeze", {"fc": 0.02}, steps=20)
    assert classify.fingerprint(state.params, state.batch_stats) == before
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], given)
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats["backbone"], given_stats)
    assert losses[-1] < 0.7 * losses[0]
    assert set(optax.tree.get(state.opt_state, "trace")) == {"fc"}


def test_fingerprint_sees_one_bit():
    params, batch_stats = moved_backbone()
    before = classify.fingerprint({"backbone": params}, {"backbone": batch_stats})
    batch_stats["norm"]["mean"] = batch_stats["norm"]["mean"].copy()
    batch_stats["norm"]["mean"].view(np.uint32)[7] ^= 1
    assert classify.fingerprint({"backbone": params}, {"backbone": batch_stats}) != before


def one_step_by_hand(graphdef, fc, *, train, rates, decay):
    """A plain step w -= rate (g + decay w) from the same start: loss, params, batch_stats."""
    backbone, stats = moved_backbone()
    params, batch_stats, batch = {"backbone": backbone, "fc": fc}, {"backbone": stats}, batch_of()

    def objective(params):
        network, images = model.merge(graphdef, params, batch_stats), plain_images(0, batch)
        logits = network(images[:, None], train=True)[:, 0] if train else network(images, train=False)
        loss = -jax.nn.log_softmax(logits)[jnp.arange(16), batch["label"]].mean()
        return loss, model.batch_stats_of(network)

    (loss, new_stats), grads = jax.device_get(jax.jit(jax.value_and_grad(objective, has_aux=True))(params))
    for group, rate in rates.items():
        step = jax.tree.map(lambda p, g, rate=rate: p - rate * (g + decay * p), params[group], grads[group])
        params = params | {group: step}
    return loss, params, new_stats if train else batch_stats


def test_one_step_is_sgd_in_the_right_mode():
    """Frozen: running statistics. Fine-tuning: statistics of the batch, which move the running ones. Decay on all."""
    want_losses = []
    for weights, rates in (("freeze", {"fc": 0.2}), ("finetune", {"backbone": 0.01, "fc": 0.2})):
        graphdef, state, (loss,) = train(weights, rates, weight_decay=0.1)
        fc = jax.device_get(train(weights, rates, steps=0)[1].params["fc"])
        options = {"train": weights == "finetune", "rates": rates, "decay": 0.1}
        want_loss, params, batch_stats = one_step_by_hand(graphdef, fc, **options)
        np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, state.params, params)
        jax.tree.map(close, state.batch_stats, batch_stats)
        want_losses.append(want_loss)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.batch_stats["backbone"], moved_backbone()[1])
    assert all(jax.tree.leaves(moved))
    assert abs(want_losses[0] / want_losses[1] - 1) > 3e-4  # so the mode is seen


def test_training_images_are_the_box_and_its_mirror_image():
    """Half of them mirrored, and nothing else done to them."""
    batch, mesh = batch_of(), sharding.make_mesh(jax.devices()[:2])
    images = np.asarray(jax.jit(views.make_one_view(RECIPE, 0, mesh))(0, feed.put(batch, mesh)))
    extent = np.tile(np.array([9, 10], np.int32), (16, 1))
    box = np.tile(np.array([0, 0, 9, 10], np.float32), (16, 1, 1))
    alone = batch["canvas"][:, 2:11, 1:11]  # what lies outside the box must not be seen
    central = jax.jit(views.make_eval_views(size=8, mean=RECIPE.mean, std=RECIPE.std, mesh=mesh))
    plain = np.asarray(central(feed.put({"canvas": alone, "boxes": box, "extent": extent}, mesh)))
    as_is = np.abs(images - plain).max((1, 2, 3)) < 0.02  # of grey levels rounded or not, in units of 255 / 4
    mirrored = np.abs(images - plain[:, :, ::-1]).max((1, 2, 3)) < 0.02
    assert np.all(as_is ^ mirrored) and 3 < mirrored.sum() < 13


@pytest.mark.parametrize("weights,rates", [("freeze", {"fc": 0.1}), ("finetune", {"backbone": 0.01, "fc": 0.1})])
def test_one_and_eight_devices_agree(weights, rates):
    """The last batch smaller: its rows that count are on the first devices only."""
    options = {"steps": 3, "images_per_epoch": 28}
    (_, one, losses), (_, eight, losses_of_eight) = (train(weights, rates, devices=d, **options) for d in (1, 8))
    np.testing.assert_allclose(losses, losses_of_eight, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, one.params, eight.params)
    jax.tree.map(close, one.batch_stats, eight.batch_stats)


def test_labels_that_the_head_does_not_know_are_refused():
    """An unlabelled image, or one of a class beyond the head's, would only be counted as wrong."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    graphdef, state = classify.create_state(head(3, 3), classify.sgd({"fc": 0.1}), backbone=({}, {}), weights="freeze")
    step = classify.make_eval_step(graphdef, lambda batch: batch["features"], mesh=mesh)
    for label in (-1, 3):
        batch = {
            "features": np.ones((2, 3), np.float32),
            "label": np.array([0, label], np.int32),
            "mask": np.ones(2, bool),
            "index": np.array([7, 8]),
        }
        with pytest.raises(UserError, match=f"Validation image 8 has label {label}, and the classes of the head are 0"):
            classify.evaluate(step, state, [batch], mesh)


def test_errors_name_the_remedy():
    tx = classify.sgd({"fc": 0.1})
    with pytest.raises(UserError, match="config.weights is 'frozen'"):
        classify.create_state(small_classifier, tx, backbone=moved_backbone(), weights="frozen")
    params, batch_stats = moved_backbone()
    params["dense"]["kernel"] = params["dense"]["kernel"][:-1]
    with pytest.raises(UserError, match=r"dense.kernel is \(191, 16\) there and \(192, 16\) here; check config"):
        classify.create_state(small_classifier, tx, backbone=(params, batch_stats), weights="freeze")


def test_rows_that_fill_up_the_last_batch_do_not_count_in_what_is_shown():
    """12 examples in batches of 8: of the second batch the first 4, and the others are all wrong."""
    mesh, tx = sharding.make_mesh(jax.devices()[:2]), classify.sgd({"fc": 0.0})
    graphdef, state = classify.create_state(head(6, 3), tx, backbone=({}, {}), weights="freeze")
    features = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    fc = jax.device_get(state.params["fc"])
    logits = features @ fc["kernel"] + fc["bias"]
    label = np.where(np.arange(8) < 3, logits.argmax(1), logits.argmin(1)).astype(np.int32)  # 3 of the first 4 right
    options = {"weights": "freeze", "mesh": mesh, "images_per_epoch": 12}
    step = classify.make_train_step(graphdef, tx, lambda _, batch: batch["features"], **options)
    state, shown = jax.device_put(state, sharding.replicated(mesh)), []
    for _ in range(3):  # the third is the first of another epoch
        state, report = step(state, feed.put({"features": features, "label": label}, mesh))
        shown.append((float(report["train_top1"]), float(report["loss"])))
    cross_entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), label]
    whole, part = (3 / 8, cross_entropy.mean()), (3 / 4, cross_entropy[:4].mean())
    np.testing.assert_allclose(shown, [whole, part, whole], rtol=1e-5)
