"""Linear evaluation on ImageNet as published: a linear classifier on the frozen backbone, 100 epochs.

    python linear_eval.py --config=configs/linear.py --checkpoint=runs/r50 --workdir=runs/r50/linear

Expected (official README, `evaluate.py --lr-classifier 0.3` on the published ResNet-50): 73.5 % top-1, 91.0 % top-5.
Not run here yet.

Values are those of the official evaluate.py. The architecture and the normalisation of the images come from the
checkpoint, so the same line serves any network of train.py; so do the images, unless config.data names others.
Every other linear_*.py starts from this one and shows only what differs.
"""

from ml_collections import ConfigDict


def get_config():
    """Every field of a linear evaluation."""
    config = ConfigDict()
    config.seed = 0  # of the initial classifier, the order of the data and the crops
    # Above 1: as many evaluations, with seed, seed + 1, ..., each in a folder of its own (seed_0, seed_1, ...) inside
    # the work folder, and in the end their mean and standard deviation.
    config.seeds = 1

    # The name that the numbers bear. "" is "linear" for "freeze", "fine-tuning" for "finetune". Where the config is not
    # what barlow_jax/results/protocols.py lists under the name, the numbers say in which fields.
    config.protocol = ""
    # "freeze": the backbone stays as it is, batch statistics included. "finetune": it is trained along, see
    # semi_supervised.py.
    config.weights = "freeze"
    # Of the backbone's arithmetic, or "bfloat16"; float32 is not TF32 (docs/precision.md). Parameters and fc: float32.
    config.precision = "float32"

    # Optimisation: momentum SGD; the rates move once an epoch. They are as they are, whatever the batch.
    config.epochs = 100
    config.batch_size = 256  # over all devices
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate_classifier = 0.3
    config.optimizer.learning_rate_backbone = 0.0  # above 0 with "finetune", and only there
    config.optimizer.schedule = "cosine"  # to 0, or "steps": times `factor` after each number of epochs in `milestones`
    config.optimizer.milestones = ()
    config.optimizer.factor = 0.1
    config.optimizer.weight_decay = 1e-6  # on weights and biases alike, as PyTorch's SGD has it
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False

    # The images. What is empty is as in the pre-training run; with another kind than there, give all that it needs.
    config.data = ConfigDict()
    config.data.kind = ""  # "folder" (of class folders) | "tfds" | "tar" | "parquet" | "npz" | "digits"
    config.data.path = ""  # folder: holds train/ and val/; tar, parquet: the shards; npz: the file; tfds: its sets
    config.data.name = ""  # tfds: the data set, such as "imagenet2012"; see linear_tfds.py
    config.data.train = ""  # folder: subfolder of path ("." is path itself); else the split, as in "train[:10%]"
    config.data.val = ""  # the same for validation
    config.data.file_list = ""  # folder: text file of the training images to take, one a line; "" is all, always
    config.data.channels = (
        0  # of images in files: 1 reads them as grey, 3 as RGB, another number files of so many bands
    )
    # Of images of more than 8 bits: the (low, high) that are black and white, such as (0, 4095) where 12 of 16 bits are
    # in use, or one such pair after the other for each channel; () is all that 8 or 16 bits can hold. Fractions and 32
    # bits are refused without it.
    config.data.value_range = ()
    config.data.bits = 0  # of a value on the canvas, 8 or 16
    config.data.exif = False  # whether photographs are turned as their EXIF says; if the run did, so is this
    config.data.canvas = 512  # side in pixels of what travels to the device; larger crops are decoded at 1/2, 1/4, 1/8
    config.data.resident_bytes = 2**30  # sets that take no more, at full scale, live on every device; 0 for none
    config.data.threads = 0  # for decoding; 0 is one per core
    # Where config.data.path is an address (gs://, s3://, az://, https://): a local folder that keeps what is read, so
    # that the second epoch is local; "" is none. Processes of one host share it; it takes no more than cache_bytes.
    config.data.cache = ""
    config.data.cache_bytes = 10**11
    config.data.max_bad_fraction = 0.01  # more unreadable images than this end the run
    config.data.max_pixels = 2**26  # of an image (8192 x 8192); more are unreadable; a thread takes up to 25 bytes each

    # Training sees a random crop, perhaps mirrored, and nothing else.
    config.image_size = 224  # 0: as in the pre-training run
    config.crop_scale = (0.08, 1.0)  # share of the image's area
    config.crop_ratio = (3 / 4, 4 / 3)  # width / height
    config.interpolation = "linear"  # "cubic" in pre-training
    config.flip = 0.5

    # Validation: every image once, short side to `resize`, central square of `crop`.
    config.eval = ConfigDict()
    config.eval.every_epochs = 1  # and at the end
    config.eval.batch_size = 256
    config.eval.resize = 256  # 0: as in the pre-training run
    config.eval.crop = 224  # 0: as in the pre-training run

    # What is written, and how often.
    config.log_every_steps = 100
    config.checkpoint_every_epochs = 1  # and at the end
    config.keep_checkpoints = 1  # and the best by top-1
    config.wandb = False
    config.mlflow = False

    # How XLA compiles, as in barlow_twins.py.
    config.deterministic = False  # True: on GPUs, the same bits at each run of one compiled program, and slower
    # Where compiled programs are kept: a folder, "" for compiled/ in the work folder (or JAX_COMPILATION_CACHE_DIR,
    # where that is set), "none" for no cache.
    config.compilation_cache = ""
    return config.lock()
