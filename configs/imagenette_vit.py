"""Imagenette at 224 pixels, ViT-S/16 with AdamW, 200 epochs: the setting of stable-pretraining's benchmark.

    python train.py --config=configs/imagenette_vit.py --workdir=runs/vit
    python -m barlow_jax.knn --checkpoint=runs/vit
    python linear_eval.py --config=configs/linear_tfds.py:imagenette --checkpoint=runs/vit --workdir=runs/vit/linear

Expected (its table, benchmarks/imagenet10/RESULTS.md): 83.0 % linear and 81.2 % 20-NN, both watched during training, on
one A100. Not run here yet.

Values are those of galilai-group/stable-pretraining at d15ec96, benchmarks/imagenet10/barlow-vit-small.py and
two_view.py; its schedule moves with every step, over one hundredth of them up and then down to 0. It says "batch 128 or
256", and its script 256. Left as ours: no weight decay on biases, norms, class token and positions (theirs decays all),
bfloat16 (theirs float16), the short side of evaluation images to 256 (theirs squashes them to 256 x 256), the standard
deviation of the official loss (theirs is the unbiased one, and 1e-5 more).
"""

import barlow_jax


def get_config():
    """stable-pretraining's values; the rest is ours."""
    config = barlow_jax.config("barlow_twins").unlock()
    config.arch = "vit_small"
    config.projector = (2048, 2048, 2048)
    config.epochs = 200
    config.warmup_epochs = 2
    config.batch_size = 256
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate_weights = 5e-4
    config.optimizer.learning_rate_biases = 5e-4  # one rate for all
    config.optimizer.warmup_start = 0.01
    config.optimizer.final = 0.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.b2 = 0.95
    config.reference_world_size = 1  # the true gradient, as on one GPU
    config.data.kind = "tfds"
    config.data.name = "imagenette"
    config.data.train = "train"  # 9,469 images
    config.data.val = "validation"  # 3,925
    config.data.last = "drop"
    config.views.interpolation = "linear"  # torchvision's default, which they keep
    config.eval.every_epochs = 10
    config.eval.knn_bank = 0
    return config.lock()
