"""Dynamic loss scaling for float16, as PyTorch's GradScaler has it.

float16 ends at 65,504 and loses what is below 6e-8, where many gradients are. So the gradient that enters the network
is multiplied by a scale and the result divided by it again, in float32. Where it overflows on its way the step is
skipped and the scale halved; after 2000 good steps in a row it is doubled. A scale is a power of 2, so it costs no
rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

LossScale = dict[str, Array]

INITIAL, GROWTH_INTERVAL = 2.0**16, 2000


def create() -> LossScale:
    """The state at step 0: {"scale" float32, "good_steps" and "overflows" int32}."""
    return {
        "scale": jnp.array(INITIAL, jnp.float32),
        "good_steps": jnp.zeros([], jnp.int32),
        "overflows": jnp.zeros([], jnp.int32),
    }


def through(pull_back: Callable[[Array], Any], dz: Array, state: LossScale) -> Any:
    """pull_back(dz), the gradient of the parameters, by way of numbers `scale` times as large; state {}: as it is."""
    if not state:
        return pull_back(dz)
    return jax.tree.map(lambda g: g / state["scale"], pull_back(dz * state["scale"]))


def update(state: LossScale, good: Array, overflow: Array) -> LossScale:
    """The state after a step.

    Args:
      good: whether the step's update was applied.
      overflow: whether it was skipped because of the scale; a step may be neither.
    """
    scale, good_steps = state["scale"], state["good_steps"] + good
    grown = good_steps == GROWTH_INTERVAL
    return {
        "scale": jnp.where(overflow, scale / 2, jnp.where(grown, scale * 2, scale)),
        "good_steps": jnp.where(overflow | grown, 0, good_steps),
        "overflows": state["overflows"] + overflow,
    }


def shown(state):
    """What to show of the state, {name: scalar}."""
    return {"loss_scale": state["scale"], "overflows": state["overflows"]} if state else {}
