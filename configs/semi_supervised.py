"""Semi-supervised learning on ImageNet: the pre-trained network fine-tuned on 1 % or 10 % of the labels.

    python linear_eval.py --config=configs/semi_supervised.py:1 --checkpoint=runs/r50 --workdir=runs/r50/semi1
    python linear_eval.py --config=configs/semi_supervised.py:10 --checkpoint=runs/r50 --workdir=runs/r50/semi10
    ... --config=configs/semi_supervised.py:1_paper --config.seeds=3

:1 and :10 have the values of the official README's line for 1 % (`--weights finetune --epochs 20 --lr-backbone 0.005
--lr-classifier 0.5 --weight-decay 0`); it gives none for 10 %. :1_paper and :10_paper have those of the paper, one
setting for both (appendix B.2): another rate, and steps in place of the cosine.

Expected (paper, table 2, top-1 / top-5): 55.0 / 79.2 % with 1 % of the labels, 69.7 / 89.3 % with 10 %. Not run here
yet.

The images are those of SimCLR's lists, 12,811 and 128,116, as TFDS has them (imagenet2012_subset). With a folder that
holds train/ and val/, and one of the lists (google-research/simclr, imagenet_subsets/1percent.txt):

    ... --config.data.kind=folder --config.data.path=/data/imagenet --config.data.train=train --config.data.val=val \
        --config.data.file_list=1percent.txt
"""

import barlow_jax

PERCENT = {"1": "1pct", "10": "10pct"}


def get_config(row="1"):
    """row: 1 or 10, percent of the labels, as the official code has it; 1_paper or 10_paper, as the paper."""
    percent, _, source = row.partition("_")
    if percent not in PERCENT or source not in ("", "paper"):
        raise ValueError(f"configs/semi_supervised.py:{row} is unknown; take 1, 10, 1_paper or 10_paper.")
    config = barlow_jax.config("linear").unlock()
    config.protocol = f"semi-supervised {percent} %"
    config.weights = "finetune"
    config.epochs = 20
    config.optimizer.learning_rate_classifier = 0.5
    config.optimizer.learning_rate_backbone = 0.005
    config.optimizer.weight_decay = 0.0
    if source == "paper":
        config.protocol += ", paper"
        config.optimizer.learning_rate_backbone = 0.002
        config.optimizer.schedule = "steps"
        config.optimizer.milestones = (12, 16)
        config.optimizer.factor = 0.2
    config.data.kind = "tfds"
    config.data.name = f"imagenet2012_subset/{PERCENT[percent]}"
    config.data.train = "train"
    config.data.val = "validation"
    return config.lock()
