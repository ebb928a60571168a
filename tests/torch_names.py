"""Official state_dict <-> our params and batch_stats, for the fixtures that are kept under PyTorch's names."""

import numpy as np

LEAVES = {"running_mean": "mean", "running_var": "var"}


def path_of(name):
    """'backbone.layer2.0.downsample.1.weight' -> ('backbone', 'layer2', '0', 'downsample', 'bn', 'scale')."""
    *modules, leaf = name.split(".")
    if modules[0] == "projector":
        index, kind = divmod(int(modules[1]), 3)
        modules = ["projector", ("linears", "norms")[kind], str(index)]
    norm = modules[-1].startswith("bn") or modules[-2:] == ["downsample", "1"] or "norms" in modules
    if modules[-2:-1] == ["downsample"]:
        modules[-1] = "bn" if norm else "conv"
    leaf = LEAVES.get(leaf) or {"weight": "scale" if norm else "kernel", "bias": "bias"}[leaf]
    return (*modules, leaf)


def to_ours(array):
    """OIHW -> HWIO, [out, in] -> [in, out]."""
    return {4: lambda a: a.transpose(2, 3, 1, 0), 2: lambda a: a.T}.get(np.ndim(array), np.asarray)(np.asarray(array))


def to_torch(array):
    """HWIO -> OIHW, [in, out] -> [out, in]."""
    return {4: lambda a: a.transpose(3, 2, 0, 1), 2: lambda a: a.T}.get(np.ndim(array), np.asarray)(np.asarray(array))


def load(state_dict, dtype):
    """A state_dict of numpy arrays -> params, batch_stats."""
    params, batch_stats = {}, {}
    for name, value in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        tree = batch_stats if name.endswith(("running_mean", "running_var")) else params
        *modules, leaf = path_of(name)
        for module in modules:
            tree = tree.setdefault(module, {})
        tree[leaf] = to_ours(value).astype(dtype)
    return params, batch_stats


def get(tree, name):
    """The array of `tree` (params, gradients, batch_stats) with this PyTorch name, in PyTorch's layout."""
    for key in path_of(name):
        tree = tree[key]
    return to_torch(tree)
