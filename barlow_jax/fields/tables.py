"""The tables: one line a field, in the order of the config's page; what it is for is said there.

Bounds are the definition's where there is one (probabilities, shares); else far beyond what anybody has trained with,
so that what they refuse is a slip: a rate of 10**12, a canvas of 0.
"""

from barlow_jax.fields.rules import SEEDS, Table, Together, choice, integer, number, pair, path, several, switch, text

ARCHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2", "convnet")
KINDS = ("folder", "tfds", "npz", "digits")
NEED_PATH = ("folder", "npz")
OF_FILES = ("folder", "tfds")  # whose images are decoded onto the canvas; arrays are put on it whole

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
    "data.channels": choice(1, 3, special={0: "as the set says"}),
    "data.canvas": integer(1, 2**14),
    "data.resident_bytes": integer(0, 2**50, special={0: "none"}),
    "data.threads": integer(1, 2**12, special={0: "one a core"}),
    "data.max_bad_fraction": number(0, 1),
}

# What the fields of the images agree on, when all that is as in the pre-training run is filled in.
DATA = (
    Together(
        ("data.path", "data.kind"),
        lambda path, kind: path or kind not in NEED_PATH,
        "point it to your images with --config.data.path=FOLDER",
    ),
    Together(
        ("data.path", "data.kind"),
        lambda path, kind: path or kind != "voc",
        "give the folder of VOC2007, --config.data.path=VOCdevkit/VOC2007",
    ),
    Together(
        ("data.path", "data.kind"),
        lambda path, kind: not path or kind != "digits",
        "the digits are built in, so leave it empty",
    ),
    Together(
        ("data.name", "data.kind"),
        lambda name, kind: name or kind != "tfds",
        "name a data set of TFDS, such as --config.data.name=imagenet2012",
    ),
    Together(
        ("data.file_list", "data.kind"),
        lambda listed, kind: not listed or kind in ("folder", ""),
        "it is for image folders: leave it empty",
    ),
)

# What the sizes agree on; 0 is as in the pre-training run.
VIEW = (
    Together(
        ("eval.crop", "eval.resize"),
        lambda crop, resize: not resize or crop <= resize,
        "the crop is cut out of the resized image, so it must not be larger",
    ),
    *(
        Together(
            ("data.canvas", name, "data.kind"),
            lambda canvas, size, kind: kind not in OF_FILES or size <= canvas,
            "images are put on the canvas before they are cropped, so it must not be smaller than the crop",
        )
        for name in ("image_size", "eval.crop")
    ),
)

PRETRAINING = Table(
    "barlow_twins",
    {
        "seed": SEED,
        "arch": choice(*ARCHS),
        "stem": choice("imagenet", "cifar"),
        "zero_init_residual": switch(),
        "projector": several(integer(1, 2**17), 1, 20, special={(): "none, the loss is one of the features"}),
        "precision": choice("float32", "bfloat16", "float16"),
        "lambd": number(0, 1, special={1.0: "elements off the diagonal weigh as much as those on it"}),
        "loss_form": choice("auto", "direct", "dual"),
        "scale_loss": number(above=0, high=1000),
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
        "optimizer.eps": SHARE,
        "reference_world_size": integer(1, 2**16, special={1: "the true gradient"}),
        "microbatches": integer(1, BATCH, special={1: "the whole batch at once"}),
        "microbatch_statistics": choice("micro", "batch"),
        "remat": choice("none", "blocks"),
        "shard_params": switch(),
        "on_nonfinite": choice("stop", "skip"),
        "max_skipped": integer(1),
        "data.kind": choice(*KINDS),
        **IMAGES,
        "data.val": path(special={"": "none"}),
        "data.last": choice("wrap", "drop", "keep"),
        "image_size": integer(8, SIDE),
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
        "log_every_steps": integer(1),
        "picture_every_epochs": integer(0, 10**6, special={0: "at the first and the last step"}),
        "checkpoint_every_steps": integer(1),
        "keep_checkpoints": integer(1),
        "wandb": switch(),
        "profile_steps": pair(integer(1), ascending=True, special={(): "none"}, default=()),
    },
    (
        Together(
            ("epochs", "warmup_epochs"),
            lambda epochs, warmup: warmup < epochs,
            "the run would end inside its warm-up: train longer or set config.warmup_epochs lower",
        ),
        Together(
            ("remat", "arch"),
            lambda remat, arch: remat == "none" or arch != "convnet",
            "this network has no residual blocks: take 'none'",
        ),
        Together(
            ("arch", "image_size"),
            lambda arch, size: arch != "convnet" or size <= 64,
            "this network is for images up to 64 pixels: take a resnet",
        ),
        Together(
            ("batch_size", "microbatches"),
            lambda rows, parts: rows % parts == 0,
            "a batch cannot be cut into so many equal parts: take a divisor",
        ),
        Together(
            ("microbatches", "batch_size", "microbatch_statistics"),
            lambda parts, rows, statistics: rows // parts >= 2 or statistics == "batch",
            "batch statistics want two images or more: take fewer micro-batches",
        ),
        Together(
            ("reference_world_size", "batch_size", "data.last"),
            lambda world, rows, last: last != "keep" or rows % world == 0,
            "'keep' wants one that divides the batch: choose another, or set config.data.last='wrap'",
        ),
        Together(
            ("views.crop_scale", "views.rotation"),
            lambda scale, rotation: scale[1] <= 1 or rotation > 0,
            "crops larger than the image need a rotation above 0",
        ),
        Together(
            ("views.std", "views.mean"),
            lambda std, mean: len(std) == len(mean),
            "both have one value for each channel",
        ),
        Together(
            ("eval.knn_k", "eval.knn_bank"),
            lambda k, bank: not bank or k <= bank,
            "there must be as many images to search: lower it, or set config.eval.knn_bank=0",
        ),
        *DATA,
        *VIEW,
    ),
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
    },
    (
        Together(
            ("optimizer.learning_rate_backbone", "weights"),
            lambda rate, weights: (rate > 0) == (weights == "finetune"),
            "a frozen backbone takes 0, and fine-tuning a rate above 0 (the official one is 0.005)",
        ),
        Together(
            ("optimizer.milestones", "optimizer.schedule"),
            lambda milestones, schedule: bool(milestones) == (schedule == "steps"),
            "'steps' takes the epochs after which the rate falls, 'cosine' takes ()",
        ),
        Together(
            ("optimizer.milestones", "epochs"),
            lambda milestones, epochs: (
                sorted({*milestones}) == [*milestones] and (not milestones or milestones[-1] < epochs)
            ),
            "they are numbers of epochs, rising and below config.epochs",
        ),
        Together(
            ("seed", "seeds"),
            lambda seed, seeds: seed + seeds <= SEEDS,
            "the last seed would not be below 2**32: lower one of them",
        ),
        *VIEW,
    ),
)

FROZEN = Table(
    "frozen",
    {
        "seed": SEED,
        "precision": choice("float32", "bfloat16"),
        "data.kind": choice(*KINDS, special={"": AS_IN_RUN}),
        **IMAGES,
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
    (
        Together(
            ("k", "bank"),
            lambda k, bank: not bank or min(k) <= bank,
            "there must be as many images to search: lower it, or set config.bank=0",
        ),
        *(
            Together(
                ("seed", name),
                lambda seed, seeds: seed + seeds <= SEEDS,
                "the last seed would not be below 2**32: lower one of them",
            )
            for name in ("seeds", "shot_seeds")
        ),
        *VIEW,
    ),
)

VOC07 = Table(
    "voc07",
    {
        "precision": choice("float32", "bfloat16"),
        "data.kind": choice("voc"),
        "data.path": path(),
        "data.train": path(empty=False),
        "data.val": path(empty=False),
        **{name: IMAGES[name] for name in ("data.canvas", "data.threads", "data.max_bad_fraction")},
        "eval.batch_size": integer(1, BATCH),
        "eval.fit": choice("squash", "crop"),
        "eval.resize": ZERO_AS_IN_RUN,
        "eval.crop": ZERO_AS_IN_RUN,
        "costs": several(number(1e-9, 1e9)),
        "difficult": choice("ignored", "negative"),
    },
    (*DATA, *VIEW),
)

# Flags of commands.
EMBED = {
    "batch_size": integer(1, BATCH),
    "threads": IMAGES["data.threads"],
    "max_bad_fraction": IMAGES["data.max_bad_fraction"],
}
PLAN = {
    "images": integer(1, 2**40, special={0: "those of the config, or ImageNet's"}),
    "memory": number(0.001, 10**6, special={0.0: "the chip's usual"}),
    "images_per_core": number(0.001, 10**9),
}
