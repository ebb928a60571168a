"""Transfer by a linear classifier on the frozen network: Places205 and iNaturalist 2018.

    python linear_eval.py --config=configs/transfer.py:places205 --config.data.path=/data/places205 \
        --checkpoint=runs/r50 --workdir=runs/r50/places205
    python linear_eval.py --config=configs/transfer.py:inaturalist18 --checkpoint=runs/r50 --workdir=runs/r50/inat18

Expected (paper, table 3, top-1): Places205 54.1 %, iNaturalist 2018 46.5 %. Not run here yet.

The paper (appendix C.1, "the exact settings from PIRL"): SGD, 14 and 84 epochs, rate 0.01 divided by 10 "at two
equally spaced intervals", weight decay 5e-4, momentum 0.9. Thirds of 14 epochs are no whole ones: here the rate falls
after 5 and 9. The rows :places205_vissl and :inaturalist18_vissl have VISSL's three steps and its Nesterov momentum.
PIRL's classifier sees the last feature map pooled to about 9,000 numbers, VISSL's 2 x 2 x 2048 of them; ours sees the
2,048 pooled features that the linear evaluation on ImageNet has.

Places205 is a folder with train/ and val/, one folder a class in each. iNaturalist is TFDS's i_naturalist2018; with a
folder take --config.data.kind=folder --config.data.path=... --config.data.train=train --config.data.val=val.
VOC07 is another protocol (linear SVMs). Any other set: linear_tfds.py, linear_image_folder.py.
"""

import barlow_jax

# row: protocol, epochs, epochs after which the rate falls, Nesterov momentum.
ROWS = {
    "places205": ("linear Places205", 14, (5, 9), False),
    "inaturalist18": ("linear iNaturalist18", 84, (28, 56), False),
    "places205_vissl": ("linear Places205, VISSL", 14, (4, 8, 12), True),
    "inaturalist18_vissl": ("linear iNaturalist18, VISSL", 84, (24, 48, 72), True),
}


def get_config(row="places205"):
    """row: one of ROWS."""
    if row not in ROWS:
        raise ValueError(f"configs/transfer.py:{row} is unknown; take one of {', '.join(ROWS)}.")
    config = barlow_jax.config("linear").unlock()
    config.protocol, config.epochs, milestones, nesterov = ROWS[row]
    config.optimizer.learning_rate_classifier = 0.01
    config.optimizer.schedule = "steps"
    config.optimizer.milestones = milestones
    config.optimizer.factor = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.nesterov = nesterov
    if row.startswith("places205"):
        config.data.kind, config.data.train, config.data.val = "folder", "train", "val"
    else:
        config.data.kind, config.data.name = "tfds", "i_naturalist2018"
        config.data.train, config.data.val = "train", "validation"
    return config.lock()
