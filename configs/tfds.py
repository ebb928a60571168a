"""Barlow Twins on an image set of tensorflow-datasets, by name; the rest as published.

    python train.py --config=configs/tfds.py:imagenet2012 --workdir=runs/r50
    python train.py --config=configs/tfds.py:imagenette --config.epochs=400 --config.batch_size=256 --workdir=runs/nette

SPLITS has the sets whose splits are known; any other is named with its splits:

    ... --config=configs/tfds.py:stl10 --config.data.train=unlabelled --config.data.val=test

A set has to be prepared once; a run says by which command. Both of TFDS's formats give the same order on any number of
processes; array_record opens faster. Sets of small images of one size, such as cifar10, live on the devices.
"""

import barlow_jax

# name: (to train on, to evaluate on)
SPLITS = {
    "imagenet2012": ("train", "validation"),
    "imagenet2012_subset/1pct": ("train", "validation"),
    "imagenet2012_subset/10pct": ("train", "validation"),
    "places365_small": ("train", "validation"),
    "i_naturalist2018": ("train", "validation"),
    "voc/2007": ("train+validation", "test"),  # several labels an image: none are used here
    "imagenette": ("train", "validation"),
    "cifar10": ("train", "test"),
}


def get_config(name="imagenet2012"):
    """name: of the data set, as TFDS has it."""
    config = barlow_jax.config("cifar10" if name == "cifar10" else "barlow_twins").unlock()
    config.data.kind = "tfds"
    config.data.name = name
    config.data.train, config.data.val = SPLITS.get(name, ("train", "validation"))
    return config.lock()
