"""Barlow Twins (Zbontar et al., ICML 2021, arXiv 2103.03230) in JAX.

    import barlow_jax

    barlow_jax.train("image_folder", data="photos", workdir="runs/photos", epochs=50)
    barlow_jax.evaluate("runs/photos", by="knn", data={"path": "labelled", "train": "train", "val": "val"})
    features = barlow_jax.load("runs/photos").features(images)

Start reading with `train.py` (the loop), `loss.py` (the objective), `model.py` (the network) and `augment.py` (the
views); docs/design.md has the rooms. Importing this package loads neither JAX, TensorFlow nor PyTorch.
"""

import importlib

__version__ = "0.2.0"
__all__ = ["config", "evaluate", "load", "train"]

# Modules that had another place in 0.1; CHANGELOG.md has the others.
_MOVED = {"checkpoint": "run.checkpoint", "heads": "evaluation.heads", "trained": "evaluation.classifier"}


def __getattr__(name):
    """The functions of `api`, loaded when they are asked for."""
    if name in __all__:
        return getattr(importlib.import_module("barlow_jax.api"), name)
    if name in _MOVED:
        return importlib.import_module(f"barlow_jax.{_MOVED[name]}")
    raise AttributeError(f"module 'barlow_jax' has no attribute {name!r}")
