"""What the authors published, as data: the values of the official code and of the paper, field by field; their results.

Code: github.com/facebookresearch/barlowtwins, main.py (and its README for the number of GPUs). Paper: arXiv 2103.03230,
sections 2.2 and 3; for the augmentations it refers to BYOL (arXiv 2006.07733, appendix B). None: it does not say.
"""

from typing import NamedTuple

from barlow_jax.fields import flat
from barlow_jax.fields.together import OF_FILES
from barlow_jax.objectives import OBJECTIVES

# Field of the config: (code, paper).
VALUES = {
    "arch": ("resnet50", "resnet50"),
    "stem": ("imagenet", "imagenet"),
    "zero_init_residual": (True, None),
    "resnet.depths": ((), ()),
    "resnet.width": (1.0, 1.0),
    "resnet.norm": ("batch", "batch"),
    "projector": ((8192, 8192, 8192), (8192, 8192, 8192)),
    "projector_batch_norm": (True, True),
    "predictor": ((), ()),
    "precision": ("float16", None),  # torch.cuda.amp
    "objective": ("barlow_twins", "barlow_twins"),
    "stop_gradient": (False, False),
    "lambd": (0.0051, 0.005),
    "scale_loss": (1.0, None),
    "epochs": (1000, 1000),
    "warmup_epochs": (10, 10),
    "batch_size": (2048, 2048),
    "optimizer.name": ("lars", "lars"),
    "optimizer.learning_rate_weights": (0.2, 0.2),
    "optimizer.learning_rate_biases": (0.0048, 0.0048),
    "optimizer.warmup_start": (0.0, None),
    "optimizer.final": (0.001, 0.001),
    "optimizer.weight_decay": (1e-6, 1.5e-6),
    "optimizer.momentum": (0.9, None),
    "optimizer.eta": (0.001, None),
    "optimizer.clip": (False, None),
    "optimizer.separate_norms": (False, None),
    "optimizer.b2": ("no AdamW", "no AdamW"),
    "optimizer.eps": ("no AdamW", "no AdamW"),
    "optimizer.backbone_scale": (1.0, 1.0),
    "optimizer.backbone_start": (0, 0),
    "reference_world_size": (16, 32),
    "ema": (0.0, 0.0),
    "microbatches": (1, 1),
    "data.kind": ("folder", None),
    "data.last": ("keep", None),
    "data.block": (0, 0),
    "data.canvas": ("full scale", None),  # every crop is decoded at full scale; ours at 1/2 and less if it is larger
    "image_size": (224, 224),
    "views.number": (2, 2),
    "views.small": (0, 0),
    "views.ramp_sizes": ((), ()),
    "views.crop_scale": ((0.08, 1.0), (0.08, 1.0)),
    "views.crop_ratio": ((3 / 4, 4 / 3), (3 / 4, 4 / 3)),
    "views.interpolation": ("cubic", "cubic"),
    "views.rotation": (0.0, 0.0),
    "views.flip": (0.5, 0.5),
    "views.jitter": (0.8, 0.8),
    "views.brightness": (0.4, 0.4),
    "views.contrast": (0.4, 0.4),
    "views.saturation": (0.2, 0.2),
    "views.hue": (0.1, 0.1),
    "views.grayscale": (0.2, 0.2),
    "views.blur": ((1.0, 0.1), (1.0, 0.1)),
    "views.blur_sigma": ((0.1, 2.0), (0.1, 2.0)),
    "views.solarize": ((0.0, 0.2), (0.0, 0.2)),
    "views.invert": (0.0, 0.0),
    "views.mean": ((0.485, 0.456, 0.406), (0.485, 0.456, 0.406)),
    "views.std": ((0.229, 0.224, 0.225), (0.229, 0.224, 0.225)),
}

# What departs whatever the config says: (what, here, code, paper).
ALWAYS = (("product c = z1' z2", "float32", "float16, by autocast", None),)

# Fields, or groups of them, that say which images, how something is computed or what is shown: nothing to compare.
NO_COUNTERPART = (
    "seed",
    "vit",
    "loss_form",
    "cross_entropy",
    "vicreg",
    "nt_xent",
    "mixed",
    "lejepa",
    "microbatch_statistics",
    "remat",
    "shard_params",
    "on_nonfinite",
    "max_skipped",
    "on_collapse",
    "data.path",
    "data.name",
    "data.train",
    "data.val",
    "data.file_list",
    "data.channels",
    "data.value_range",
    "data.bits",
    "data.exif",
    "data.resident_bytes",
    "data.threads",
    "data.window",
    "data.cache",
    "data.cache_bytes",
    "data.max_bad_fraction",
    "data.max_pixels",
    "views.small_size",
    "views.small_scale",
    "views.ramp_epochs",
    "eval",
    "log_every_steps",
    "picture_every_epochs",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "wandb",
    "mlflow",
    "profile_steps",
    "compilation_cache",
    "deterministic",
)

# Of the optimiser's fields, those that only some of them read.
READ_BY = {
    "momentum": ("lars", "sgd"),
    "eta": ("lars",),
    "clip": ("lars",),
    "separate_norms": ("lars",),
    "b2": ("adamw",),
    "eps": ("adamw",),
}

# The objectives that read config.lambd.
READ_LAMBD = tuple(name for name, objective in OBJECTIVES.items() if "lambd" in objective.reads.values())


class Result(NamedTuple):
    """A number that the authors reached, and which of ours stand beside it."""

    protocols: tuple  # the names of ours that are held against it
    dataset: str  # for people
    train_images: int | None  # of what it was trained on; None: not looked at
    n: int  # test images
    classes: int
    metric: str
    paper: float
    code: float | None = None  # the official README's, where it gives one too


_IMAGENET = {"dataset": "ImageNet", "n": 50_000, "classes": 1000}
_LINEAR = _IMAGENET | {"protocols": ("linear",), "train_images": 1_281_167}
_SEMI_1 = _IMAGENET | {
    "protocols": ("semi-supervised 1 %", "semi-supervised 1 %, paper"),
    "train_images": 12_811,
}
_SEMI_10 = _IMAGENET | {
    "protocols": ("semi-supervised 10 %", "semi-supervised 10 %, paper"),
    "train_images": 128_116,
}

# Paper: tables 1, 2 and 3. Numbers of images: ILSVRC 2012; SimCLR's lists; Places205; VOC 2007; iNaturalist 2018.
RESULTS = (
    Result(metric="top1", paper=0.732, code=0.735, **_LINEAR),
    Result(metric="top5", paper=0.910, code=0.910, **_LINEAR),
    Result(metric="top1", paper=0.550, **_SEMI_1),
    Result(metric="top5", paper=0.792, **_SEMI_1),
    Result(metric="top1", paper=0.697, **_SEMI_10),
    Result(metric="top5", paper=0.893, **_SEMI_10),
    Result(("linear Places205", "linear Places205, VISSL"), "Places205", None, 20_500, 205, "top1", 0.541),
    Result(("voc07 svm",), "VOC07", None, 4952, 20, "map_voc10", 0.862),  # by VISSL's measure
    Result(("linear iNaturalist18", "linear iNaturalist18, VISSL"), "iNaturalist18", None, 24_426, 8142, "top1", 0.465),
)

# Section 4: ImageNet, linear evaluation after 300 epochs, (top-1, top-5), by the names of configs/paper.py. Of the
# figures the paper prints no numbers but the best of figure 2; the points that are its baseline have the baseline's.
ABLATIONS = {
    "table5:baseline": (0.714, 0.902),
    "table5:invariance_only": (0.573, 0.805),
    "table5:redundancy_only": (0.001, 0.005),
    "table5:feature_normalized": (0.698, 0.888),
    "table5:no_batch_norm": (0.712, 0.897),
    "table5:no_normalization": (0.534, 0.767),
    "table5:cross_entropy": (0.633, 0.857),
    "table6:baseline": (0.714, 0.902),
    "table6:stop_gradient": (0.705, 0.890),
    "table6:predictor": (0.702, 0.890),
    "table6:both": (0.613, 0.835),
    "figure2:1024": (0.717, None),  # with rates of its own, as each size had there
    "figure2:2048": (0.714, 0.902),
    "figure3:baseline": (0.714, 0.902),
    "figure4:8192": (0.714, 0.902),
    "figure5:0.005": (0.714, 0.902),
}


class Figure(NamedTuple):
    """How the paper draws a figure of section 4."""

    axis: str
    less: str = ""  # "best" or "first": what is drawn is the difference to that one


FIGURES = {
    "figure2": Figure("batch size", less="best"),
    "figure3": Figure("", less="first"),
    "figure4": Figure("dimensions of the projector's last layer"),
    "figure5": Figure("lambda"),
}


def deviations(config):
    """[(field, here, code, paper)] wherever a config (nested dict) departs from the code or from the paper."""
    fields = flat(config)
    rows = []
    for field, (code, paper) in VALUES.items():
        if field not in fields or not in_use(field, fields):
            continue
        here = fields[field]
        here = tuple(here) if isinstance(here, list) else here
        if here != code or (paper is not None and here != paper):
            rows.append((field, here, code, paper))
    return rows


def unknown_fields(config):
    """Fields of a config that this module does not know: it cannot say whether they are deviations."""
    return [
        field
        for field in flat(config)
        if field not in VALUES and not any(f"{field}.".startswith(f"{known}.") for known in NO_COUNTERPART)
    ]


def in_use(field, fields):
    """Whether a run with these fields, {dotted name: value}, reads one of VALUES."""
    if field == "lambd":
        return fields.get("objective", "barlow_twins") in READ_LAMBD
    if field == "data.canvas":
        return fields["data.kind"] in OF_FILES  # arrays are put on whole
    readers = READ_BY.get(field.removeprefix("optimizer.")) if field.startswith("optimizer.") else None
    return readers is None or fields["optimizer.name"] in readers
