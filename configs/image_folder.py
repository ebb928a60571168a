"""Your own images, one GPU: a folder of pictures, labels not needed.

    python train.py --config=configs/image_folder.py --config.data.path=/my/photos --workdir=runs/photos

All images under the folder are used, at any depth. If it has one folder for each class, and you say which folders hold
training and validation images, kNN and linear accuracy are shown too:

    ... --config.data.path=/my/set --config.data.train=train --config.data.val=val

Projector, epochs, warm-up, batch size, image size and others are open here (None): they are chosen by the number and
the size of the images, by the rules of docs/presets.md. What is set on the command line holds, and the rest goes by it:

    ... --config.epochs=5 --config.image_size=64

`barlow-jax plan --config=image_folder --config.data.path=/my/photos` prints what is chosen. The batch size picks the
learning rate that the authors gave for it:

    --config=configs/image_folder.py:128         # with half the memory
"""

from ml_collections import config_dict

import barlow_jax
from barlow_jax.training.presets import LEARNING_RATES

OPEN = {
    "image_size": int,
    "stem": str,
    "precision": str,
    "projector": tuple,
    "lambd": float,
    "batch_size": int,
    "epochs": int,
    "warmup_epochs": int,
    "picture_every_epochs": int,
    "checkpoint_every_steps": int,
}


def get_config(batch_size=""):
    """batch_size: one of LEARNING_RATES, or "" for what suits the number of images."""
    if batch_size and (not batch_size.isdigit() or int(batch_size) not in LEARNING_RATES):
        raise ValueError(f"configs/image_folder.py:{batch_size} is unknown; take one of {list(LEARNING_RATES)}.")
    config = barlow_jax.config("barlow_twins").unlock()
    for name, kind in OPEN.items():
        config[name] = config_dict.placeholder(kind)
    config.optimizer.learning_rate_weights = config_dict.placeholder(float)
    config.views.blur = config_dict.placeholder(tuple)
    for name in ("every_epochs", "resize", "crop"):
        config.eval[name] = config_dict.placeholder(int)
    if batch_size:
        config.batch_size = int(batch_size)
    config.reference_world_size = 1  # one GPU
    config.data.train = "."
    config.data.val = ""
    config.eval.batch_size = 256
    return config.lock()
