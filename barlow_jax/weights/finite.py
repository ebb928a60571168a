"""Weights that are no numbers: a training that diverged leaves them, and nothing can be computed with them."""

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.run.trees import named
from barlow_jax.weights import peers


def found_bad(arrays):
    """{name: how many} of the values that are nan, or infinite in float32; names of finite arrays are left out.

    Args:
      arrays: {name: array}.
    """
    found = {}
    for name, values in arrays.items():
        values = np.asarray(values)
        if values.dtype.kind == "f":
            count = values.size - np.count_nonzero(np.abs(values) <= np.finfo(np.float32).max)
            found |= {name: int(count)} if count else {}
    return found


def check(path, *trees):
    """Raises UserError if an array of these nested dicts holds a value that is not finite.

    Args:
      path: where they are from, for the message.
    """
    found = found_bad({name: values for tree in trees for name, values in named(tree).items()})
    if found:
        raise UserError(in_words(path, found))


def in_words(path, found):
    """The sentence about what `found_bad` found."""
    name, count = next(iter(found.items()))
    more = f" and {sum(found.values()) - count} in {len(found) - 1} other arrays" if len(found) > 1 else ""
    return (
        f"{path} holds {count} values that are nan or infinite in {peers.shown(name)}{more}; no features come of such "
        "a network, so give a checkpoint from before."
    )
