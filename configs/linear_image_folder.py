r"""Linear evaluation on your own labelled images: one folder for each class.

    python linear_eval.py --config=configs/linear_image_folder.py --config.data.path=/my/set \
        --checkpoint=runs/photos --workdir=runs/photos/linear

/my/set holds train/ and val/, each with the class folders. These may be other images than those of the pre-training
run, of which the size of the images is taken over. Expected: depends on the images, so nothing to compare with.
"""

import barlow_jax


def get_config():
    """The official protocol at the size of the pre-training run."""
    config = barlow_jax.config("linear").unlock()
    config.data.kind = "folder"
    config.data.train = "train"
    config.data.val = "val"
    config.image_size = 0
    config.eval.resize = 0
    config.eval.crop = 0
    return config.lock()
