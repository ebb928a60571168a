"""Steps whose numbers are not finite: found on the device, kept out of the state, named when the log is written.

The train step looks at the statistics, embeddings, loss and gradients of each batch, withholds an update that would
carry an inf or nan into the state, and keeps a record in the state. After `give_up_after` such steps in a row it leaves
the state as it is, whatever batches follow, so that the host need not wait for every step: it looks at the record when
it logs or saves, and finds in it the step and the tensor, and beside it the last good state.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from barlow_jax.errors import UserError
from barlow_jax.run.trees import named

Tree = Any  # arrays by name, nested
_PARTS = ("backbone", "projector", "predictor")  # in the order of computing
# Names without a number of a ViT and a ConvNeXt: before the blocks, and between norm1, norm2 and what follows.
_UNNUMBERED = {
    "patch_embed": (-3, 0, ""),
    "cls_token": (-2, 0, ""),
    "pos_embed": (-1, 0, ""),
    "attn": (1, 2, ""),
    "qkv": (0, 0, ""),
    "conv_dw": (0, 0, ""),
    "mlp": (1001, 0, ""),
    "gamma": (1002, 0, ""),
}
_FIRST = ("stem", "downsample")  # of a ConvNeXt, numbered, and before all else beside them
Record = dict[str, Array]


def create() -> Record:
    """The record at step 0, int32 scalars.

    "skipped" counts the updates that were withheld, "in_a_row" those since the last one applied, not counting
    overflows of float16's loss scale; "step" (counted from 1) and "tensor" say where the last was found.
    """
    return {name: jnp.zeros([], jnp.int32) for name in ("skipped", "in_a_row", "step", "tensor")}


def find(batch_stats: Tree, z: Array, loss: Array, squares: Tree) -> tuple[Array, Array, Array]:
    """Looks for values that are not finite.

    Args:
      batch_stats: after the step.
      z: [N, V, D] embeddings.
      squares: of the gradients, the sum of squares of each, as a tree.
    Returns:
      found: bool; only_gradients: bool, whether all before them is finite; tensor: int32, the place of the first in
      the order in which they are computed, which `name` decodes.
    """
    statistics = jnp.concatenate([leaf.ravel() for _, leaf in in_order(batch_stats)])
    gradients = jnp.stack([leaf for _, leaf in reversed(in_order(squares))])
    forward = jnp.concatenate([~jnp.isfinite(statistics), ~jnp.isfinite(z).all((0, 2)), ~jnp.isfinite(loss).reshape(1)])
    bad = jnp.concatenate([forward, ~jnp.isfinite(gradients)])
    return bad.any(), ~forward.any() & bad.any(), bad.argmax().astype(jnp.int32)


def name(batch_stats: Tree, params: Tree, views: int, tensor: int) -> str:
    """The name of what `find` found: "batch_stats.backbone.bn1.var", "z1", "loss", "the gradient of ..."."""
    names = [f"batch_stats.{path}" for path, _ in in_order(batch_stats)]
    sizes = [np.prod(leaf.shape, dtype=int) for _, leaf in in_order(batch_stats)]
    rest = [*(f"z{view + 1}" for view in range(views)), "loss"]
    rest += [f"the gradient of {path}" for path, _ in reversed(in_order(params))]
    ends = itertools.accumulate([*sizes, *(1 for _ in rest)])
    return next(name for name, end in zip(names + rest, ends, strict=True) if tensor < end)


def record(
    health: Record, step: Array, found: Array, overflow: Array, tensor: Array, give_up_after: int
) -> tuple[Record, Array]:
    """The record after a step, and whether the state is to be left as it is because the run has given up.

    Args:
      step: of the state before.
      overflow: whether what was found is the doing of the loss scale, which counts as skipped and no more.
    """
    given_up = health["in_a_row"] >= give_up_after
    fault = found & ~overflow
    after = {
        "skipped": health["skipped"] + found,
        "in_a_row": jnp.where(fault, health["in_a_row"] + 1, jnp.where(overflow, health["in_a_row"], 0)),
        "step": jnp.where(fault, step + 1, health["step"]),
        "tensor": jnp.where(fault, tensor, health["tensor"]),
    }
    return choose(given_up, health, after), given_up


def choose(condition: Array, yes: Tree, no: Tree) -> Tree:
    """jnp.where over two pytrees of one structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def check(state: Any, give_up_after: int, last_checkpoint: Callable[[], int | None]) -> None:
    """Raises UserError if the run has given up; waits for the device, so it is called when the log is written.

    Args:
      give_up_after: as in `record`.
      last_checkpoint: () -> its step, or None.
    """
    health = jax.device_get(state.health)
    if health["in_a_row"] >= give_up_after:
        tensor = name(state.batch_stats, state.params, 2, health["tensor"])
        steps = "" if give_up_after == 1 else f", the last of {give_up_after} such steps in a row"
        skip = " or set config.on_nonfinite=skip" if give_up_after == 1 else ""
        raise UserError(
            f"At step {health['step']} {tensor} is not finite, the first of all tensors{steps}; lower the learning "
            f"rate, set config.precision=float32{skip} (last checkpoint: {_kept(last_checkpoint())})."
        )


def check_all(state: Any, give_up_after: int, last_checkpoint: Callable[[], int | None]) -> None:
    """`check`, and every tensor of the parameters and the optimiser: before a state is saved."""
    check(state, give_up_after, last_checkpoint)
    tensors = [(f"{kind}.{path}", x) for kind in ("params", "opt_state") for path, x in in_order(getattr(state, kind))]
    # The answer in whole on every process, also where a tensor is split over them.
    finite = np.asarray(jax.jit(_finite, out_shardings=state.step.sharding)([x for _, x in tensors]))
    if not finite.all():
        raise UserError(
            f"After step {state.step} {tensors[finite.argmin()][0]} is not finite, the first of all tensors; lower the "
            f"learning rate (last checkpoint: {_kept(last_checkpoint())})."
        )


def _kept(last_checkpoint):
    return "none" if last_checkpoint is None else f"step {last_checkpoint}"


def _finite(tensors):
    return jnp.stack([jnp.isfinite(x).all() for x in tensors])


def in_order(tree: Tree) -> list[tuple[str, Any]]:
    """(dotted path, leaf) of a tree in the order in which the network uses them.

    Trees forget it: names are sorted, and "10" comes before "2". Here a convolution or linear layer comes before the
    norm of its number, stages after both, the backbone before projector and predictor, and `bn` last.
    """

    def places(item):
        # "norms.1" is one place, as "bn1" is; "layer1.0" is a place inside a place.
        return [_place(name) for name in re.sub(r"(?<=[a-z])\.(?=\d)", "", item[0]).split(".")]

    return sorted(named(tree).items(), key=places)


def _place(name):
    """Sorts the names of one level: (number, rank among those of that number, word)."""
    word = name.rstrip("0123456789")
    number = name[len(word) :]
    if word in _PARTS:
        return 0, _PARTS.index(word), word
    if name in _UNNUMBERED:
        return _UNNUMBERED[name]
    if word in _FIRST and number:
        return -1, int(number), word
    if word == "layer":
        return 1, 1 + int(number), word
    return int(number or 1000), int(word in ("bn", "norm", "norms")), word
