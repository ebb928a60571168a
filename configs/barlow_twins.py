"""Barlow Twins on ImageNet as published: ResNet-50, 1000 epochs, batch 2048.

    python train.py --config=configs/barlow_twins.py --config.data.path=/data/imagenet --workdir=runs/r50
    python linear_eval.py --config=configs/linear.py --checkpoint=runs/r50 --workdir=runs/r50/linear

Expected (official README, 16 GPUs): 73.5 % top-1, 91.0 % top-5 by linear evaluation. Not run here yet.

Values are those of the official code; where the paper (arXiv 2103.03230) says something else, the comment tells.
Every other config starts from this one and shows only what differs.
"""

from ml_collections import ConfigDict


def get_config():
    """Every field of a pre-training run."""
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the order of the data and the views

    # The network.
    # resnet18, 34, 50, 101, 152, wide_resnet50_2, wide_resnet101_2, vit_tiny, vit_small, vit_base,
    # convnext_tiny, convnext_small, convnext_base; tiny images: convnet
    config.arch = "resnet50"
    config.stem = "imagenet"  # "cifar" for images of about 32 pixels: 3x3 stride 1, no pooling
    config.zero_init_residual = True
    # Of the ResNets: others than those of their names. Blocks are as there: bottlenecks from resnet50 on.
    config.resnet = ConfigDict()
    config.resnet.depths = ()  # blocks of the four stages, such as (1, 1, 1, 1)
    config.resnet.width = 1.0  # factor on the channels of every layer; 0.25 for small images
    config.resnet.norm = "batch"  # "none": offsets instead, and a scalar for each residual branch (SkipInit)
    # Of the ViTs; timm's networks of these names are patch 16 at 224 pixels with learned positions and the class token.
    config.vit = ConfigDict()
    config.vit.patch = 16  # pixels; a divisor of image_size, 4 for images of 32 pixels
    config.vit.positions = "learned"  # "fixed": sines and cosines of both coordinates, as MAE has them
    config.vit.pooling = "token"  # "mean" of the patches (timm's global_pool="avg")
    config.projector = (8192, 8192, 8192)
    config.projector_batch_norm = True  # False: none in its hidden layers (paper, Table 5)
    config.predictor = ()  # (8192, 8192): behind the projector, of the first view alone (paper, Table 6)
    # Of the network's arithmetic: "bfloat16", "float32" (on accelerators too: docs/precision.md), or "float16" with a
    # dynamic loss scale (V100). Parameters, batch statistics, loss and probe are float32 always.
    config.precision = "bfloat16"

    # The loss. docs/objectives.md has the formulas, and which field belongs to which.
    config.objective = "barlow_twins"  # or an ablation, or somebody else's, such as "vicreg"
    config.stop_gradient = False  # True: none goes back through the second view (paper, Table 6)
    config.lambd = 0.0051  # paper: 0.005
    config.loss_form = "auto"  # "direct" | "dual": how it is computed, never what
    config.scale_loss = 1.0  # factor on the gradient (official until biases had a rate of their own: 0.024)
    # Of objectives that are chosen by name; others do not read them.
    config.cross_entropy = ConfigDict()
    config.cross_entropy.temperature = 0.1  # the paper gives neither value
    config.cross_entropy.lambd = 1.0
    config.vicreg = ConfigDict()  # as published
    config.vicreg.invariance = 25.0
    config.vicreg.variance = 25.0
    config.vicreg.covariance = 1.0
    config.nt_xent = ConfigDict()
    config.nt_xent.temperature = 0.1  # SimCLR on ImageNet; on CIFAR-10 0.5
    config.mixed = ConfigDict()
    config.mixed.weight = 1.0  # of the mixed term, beside lambd: the best of its authors on ImageNet
    config.lejepa = ConfigDict()  # as its authors recommend
    config.lejepa.lambd = 0.05
    config.lejepa.slices = 1024

    # Optimisation. Durations are in epochs; learning rates are for a batch of 256 and scale with batch_size / 256.
    config.epochs = 1000
    config.warmup_epochs = 10
    config.batch_size = 2048  # over all devices
    config.optimizer = ConfigDict()
    config.optimizer.name = "lars"  # "lars" | "sgd" | "adamw"
    config.optimizer.learning_rate_weights = 0.2
    # Biases and norms, all parameters with ndim == 1, and of a ViT the class token and the positions: no decay either.
    config.optimizer.learning_rate_biases = 0.0048
    config.optimizer.warmup_start = 0.0  # rate of step 0, as a fraction of the peak
    config.optimizer.final = 0.001  # the cosine's floor, as a fraction of the peak
    config.optimizer.weight_decay = 1e-6  # paper: 1.5e-6
    config.optimizer.momentum = 0.9  # LARS and SGD
    config.optimizer.eta = 0.001  # LARS: trust coefficient
    config.optimizer.clip = False  # LARS: no layer faster than SGD (solo-learn's clip_lr)
    config.optimizer.separate_norms = False  # LARS: |g| + wd |p| instead of |g + wd p| (solo-learn)
    config.optimizer.b2 = 0.999  # AdamW: of the mean of squares
    config.optimizer.eps = 1e-8  # AdamW
    # For weights of others (configs/adapt.py): a factor on the backbone's rates beside those of the projector, and the
    # epoch in which the backbone begins to move.
    config.optimizer.backbone_scale = 1.0
    config.optimizer.backbone_start = 0
    # The official code's gradient is 1/W of the true one on W GPUs, and its rates were tuned on it. Ours is the true
    # one on any number of devices, divided by this. The published model was trained on 16 GPUs (README; paper: 32).
    config.reference_world_size = 16
    # Decay of an average of the weights, which is then what is judged and exported (docs/evaluation.md); 0.0 is none.
    # It reaches back some 1 / (1 - ema) steps, which should be few beside those of the run.
    config.ema = 0.0

    # Memory. A batch may pass through the network in micro-batches, one after the other, and its gradient is still that
    # of the loss of the whole batch; it costs one more forward pass. Batch norm then takes its statistics from each
    # micro-batch ("micro"), or exactly from the whole batch ("batch"), which costs as many passes as there are
    # BatchNorms in a row: 21 for resnet18, 53 for resnet50.
    config.microbatches = 1
    config.microbatch_statistics = "micro"
    config.remat = "none"  # "blocks" keeps the inputs of residual blocks and computes the rest again: same results
    # Split the optimiser's state and the projector's large matrices over the devices: the same results, less memory and
    # traffic (docs/pods.md), a quarter more bytes between devices. False where the network between hosts is slow.
    config.shard_params = True

    # A loss or gradient that is not finite is never applied. "stop" ends the run with the first tensor that was not;
    # "skip" goes on with the next batch, counts it in the log, and gives up after max_skipped in a row.
    config.on_nonfinite = "stop"
    config.max_skipped = 20
    # A verdict that the run has collapsed, or fails in another way that docs/watching.md names, is told with its reason
    # at every evaluation and when it changes. "stop" saves a checkpoint and ends the run there, with status 1.
    config.on_collapse = "warn"

    # The images.
    config.data = ConfigDict()
    # "folder" (of images, with or without class folders) | "tfds" | "tar" (WebDataset's shards) | "parquet" (as the
    # Hugging Face Hub has them) | "npz" | "digits"; see docs/data.md.
    config.data.kind = "folder"
    config.data.path = (
        ""  # folder: holds train/ and val/; tar, parquet: the shards; npz: the file; tfds: its sets; or gs://...
    )
    config.data.name = ""  # tfds: the data set, such as "imagenet2012"; see tfds.py
    config.data.train = "train"  # folder: subfolder of path ("." is path itself); else the split, as in "train[:10%]"
    config.data.val = "val"  # the same for evaluation during training; "" for none
    config.data.file_list = ""  # folder: text file of the training images to take, one a line; "" is all
    # Of images in files: 1 reads them as grey, 3 as RGB; 0 is as the set says (folders: RGB). Any other number takes
    # files with as many bands (docs/data.md, Sensors); config.views.mean and std then have one value for each.
    config.data.channels = 0
    # Of images of more than 8 bits: the (low, high) that are black and white, such as (0, 4095) where 12 of 16 bits are
    # in use, or one such pair after the other for each channel; () is all that 8 or 16 bits can hold. Fractions and 32
    # bits are refused without it.
    config.data.value_range = ()
    # Of a value on the canvas: 16 keeps more than 8 bits through the views, which then round nothing, for twice the
    # bytes to the devices. Files of 8 bits are the same in both, but for that rounding.
    config.data.bits = 8
    config.data.exif = False  # whether photographs are turned as their EXIF says; the official code does not
    # The last batch of an epoch. "wrap" fills it with the first images (626 steps, as the official), "drop" omits it
    # (625). "keep" is the official one, smaller: the images that are left, made a multiple of reference_world_size
    # (1,168), c divided by batch_size. A second program is compiled for it, and the devices must divide it.
    config.data.last = "wrap"
    # 0 is an order over the whole set. Else so many images that are stored side by side form a block, which tar and
    # Parquet shards and, afar, TFRecord and array_record are read by, megabytes at a time; the blocks come in an order
    # over the whole set, and the images of `window` blocks are mixed at a time (docs/data.md says what of mixing that
    # costs). block x window / processes images are held in memory.
    config.data.block = 0
    config.data.window = 128
    config.data.canvas = 512  # side in pixels of what travels to the device; larger crops are decoded at 1/2, 1/4, 1/8
    config.data.resident_bytes = 2**30  # sets that take no more, at full scale, live on every device; 0 for none
    config.data.threads = 0  # for decoding; 0 is one per core
    # Where config.data.path is an address (gs://, s3://, az://, https://): a local folder that keeps what is read, so
    # that the second epoch is local; "" is none. Processes of one host share it; it takes no more than cache_bytes.
    config.data.cache = ""
    config.data.cache_bytes = 10**11
    config.data.max_bad_fraction = 0.01  # more unreadable images than this end the run
    config.data.max_pixels = 2**26  # of an image (8192 x 8192); more are unreadable; a thread takes up to 25 bytes each

    # The two views. Pairs are (view 1, view 2).
    config.image_size = 224
    config.views = ConfigDict()
    # More have the pairs' values in turn, and the loss is then the mean over all pairs of views, or that of an
    # objective of all views (docs/objectives.md). Views 1 and 2 stay what they are.
    config.views.number = 2
    # So many small views beside them (multi-crop), of which each is compared with the large ones alone, as in SwAV. Its
    # authors take 2 and 6 of ImageNet, and then views.crop_scale=(0.14, 1.0) for the large ones.
    config.views.small = 0
    config.views.small_size = 96  # pixels
    config.views.small_scale = (0.05, 0.14)  # share of the image's area
    # The first epochs at smaller sizes, which rise to image_size: (160, 192) with (10, 20) is 160 pixels until epoch
    # 10, 192 until epoch 20, and image_size from there on. Small views keep theirs. Each size has a program of its own.
    config.views.ramp_sizes = ()
    config.views.ramp_epochs = ()  # in which each size ends
    config.views.crop_scale = (0.08, 1.0)  # share of the image's area
    config.views.crop_ratio = (3 / 4, 4 / 3)  # width / height
    config.views.interpolation = "cubic"
    config.views.rotation = 0.0  # degrees; above 0 crops are sampled bilinearly: for small images
    config.views.flip = 0.5
    config.views.jitter = 0.8  # probability of all four together; their strengths:
    config.views.brightness = 0.4
    config.views.contrast = 0.4
    config.views.saturation = 0.2
    config.views.hue = 0.1
    config.views.grayscale = 0.2
    config.views.blur = (1.0, 0.1)
    config.views.blur_sigma = (0.1, 2.0)  # pixels
    config.views.solarize = (0.0, 0.2)
    config.views.invert = 0.0
    config.views.mean = (0.485, 0.456, 0.406)
    config.views.std = (0.229, 0.224, 0.225)

    # Watching it learn, where labels exist: kNN and a linear probe on stopped gradients; neither touches the network.
    config.eval = ConfigDict()
    config.eval.every_epochs = 10  # and at the end; 0 is never
    config.eval.batch_size = 1024
    config.eval.resize = 256  # short side
    config.eval.crop = 224
    config.eval.knn_k = 20
    config.eval.knn_temperature = 0.07
    config.eval.knn_bank = 50_000  # training images to search, evenly spaced; 0 is all
    config.eval.probe_learning_rate = 0.1  # of the online probe, for a batch of 256
    config.eval.lidar_images = 1000  # whose random views tell how many directions tell images apart; 0 is none

    # What is written, and how often.
    config.log_every_steps = 50
    config.picture_every_epochs = 10  # the cross-correlation matrix; also at the first and the last step
    config.checkpoint_every_steps = 1000
    config.keep_checkpoints = 3  # and the best by kNN
    config.wandb = False  # also to Weights & Biases (docs/trouble.md)
    config.mlflow = False  # also to MLflow, in the work folder where MLFLOW_TRACKING_URI names no server
    config.profile_steps = ()  # (first, last): a profile of these steps by operation, in the work folder's profile/

    # How XLA compiles. On GPUs some sums come in whatever order the threads do, and algorithms are chosen by timing
    # them. True excludes the former, and the cache below keeps the latter, so that a run that goes on has the bits that
    # it would have had (docs/design.md); slower, by how much benchmarks/gpu.py says. CPUs and TPUs are so anyway.
    config.deterministic = False
    # Where compiled programs are kept, so that a run that goes on starts at once: a folder, "" for compiled/ in the
    # work folder (or JAX_COMPILATION_CACHE_DIR, where that is set), "none" for no cache.
    config.compilation_cache = ""
    return config.lock()
