"""Objectives and the paper's asymmetries inside the train step, and the rows of configs/paper.py."""

import dataclasses
import functools
import re

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from pooled import Pooled

import barlow_jax
from barlow_jax import experiment, export, model, objectives, pretrain, sharding
from barlow_jax.errors import UserError
from barlow_jax.fields import flat
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.objectives import mixed
from barlow_jax.results import published
from barlow_jax.training import feed
from barlow_jax.weights import files, naming
from configs import paper

ROWS, SIDE = 16, 12


def config_of(**changes):
    """The demo with a network of nothing."""
    config = barlow_jax.config("demo").unlock()
    config.update(projector=(16, 8), image_size=SIDE, batch_size=ROWS, epochs=4, warmup_epochs=1)
    config.lejepa.slices = 4
    config.update(changes)
    experiment.check(config)
    return config


def made(config, devices=1, **options):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    parts = {"channels": 3, "num_classes": 10, "steps_per_epoch": 4, "mesh": mesh} | options
    return experiment.method(config, **parts)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(0, 4, (ROWS, 2, 2)), rng.uniform(9, 14, (ROWS, 2, 2))], -1)
    canvas = rng.integers(0, 255, (ROWS, 16, 16, 3), np.uint8)
    label = np.arange(ROWS, dtype=np.int32) % 10
    return {"canvas": canvas, "boxes": boxes.astype(np.float32), "index": label, "label": label}


@pytest.mark.parametrize("name", ["barlow_twins", "nt_xent", "lejepa"])
def test_a_step_shows_the_terms_of_its_objective(name):
    config = config_of(objective=name, predictor=(12, 8), stop_gradient=True)
    method, state = made(config, abstract=True)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch())
    after, metrics = jax.eval_shape(functools.partial(pretrain.train_step, method), state, shapes)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    terms = objectives.OBJECTIVES[name].terms
    assert {"loss", "grad_norm", "z_std", "probe_accuracy", *terms} <= metrics.keys()
    assert not {*metrics} & ({term for one in objectives.OBJECTIVES.values() for term in one.terms} - {*terms})
    expected = experiment.expected_loss(config, 8)
    assert expected.keys() == ({"loss", "on_diag", "off_diag"} if name == "barlow_twins" else {*()})


def of_pixels(devices, changes):
    config = config_of(**changes)
    with config.unlocked():
        config.arch = "pixels"
    return config, *made(config, devices)


def two_steps(devices, changes):
    """Of a projector on pixels, whose views come with the batch."""
    config, method, state = of_pixels(devices, changes)
    if state.loss_scale:
        state = state._replace(loss_scale=state.loss_scale | {"scale": jnp.float32(256)})
    views_of = objectives.OBJECTIVES[config.objective].views_of or (lambda views_of, keys: views_of)
    views_of = views_of(lambda step, batch: batch["views"], lambda step: method.draw(step)["key"])
    method = dataclasses.replace(method, views_of=views_of)
    state = jax.device_put(state, method.state_sharding)
    views = np.random.default_rng(0).normal(size=(ROWS, 2, SIDE, SIDE, 3)).astype(np.float32)
    given = feed.put({"views": views, "label": np.arange(ROWS, dtype=np.int32) % 10}, method.mesh)
    step, found = pretrain.make_train_step(method), []
    for _ in range(2):
        state, metrics = step(state, given)
        found.append(jax.device_get(metrics))
    return jax.device_get(state), found


def test_a_step_of_three_views_is_the_mean_over_pairs_in_micro_batches_too():
    """Loss and what is watched against numpy in float64."""
    views, changes = {"number": 3}, {"projector": (6,), "microbatches": 2, "reference_world_size": 1}
    config, method, state = of_pixels(8, changes | {"views": views})
    method = dataclasses.replace(method, views_of=lambda step, batch: batch["views"])
    images = np.random.default_rng(0).normal(size=(ROWS, 3, SIDE, SIDE, 3)).astype(np.float32)
    kernel = np.asarray(state.params["projector"]["linears"]["0"]["kernel"], np.float64)
    given = feed.put({"views": images, "label": np.arange(ROWS, dtype=np.int32) % 10}, method.mesh)
    state = jax.device_put(state, method.state_sharding)
    after, metrics = jax.device_get(pretrain.make_train_step(method)(state, given))
    z = images.reshape(ROWS, 3, -1).astype(np.float64) @ kernel
    u = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    on, off = np.mean(
        [
            (((1 - np.diag(c)) ** 2).sum(), (c[~np.eye(6, dtype=bool)] ** 2).sum())
            for c in (u[:, i].T @ u[:, k] / ROWS for i, k in ((0, 1), (0, 2), (1, 2)))
        ],
        axis=0,
    )
    np.testing.assert_allclose([metrics["on_diag"], metrics["off_diag"]], [on, off], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], on + config.lambd * off, rtol=1e-4)
    np.testing.assert_allclose(metrics["z_std"], z[:, :2].std(0).mean(), rtol=1e-4)
    # The running statistics of the loss's own BatchNorm move for one view after the other.
    mean = 0.1 * (0.81 * z[:, 0] + 0.9 * z[:, 1] + z[:, 2]).mean(0)
    np.testing.assert_allclose(after.batch_stats["bn"]["mean"], mean, rtol=1e-3, atol=1e-5)


def in_a_plain_loop(method, state, large, small, parts, lambd):
    """Loss, its gradient, and running statistics of a step whose views pass the network one by one."""
    rows = [np.arange(k, ROWS, parts) for k in range(parts)]
    images = [*large.swapaxes(0, 1), *small.swapaxes(0, 1)]

    def loss(params):
        z, moved = [jnp.zeros((ROWS, 6)) for _ in images], []
        for of_part in rows:
            network = model.merge(method.graphdef, params, state.batch_stats)
            for view, one in enumerate(images):
                z[view] = z[view].at[of_part].set(network(one[of_part, None], train=True)[1][:, 0])
            moved.append(model.batch_stats_of(network)["backbone"]["norms"]["0"])
        total = [barlow_twins_loss(z[i], z[k], lambd=lambd)[0] for i in range(2) for k in range(len(z)) if i != k]
        return sum(total) / len(total), jax.tree.map(lambda *several: sum(several) / parts, *moved)

    (value, moved), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    return value, moved, optax.tree.norm(gradient)


@pytest.mark.parametrize(("devices", "parts"), [(4, 2), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_a_multi_crop_step_is_a_plain_loop_over_views_and_pairs(monkeypatch, devices, parts):
    """Two views and two small ones; in micro-batches, which have batch statistics of their own."""
    monkeypatch.setitem(model.BACKBONES, "pooled", Pooled)
    config = config_of(projector=(6,), microbatches=parts, views={"small": 2, "small_size": 8}, arch="resnet18")
    with config.unlocked():
        config.arch = "pooled"
    method, state = made(config, devices)
    method = dataclasses.replace(method, views_of=lambda step, batch: (batch["large"], batch["small"]))
    rng = np.random.default_rng(0)
    large = rng.normal(size=(ROWS, 2, SIDE, SIDE, 3)).astype(np.float32)
    small = rng.normal(size=(ROWS, 2, 8, 8, 3)).astype(np.float32)
    want, moved, norm = in_a_plain_loop(method, state, large, small, parts, config.lambd)
    given = feed.put({"large": large, "small": small, "label": np.arange(ROWS, dtype=np.int32) % 10}, method.mesh)
    state = jax.device_put(state, method.state_sharding)
    after, metrics = jax.device_get(pretrain.make_train_step(method)(state, given))
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-3)
    for name in ("mean", "var"):
        np.testing.assert_allclose(after.batch_stats["backbone"]["norms"]["0"][name], moved[name], rtol=1e-4, atol=1e-6)


def test_steps_on_four_devices_are_those_of_one():
    """With a third view, its draw of each step, micro-batches and float16's loss scale."""
    changes = {"objective": "mixed_barlow_twins", "microbatches": 2, "precision": "float16"}
    (one, first), (many, again) = (two_steps(devices, changes) for devices in (1, 4))
    assert int(one.step) == 2 and int(one.health["skipped"]) == 0
    for a, b in zip(first, again, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-3)
        np.testing.assert_allclose(a["mixed"], b["mixed"], rtol=2e-2)
    before = of_pixels(1, changes)[2].params["projector"]
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, before, many.params["projector"])))


def test_keys_are_of_the_seed_and_the_step():
    config = config_of(objective="lejepa")
    drawn, again, other = (
        [jax.random.key_data(experiment.objective(one)[1](step)["key"]).tolist() for step in (3, 4)]
        for one in (config, config, config_of(objective="lejepa", seed=1))
    )
    assert drawn == again and len({*map(tuple, drawn + other)}) == 4
    assert experiment.objective(config_of())[1](3) == {}


def test_the_third_view_is_mixed_of_neighbours(x64):
    views = np.random.default_rng(0).normal(size=(5, 2, 3, 3, 1))
    key = jax.random.key(1)
    three = mixed.with_mixture(lambda step, batch: jnp.asarray(views), lambda step: key)(0, None)
    a = float(mixed.share(key))
    assert 0 < a < 1
    np.testing.assert_array_equal(three[:, :2], views)
    for b in range(5):
        np.testing.assert_allclose(three[b, 2], a * views[b, 0] + (1 - a) * views[b - 1, 1], rtol=1e-7)


# The network.


def of_widths(widths, **options):
    backbone = model.make_backbone("pixels", image_size=4)
    network = model.BarlowTwins(backbone, widths, rngs=nnx.Rngs(0), **options)
    return network, jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 4, 4, 3)), jnp.float32)


def trained(network, images):
    """The network after a pass of training, features, embeddings."""
    graphdef, *trees = model.split(network)

    @jax.jit
    def forward(params, batch_stats):
        network = model.merge(graphdef, params, batch_stats)
        out = network(images, train=True)
        return model.batch_stats_of(network), out

    batch_stats, (features, z) = forward(*trees)
    return model.merge(graphdef, trees[0], batch_stats), features, z


def test_a_predictor_is_of_the_first_view_and_of_training_alone():
    """Linear, BatchNorm, ReLU, Linear, whose batch is the first view by itself."""
    network, images = of_widths((10, 8), predictor=(7, 8))
    network, _, z = trained(network, images)
    plain, _, without = trained(of_widths((10, 8))[0], images)
    np.testing.assert_array_equal(z[:, 1], without[:, 1])
    first, second = (np.asarray(linear.kernel[...]) for linear in network.predictor.linears)
    assert network.predictor.linears[0].bias is None
    hidden = np.asarray(without[:, 0]) @ first
    hidden = np.maximum((hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5), 0)
    np.testing.assert_allclose(z[:, 0], hidden @ second, rtol=2e-4, atol=1e-5)
    mean = network.predictor.norms[0].mean[...]
    np.testing.assert_allclose(mean, 0.1 * (np.asarray(without[:, 0]) @ first).mean(0), rtol=1e-4, atol=1e-6)
    # The running statistics for the loss's own BatchNorm are of what the loss sees.
    np.testing.assert_allclose(network.bn.mean[...], 0.09 * z[:, 0].mean(0) + 0.1 * z[:, 1].mean(0), atol=1e-6)
    seen = [jax.jit(lambda x, network=one: network(x, train=False)[1])(images[:, 0]) for one in (network, plain)]
    np.testing.assert_array_equal(*seen)


def test_a_projector_without_batch_norm_is_its_matrices_and_relus():
    network, images = of_widths((10, 9, 8), norm=False)
    network, features, z = trained(network, images)
    a, b, c = (np.asarray(linear.kernel[...]) for linear in network.projector.linears)
    want = np.maximum(np.maximum(np.asarray(features) @ a, 0) @ b, 0) @ c
    np.testing.assert_allclose(z, want, rtol=1e-4, atol=1e-5)
    _, params, batch_stats = model.split(network)
    assert params["projector"].keys() == {"linears"} and batch_stats.keys() == {"bn"}


def test_the_official_layout_has_neither_predictor_nor_a_bare_projector():
    network, _ = of_widths((10, 8), predictor=(7, 8))
    _, params, batch_stats = model.split(network)
    config = {"arch": "resnet50", "stem": "imagenet"}
    source = export.Source("runs/x", files.Weights("pretraining", params, batch_stats), config, 3)
    with pytest.raises(UserError, match="runs/x has a predictor or no BatchNorm in its projector; take --"):
        export.check(source, "official")
    assert "predictor.3.weight" in naming.state_dict(params, batch_stats)
    del params["predictor"]
    with pytest.raises(UserError, match="runs/x has a predictor or no BatchNorm in its projector"):
        export.check(source._replace(config=config | {"projector_batch_norm": False}), "official")
    export.check(source, "official")


# The paper's rows.


def test_the_rows_of_the_paper_are_its_fields_and_numbers():
    page = (commands.ROOT / "docs" / "objectives.md").read_text()
    rows = paper.rows(barlow_jax.config("barlow_twins"))
    assert published.ABLATIONS.keys() <= rows.keys()
    base = flat(barlow_jax.config("barlow_twins").to_dict() | {"epochs": 300})
    for row, fields in rows.items():
        config = flat(barlow_jax.config(f"paper:{row}").to_dict())
        assert {name for name in base if config[name] != base[name]} <= {*fields} <= {*base}
        assert all(config[name] == value for name, value in fields.items())
    for row in [row for row in rows if row.startswith("table")]:
        top1, top5 = published.ABLATIONS[row]
        assert re.search(rf"\| `{row}` \|.*\| {100 * top1:.1f} / {100 * top5:.1f} \|", page), row
    with pytest.raises(UserError, match="table5:none is unknown; take one of table5:baseline"):
        barlow_jax.config("paper:table5:none")


def test_the_page_has_every_objective_with_a_line_that_trains_it():
    page = (commands.ROOT / "docs" / "objectives.md").read_text()
    for name, chosen in objectives.OBJECTIVES.items():
        assert f"\n## {name}\n" in page and f"--config.objective={name}" in page, name
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert all(f"`{term}`" in section for term in chosen.terms), name
        assert all(f"config.{field}" in section for field in chosen.reads.values() if field != "loss_form"), name
