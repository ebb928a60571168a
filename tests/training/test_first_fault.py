"""The first operation that is not finite: the one that was planted, and none of those that are meant to be inf."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from barlow_jax import sharding
from barlow_jax.training import first_fault, nonfinite, remedies
from barlow_jax.training.first_fault import Fault, Numbers

N, D = 6, 4


class State(NamedTuple):
    params: dict
    batch_stats: dict
    opt_state: dict


def state(**params):
    given = {"first": jnp.ones((D, D)), "second": jnp.ones((D, D))} | params
    return State(given, {"bn": {"mean": jnp.zeros(D)}}, {})


def batch(x=None):
    return {"x": jnp.asarray(np.arange(1, N * D + 1, dtype=np.float32).reshape(N, D)) if x is None else x}


def step(inner, state, batch):
    """A loss of two layers with `inner` between, and of everything that is inf or nan on purpose, and its gradient."""

    def loss_of(params):
        hidden = inner(batch["x"] @ params["first"])
        masked = jax.nn.logsumexp(jnp.where(jnp.eye(N, dtype=bool), -jnp.inf, hidden @ hidden.T / 1e3))
        divided = jnp.where(hidden > 1e30, 1 / jnp.zeros_like(hidden), 0.0)  # a branch that nobody takes
        z = hidden @ params["second"]
        return (z + divided).sum() + masked, z

    (loss, z), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    squares = jax.tree.map(lambda g: jnp.square(g).sum(), gradients)
    return nonfinite.find(state.batch_stats, jnp.stack([z, z], 1), loss, squares)


def in_scan(x):
    """The fault is in the third of four rounds, inside a jitted function of its own."""
    root = jax.jit(lambda x, k: jnp.sqrt(x + jnp.where(k == 2, -1000.0, 0.0)) + 100)
    return jax.lax.scan(lambda x, k: (root(x, k), None), x, jnp.arange(4))[0]


def in_map(x):
    mesh = sharding.make_mesh(jax.devices()[:1])
    local = jax.shard_map(
        lambda x: x - jax.lax.psum(jnp.log(x - 1e4), "data"), mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    return local(x)


def cubed(x):
    """Three rounds of a loop, of which there is no gradient."""
    return x + jax.lax.while_loop(lambda x: x.max() < 1e38, lambda x: x**3, jax.lax.stop_gradient(x))


@jax.custom_vjp
def kept(x):
    return x


kept.defvjp(lambda x: (x, x), lambda x, dy: (dy / (x - x),))
FAULTS = {
    "log": (lambda x: jnp.log(x - 20.0), False),
    "sqrt": (in_scan, False),
    "cond": (lambda x: jax.lax.cond(x.sum() > 0, lambda x: x * 1e30 * 1e30, lambda x: x, x), False),
    "while": (cubed, False),
    "remat": (jax.checkpoint(lambda x: jnp.exp(10 * x)), False),
    "map": (in_map, False),
    "gradient": (kept, True),
}
NAMES = {"cond": "mul", "while": "integer_pow", "remat": "exp", "map": "log", "gradient": "div"}


# Operations in a shard_map are compiled one by one: two seconds.
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "map")) for n in FAULTS])
def test_the_planted_operation_is_named(name):
    inner, backward = FAULTS[name]
    fault = first_fault.first(functools.partial(step, inner), state(), batch())
    assert fault.operation == NAMES.get(name, name)
    assert fault.gave.bad > 0 and all(numbers.bad == 0 for numbers in fault.given)
    assert fault.after == ("second" if backward else "first")
    if name == "log":  # x @ ones: 10, 26, 42, ...; the first alone is below 20
        assert fault.rows == (0,) and fault.given[0].low == -10.0


def test_what_is_finite_in_the_end_is_no_fault():
    assert first_fault.first(functools.partial(step, lambda x: x), state(), batch()) is None


def test_a_parameter_that_is_not_finite_before_the_step():
    broken = state(second=jnp.ones((D, D)).at[1, 2].set(jnp.nan))
    fault = first_fault.of_inputs(broken)
    assert (fault.operation, fault.after, fault.gave.bad) == ("", "params.second", 1)
    assert first_fault.of_inputs(state()) is None


def a_fault(**fields):
    given = (Numbers((N, D), "float32", -2.0, 5.0, 0),)
    fault = Fault("mul", ("loss.py:1 (f)", "pretrain.py:2 (g)"), False, "a.kernel", given, given[0], ())
    return fault._replace(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gave": Numbers((N,), "float16", 0.0, 1.0, 3)}, "config.precision=bfloat16"),
        ({"given": (Numbers((N,), "float32", -3e17, 1.0, 0),)}, "numbers of 3e+17 have grown"),
        ({"operation": "div"}, "the same for all images of the batch"),
        ({"rows": (1, 4)}, "look at these images"),
        ({}, "config.precision=float32"),
    ],
)
def test_the_remedy_fits_the_fault(fields, said):
    case = {"step": 7, "state_of_step": 7}
    names = [f"image{row}.jpg" for row in range(N)]
    lines = remedies.told(a_fault(**fields), case, names, ConfigDict({"precision": "float32"}))
    assert lines[0] == f"Step 7: the first operation that is not finite is {fields.get('operation', 'mul')} in " + (
        "loss.py:1 (f), forward, behind a.kernel."
    )
    assert said in lines[-1]
    assert ("  in 2 of 6 images: image1.jpg, image4.jpg" in lines) == ("rows" in fields)


def test_what_is_said_of_a_step_that_is_finite_now():
    config = ConfigDict({"precision": "float32"})
    (line,) = remedies.told(None, {"step": 7, "state_of_step": 12}, [], config)
    assert "5 steps younger" in line
    (line,) = remedies.told(None, {"step": 7, "state_of_step": 7}, [], config)
    assert "the devices that it ran on" in line


def test_what_an_array_holds_in_words():
    assert str(Numbers((2, 3), "float32", -1.5, 2.25, 1)) == "float32[2, 3] -1.5 to 2.25, 1 of 6 not finite"
    assert str(Numbers((2, 3), "float32", np.inf, -np.inf, 6)) == "float32[2, 3] no finite value, 6 of 6 not finite"
    assert str(Numbers((), "float32", 1, 1, 0)) == "float32[] 1 to 1"
