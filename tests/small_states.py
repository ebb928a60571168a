"""Small states and the checkpoints of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from barlow_jax.run.checkpoint import Checkpoints


class State(NamedTuple):
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def make_state(seed=0, *, width=6):
    """A small state with every kind of node a run has: masks, several transforms, numbers as keys."""
    draw = np.random.default_rng(seed).standard_normal
    params = {
        "backbone": {
            "conv1": {"kernel": jnp.asarray(draw((3, 3, 3, width)), jnp.float32)},
            "layer1": {i: {"scale": jnp.asarray(draw(width), jnp.float32)} for i in (0, 10, 2)},
        },
        "projector": {0: {"kernel": jnp.asarray(draw((width, 64)), jnp.float32)}},
    }

    def is_weight(tree):
        return jax.tree.map(lambda x: x.ndim > 1, tree)

    labels = jax.tree.map(lambda x: "weights" if x.ndim > 1 else "biases", params)
    tx = optax.chain(
        optax.masked(optax.add_decayed_weights(1e-6), is_weight),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=1e-3), is_weight),
        optax.trace(0.9),
        optax.scale_by_schedule(lambda count: 1.0),
        optax.multi_transform({"weights": optax.sgd(0.2, momentum=0.9), "biases": optax.sgd(0.1)}, labels),
    )
    opt_state = tx.init(params)
    _, opt_state = tx.update(params, opt_state, params)
    batch_stats = {"backbone": {"bn1": {"mean": jnp.arange(width, dtype=jnp.float32)}}}
    return State(jnp.int32(seed), params, batch_stats, opt_state)


def with_string_keys(tree):
    return {str(k): with_string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def like(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(read, expected):
    assert jax.tree.structure(read) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def saved_run(folder, steps=(1, 2, 3), **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make_state(step), {"config": {"size": (32, 32)}, "step": step})
    return folder


def folders(path):
    return sorted(entry.name for entry in path.iterdir())
