"""An exponential moving average of the weights, beside those that are trained: `config.ema` is its decay.

    average = decay average + (1 - decay) weights       after each update; it begins at the initial weights

Of a run that has one it is what evaluations judge. The running statistics of the BatchNorms are averaged in the same
way. They are averages already, of the last ten steps or so, but statistics of the weights of those steps, and the
average stands where the weights were some 1 / (1 - decay) steps ago: statistics of the last ones would not be its own.
timm does the same ("everything in the model state_dict (parameters and buffers)", ModelEmaV2), as does PyTorch's
`swa_utils.AveragedModel` with use_buffers=True; without it that copies the last ones, to be computed anew by another
pass over the images (`update_bn`).
"""

from typing import Any

import jax
import jax.numpy as jnp

Average = dict[str, Any]  # {"params", "batch_stats"} like the state's, or {} where there is none


def create(params: Any, batch_stats: Any) -> Average:
    """The average at its beginning: the weights themselves, in arrays of its own, as a step may donate either."""
    return jax.tree.map(jnp.array, {"params": params, "batch_stats": batch_stats})


def update(average: Average, params: Any, batch_stats: Any, decay: float) -> Average:
    """The average after one more step, elementwise in the precision of the parameters; {} stays {}.

    Args:
      params, batch_stats: after the step.
      decay: at least 0, below 1.
    """
    if not average:
        return average
    latest = {"params": params, "batch_stats": batch_stats}
    return jax.tree.map(lambda mean, x: mean + (1 - decay) * (x - mean), average, latest)


def judged(state: Any) -> tuple[Any, Any]:
    """(params, batch_stats) of a TrainState that evaluations take: the average where there is one, else the last."""
    found = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    return found["params"], found["batch_stats"]
