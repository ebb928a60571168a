"""From a config to arguments."""

import jax
import numpy as np
import pytest

from barlow_jax import experiment, sharding, views
from barlow_jax.data import Arrays
from barlow_jax.errors import UserError
from barlow_jax.fields import free
from barlow_jax.run import trees, workdir
from barlow_jax.training import viewing
from configs import cifar10, demo


@pytest.mark.parametrize("steps", [(5,), (0, 3), (4, 3), (1, 2, 3)])
def test_a_profile_has_a_first_and_a_last_step(steps):
    config = demo.get_config().unlock()
    config.profile_steps = (11, 13)
    experiment.check(config)
    config.profile_steps = steps
    with pytest.raises(UserError, match=r"config.profile_steps is \(.*, or \(\) \(none\)\.$"):
        experiment.check(config)


def test_a_run_from_before_a_free_field_goes_on():
    config = demo.get_config().to_dict()
    before = {name: value for name, value in config.items() if name != "profile_steps"}
    changes = workdir.changed_fields(before, config)
    assert list(changes) == ["profile_steps"]
    workdir.check_changes("runs/demo", changes, free.PRETRAINING, ())


@pytest.mark.parametrize(("precision", "num_classes"), [("float32", 10), ("float16", None)])
def test_the_state_of_shapes_is_like_the_state(precision, num_classes):
    """What plan compiles for and what train.py holds."""
    config = demo.get_config().unlock()
    config.update({"projector": (8, 8), "image_size": 12, "precision": precision})
    mesh = sharding.make_mesh()
    options = {"channels": 3, "num_classes": num_classes, "steps_per_epoch": 10, "mesh": mesh}
    (method, state), (planned, shapes) = (experiment.method(config, **options, abstract=a) for a in (False, True))
    assert not trees.differences(state, shapes, told=lambda x: (x.shape, x.dtype))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert method.graphdef == planned.graphdef and method.state_sharding == planned.state_sharding
    assert bool(state.probe) == bool(num_classes) and bool(state.loss_scale) == (precision == "float16")


def test_a_ramp_is_a_function_of_the_step(caplog):
    """16 pixels in epochs 0 and 1, 20 in epoch 2, then 24, of 4 steps an epoch; opened anywhere, the same."""
    config = cifar10.get_config().unlock()
    config.update({"batch_size": 8, "image_size": 24, "views": {"ramp_sizes": (16, 20), "ramp_epochs": (2, 3)}})
    assert [viewing.size_at(config, epoch) for epoch in range(5)] == [16, 16, 20, 24, 24]
    source = Arrays(np.zeros((35, 4, 4, 3), np.uint8), np.zeros(35, np.int32))
    caplog.set_level("INFO")
    for first in (0, 7, 11, 12):
        caplog.clear()
        batches = experiment.pretraining_batches(config, source, first, sharding.make_mesh())
        sizes = [next(batches)["size"] for _ in range(4)]
        batches.close()
        want = [16] * 8 + [20] * 4 + [24] * 8
        assert sizes == [views.Size(side) for side in want[first : first + 4]]
        assert caplog.text.count("by a program of their own") == len({*want[first : first + 4]})
    config.views.update({"ramp_sizes": (), "ramp_epochs": ()})
    batches = experiment.pretraining_batches(config, source, 0, sharding.make_mesh())
    assert "size" not in next(batches)
    batches.close()


def test_views_in_words():
    config = cifar10.get_config().unlock()
    assert viewing.described(config) == "2 of 32 pixels of each image, 512 a step"
    config.views.update({"number": 3, "small": 6, "small_size": 16, "ramp_sizes": (24,), "ramp_epochs": (9,)})
    told = "3 of 32 pixels (24 until epoch 9; what is forecast is of 32) and 6 of 16 of each image, 2,304 a step"
    assert viewing.described(config) == told


def test_views_have_a_mean_for_each_channel():
    config = cifar10.get_config()
    assert viewing.recipe(config, 3).size == config.image_size
    with pytest.raises(UserError, match="The images have 5 channels and config.views.mean 3 values"):
        viewing.recipe(config, 5)
