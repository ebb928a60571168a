"""LARS, the schedule and the groups against the official code."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax import optim, sharding

OPTIONS = {"default": {}, "wd1e-2": {}, "wd0": {}, "nofilter": {"exclude_biases": False}}


def trajectory(golden, name, dtype):
    arrays, described = golden("lars")
    config = described["configs"][name]
    names = [p[0] for p in described["params"]]
    rates = [jnp.asarray(described[k], dtype) for k in ("lr_weights", "lr_biases")]
    tx = optim.make_optimizer(
        "lars",
        lambda step: rates[0][step],
        lambda step: rates[1][step],
        weight_decay=config["weight_decay"],
        momentum=config["momentum"],
        eta=config["eta"],
        **OPTIONS[name],
    )
    params = {n: jnp.asarray(arrays[f"init.{n}"], dtype) for n in names}
    state, history = tx.init(params), []
    for step in range(len(rates[0])):
        grads = {n: jnp.asarray(arrays[f"grad.{n}"][step], dtype) for n in names}
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state[1][1].trace))
    want = [
        [{n: arrays[f"{name}.f64.{kind}.{n}"][step] for n in names} for kind in ("param", "mu")]
        for step in range(len(history))
    ]
    return history, want


@pytest.mark.parametrize("name", OPTIONS)
def test_lars_float64_equals_official(golden, x64, name):
    history, want = trajectory(golden, name, jnp.float64)
    for (params, mu), (want_params, want_mu) in zip(history, want, strict=True):
        for n in params:
            np.testing.assert_allclose(params[n], want_params[n], rtol=1e-9, atol=1e-15, err_msg=n)
            np.testing.assert_allclose(mu[n], want_mu[n], rtol=1e-9, atol=1e-15, err_msg=n)


@pytest.mark.parametrize("name", OPTIONS)
def test_lars_float32_is_within_rounding(golden, name):
    history, want = trajectory(golden, name, jnp.float32)
    for (params, _), (want_params, _) in zip(history, want, strict=True):
        for n in params:
            assert np.abs(params[n] - want_params[n]).max() <= 1e-6 * np.abs(want_params[n]).max(), n


@pytest.mark.parametrize("separate", [False, True])
def test_clipped_trust_ratio(x64, separate):
    """solo-learn's clip_lr: update = min(ratio / rate, 1) * (g + wd p), here in plain numpy."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 3)), "v": rng.normal(size=(2, 2))}
    grads = {"w": rng.normal(size=(4, 3)), "v": 1e-4 * rng.normal(size=(2, 2))}  # v's ratio is cut
    rate, eta, wd = 0.3, 0.02, 0.01
    tx = optim.lars(rate, rate, weight_decay=wd, momentum=0.0, eta=eta, clip=True, separate_norms=separate)
    got, _ = tx.update(grads, tx.init(params), params)
    for n, p in params.items():
        u = grads[n] + wd * p
        norm = np.linalg.norm
        divisor = norm(grads[n]) + wd * norm(p) if separate else norm(u)
        want = -rate * min(eta * norm(p) / divisor / rate, 1) * u
        np.testing.assert_allclose(got[n], want, rtol=1e-12)
    assert min(eta * np.linalg.norm(params["v"]) / np.linalg.norm(grads["v"]) / rate, 1) == 1


def test_clipping_survives_a_rate_of_zero():
    params = {"w": jnp.ones((2, 2))}
    tx = optim.lars(optim.warmup_cosine(1.0, 10, 100), 1.0, clip=True)
    updates, _ = tx.update(params, tx.init(params), params)
    assert np.all(updates["w"] == 0)


def test_schedule_equals_official(golden, x64):
    _, described = golden("schedule")
    rows = 0
    for case in described:
        scale = case["batch_size"] / 256
        for key, column in (("learning_rate_weights", 1), ("learning_rate_biases", 2)):
            rate = optim.warmup_cosine(case[key] * scale, case["warmup_steps"], case["max_steps"])
            for row in case["rows_step_lrw_lrb"]:
                np.testing.assert_allclose(rate(jnp.float64(row[0])), row[column], rtol=1e-12, atol=1e-18)
                rows += 1
    assert rows > 100


def test_schedule_in_float32(golden):
    _, described = golden("schedule")
    case = described[0]
    rate = jax.jit(optim.warmup_cosine(1.6, case["warmup_steps"], case["max_steps"]))
    for step, want, _ in case["rows_step_lrw_lrb"]:
        np.testing.assert_allclose(rate(jnp.int32(step)), want, rtol=1e-6, atol=2e-7)


def test_groups_go_by_rank_not_by_name():
    params = {"bias": jnp.ones((1, 3)), "kernel": jnp.ones(3)}
    tx = optim.make_optimizer("sgd", 1.0, 0.1, weight_decay=0.5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["bias"], -0.5)  # a (1, 3) array decays
    np.testing.assert_allclose(updates["kernel"], 0.0)


def test_sgd_equals_pytorch_semantics():
    """First momentum buffer = gradient, decay coupled, rate outside: written out in numpy."""
    rng = np.random.default_rng(0)
    p, mu = rng.normal(size=(3, 2)), 0.0
    params = {"w": jnp.asarray(p)}
    tx = optim.make_optimizer("sgd", 0.1, 0.1, weight_decay=0.01, momentum=0.9)
    state = tx.init(params)
    for _ in range(4):
        g = rng.normal(size=(3, 2))
        mu = 0.9 * mu + g + 0.01 * p
        p = p - 0.1 * mu
        updates, state = tx.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], p, rtol=1e-5)


def test_adamw_decays_weights_only():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = optim.make_optimizer("adamw", 0.1, 0.1, weight_decay=0.5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], 0.0)


def test_adamw_equals_its_formula():
    """Two steps in float64 numpy, with moments of other rates than the usual ones."""
    rng, rate, (b1, b2), eps, decay = np.random.default_rng(0), 0.3, (0.7, 0.9), 1e-3, 0.2
    w = rng.normal(size=(4, 3))
    tx = optim.make_optimizer("adamw", rate, rate, weight_decay=decay, b1=b1, b2=b2, eps=eps)
    params = {"w": jnp.asarray(w, jnp.float32)}
    state, m, v = tx.init(params), 0, 0
    for t in (1, 2):
        g = rng.normal(size=w.shape)
        updates, state = tx.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * w)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_reference_world_size_scales_the_gradient_once():
    params = {"b": jnp.ones(2)}
    one, four = (optim.make_optimizer("lars", 1.0, 1.0, reference_world_size=w) for w in (1, 4))
    grads = {"b": jnp.ones(2)}
    ratio = one.update(grads, one.init(params), params)[0]["b"] / four.update(grads, four.init(params), params)[0]["b"]
    np.testing.assert_allclose(ratio, 4.0)


def test_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="'adam'.*lars, sgd, adamw"):
        optim.make_optimizer("adam", 0.1, 0.1)


@pytest.mark.parametrize("separate", [False, True])
def test_a_norm_of_zero_leaves_the_gradient_as_it_is(x64, separate):
    """Weights of 0 and gradients of 0, and a gradient that the decay takes back to 0: no nan, and no adaptation."""
    ones = np.ones((2, 2))
    params = {"p": 0 * ones, "g": 2 * ones, "u": 2 * ones}
    grads = {"p": 3 * ones, "g": 0 * ones, "u": -ones}
    tx = optim.scale_by_trust_ratio(0.25, weight_decay=0.5, separate_norms=separate)
    got, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(got["p"], 3 * ones)
    np.testing.assert_array_equal(got["u"], 0 * ones)
    # The decay alone is an update of norm |p| / 2, which is adapted; equation 6 of the LARS paper has no such case.
    np.testing.assert_allclose(got["g"], 0 * ones if separate else 0.25 * 4 / 2 * ones)


def test_a_withheld_update_counts_for_the_schedules_alone():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = optim.make_optimizer("lars", lambda step: step, 0.1, clip=True)
    old = tx.init(params)
    _, new = tx.update(params, old, params)
    kept = optim.withheld(old, new)
    assert jax.tree.structure(kept) == jax.tree.structure(old)
    named, before, after = jax.tree_util.tree_leaves_with_path(kept), jax.tree.leaves(old), jax.tree.leaves(new)
    for (path, leaf), was, went_on in zip(named, before, after, strict=True):
        np.testing.assert_array_equal(leaf, went_on if ".count" in jax.tree_util.keystr(path) else was)


def test_a_state_that_goes_on_has_its_step_and_its_momentum():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = optim.make_optimizer("lars", lambda step: step, lambda step: step, clip=True)
    moved = optim.going_on(tx.init(params), jax.tree.map(lambda p: 3 * p, params), 7)
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
        np.testing.assert_array_equal(leaf, 7 if ".count" in jax.tree_util.keystr(path) else 3 * jnp.ones(leaf.shape))
    untouched = optim.going_on(tx.init(params), None, 7)
    assert all(np.all(leaf == (0 if leaf.ndim else 7)) for leaf in map(jnp.asarray, jax.tree.leaves(untouched)))
    with pytest.raises(ValueError, match="momentum of LARS.*'lars' or 'sgd'"):
        optim.going_on(optim.make_optimizer("adamw", 0.1, 0.1).init(params), params, 7)


def test_norms_of_split_matrices_are_summed_and_not_gathered():
    """The state split over the devices, as `config.shard_params` has it: each sums its own part."""
    mesh = sharding.make_mesh()
    shape = (64, 8 * jax.device_count())
    split = {"w": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(None, "data")))}
    tx = optim.lars(0.1, 0.1)
    state = jax.eval_shape(tx.init, split)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split["w"].sharding if x.shape == shape else None),
        state,
    )
    program = jax.jit(tx.update).lower(split, state, split).compile().as_text()
    assert "all-gather" not in program and "all-to-all" not in program
    sums = re.findall(r"= (.*?) all-reduce\(", program)
    assert sums and not any("[64," in shapes for shapes in sums), sums


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_a_backbone_of_others_waits_and_moves_less(name):
    """Its updates are those of the same optimiser, times the factor from its first step on; the rest is equal."""
    rng = np.random.default_rng(0)
    params, *grads = (
        {part: {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=3)} for part in ("backbone", "projector")}
        for _ in range(5)
    )
    apart = {"backbone_scale": 0.25, "backbone_start": 2}
    plain, held = (optim.make_optimizer(name, 0.5, 0.25, **options) for options in ({}, apart))
    states = [plain.init(params), held.init(params)]
    for step, grad in enumerate(grads):
        (want, states[0]), (got, states[1]) = (
            tx.update(grad, state, params) for tx, state in zip((plain, held), states, strict=True)
        )
        factors = {"backbone": 0.0 if step < 2 else 0.25, "projector": 1.0}
        for part, factor in factors.items():
            jax.tree.map(lambda a, b, f=factor: np.testing.assert_allclose(a, f * b), got[part], want[part])
    with_ones = optim.make_optimizer(name, 0.5, 0.25, backbone_scale=1.0, backbone_start=0)
    assert jax.tree.structure(with_ones.init(params)) == jax.tree.structure(states[0])
    late = optim.going_on(held.init(params), None, 2)
    assert np.any(held.update(grads[0], late, params)[0]["backbone"]["kernel"])
