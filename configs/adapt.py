"""Going on from weights that others have trained, on images of your own: low rates, so that little of them is lost.

    python train.py --config=configs/adapt.py --init=weights.pth --config.data.path=/my/photos --workdir=runs/adapted
    python -m barlow_jax.knn --checkpoint=weights.pth --config.data.path=/my/labelled      # before
    python -m barlow_jax.knn --checkpoint=runs/adapted --config.data.path=/my/labelled     # after

The file has a backbone and the projector is fresh, and what a fresh head sends back distorts what was learned before
(Kumar et al. 2022, arXiv 2202.10054, who train the head alone first). So the projector has five epochs alone, at the
authors' rates for this batch, and then the backbone goes on at a tenth of them. Under LARS a step moves a layer by no
more than eta * rate / (1 - momentum) of its norm, here 0.0004 of it, whatever the gradient is. Short runs are enough
(Reed et al. 2021, arXiv 2103.12718). Running statistics of BatchNorms follow the new images from the first step.

docs/pytorch.md has what was measured, before and after, on the new images and on the old ones. Another network than a
ResNet-50 wants --config.arch; --config.optimizer.backbone_scale says how far it may go.
"""

import barlow_jax


def get_config():
    """One GPU and its published rates, of which the backbone has a tenth."""
    config = barlow_jax.config("image_folder").unlock()
    config.epochs = 50
    config.warmup_epochs = 5
    config.optimizer.backbone_scale = 0.1
    config.optimizer.backbone_start = 5  # with the projector's warm-up behind it
    config.eval.every_epochs = 5
    return config.lock()
