"""CIFAR-10, ResNet-18: the setting of solo-learn (scripts/pretrain/cifar/barlow.yaml), 1000 epochs.

    python train.py --config=configs/cifar10.py --config.data.path=cifar10.npz --workdir=runs/c10
    python linear_eval.py --config=configs/linear_cifar10.py --checkpoint=runs/c10 --workdir=runs/c10/linear

Expected (solo-learn's table): 92.10 % online, 91.56 % offline linear accuracy. Not run here yet.

cifar10.npz holds x_train, y_train, x_test, y_test as Keras's CIFAR-10 arrays (uint8 [n, 32, 32, 3]).
Left as ours: the floor of the cosine at 0.001 of the peak (theirs 0), projector layers without biases (the BatchNorm
after them takes a bias out again).
"""

import barlow_jax


def get_config():
    """solo-learn's values; the rest is ours."""
    config = barlow_jax.config("barlow_twins").unlock()
    config.arch = "resnet18"
    config.stem = "cifar"
    config.zero_init_residual = False  # torchvision's default, which solo-learn keeps
    config.projector = (2048, 2048, 2048)
    config.scale_loss = 0.1
    config.batch_size = 256
    config.optimizer.learning_rate_weights = 0.3
    config.optimizer.learning_rate_biases = 0.3  # one rate for all; biases have no decay and no adaptation
    config.optimizer.warmup_start = 1e-4  # theirs: 3e-5 of 0.3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.eta = 0.02
    config.optimizer.clip = True
    config.optimizer.separate_norms = True
    config.reference_world_size = 1  # tuned on one GPU
    config.data.kind = "npz"
    config.data.val = "test"
    config.data.last = "drop"
    config.image_size = 32
    config.views.blur = (0.0, 0.0)
    config.views.mean = (0.4914, 0.4822, 0.4465)
    config.views.std = (0.2470, 0.2435, 0.2616)
    config.eval.resize = 32
    config.eval.crop = 32
    config.eval.knn_bank = 0
    return config.lock()
