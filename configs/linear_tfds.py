"""Linear evaluation on an image set of tensorflow-datasets, by name; the rest as linear.py.

    python linear_eval.py --config=configs/linear_tfds.py:imagenet2012 --checkpoint=runs/r50 --workdir=runs/r50/linear
    python linear_eval.py --config=configs/linear_tfds.py:imagenette --checkpoint=runs/r50 --workdir=runs/r50/imagenette

The splits are those of tfds.py; a set that is not there is named with its splits, as there. The backbone may come from
any other data. Not run here yet.
"""

import barlow_jax


def get_config(name="imagenet2012"):
    """name: of the data set, as TFDS has it."""
    config = barlow_jax.config("linear_cifar10" if name == "cifar10" else "linear").unlock()
    config.data.kind = "tfds"
    config.data.name = name
    images = barlow_jax.config(f"tfds:{name}").data
    config.data.train, config.data.val = images.train, images.val
    return config.lock()
