"""Linear evaluation on CIFAR-10, after a run of configs/cifar10.py.

    python linear_eval.py --config=configs/linear_cifar10.py --checkpoint=runs/c10 --workdir=runs/c10/linear

Expected (solo-learn's table, whose protocol is not the same in all points): 91.56 % top-1. Not run here yet.
The images are those of the pre-training run.
"""

import barlow_jax


def get_config():
    """The official protocol at 32 pixels."""
    config = barlow_jax.config("linear").unlock()
    config.image_size = 32
    config.eval.batch_size = 1000
    config.eval.resize = 32
    config.eval.crop = 32
    config.checkpoint_every_epochs = 10
    return config.lock()
