"""The keys of examples, of which the views and the boxes are made."""

import jax
import numpy as np

from barlow_jax import sharding


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
