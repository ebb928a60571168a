"""The fixtures' state_dicts in the dtype of a test, and single arrays by PyTorch's names."""

import jax

from barlow_jax import torch_names


def load(state_dict, dtype):
    """A state_dict of numpy arrays -> params, batch_stats."""
    return jax.tree.map(lambda array: array.astype(dtype), torch_names.trees(state_dict))


def get(tree, name):
    """The array of `tree` (params, gradients, batch_stats) with this PyTorch name, in PyTorch's layout."""
    for key in torch_names.path_of(name):
        tree = tree[key]
    return torch_names.to_torch(tree)
