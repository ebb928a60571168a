"""The train step against the official model, optimiser and DDP, and against itself on several devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import official
import optax
import pytest
from flax import nnx

from barlow_jax import augment, model, optim, pretrain, sharding, views
from barlow_jax.errors import UserError
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.run.checkpoint import Checkpoints
from barlow_jax.training import feed, microbatches

DTYPES = {"float64": jnp.float64, "float32": jnp.float32}


def minitrain(golden, name, dtype):
    arrays, described = golden("minitrain")
    config = described["configs"][name]
    network, params, batch_stats = official.official_model(
        described["state_dict_order"], described["projector"], config["weights_seed"], dtype, zero_init_residual=True
    )
    scale = config["B"] / 256
    rates = [optim.warmup_cosine(config[k] * scale, 10, described["epochs"]) for k in ("lw", "lb")]
    tx = optim.make_optimizer("lars", *rates, weight_decay=config["wd"])
    views = [official.two_views(i["seed"], config["B"], config["noise"], dtype) for i in config["inputs"]]
    losses, norms, state = official.run(network, params, batch_stats, tx, views, lambd=config["lambd"])
    want = {k.removeprefix(f"{name}.f64."): v for k, v in arrays.items() if k.startswith(f"{name}.f64.")}
    return described, losses, norms, state, want


@pytest.mark.slow  # the five of four ranks below are the same arithmetic, and more of it
@pytest.mark.parametrize("name", ["fixed_batch", "gentle"])
def test_fourteen_official_steps_in_float64(golden, x64, name):
    described, losses, norms, state, want = minitrain(golden, name, jnp.float64)
    np.testing.assert_allclose(losses, want["losses"], rtol=1e-9)
    np.testing.assert_allclose(norms, np.linalg.norm(want["grad_norms"], axis=1), rtol=1e-8)
    momentum = state.opt_state[1][1].trace
    for tree, names, kind in [
        (state.params, "param_names", "param"),
        (momentum, "param_names", "mu"),
        (state.batch_stats, "buffer_names", "buffer"),
    ]:
        got_norms, got_firsts = official.norms_and_firsts(tree, described[names])
        np.testing.assert_allclose(got_norms, want[f"{kind}_norms"], rtol=1e-8, atol=1e-12, err_msg=kind)
        np.testing.assert_allclose(got_firsts, want[f"{kind}_first4"], rtol=1e-6, atol=1e-9, err_msg=kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixed_batch", "gentle"])
def test_fourteen_official_steps_in_float32(golden, name):
    described, losses, _, state, want = minitrain(golden, name, jnp.float32)
    np.testing.assert_allclose(losses[:8], want["losses"][:8], rtol=1e-4)
    np.testing.assert_allclose(losses, want["losses"], rtol=5e-2)
    got, _ = official.norms_and_firsts(state.params, described["param_names"])
    np.testing.assert_allclose(got, want["param_norms"], rtol=1e-3, atol=1e-6)


# The one that has all of it, ranks and devices, is in the suite; the others are in the slow tier.
_RANKS = [pytest.param(1, 8, marks=pytest.mark.slow), pytest.param(2, 1, marks=pytest.mark.slow), (4, 2)]


@pytest.mark.parametrize("world_size,devices", _RANKS)
def test_five_official_ddp_steps(golden, x64, world_size, devices):
    """W official ranks, reproduced on any number of our devices through reference_world_size."""
    arrays, described, config, setup = official.ddp_setup(golden, world_size)
    losses, _, state = official.run(*setup, lambd=config["lambd"], devices=devices)
    np.testing.assert_allclose(losses, arrays[f"W{world_size}.losses_5_steps"], rtol=1e-9)
    norms, firsts = official.norms_and_firsts(state.params, described["param_names"])
    np.testing.assert_allclose(norms, arrays[f"W{world_size}.param_norms_after_5"], rtol=1e-8)
    np.testing.assert_allclose(firsts, arrays[f"W{world_size}.param_first4_after_5"], rtol=1e-6, atol=1e-9)
    if world_size > 1:
        mu, _ = official.norms_and_firsts(state.opt_state[1][1].trace, described["param_names"])
        np.testing.assert_allclose(mu, arrays[f"W{world_size}.mu_norms_after_5"], rtol=1e-8)


def test_leaving_the_world_size_out_is_visible(golden):
    """The check above can fail: without the division, which W = 1 has not, W = 4 is not reproduced."""
    arrays, _ = golden("ddp")
    assert np.abs(arrays["W1.losses_5_steps"] / arrays["W4.losses_5_steps"] - 1).max() > 0.1


def small_network(dtype=jnp.float32, widths=(32, 32)):
    backbone = model.make_backbone("convnet", image_size=16, dtype=dtype)
    return model.BarlowTwins(backbone, widths, dtype=dtype, rngs=nnx.Rngs(0))


def test_probe_learns_and_leaves_the_network_alone():
    rng = np.random.default_rng(0)
    label = np.arange(32, dtype=np.int32) % 4
    views = (label[:, None, None, None, None] - 1.5 + 0.3 * rng.normal(size=(32, 2, 16, 16, 3))).astype(np.float32)
    mesh = sharding.make_mesh(jax.devices()[:1])
    tx, probe_tx = optim.make_optimizer("adamw", 1e-3, 1e-3), optim.make_optimizer("sgd", 0.1, 0.1)

    def train(label, **probe):
        graphdef, state = pretrain.create_state(small_network(), tx, **probe)
        step = official.step_on_views(graphdef, tx, mesh, lambd=0.005, probe_tx=probe.get("probe_tx"))
        state = jax.device_put(state, sharding.replicated(mesh))
        for _ in range(30):
            state, metrics = step(state, feed.put({"views": views, "label": label}, mesh))
        return state, metrics

    with_probe, metrics = train(label, num_classes=4, probe_tx=probe_tx)
    without, _ = train(label)
    assert metrics["probe_accuracy"] > 0.9
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), with_probe.params, without.params)
    unlabelled, metrics = train(np.full(32, -1, np.int32), num_classes=4, probe_tx=probe_tx)
    assert metrics["probe_loss"] == 0 and not np.any(unlabelled.probe["params"]["kernel"])


class Pixels(nnx.Module):
    """The backbone that costs nothing."""

    num_features = 12

    def __init__(self, *, rngs):
        del rngs

    def __call__(self, images, *, train):
        return images.reshape(*images.shape[:2], self.num_features)


@pytest.mark.parametrize(("form", "devices"), [("direct", 4), ("dual", 1)])
def test_a_smaller_batch_is_divided_by_the_nominal_size(x64, form, devices):
    """16, 12 and 16 rows, against the same steps with the lines of the official code written out."""
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(rows, 2, 2, 2, 3)) for rows in (16, 12, 16)]
    tx = optim.make_optimizer("sgd", 0.01, 0.01)
    network = model.BarlowTwins(Pixels, (32, 32), dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, *arrays = model.split(network)
    params, batch_stats = jax.tree.map(lambda a: a.astype(jnp.float64), arrays)
    got, _, state = official.run(
        network, params, batch_stats, tx, views, lambd=0.01, devices=devices, form=form, batch_size=16
    )

    def written_out(params, batch_stats, views):
        network = model.merge(graphdef, params, batch_stats)
        _, z = network(views, train=True)
        z = (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5)
        c = z[:, 0].T @ z[:, 1] / 16
        on_diag = ((jnp.diagonal(c) - 1) ** 2).sum()
        return on_diag + 0.01 * (c**2 * (1 - jnp.eye(len(c)))).sum(), model.batch_stats_of(network)

    opt_state, losses, gradient = tx.init(params), [], jax.jit(jax.value_and_grad(written_out, has_aux=True))
    for batch in views:
        (loss, batch_stats), grads = gradient(params, batch_stats, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    np.testing.assert_allclose(got, losses, rtol=1e-10)
    for got, want in ((state.params, params), (state.batch_stats, batch_stats)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, want)


def test_scale_loss_scales_the_gradient_and_not_the_metric():
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(16, 2, 16, 16, 3)).astype(np.float32)]
    tx = optim.make_optimizer("sgd", 0.0, 0.0)
    network = small_network()
    _, params, batch_stats = model.split(network)
    one, tenth = (official.run(network, params, batch_stats, tx, views, lambd=0.005, scale_loss=s) for s in (1.0, 0.1))
    np.testing.assert_allclose(one[0], tenth[0], rtol=1e-6)
    np.testing.assert_allclose(one[1], 10 * tenth[1], rtol=1e-5)


@pytest.fixture(scope="module")
def on_one_device():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(4, 32, 1, 16, 16, 3))
    views = list((base + 0.5 * rng.normal(size=(4, 32, 2, 16, 16, 3))).astype(np.float32))
    network = small_network(widths=(256, 256))
    _, params, batch_stats = model.split(network)
    tx = optim.make_optimizer("lars", 0.2, 0.01)
    args = (network, params, batch_stats, tx, views)
    return args, official.run(*args, lambd=0.01)


@pytest.mark.parametrize(("devices", "split"), [pytest.param(2, False, marks=pytest.mark.slow), (8, True)])
def test_float32_on_several_devices(on_one_device, devices, split):
    """Stated tolerances after four steps: losses 1e-5, gradient norms 5e-5 (a ReLU near zero may open on one side
    alone), parameters and statistics 1e-4 of the largest of their tensor; the state whole or split over the devices.
    """
    args, (losses, norms, state) = on_one_device
    got_losses, got_norms, got = official.run(*args, lambd=0.01, devices=devices, split=split)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(got_norms, norms, rtol=5e-5)
    for kind in ("params", "batch_stats", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
            jax.device_get(getattr(got, kind)),
            jax.device_get(getattr(state, kind)),
        )
    kernel = got.params["projector"]["linears"]["1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == ((256, 32) if split else (256, 256))


def collectives(text, kind):
    """The shapes that a compiled program's collective operations of this kind return."""
    lines = re.findall(rf"= (.*?) {kind}(?:-start)?\(", text)
    return [tuple(map(int, dims.split(","))) for line in lines for dims in re.findall(r"\w\[([\d,]+)\]", line)]


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_nothing_large_travels_between_eight_devices(n):
    """No all-reduce of D x D, and no all-gather but of embeddings, whole and in micro-batches."""
    rows, width, mesh = 64, 96, sharding.make_mesh()
    tx = optim.make_optimizer("lars", 0.2, 0.01)
    graphdef, state = pretrain.create_state(small_network(widths=(48, width)), tx)
    batch = {"canvas": ((rows, 24, 24, 3), np.uint8), "boxes": ((rows, 2, 4), np.float32), "label": ((rows,), np.int32)}
    batch = {name: jax.ShapeDtypeStruct(*of) for name, of in batch.items()}
    views_of = views.make_views(augment.Recipe(size=16), 0, mesh, microbatches=n)
    loss = functools.partial(barlow_twins_loss, lambd=0.01)
    method = pretrain.Method(graphdef, tx, views_of, loss, mesh, forward=microbatches.make_forward(n))
    step = pretrain.make_train_step(method)
    text = step.lower(state, batch).compile().as_text()
    reduced, gathered = collectives(text, "all-reduce"), collectives(text, "all-gather")
    assert {(48, width), (width, 48)} & {*reduced}  # a gradient: the pattern finds what is there
    assert (width, width) not in reduced and f"f32[{width},{width}]" not in text
    assert gathered and max(map(np.prod, gathered)) <= rows * width


def test_a_state_goes_on_with_what_it_is_given():
    """All of it: weights, statistics, momentum, step; the probe is as fresh as it was."""
    _, state = pretrain.create_state(small_network(), optim.make_optimizer("lars", 0.2, 0.01))
    params, batch_stats = jax.tree.map(lambda a: a + 1, (state.params, state.batch_stats))
    momentum = jax.tree.map(lambda a: a + 2, state.params)
    new = pretrain.going_on(state, params, batch_stats, momentum, 7)
    assert new.step == 7 and new.step.dtype == state.step.dtype
    for got, want in ((new.params, params), (new.batch_stats, batch_stats), (new.opt_state[1][1].trace, momentum)):
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_checkpoints_go_from_split_to_whole_and_to_other_devices(tmp_path):
    _, state = pretrain.create_state(small_network(widths=(256, 256)), optim.make_optimizer("lars", 0.2, 0.01))
    meshes = {n: sharding.make_mesh(jax.devices()[:n]) for n in (2, 8)}
    for (n, split), (m, then) in [((8, True), (2, False)), ((2, False), (8, True)), ((2, True), (8, True))]:
        with Checkpoints(tmp_path / f"{n}{split}", asynchronous=False) as checkpoints:
            checkpoints.save(1, jax.device_put(state, sharding.of_state(state, meshes[n], split=split)))
            shardings = sharding.of_state(state, meshes[m], split=then)
            like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
            restored, _ = checkpoints.restore(like)
        assert jax.tree.map(lambda x: x.sharding, restored) == shardings
        jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_checkpoint_without_the_record_of_health_is_refused(tmp_path):
    _, state = pretrain.create_state(small_network(), optim.make_optimizer("sgd", 0.2, 0.01))
    with Checkpoints(tmp_path, asynchronous=False) as checkpoints:
        checkpoints.save(1, state._replace(health={}))
        with pytest.raises(UserError, match="health.* is absent there and .*use the config it was made with"):
            checkpoints.restore(state)


def test_the_probe_counts_labelled_rows_alone():
    """3 of 8 rows, two views each: the means are over these 6."""
    rng = np.random.default_rng(0)
    features, label = rng.normal(size=(8, 2, 5)), np.array([-1, 2, -1, 0, -1, -1, 1, -1])
    head = {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)}
    loss, shown = pretrain.linear_probe(head, jnp.asarray(features), jnp.asarray(label))
    known = label >= 0
    logits, targets = (features @ head["kernel"] + head["bias"])[known], np.repeat(label[known], 2)
    logits = logits.reshape(-1, 3)
    cross_entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), targets]
    np.testing.assert_allclose(loss, cross_entropy.mean(), rtol=1e-5)
    assert shown["probe_loss"] == loss
    np.testing.assert_allclose(shown["probe_accuracy"], (logits.argmax(1) == targets).mean(), rtol=1e-6)


def test_a_look_at_a_batch_is_the_correlation_of_its_two_views():
    rng = np.random.default_rng(0)
    views = rng.normal(size=(16, 2, 2, 2, 3)).astype(np.float32)
    mesh = sharding.make_mesh(jax.devices()[:2])
    network = model.BarlowTwins(Pixels, (6, 5), rngs=nnx.Rngs(0))
    tx = optim.make_optimizer("sgd", 0.1, 0.1)
    graphdef, state = pretrain.create_state(network, tx)
    _, z = network(jnp.asarray(views), train=True)

    def told(step, batch):
        return batch["views"], {"flip": batch["views"][..., 0]}

    method = pretrain.Method(graphdef, tx, None, barlow_twins_loss, mesh, told_views_of=told)
    batch = {"views": views, "index": np.arange(16, dtype=np.int32), "boxes": views[:, :, 0, 0]}
    shown = pretrain.make_inspect_step(method)(state, batch)
    want = np.corrcoef(z[:, 0], z[:, 1], rowvar=False)[:5, 5:]
    np.testing.assert_allclose(shown["c"], want, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(shown["views"], views[:8])
    np.testing.assert_array_equal(shown["draws"]["flip"], views[:8, ..., 0])
    np.testing.assert_array_equal(shown["boxes"], views[:8, :, 0, 0])
    agreement, diagonal = shown["agreement"], np.diagonal(want)
    np.testing.assert_allclose(agreement["alignment"], diagonal.mean(), rtol=1e-3)
    np.testing.assert_allclose(agreement["c_on_diag"], ((1 - diagonal) ** 2).sum(), rtol=1e-3)
    np.testing.assert_allclose(agreement["c_off_diag"], (want**2).sum() - (diagonal**2).sum(), rtol=1e-3)
    assert len(shown["index"]) == 16 and shown["width"] == 5
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(shown))
