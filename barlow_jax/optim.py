"""Optimisers as optax chains: LARS as the official code has it, SGD and AdamW, and the warm-up cosine.

Parameters fall into two groups by their rank, as in the official code: *biases* are all with ndim == 1 (biases and
the scales and offsets of norms), *weights* are the rest. Biases have a learning rate of their own, and neither weight
decay nor LARS adaptation. Of a ViT its class token and its positions are among them, which add something as biases do.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from barlow_jax.errors import UserError

ADDED = ("cls_token", "pos_embed")  # of more than one axis, as timm has them

Rate = optax.ScalarOrSchedule  # a constant, or step -> rate
Tree = Any  # parameters, or arrays like them


def warmup_cosine(
    peak: float, warmup_steps: int, total_steps: int, *, start: float = 0.0, final: float = 1e-3
) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine down to `final * peak`.

    Steps count from 0, so that step 0 has rate `start` and the floor is approached but never reached: the schedule of
    the official `adjust_learning_rate`. A run no longer than its warm-up never leaves it.

    Args:
      peak: the highest rate, already scaled with the batch size.
      warmup_steps, total_steps: in optimiser steps.
      start: the rate of step 0.
      final: the floor as a fraction of the peak.
    Returns:
      An optax schedule, step -> rate.
    """
    floor = final * peak

    def schedule(step):
        step = jnp.asarray(step, jnp.result_type(float))  # integer division would be float32 even in double precision
        warm = start + (peak - start) * step / max(warmup_steps, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        q = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warm, peak * q + floor * (1 - q))

    return schedule


def is_weight(params: Tree) -> Tree:
    """Mask of the group *weights*: True where ndim != 1, but for those of `ADDED`."""

    def weighs(path, p):
        return p.ndim != 1 and jax.tree_util.keystr(path[-1:], simple=True) not in ADDED

    return jax.tree_util.tree_map_with_path(weighs, params)


def by_group(
    weights: optax.GradientTransformation, biases: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One transformation for the weights, another for the biases."""

    def groups(params):
        return jax.tree.map(lambda weighs: "weights" if weighs else "biases", is_weight(params))

    return optax.multi_transform({"weights": weights, "biases": biases}, groups)


def norm(x: Array) -> Array:
    """Of all numbers of an array of any shape; scalar.

    Not of x.ravel(), for which an array that is split over devices is first gathered whole.
    """
    return jnp.sqrt(jnp.sum(jnp.square(x)))


class TrustRatioState(NamedTuple):
    count: Array  # updates so far, for the rate that the clipped form needs


def scale_by_trust_ratio(
    eta: float = 1e-3,
    *,
    weight_decay: float = 0.0,
    separate_norms: bool = False,
    clip_at: optax.Schedule | None = None,
) -> optax.GradientTransformation:
    """Weight decay and layer-wise adaptation, the first half of LARS (You et al., arXiv 1708.03888).

    For gradient g of parameter p, with u = g + weight_decay * p, the update is

        u * eta * |p| / |u|                                  (official Barlow Twins: no epsilon, no clipping)
        u * eta * |p| / (|g| + weight_decay * |p|)           (separate_norms: equation 6 of the LARS paper, solo-learn)

    and u itself where a norm is zero (with separate norms then g: no decay either). Norms are over whole tensors.

    Args:
      eta: trust coefficient.
      clip_at: a schedule; the ratio is divided by its rate and cut at 1, so that no layer moves faster than plain SGD
        (solo-learn's `clip_lr`).
    """

    def init(params):
        del params
        return TrustRatioState(jnp.zeros([], jnp.int32))

    def adapt(g, p, rate):
        u = g + weight_decay * p
        norm_p, norm_g = norm(p), norm(g if separate_norms else u)
        divisor = norm_g + weight_decay * norm_p if separate_norms else norm_g
        adapted = (norm_p > 0) & (norm_g > 0)
        ratio = eta * norm_p / jnp.where(adapted, divisor, 1)
        if rate is not None:
            # A rate of 0 (first step of a warm-up) divides to inf, which the cut turns into 1 as it should.
            ratio = jnp.minimum(ratio / rate, 1)
        return jnp.where(adapted, u * ratio, g if separate_norms else u)

    def update(updates, state, params=None):
        rate = None if clip_at is None else clip_at(state.count)
        updates = jax.tree.map(lambda g, p: adapt(g, p, rate), updates, params)
        return updates, TrustRatioState(state.count + 1)

    return optax.GradientTransformation(init, update)


def lars(
    rate_weights: Rate,
    rate_biases: Rate,
    *,
    weight_decay: float = 1e-6,
    momentum: float = 0.9,
    eta: float = 1e-3,
    clip: bool = False,
    separate_norms: bool = False,
    exclude_biases: bool = True,
) -> optax.GradientTransformation:
    """LARS in the order of the official code: decay, trust ratio, momentum, and the learning rate last.

    The rate stands outside the momentum; `optax.lars` puts it inside, which is another optimiser as soon as the rate
    changes.

    Args:
      rate_weights, rate_biases: schedules (or constants) of the two groups.
      clip, separate_norms: see `scale_by_trust_ratio`.
      exclude_biases: biases get plain momentum SGD, without decay or adaptation.
    """
    clip_at = (rate_weights if callable(rate_weights) else lambda _: rate_weights) if clip else None
    adapt = scale_by_trust_ratio(eta, weight_decay=weight_decay, separate_norms=separate_norms, clip_at=clip_at)
    return optax.chain(
        optax.masked(adapt, is_weight) if exclude_biases else adapt,
        optax.trace(momentum),
        by_group(optax.scale_by_learning_rate(rate_weights), optax.scale_by_learning_rate(rate_biases)),
    )


def sgd(
    rate_weights: Rate, rate_biases: Rate, *, weight_decay: float = 1e-6, momentum: float = 0.9
) -> optax.GradientTransformation:
    """Momentum SGD; weight decay (coupled, as PyTorch's) on the weights only."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=is_weight),
        optax.trace(momentum),
        by_group(optax.scale_by_learning_rate(rate_weights), optax.scale_by_learning_rate(rate_biases)),
    )


def adamw(
    rate_weights: Rate,
    rate_biases: Rate,
    *,
    weight_decay: float = 1e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW; decoupled weight decay on the weights only.

    An `eps` well above the rounding errors of the gradients keeps those from becoming full steps, so that runs on
    different numbers of devices stay together for longer.
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=is_weight),
        by_group(optax.scale_by_learning_rate(rate_weights), optax.scale_by_learning_rate(rate_biases)),
    )


_COUNTS = (optax.ScaleByScheduleState, TrustRatioState)  # states that count the steps for a schedule


def withheld(old: optax.OptState, new: optax.OptState) -> optax.OptState:
    """The optimiser state after a step whose update is not applied: `old`, with the counts of schedules from `new`.

    So a learning rate stays a function of the training step, as in the official code, where it goes on during skipped
    steps too. What belongs to the gradients stays as it was, Adam's own count included.
    """
    return jax.tree.map(
        lambda a, b: b if isinstance(b, _COUNTS) else a, old, new, is_leaf=lambda node: isinstance(node, _COUNTS)
    )


def going_on(opt_state: optax.OptState, momentum: Tree | None, step: int | Array) -> optax.OptState:
    """A fresh optimiser state as it is after `step` steps.

    Args:
      momentum: like the parameters; None leaves it as it is.
    Raises:
      UserError: the optimiser has no such momentum.
    """
    seen = []

    def moved(node):
        if isinstance(node, _COUNTS):
            return node._replace(count=step)
        if isinstance(node, optax.TraceState) and momentum is not None:
            seen.append(node)
            return optax.TraceState(momentum)
        return node

    moved_state = jax.tree.map(moved, opt_state, is_leaf=lambda node: isinstance(node, (*_COUNTS, optax.TraceState)))
    if momentum is not None and not seen:
        raise UserError(
            "The weights come with the momentum of LARS, which config.optimizer.name has no use for; take "
            "'lars' or 'sgd'."
        )
    return moved_state


def of_backbone(scale: float, start: int) -> optax.GradientTransformation:
    """Updates of the backbone times `scale`, and none in the first `start` steps; those of other parts as they are.

    Behind an optimiser, whose moments see every gradient: for weights that others have trained, in front of a projector
    that is fresh (Kumar et al., arXiv 2202.10054: what such a head sends back distorts what was there).
    """

    def factor(step):
        return jnp.where(step < start, 0.0, scale)

    def backbone(params: Any) -> Any:
        return {part: part == "backbone" for part in params}

    return optax.masked(optax.scale_by_schedule(factor), backbone)


OPTIMIZERS = {"lars": lars, "sgd": sgd, "adamw": adamw}


def make_optimizer(
    name: str,
    rate_weights: Rate,
    rate_biases: Rate,
    *,
    reference_world_size: int = 1,
    backbone_scale: float = 1.0,
    backbone_start: int = 0,
    **options: Any,
) -> optax.GradientTransformation:
    """The optimiser of a run.

    Args:
      name: "lars", "sgd" or "adamw".
      rate_weights, rate_biases: schedules of the two groups.
      reference_world_size: W, the number of GPUs whose official run is to be reproduced. There, the all-reduce of c
        is invisible to autograd and DDP then averages over ranks, so that every gradient is 1/W of the true one. We
        compute the true gradient on any number of devices and divide by W here, on purpose and in one place. It
        matters wherever the optimiser is not scale-free: biases under LARS, and the weight decay inside its ratio.
      backbone_scale: factor on the rates of the backbone; backbone_start: the step in which it begins to move.
      options: passed on to the optimiser.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"config.optimizer.name is {name!r}; it is one of {', '.join(OPTIMIZERS)}.")
    # A link that changes nothing would change the state, and with it every checkpoint.
    apart = [] if (backbone_scale, backbone_start) == (1, 0) else [of_backbone(backbone_scale, backbone_start)]
    optimizer = OPTIMIZERS[name](rate_weights, rate_biases, **options)
    return optax.chain(optax.scale(1 / reference_world_size), optimizer, *apart)
