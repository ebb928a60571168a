"""The rules of the evaluations that have a name, field by field: what makes a number worth that name.

Sources: facebookresearch/barlowtwins, evaluate.py and README; the paper (arXiv 2103.03230), appendices B.1, B.2 and
C.1; VISSL (facebookresearch/vissl), configs/config/benchmark/linear_image_classification. Where the paper says "two
equally spaced intervals" the steps are thirds of the epochs, rounded to whole ones.
"""

from barlow_jax.fields import flat

# The official evaluate.py with `--lr-classifier 0.3`, which is the paper's B.1 too.
LINEAR = {
    "weights": "freeze",
    "precision": "float32",
    "epochs": 100,
    "batch_size": 256,
    "optimizer.learning_rate_classifier": 0.3,
    "optimizer.learning_rate_backbone": 0.0,
    "optimizer.schedule": "cosine",
    "optimizer.milestones": (),
    "optimizer.weight_decay": 1e-6,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": False,
    "image_size": 224,
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "interpolation": "linear",
    "flip": 0.5,
    "eval.resize": 256,
    "eval.crop": 224,
}

# README: --weights finetune --epochs 20 --lr-backbone 0.005 --lr-classifier 0.5 --weight-decay 0, given for 1 %.
SEMI_SUPERVISED = LINEAR | {
    "weights": "finetune",
    "epochs": 20,
    "optimizer.learning_rate_classifier": 0.5,
    "optimizer.learning_rate_backbone": 0.005,
    "optimizer.weight_decay": 0.0,
}
SEMI_SUPERVISED_PAPER = SEMI_SUPERVISED | {
    "optimizer.learning_rate_backbone": 0.002,
    "optimizer.schedule": "steps",
    "optimizer.milestones": (12, 16),
    "optimizer.factor": 0.2,
}

TRANSFER = LINEAR | {
    "optimizer.learning_rate_classifier": 0.01,
    "optimizer.schedule": "steps",
    "optimizer.factor": 0.1,
    "optimizer.weight_decay": 5e-4,
}
PLACES205 = TRANSFER | {"epochs": 14, "optimizer.milestones": (5, 9)}
INATURALIST18 = TRANSFER | {"epochs": 84, "optimizer.milestones": (28, 56)}
VISSL = {"optimizer.nesterov": True}

PROTOCOLS = {
    "linear": LINEAR,
    "semi-supervised 1 %": SEMI_SUPERVISED,
    "semi-supervised 10 %": SEMI_SUPERVISED,
    "semi-supervised 1 %, paper": SEMI_SUPERVISED_PAPER,
    "semi-supervised 10 %, paper": SEMI_SUPERVISED_PAPER,
    "linear Places205": PLACES205,
    "linear Places205, VISSL": PLACES205 | VISSL | {"optimizer.milestones": (4, 8, 12)},
    "linear iNaturalist18": INATURALIST18,
    "linear iNaturalist18, VISSL": INATURALIST18 | VISSL | {"optimizer.milestones": (24, 48, 72)},
}


def name_of(config):
    """The name under which the numbers of an evaluation are filed: config.protocol, or what config.weights makes it."""
    return config.protocol or {"freeze": "linear", "finetune": "fine-tuning"}[config.weights]


def departures(config):
    """["epochs 5 instead of 100", ...]: where a config is not what its protocol asks for; [] for one without rules.

    Args:
      config: of linear_eval.py, complete (`linear_experiment.filled_in`).
    """
    fields, rules = flat(config), PROTOCOLS.get(name_of(config), {})
    return [
        f"{field} {_short(fields[field])} instead of {_short(rule)}"
        for field, rule in rules.items()
        if fields[field] != rule
    ]


def _short(value):
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
