"""Checkpoints come back bit for bit, on other devices too, and are refused where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from small_states import State, assert_same, folders, like, make_state, saved_run, with_string_keys

from barlow_jax.errors import UserError
from barlow_jax.run import manifest
from barlow_jax.run.checkpoint import Checkpoints, restore_params


def test_state_comes_back_bitwise_with_its_structure_and_meta(tmp_path):
    saved_run(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        state, meta = checkpoints.restore(like(make_state()))
        assert_same(state, make_state(3))
        assert isinstance(state, State)
        assert meta == {"config": {"size": [32, 32]}, "step": 3}
        assert_same(checkpoints.restore(like(make_state()), step=1)[0], make_state(1))
        assert not checkpoints.reached_preemption(3)


def test_long_reasons_are_cut_in_front():
    assert manifest.reason(ValueError("x" * 300 + " no space left\nand more")) == "..." + "x" * 103 + " no space left"
    assert manifest.reason(ValueError("")) == "ValueError"


def test_saving_the_same_step_again_does_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, make_state(1))
        assert not checkpoints.save(1, make_state(2))
        assert_same(checkpoints.restore(like(make_state()))[0], make_state(1))


def test_state_may_be_donated_while_it_is_being_saved(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P())
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=sharding)
    x = add_one(jax.device_put(jnp.zeros((1024, 1024)), sharding))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": x})
        for _ in range(10):
            x = add_one(x)
    params, _, _ = restore_params(tmp_path)
    np.testing.assert_array_equal(params, np.ones((1024, 1024)))


def test_shardings_are_those_of_the_new_run(tmp_path):
    values = np.arange(64, dtype=np.float32).reshape(16, 4)
    sharding = {}
    for devices in (8, 2):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        sharding[devices] = NamedSharding(mesh, P("data"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": jax.device_put(values, sharding[8])})
        for wanted in (sharding[2], NamedSharding(sharding[2].mesh, P())):
            target = {"params": jax.ShapeDtypeStruct(values.shape, jnp.float32, sharding=wanted)}
            read = checkpoints.restore(target)[0]["params"]
            assert read.sharding == wanted
            np.testing.assert_array_equal(read, values)


def test_newest_and_best_are_kept(tmp_path):
    scores = {1: 0.2, 2: 0.6, 3: 0.6, 4: float("nan"), 5: 0.1, 6: None, 7: 0.5}
    for step, score in scores.items():  # a new run each time: the scores are read back
        with Checkpoints(tmp_path, keep=2, best_of="knn") as checkpoints:
            checkpoints.save(step, make_state(step), metrics={} if score is None else {"knn": score, "loss": step})
    assert folders(tmp_path) == ["3", "6", "7"]


def test_keeping_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="take 1 or more"):
        Checkpoints(tmp_path, keep=0)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="take another work folder"):
        Checkpoints(tmp_path / "file")


def test_other_architecture_is_named(tmp_path):
    saved_run(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        wider = make_state(width=7)
        expected = r"does not fit.*conv1\.kernel is float32\[3, 3, 3, 6\] there and float32\[3, 3, 3, 7\] here; use"
        with pytest.raises(UserError, match=expected):
            checkpoints.restore(like(wider))
        deeper = make_state()
        deeper.params["backbone"]["layer2"] = {0: {"scale": jnp.ones(6)}}
        with pytest.raises(UserError, match=r"layer2\.0\.scale is absent there and float32\[6\] here"):
            checkpoints.restore(like(deeper))
        shallower = make_state()
        del shallower.params["projector"]
        with pytest.raises(UserError, match=r"params\.projector\.0\.kernel is float32\[6, 64\] there and absent here"):
            checkpoints.restore(like(shallower))
        other_optimiser = make_state()._replace(opt_state=optax.sgd(0.1, momentum=0.9).init(make_state().params))
        with pytest.raises(UserError, match=r"opt_state"):
            checkpoints.restore(like(other_optimiser))
        half = make_state()._replace(batch_stats={"backbone": {"bn1": {"mean": jnp.ones(6, jnp.bfloat16)}}})
        with pytest.raises(UserError, match=r"bn1\.mean is float32\[6\] there and bfloat16\[6\] here"):
            checkpoints.restore(like(half))


def test_params_without_the_model(tmp_path):
    saved_run(tmp_path / "checkpoints")
    for path, step, expected in [
        (tmp_path, None, 3),
        (tmp_path / "checkpoints", None, 3),
        (tmp_path / "checkpoints" / "2", None, 2),
        (str(tmp_path), 1, 1),
    ]:
        params, batch_stats, meta = restore_params(path, step=step)
        assert meta["step"] == expected
        assert_same(params, with_string_keys(jax.device_get(make_state(expected).params)))
        assert_same(batch_stats, jax.device_get(make_state(expected).batch_stats))
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))


def test_nothing_to_restore(tmp_path):
    with pytest.raises(UserError, match=r"expected in .*nowhere, which holds none"):
        restore_params(tmp_path / "nowhere")
    with pytest.raises(UserError, match="which holds none"):
        restore_params(tmp_path)
    saved_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"A checkpoint of step 9 .* holds steps \[1, 2, 3\]"):
        restore_params(tmp_path / "run", step=9)
    with Checkpoints(tmp_path / "other") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match="which holds none"):
            checkpoints.restore(like(make_state()))
        checkpoints.save(1, {"weights": jnp.ones(3)})
    with pytest.raises(UserError, match=r"holds \['weights'\] and no params"):
        restore_params(tmp_path / "other")
