"""Your own images, one GPU: a folder of pictures, labels not needed.

    python train.py --config=configs/image_folder.py --config.data.path=/my/photos --workdir=runs/photos

All images under the folder are used, at any depth. If it has one folder for each class, and you say which folders hold
training and validation images, kNN and linear accuracy are shown too:

    ... --config.data.path=/my/set --config.data.train=train --config.data.val=val

The batch size picks the learning rate that the authors gave for it and 300 epochs; for a small set train
longer (--config.epochs=1000). Small images want --config.image_size=64 --config.eval.resize=64 --config.eval.crop=64.

    --config=configs/image_folder.py:128         # with half the memory
"""

import barlow_jax

# batch size: learning rate of the weights, as the authors gave them for ResNet-50 and 300 epochs.
LEARNING_RATES = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}


def get_config(batch_size="256"):
    """batch_size: one of LEARNING_RATES."""
    if not batch_size.isdigit() or int(batch_size) not in LEARNING_RATES:
        raise ValueError(f"configs/image_folder.py:{batch_size} is unknown; take one of {list(LEARNING_RATES)}.")
    config = barlow_jax.config("barlow_twins").unlock()
    config.batch_size = int(batch_size)
    config.optimizer.learning_rate_weights = LEARNING_RATES[config.batch_size]
    config.epochs = 300
    config.reference_world_size = 1  # one GPU
    config.data.train = "."
    config.data.val = ""
    config.eval.batch_size = 256
    return config.lock()
