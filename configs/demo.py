"""Scattered digits: Barlow Twins in three minutes on two CPU cores, no download. `make demo` runs it.

    python train.py --config=configs/demo.py --workdir=runs/demo

scikit-learn's 1,797 handwritten digits, each drawn at random size, angle, place and colours on a 24 x 24 canvas. Raw
pixels are of little use there; the views undo most of these nuisances, so that what is left is the shape of the digit.
Values were chosen on digits held out of the training set (--config.data.val=val), not on the test digits.

Measured, 20-NN / linear on the test digits, seeds 0 and 1: Barlow Twins .866 / .882 and .863 / .877; raw pixels .346 /
.158, less each image's mean colour .691 / .123; random network .288 / .269 and .298 / .241. 2:10 on two cores.
"""

import barlow_jax


def get_config():
    """A small network, AdamW, views that match the nuisances."""
    config = barlow_jax.config("barlow_twins").unlock()
    config.arch = "convnet"
    config.projector = (512, 512, 512)
    config.precision = "float32"
    config.lambd = 0.03  # fewer dimensions want more weight off the diagonal: 0.005 is for 8192
    config.epochs = 100
    config.warmup_epochs = 3
    config.batch_size = 256
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate_weights = 3e-3
    config.optimizer.learning_rate_biases = 3e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.eps = 1e-4  # above the rounding of the gradients: the same losses on 1 and 8 devices
    config.reference_world_size = 1
    config.data.kind = "digits"
    config.data.val = "test"
    config.data.last = "drop"
    config.image_size = 24
    config.views.crop_scale = (0.6, 1.4)
    config.views.crop_ratio = (0.85, 1.18)
    config.views.interpolation = "linear"
    config.views.rotation = 15.0
    config.views.flip = 0.0
    config.views.saturation = 0.4
    config.views.hue = 0.1  # a large shift changes luma, and with it which of two colours is the brighter
    config.views.grayscale = 0.5
    config.views.blur = (0.0, 0.0)  # strokes are two pixels wide
    config.views.solarize = (0.0, 0.0)
    config.views.invert = 0.0
    config.views.mean = (0.5, 0.5, 0.5)
    config.views.std = (0.25, 0.25, 0.25)
    config.eval.every_epochs = 20
    config.eval.batch_size = 512
    config.eval.resize = 24
    config.eval.crop = 24
    config.eval.lidar_images = 0  # of 500 it would cost 2.6 CPU seconds an evaluation
    config.log_every_steps = 20
    config.picture_every_epochs = 20
    config.checkpoint_every_steps = 400
    return config.lock()
