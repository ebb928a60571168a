"""How arrays lie on the devices, and the keys of examples, of which the views and the boxes are made."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from barlow_jax import sharding
from barlow_jax.errors import UserError


def keys(*args):
    return np.asarray(jax.random.key_data(sharding.example_keys(*args)))


def test_every_seed_step_and_place_has_a_key_of_its_own():
    """Without the step every step would show an image in a row the same views."""
    several = [keys(seed, step, 16) for seed in range(3) for step in range(5)]
    assert len(np.unique(np.concatenate(several), axis=0)) == 3 * 5 * 16


def test_a_key_depends_on_the_place_and_not_on_the_batch():
    np.testing.assert_array_equal(keys(1, 2, 8), keys(1, 2, 24)[:8])
    traced = jax.jit(lambda step: jax.random.key_data(sharding.example_keys(1, step, 8)))
    np.testing.assert_array_equal(traced(2), keys(1, 2, 8))


class State(NamedTuple):
    params: Any
    opt_state: Any
    average: Any = {}


def test_what_is_split_goes_along_the_longest_axis_that_the_devices_divide():
    """Of 65,536 numbers on, of equal axes the last; the backbone and all that is small or odd stays whole."""
    shapes = {
        "square": ((256, 256), P(None, "data")),
        "tall": ((4096, 24), P("data", None)),
        "tall and odd": ((4095, 24), P(None, "data")),
        "odd": ((513, 257), P()),
        "small": ((8, 8191), P()),
        "kernel": ((3, 3, 128, 512), P(None, None, None, "data")),
    }
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, (shape, _) in shapes.items()}
    params = {"backbone": arrays, "projector": arrays}
    state = State(params, (arrays,), {"params": params, "batch_stats": arrays})
    mesh = sharding.make_mesh()
    split = jax.tree.map(lambda s: s.spec, sharding.of_state(state, mesh, split=True))
    want = {name: spec for name, (_, spec) in shapes.items()}
    params = {"backbone": dict.fromkeys(shapes, P()), "projector": want}
    assert split == State(params, (want,), {"params": params, "batch_stats": dict.fromkeys(shapes, P())})
    assert sharding.of_state(state._replace(average={}), mesh, split=True).average == {}
    assert {s.spec for s in jax.tree.leaves(sharding.of_state(state, mesh))} == {P()}  # unless asked


def test_a_mesh_is_of_the_devices_it_is_given():
    assert sharding.make_mesh().size == 8
    assert [*sharding.make_mesh(jax.devices()[2:5]).devices] == jax.devices()[2:5]


def test_batch_sizes_that_the_devices_do_not_divide():
    mesh = sharding.make_mesh(jax.devices()[:6])
    sharding.check_batch_size(24, mesh)
    with pytest.raises(UserError, match="config.batch_size is 23, which 6 devices do not divide; take 18 or 24"):
        sharding.check_batch_size(23, mesh)
    with pytest.raises(UserError, match="take 6 or 6"):
        sharding.check_batch_size(5, mesh)
    assert [sharding.round_up(n, mesh) for n in (1, 6, 7, 12)] == [6, 6, 12, 12]
