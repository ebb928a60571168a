"""Micro-batches against the undivided step and against a plain loop, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax import model, sharding
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.networks import resnet
from barlow_jax.training import microbatches

ROWS, SIDE, PARTS = 32, 8, 4


class Frozen(model.BarlowTwins):
    """With batch norm in evaluation mode, as in frozen layers."""

    def __call__(self, images, *, train):
        features = self.backbone(images, train=False)
        z = self.projector(features, train=False)
        self.bn(z, train=True)
        return features, z


class NoNorm(nnx.Module):
    """A backbone without batch norm."""

    num_features = 24

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), strides=4, param_dtype=jnp.float64, rngs=rngs)
        self.dense = nnx.Linear(6 * (SIDE // 4) ** 2, 24, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, images, *, train):
        x = nnx.relu(self.conv(images))
        return self.dense(x.reshape(*x.shape[:-3], -1))


class Short(nnx.Module):
    """One residual block with a shortcut, whose batch norms stand side by side, recomputed in the backward pass."""

    num_features = 12

    def __init__(self, *, dtype, rngs):
        self.block = resnet.BasicBlock(3, 12, 2, base_width=64, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        return nnx.remat(lambda block, x: block(x, train=train))(self.block, images).mean((-3, -2))


def networks():
    short = functools.partial(Short, dtype=jnp.float64)
    return {
        "residual": (model.BarlowTwins, short, (24, 40)),
        "frozen": (Frozen, short, (24, 40)),
        "absent": (model.BarlowTwins, NoNorm, (40,)),
        "predictor": (functools.partial(model.BarlowTwins, predictor=(12, 24)), NoNorm, (32, 24)),
    }


def setup(name):
    kind, backbone, widths = networks()[name]
    graphdef, *trees = model.split(kind(backbone, widths, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    params, batch_stats = jax.tree.map(lambda x: x.astype(jnp.float64), trees)
    # Running statistics of some step in the middle.
    batch_stats = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), batch_stats)
    rng = np.random.default_rng(0)
    base, noise = rng.normal(size=(ROWS, 1, SIDE, SIDE, 3)), rng.normal(size=(ROWS, 2, SIDE, SIDE, 3))
    return graphdef, params, batch_stats, base + 0.5 * noise


def loss_of(z, mesh=None):
    return barlow_twins_loss(z[:, 0], z[:, 1], lambd=0.01, mesh=mesh)[0]


def results(forward, graphdef, params, batch_stats, views, devices=1):
    """Loss, gradients, running statistics and features of one step."""
    mesh = sharding.make_mesh(jax.devices()[:devices])

    def step(params, batch_stats, views):
        features, z, moved, pull_back = forward(graphdef, params, batch_stats, views)
        loss, dz = jax.value_and_grad(loss_of)(z, mesh)
        return {"loss": loss, "grads": pull_back(dz), "batch_stats": moved, "features": features, "z": z}

    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return jax.device_get(jax.jit(step, in_shardings=(whole, whole, rows))(params, batch_stats, views))


def assert_close(got, want, rtol=1e-9):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13 + rtol * np.abs(b).max()), got, want
    )


@pytest.mark.parametrize(("name", "devices"), [pytest.param("frozen", 8, marks=pytest.mark.slow), ("absent", 1)])
def test_without_batch_statistics_micro_batches_are_the_undivided_step(x64, name, devices):
    args = setup(name)
    got = results(microbatches.make_forward(PARTS, "micro"), *args, devices=devices)
    assert_close(got, results(microbatches.whole, *args))


def test_micro_statistics_are_those_of_a_plain_loop(x64):
    """Each micro-batch through the network by itself; one loss over all; running statistics averaged."""
    graphdef, params, batch_stats, views = args = setup("residual")

    def loop(params):
        outputs = []
        for k in range(PARTS):
            network = model.merge(graphdef, params, batch_stats)
            outputs.append((*network(views[k::PARTS], train=True), model.batch_stats_of(network)))
        features, z, moved = zip(*outputs, strict=True)
        rows = np.argsort(np.concatenate([np.arange(ROWS)[k::PARTS] for k in range(PARTS)]))
        features, z = (jnp.concatenate(x)[rows] for x in (features, z))
        return loss_of(z), {"features": features, "z": z, "moved": moved}

    (loss, out), grads = jax.jit(jax.value_and_grad(loop, has_aux=True))(params)
    got = results(microbatches.make_forward(PARTS, "micro"), *args, devices=8)
    want = {"loss": loss, "grads": grads, "features": out["features"], "z": out["z"]}
    assert_close({key: got[key] for key in want}, want)
    bn = got["batch_stats"].pop("bn")
    mean = jax.tree.map(lambda *s: np.mean(s, 0), *out["moved"])
    assert_close(got["batch_stats"], {key: mean[key] for key in got["batch_stats"]})
    # The one inside the loss sees the whole batch.
    z = np.asarray(out["z"])
    want = {"mean": batch_stats["bn"]["mean"], "var": batch_stats["bn"]["var"]}
    for view in range(2):
        want["mean"] = 0.9 * want["mean"] + 0.1 * z[:, view].mean(0)
        want["var"] = 0.9 * want["var"] + 0.1 * z[:, view].var(0, ddof=1)
    assert_close(bn, want)
    # And they are not those of the undivided step.
    assert abs(got["loss"] / results(microbatches.whole, *args)["loss"] - 1) > 1e-3


@pytest.mark.slow
def test_shared_statistics_make_the_undivided_step(x64):
    """All of it: loss, gradients through the statistics, running statistics."""
    args = setup("residual")
    got = results(microbatches.make_forward(PARTS, "batch"), *args, devices=8)
    assert_close(got, results(microbatches.whole, *args), rtol=1e-8)


def test_the_shared_statistics_of_a_predictor_are_of_one_view(x64):
    """Those it starts from are like those it finds, or there would be no program."""
    graphdef, *args = setup("predictor")
    forward = functools.partial(microbatches.make_forward(PARTS, "batch"), graphdef)
    shapes = jax.eval_shape(lambda *args: forward(*args)[:3], *args)
    assert shapes[1].shape == (ROWS, 2, 24) and jax.tree.structure(shapes[2]) == jax.tree.structure(args[1])
    moments = model.moments_at_start(graphdef, *args[:2], 2)
    assert {path: m.shape for path, m in moments.items()} == {
        "projector.norms.0": (2, 2, 32),
        "predictor.norms.0": (2, 1, 12),
        "bn": (2, 2, 24),
    }


def test_the_search_for_shared_statistics_ends():
    """Two layers one after the other settle; nan, which never equals itself, does not go on for ever."""

    def seen(s):
        return {"a": jnp.full(3, 2.0), "b": jnp.tanh(s["a"])}

    start = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    np.testing.assert_array_equal(microbatches.settled(seen, start)["b"], np.tanh(np.full(3, 2.0, np.float32)))
    assert np.isnan(microbatches.settled(lambda s: {"a": s["a"] * np.nan, "b": s["b"]}, start)["a"]).all()
