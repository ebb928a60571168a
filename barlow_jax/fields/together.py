"""What fields have to agree on: pairs that contradict each other are refused with the reason that stands here."""

from barlow_jax.fields.rules import SEEDS, Together

NEED_PATH = ("folder", "tar", "parquet", "npz")
OF_FILES = ("folder", "tfds", "tar", "parquet")  # whose images are decoded onto the canvas; arrays are put on it whole

VITS = ("vit_tiny", "vit_small", "vit_base")
CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base")
OF_ONE_SIZE = ("convnet", *VITS)  # networks whose parameters depend on the size of the images
OF_RESNETS = {"resnet.depths": (), "resnet.width": 1.0, "resnet.norm": "batch"}  # as those of their names are
LONGEST = 2**14  # tokens of an image: as many squared are computed in each head

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
        ("data.value_range", "data.channels", "data.kind"),
        lambda ends, channels, kind: len(ends) <= 2 or kind not in OF_FILES or len(ends) == 2 * (channels or 3),
        "it is one pair of numbers for all channels, or one for each",
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

PROGRAMS = (
    Together(
        ("deterministic", "compilation_cache"),
        lambda deterministic, cache: not deterministic or cache != "none",
        "the cache holds the choice of algorithms, and without it each start chooses anew: take ''",
    ),
)

# Objectives that compute squares of a D x D matrix, and so may do it in either form.
OF_FORMS = (
    *("barlow_twins", "redundancy_only", "feature_normalized", "cross_covariance", "hsic", "mixed_barlow_twins"),
    "vicreg",
)


NUMBERS = {"views.number": 2, "views.small": 0}  # of views, and what the paper has

PRETRAINING = (
    Together(
        ("objective", "projector"),
        lambda objective, projector: objective != "cross_entropy" or not projector or projector[-1] > 1,
        "its second term is over pairs of dimensions, of which one has none: make the last layer wider",
    ),
    Together(
        ("loss_form", "objective"),
        lambda form, objective: form == "auto" or objective in OF_FORMS,
        "this objective has one form: take 'auto'",
    ),
    Together(
        ("predictor", "projector"),
        lambda predictor, projector: not predictor or not projector or predictor[-1] == projector[-1],
        "what it predicts is an embedding, so both end in the same width",
    ),
    Together(
        ("predictor", "projector"),
        lambda predictor, projector: not predictor or projector,
        "a predictor stands behind a projector: give one, or set config.predictor=()",
    ),
    *(
        Together(
            (name, "objective"),
            lambda value, objective: not value or objective != "mixed_barlow_twins",
            "its third view has neither: leave it out, or take another objective",
        )
        for name in ("predictor", "stop_gradient")
    ),
    *(
        Together(
            (name, "objective"),
            lambda views, objective, usual=usual: views == usual or objective != "mixed_barlow_twins",
            f"it makes its third view of two: take {usual}, or another objective",
        )
        for name, usual in NUMBERS.items()
    ),
    *(
        Together(
            (name, asymmetric),
            lambda views, value, usual=usual: views == usual or not value,
            f"it tells the first view from the second, and knows no others: take {usual}, or leave it out",
        )
        for name, usual in NUMBERS.items()
        for asymmetric in ("predictor", "stop_gradient")
    ),
    Together(
        ("views.small", "microbatches", "microbatch_statistics"),
        lambda small, parts, statistics: not small or parts == 1 or statistics == "micro",
        "statistics of the whole batch are of views of one size: take 'micro'",
    ),
    Together(
        ("views.ramp_epochs", "views.ramp_sizes"),
        lambda epochs, sizes: len(epochs) == len(sizes) and len({*epochs}) == len(epochs),
        "each size has an epoch of its own in which it ends",
    ),
    Together(
        ("views.ramp_epochs", "epochs"),
        lambda ends, epochs: not ends or ends[-1] < epochs,
        "the run would end on the ramp: train longer or let it end earlier",
    ),
    Together(
        ("views.ramp_sizes", "image_size"),
        lambda sizes, size: not sizes or sizes[-1] < size,
        "the ramp rises to config.image_size, so its sizes are below",
    ),
    Together(
        ("arch", "views.ramp_sizes"),
        lambda arch, sizes: arch not in OF_ONE_SIZE or not sizes,
        "this network is for images of one size: take a resnet, or ()",
    ),
    Together(
        ("arch", "views.small"),
        lambda arch, small: arch not in OF_ONE_SIZE or not small,
        "this network is for images of one size: take a resnet, or 0",
    ),
    Together(
        ("data.canvas", "views.small_size", "data.kind", "views.small"),
        lambda canvas, size, kind, small: not small or kind not in OF_FILES or size <= canvas,
        "images are put on the canvas before they are cropped, so it must not be smaller than the crop",
    ),
    Together(
        ("epochs", "warmup_epochs"),
        lambda epochs, warmup: warmup < epochs,
        "the run would end inside its warm-up: train longer or set config.warmup_epochs lower",
    ),
    Together(
        ("optimizer.backbone_start", "epochs"),
        lambda start, epochs: start < epochs,
        "the backbone would never move: let it begin earlier or train longer",
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
        ("vit.patch", "image_size", "arch"),
        lambda patch, size, arch: arch not in VITS or size % patch == 0,
        "patches lie side by side, so take a divisor of the size of the images",
    ),
    Together(
        ("vit.patch", "image_size", "arch"),
        lambda patch, size, arch: arch not in VITS or (size // patch) ** 2 <= LONGEST,
        "an image would have more than 16,384 patches: take larger ones",
    ),
    Together(
        ("eval.crop", "image_size", "arch"),
        lambda crop, size, arch: arch not in VITS or crop == size,
        "its positions are for images of one size: take the same for both",
    ),
    *(
        Together(
            (name, "arch"),
            lambda value, arch, usual=usual: value == usual or "resnet" in arch,
            f"this network is no ResNet: take {usual!r}, or one that is",
        )
        for name, usual in OF_RESNETS.items()
    ),
    Together(
        ("resnet.width", "arch"),
        lambda width, arch: 64 * width % 1 == 0,
        "its first layer has 64 times as many channels: take a multiple of 1/64",
    ),
    Together(
        ("stem", "arch"),
        lambda stem, arch: arch not in VITS or stem == "imagenet",
        "a ViT has no stem: take 'imagenet', and config.vit.patch for small images",
    ),
    Together(
        ("stem", "arch"),
        lambda stem, arch: arch not in CONVNEXTS or stem == "imagenet",
        "a ConvNeXt has a stem of its own, for large images: take 'imagenet'",
    ),
    *(
        Together(
            (name, "arch", *needs),
            lambda size, arch, *used: arch not in CONVNEXTS or not all(used) or size >= 32,
            "its maps are 32 times smaller than the images: take 32 pixels or more",
        )
        for name, *needs in (("image_size",), ("eval.crop",), ("views.small_size", "views.small"))
    ),
    Together(
        ("views.ramp_sizes", "arch"),
        lambda sizes, arch: arch not in CONVNEXTS or not sizes or sizes[0] >= 32,
        "its maps are 32 times smaller than the images: take 32 pixels or more",
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
        ("views.mean", "data.channels", "data.kind"),
        lambda mean, channels, kind: not channels or kind not in OF_FILES or len(mean) == channels,
        "views.mean and views.std have one value for each channel: set both, as `barlow-jax data stats` prints them",
    ),
    Together(
        ("eval.knn_k", "eval.knn_bank"),
        lambda k, bank: not bank or k <= bank,
        "there must be as many images to search: lower it, or set config.eval.knn_bank=0",
    ),
    *PROGRAMS,
    *DATA,
    *VIEW,
)

LINEAR = (
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
    *PROGRAMS,
    *VIEW,
)

FROZEN = (
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
)

VOC07 = (*DATA, *VIEW)
