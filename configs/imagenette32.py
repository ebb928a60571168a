"""Ten classes of ImageNet at 32 pixels, a small network: a real set on which every evaluation runs in minutes on a CPU.

    python train.py --config=configs/imagenette32.py --config.data.path=imagenette32.npz --workdir=runs/nette

imagenette32.npz holds train_images, train_labels, test_images, test_labels (uint8 [n, 32, 32, 3]): Imagenette's 12,894
images that ImageNet has for training and 500 of its validation images, short side to 32, centre.
docs/evaluation.md has the results of every protocol on this run, beside pixels and the network untrained. Seed 0: 20-NN
55.8 %, fast probe 63.1 %.
"""

import barlow_jax


def get_config():
    """The demo's network and optimiser, the views of CIFAR-10."""
    config = barlow_jax.config("barlow_twins").unlock()
    config.arch = "convnet"
    config.projector = (512, 512, 512)
    config.precision = "float32"
    config.lambd = 0.03  # as in the demo, for 512 dimensions
    config.epochs = 30
    config.warmup_epochs = 3
    config.batch_size = 256
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate_weights = 3e-3
    config.optimizer.learning_rate_biases = 3e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.eps = 1e-4
    config.reference_world_size = 1
    config.data.kind = "npz"
    config.data.val = "test"
    config.data.last = "drop"
    config.image_size = 32
    config.views.crop_scale = (0.2, 1.0)
    config.views.blur = (0.0, 0.0)
    config.eval.every_epochs = 10
    config.eval.batch_size = 500
    config.eval.resize = 32
    config.eval.crop = 32
    config.log_every_steps = 50
    config.picture_every_epochs = 10
    config.checkpoint_every_steps = 500
    return config.lock()
