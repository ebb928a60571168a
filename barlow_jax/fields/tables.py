"""The tables: one line a field, in the order of the config's page; what it is for is said there.

Bounds are the definition's where there is one (probabilities, shares); else far beyond what anybody has trained with,
so that what they refuse is a slip: a rate of 10**12, a canvas of 0.
"""

from barlow_jax.fields import together
from barlow_jax.fields.rules import SEEDS, Table, choice, integer, number, pair, pairs, path, several, switch, text

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
ARCHS = (*RESNETS, "convnet", *together.VITS, *together.CONVNEXTS)
KINDS = ("folder", "tfds", "tar", "parquet", "npz", "digits")
OBJECTIVES = (
    *("barlow_twins", "invariance_only", "redundancy_only", "feature_normalized", "cross_covariance", "cross_entropy"),
    *("hsic", "mixed_barlow_twins", "vicreg", "nt_xent", "lejepa"),
)

AS_IN_RUN = "as in the pre-training run"
SIDE = 2**13  # pixels
BATCH = 2**20

PROBABILITY = number(0, 1)
SHARE = number(above=0, high=1)
STRENGTH = number(0, 100)
RATE = number(above=0, high=1000)
RATIO = number(0.01, 100)
DECAY = number(0, 10)
SEED = integer(0, SEEDS - 1)
INTERPOLATION = choice("cubic", "linear")
ZERO_AS_IN_RUN = integer(8, SIDE, special={0: AS_IN_RUN})

# Where images come from.
IMAGES = {
    "data.path": path(),
    "data.name": text(),
    "data.train": path(),
    "data.val": path(),
    "data.file_list": path(special={"": "all"}),
    "data.channels": integer(1, 1000, special={0: "as the set says"}),
    "data.canvas": integer(1, 2**14),
    "data.value_range": pairs(number(-(2**40), 2**40), special={(): "the type's own"}, default=()),
    "data.bits": choice(8, 16, default=8),
    "data.exif": switch(default=False),
    "data.max_pixels": integer(1, 178_956_970, default=2**26),  # the most that Pillow opens
    "data.resident_bytes": integer(0, 2**50, special={0: "none"}),
    "data.threads": integer(1, 2**12, special={0: "one a core"}),
    "data.cache": path(special={"": "none"}, default=""),
    "data.cache_bytes": integer(1, 2**50, default=10**11),
    "data.max_bad_fraction": number(0, 1),
}

# How XLA compiles, and where that is kept.
PROGRAMS = {
    "deterministic": switch(default=False),
    "compilation_cache": path(special={"": "compiled/ in the work folder", "none": "no cache"}, default=""),
}

# What may be open, None, until the number and size of the images are known; the rules: training/presets.py.
BY_IMAGES = (
    *("image_size", "stem", "views.blur", "eval.crop", "eval.resize", "precision", "projector", "lambd", "batch_size"),
    *("optimizer.learning_rate_weights", "epochs", "warmup_epochs", "eval.every_epochs", "picture_every_epochs"),
    "checkpoint_every_steps",
)

PRETRAINING = Table(
    "barlow_twins",
    {
        "seed": SEED,
        "arch": choice(*ARCHS),
        "stem": choice("imagenet", "cifar"),
        "zero_init_residual": switch(),
        "resnet.depths": several(integer(1, 1000), 4, 4, special={(): "those of its name"}, default=()),
        "resnet.width": number(1 / 64, 64, special={1.0: "that of its name"}, default=1.0),
        "resnet.norm": choice("batch", "none", default="batch"),
        "vit.patch": integer(1, 256, default=16),
        "vit.positions": choice("learned", "fixed", default="learned"),
        "vit.pooling": choice("token", "mean", default="token"),
        "projector": several(integer(1, 2**17), 1, 20, special={(): "none, the loss is one of the features"}),
        "projector_batch_norm": switch(default=True),
        "predictor": several(integer(1, 2**17), 1, 20, special={(): "none"}, default=()),
        "precision": choice("float32", "bfloat16", "float16"),
        "objective": choice(*OBJECTIVES, default="barlow_twins"),
        "stop_gradient": switch(default=False),
        "lambd": number(0, 1, special={1.0: "elements off the diagonal weigh as much as those on it"}),
        "loss_form": choice("auto", "direct", "dual"),
        "scale_loss": number(above=0, high=1000),
        "cross_entropy.temperature": number(0.001, 1000, default=0.1),
        "cross_entropy.lambd": number(0, 1000, default=1.0),
        "vicreg.invariance": number(0, 10**6, default=25.0),
        "vicreg.variance": number(0, 10**6, default=25.0),
        "vicreg.covariance": number(0, 10**6, default=1.0),
        "nt_xent.temperature": number(0.001, 1000, default=0.1),
        "mixed.weight": number(0, 10**6, default=1.0),
        "lejepa.lambd": number(0, 1, default=0.05),
        "lejepa.slices": integer(1, 2**17, default=1024),
        "epochs": integer(1, 10**6),
        "warmup_epochs": integer(0, 10**6, special={0: "none"}),
        "batch_size": integer(2, BATCH),
        "optimizer.name": choice("lars", "sgd", "adamw"),
        "optimizer.learning_rate_weights": RATE,
        "optimizer.learning_rate_biases": number(0, 1000, special={0.0: "biases and BatchNorms stay as they are"}),
        "optimizer.warmup_start": number(0, 1),
        "optimizer.final": number(0, 1, special={1.0: "no decay"}),
        "optimizer.weight_decay": DECAY,
        "optimizer.momentum": number(0, below=1),
        "optimizer.eta": SHARE,
        "optimizer.clip": switch(),
        "optimizer.separate_norms": switch(),
        "optimizer.b2": number(0, below=1, default=0.999),
        "optimizer.eps": SHARE,
        "optimizer.backbone_scale": number(0, 1, special={0.0: "it stays as it is", 1.0: "none"}, default=1.0),
        "optimizer.backbone_start": integer(0, 10**6, special={0: "at once"}, default=0),
        "reference_world_size": integer(1, 2**16, special={1: "the true gradient"}),
        "ema": number(0, below=1, special={0.0: "none"}, default=0.0),
        "microbatches": integer(1, BATCH, special={1: "the whole batch at once"}),
        "microbatch_statistics": choice("micro", "batch"),
        "remat": choice("none", "blocks"),
        "shard_params": switch(),
        "on_nonfinite": choice("stop", "skip"),
        "max_skipped": integer(1),
        "on_collapse": choice("warn", "stop", default="warn"),
        "data.kind": choice(*KINDS),
        **IMAGES,
        "data.val": path(special={"": "none"}),
        "data.last": choice("wrap", "drop", "keep"),
        "data.block": integer(1, 2**20, special={0: "an order over the whole set"}, default=0),
        "data.window": integer(1, 2**20, default=128),
        "image_size": integer(8, SIDE),
        "views.number": integer(2, 64, default=2),
        "views.small": integer(0, 64, special={0: "none"}, default=0),
        "views.small_size": integer(8, SIDE, default=96),
        "views.small_scale": pair(SHARE, ascending=True, default=(0.05, 0.14)),
        "views.ramp_sizes": several(integer(8, SIDE), 1, 100, ascending=True, special={(): "no ramp"}, default=()),
        "views.ramp_epochs": several(integer(1, 10**6), 1, 100, ascending=True, special={(): "no ramp"}, default=()),
        "views.crop_scale": pair(number(above=0, high=100), ascending=True),
        "views.crop_ratio": pair(RATIO, ascending=True),
        "views.interpolation": INTERPOLATION,
        "views.rotation": number(0, 180),
        "views.flip": PROBABILITY,
        "views.jitter": PROBABILITY,
        "views.brightness": STRENGTH,
        "views.contrast": STRENGTH,
        "views.saturation": STRENGTH,
        "views.hue": number(0, 0.5),
        "views.grayscale": PROBABILITY,
        "views.blur": pair(PROBABILITY),
        "views.blur_sigma": pair(number(0, 100), ascending=True),
        "views.solarize": pair(PROBABILITY),
        "views.invert": PROBABILITY,
        "views.mean": several(number(0, 1), 1, 100),
        "views.std": several(number(0.001, 10), 1, 100),
        "eval.every_epochs": integer(0, 10**6, special={0: "never"}),
        "eval.batch_size": integer(1, BATCH),
        "eval.resize": integer(8, SIDE),
        "eval.crop": integer(8, SIDE),
        "eval.knn_k": integer(1),
        "eval.knn_temperature": number(0.0001, 1000),
        "eval.knn_bank": integer(1, special={0: "all"}),
        "eval.probe_learning_rate": RATE,
        "eval.lidar_images": integer(3, special={0: "no LiDAR"}, default=1000),
        "log_every_steps": integer(1),
        "picture_every_epochs": integer(0, 10**6, special={0: "at the first and the last step"}),
        "checkpoint_every_steps": integer(1),
        "keep_checkpoints": integer(1),
        "wandb": switch(),
        "mlflow": switch(default=False),
        "profile_steps": pair(integer(1), ascending=True, special={(): "none"}, default=()),
        **PROGRAMS,
    },
    together.PRETRAINING,
    BY_IMAGES,
)

LINEAR = Table(
    "linear",
    {
        "seed": SEED,
        "seeds": integer(1, 10**4),
        "protocol": text(special={"": "the name that config.weights stands for"}),
        "weights": choice("freeze", "finetune"),
        "precision": choice("float32", "bfloat16"),  # float16 wants a loss scale, which fine-tuning has not
        "epochs": integer(1, 10**6),
        "batch_size": integer(1, BATCH),
        "optimizer.learning_rate_classifier": RATE,
        "optimizer.learning_rate_backbone": number(0, 1000),
        "optimizer.schedule": choice("cosine", "steps"),
        "optimizer.milestones": several(integer(1, 10**6), special={(): "none"}),
        "optimizer.factor": SHARE,
        "optimizer.weight_decay": DECAY,
        "optimizer.momentum": number(0, below=1),
        "optimizer.nesterov": switch(),
        "data.kind": choice(*KINDS, special={"": AS_IN_RUN}),
        **IMAGES,
        "data.bits": choice(8, 16, special={0: AS_IN_RUN}, default=0),
        "image_size": ZERO_AS_IN_RUN,
        "crop_scale": pair(SHARE, ascending=True),
        "crop_ratio": pair(RATIO, ascending=True),
        "interpolation": INTERPOLATION,
        "flip": PROBABILITY,
        "eval.every_epochs": integer(1, 10**6),
        "eval.batch_size": integer(1, BATCH),
        "eval.resize": ZERO_AS_IN_RUN,
        "eval.crop": ZERO_AS_IN_RUN,
        "log_every_steps": integer(1),
        "checkpoint_every_epochs": integer(1),
        "keep_checkpoints": integer(1),
        "wandb": switch(),
        "mlflow": switch(default=False),
        **PROGRAMS,
    },
    together.LINEAR,
)

FROZEN = Table(
    "frozen",
    {
        "seed": SEED,
        "precision": choice("float32", "bfloat16"),
        "data.kind": choice(*KINDS, special={"": AS_IN_RUN}),
        **IMAGES,
        "data.bits": choice(8, 16, special={0: AS_IN_RUN}, default=0),
        "eval.batch_size": integer(1, BATCH),
        "eval.resize": ZERO_AS_IN_RUN,
        "eval.crop": ZERO_AS_IN_RUN,
        "k": several(integer(1)),
        "temperature": number(0.0001, 1000),
        "bank": integer(1, special={0: "all"}),
        "shots": several(integer(1)),
        "shot_seeds": integer(1, 10**4, special={0: "none of it"}),
        "learning_rates": several(RATE),
        "weight_decays": several(DECAY),
        "momentum": number(0, below=1),
        "epochs": integer(1, 10**6),
        "batch_size": integer(1, BATCH),
        "standardize": switch(),
        "held_out": number(above=0, below=1),
        "seeds": integer(1, 10**4),
        "passes": integer(1, 1000, special={0: "the central view"}),
        "image_size": ZERO_AS_IN_RUN,
        "crop_scale": pair(SHARE, ascending=True),
        "crop_ratio": pair(RATIO, ascending=True),
        "interpolation": INTERPOLATION,
        "flip": PROBABILITY,
    },
    together.FROZEN,
)

VOC07 = Table(
    "voc07",
    {
        "precision": choice("float32", "bfloat16"),
        "data.kind": choice("voc"),
        "data.path": path(),
        "data.train": path(empty=False),
        "data.val": path(empty=False),
        **{name: IMAGES[name] for name in ("data.canvas", "data.max_pixels", "data.threads", "data.max_bad_fraction")},
        "eval.batch_size": integer(1, BATCH),
        "eval.fit": choice("squash", "crop"),
        "eval.resize": ZERO_AS_IN_RUN,
        "eval.crop": ZERO_AS_IN_RUN,
        "costs": several(number(1e-9, 1e9)),
        "difficult": choice("ignored", "negative"),
    },
    together.VOC07,
)

# Flags of commands.
EMBED = {
    "batch_size": integer(1, BATCH),
    "canvas": integer(1, 2**14, special={0: AS_IN_RUN}),
    "max_pixels": integer(1, 178_956_970, special={0: AS_IN_RUN}),
    "threads": IMAGES["data.threads"],
    "max_bad_fraction": IMAGES["data.max_bad_fraction"],
    "threshold": number(-1, 1),
}
EXPLORE = {
    "threshold": EMBED["threshold"],
    "most": integer(1, 10**8),
    "clusters": integer(1, 10**5, special={0: "none"}),
    "outliers": integer(1, special={0: "none"}),
    "nearest": integer(1, 10**4),
    "label_next": integer(1, special={0: "none"}),
}
PLAN = {
    "images": integer(1, 2**40, special={0: "those of the config, or ImageNet's"}),
    "memory": number(0.001, 10**6, special={0.0: "the chip's usual"}),
    "images_per_core": number(0.001, 10**9),
}
