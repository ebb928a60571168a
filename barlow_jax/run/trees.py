"""Trees of arrays by name: the array at {"backbone": {"conv1": {"kernel": array}}} is "backbone.conv1.kernel"."""

import jax
import numpy as np

ABSENT = "absent"  # in place of what is told of a leaf that one of two trees does not have


def named(tree):
    """{dotted name: leaf} of a pytree, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def differences(here, there, told=np.shape):
    """The names at which two trees differ, and what is at each in both.

    Args:
      here, there: pytrees.
      told: leaf -> what is compared and shown.
    Returns:
      {dotted name: (of here, of there)}, `ABSENT` where a tree has no such leaf; in the order of `here`, and then those
      that only `there` has.
    """
    here, there = ({name: told(leaf) for name, leaf in named(tree).items()} for tree in (here, there))
    pairs = {name: (here.get(name, ABSENT), there.get(name, ABSENT)) for name in here | there}
    return {name: (ours, theirs) for name, (ours, theirs) in pairs.items() if ours != theirs}
