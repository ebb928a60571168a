r"""Frozen features: nearest neighbours, few labels, and the fast probe. The default of both commands.

    python -m barlow_jax.knn --checkpoint=runs/r50
    python -m barlow_jax.probe --checkpoint=runs/r50
    python -m barlow_jax.knn --checkpoint=runs/photos --config.data.path=/my/labelled --config.data.train=train \
        --config.data.val=val

Features are computed once and kept in the work folder; both commands share them. Architecture, normalisation and images
come from the checkpoint, so the same line serves any run of train.py. Not run on ImageNet yet.
"""

from ml_collections import ConfigDict


def get_config():
    """Every field of both commands."""
    config = ConfigDict()
    config.seed = 0  # of the augmented passes, the held-out part and the order; see `seeds`
    config.precision = "float32"  # of the backbone's arithmetic, or "bfloat16"; features are float32 always

    # The images. What is empty is as in the pre-training run; with another kind than there, give all that it needs.
    config.data = ConfigDict()
    config.data.kind = ""  # "folder" (of class folders) | "tfds" | "tar" | "parquet" | "npz" | "digits"
    config.data.path = ""  # folder: holds train/ and val/; tar, parquet: the shards; npz: the file; tfds: its sets
    config.data.name = ""  # tfds: the data set, such as "imagenet2012"
    config.data.train = ""  # folder: subfolder of path ("." is path itself); else the split, as in "train[:10%]"
    config.data.val = ""  # the same for the images that are judged
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

    # The view whose features count: short side to `resize`, central square of `crop`. 0: as in the pre-training run.
    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.resize = 0
    config.eval.crop = 0

    # Nearest neighbours: weights exp(cosine similarity / temperature). A k above the number of images is left out.
    config.k = (1, 10, 20, 100, 200)
    config.temperature = 0.07
    config.bank = 0  # training images to search, evenly spaced; 0 is all

    # Few labels: images of each class, by the nearest class mean and by ridge regression.
    config.shots = (1, 5, 10)
    config.shot_seeds = 5  # draws, for mean and spread; 0 for none of it

    # The fast probe: one head for each pair of a rate and a decay, trained together on frozen features.
    config.learning_rates = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # as they are, whatever the batch
    config.weight_decays = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
    config.momentum = 0.9
    config.epochs = 100
    config.batch_size = 1024  # over all devices, which divide it where there are augmented passes
    config.standardize = True  # features to mean 0 and variance 1
    config.held_out = 0.1  # share of every class of train on which the best head is chosen
    config.seeds = 1  # of held-out part and order: seed, seed + 1, ...; several give mean and spread

    # Augmented passes over train, whose epochs take turns; 0 trains on the central view.
    config.passes = 0
    config.image_size = 0  # 0: as in the pre-training run
    config.crop_scale = (0.08, 1.0)  # share of the image's area
    config.crop_ratio = (3 / 4, 4 / 3)  # width / height
    config.interpolation = "linear"  # "cubic" in pre-training
    config.flip = 0.5
    return config.lock()
