"""From a config to arguments."""

import jax
import pytest

from barlow_jax import experiment, sharding, tree
from barlow_jax.errors import UserError
from barlow_jax.run import workdir
from configs import demo


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
    workdir.check_changes("runs/demo", changes, experiment.FREE_FIELDS, ())


@pytest.mark.parametrize(("precision", "num_classes"), [("float32", 10), ("float16", None)])
def test_the_state_of_shapes_is_like_the_state(precision, num_classes):
    """What plan compiles for and what train.py holds."""
    config = demo.get_config().unlock()
    config.update({"projector": (8, 8), "image_size": 12, "precision": precision})
    mesh = sharding.make_mesh()
    options = {"channels": 3, "num_classes": num_classes, "steps_per_epoch": 10, "mesh": mesh}
    (method, state), (planned, shapes) = (experiment.method(config, **options, abstract=a) for a in (False, True))
    assert not tree.differences(state, shapes, told=lambda x: (x.shape, x.dtype))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert method.graphdef == planned.graphdef and method.state_sharding == planned.state_sharding
    assert bool(state.probe) == bool(num_classes) and bool(state.loss_scale) == (precision == "float16")
