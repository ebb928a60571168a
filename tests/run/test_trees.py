"""Trees by name."""

import jax
import jax.numpy as jnp
import numpy as np

from barlow_jax.pretrain import TrainState
from barlow_jax.run import trees


def test_leaves_are_named_by_their_place_in_dicts_tuples_and_named_tuples():
    state = TrainState(0, {"backbone": {"layer1": {"0": 1}}}, {}, (2, {"trace": 3}), None, {}, {})
    assert trees.named(state) == {
        "step": 0,
        "params.backbone.layer1.0": 1,
        "opt_state.0": 2,
        "opt_state.1.trace": 3,
    }
    assert trees.named({}) == {}
    assert list(trees.named({"b": 0, "a": {"c": 1}}).values()) == jax.tree.leaves({"b": 0, "a": {"c": 1}})


def test_differences_name_what_is_here_and_there():
    here = {"z": np.ones((2, 3)), "same": np.ones(4), "mine": np.ones(1)}
    there = {"z": np.ones((3, 2)), "same": np.zeros(4), "a": {"theirs": np.ones(5)}}
    found = trees.differences(here, there)
    assert list(found.items()) == [("mine", ((1,), "absent")), ("z", ((2, 3), (3, 2))), ("a.theirs", ("absent", (5,)))]
    assert trees.differences(here, here) == {}


def test_what_is_compared_can_be_chosen():
    here, there = {"x": jnp.ones(2, jnp.float32)}, {"x": jnp.ones(2, jnp.int32)}
    assert trees.differences(here, there) == {}
    assert trees.differences(here, there, told=lambda x: x.dtype.name) == {"x": ("float32", "int32")}
