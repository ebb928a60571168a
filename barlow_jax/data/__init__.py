"""Data sources and the host's half of the input pipeline. TensorFlow is loaded only to read files and records."""

from barlow_jax.data.kinds import load_npz, open_source
from barlow_jax.data.order import epoch_permutation, eval_steps, steps_per_epoch
from barlow_jax.data.pipeline import Batches, eval_batches, in_memory, train_batches
from barlow_jax.data.protocol import Source
from barlow_jax.data.sources import Arrays, ImageFolder

__all__ = [
    "Arrays",
    "Batches",
    "ImageFolder",
    "Source",
    "epoch_permutation",
    "eval_batches",
    "eval_steps",
    "in_memory",
    "load_npz",
    "open_source",
    "steps_per_epoch",
    "train_batches",
]
