"""VOC2007 classification: a linear SVM for each of 20 classes on frozen features, mean average precision.

    python -m barlow_jax.transfer --config=configs/voc07.py --checkpoint=runs/r50 --config.data.path=VOCdevkit/VOC2007

Expected (paper, table 3): 86.2 mAP with the ImageNet ResNet-50. Not run here yet at that size.

Values are VISSL's, configs/config/benchmark/linear_image_classification/voc07/eval_resnet_8gpu_transfer_voc07_svm.yaml,
the same in its versions 1569537 and 8e0d667; see docs/evaluation_frozen.md for what differs.
"""

from ml_collections import ConfigDict


def get_config():
    """Every field of the protocol."""
    config = ConfigDict()
    config.precision = "float32"  # of the backbone's arithmetic, or "bfloat16"

    config.data = ConfigDict()
    config.data.kind = "voc"
    config.data.path = ""  # the folder of the year: holds JPEGImages/ and ImageSets/Main/
    config.data.train = "trainval"
    config.data.val = "test"
    config.data.canvas = 512  # side in pixels of what travels to the device; VOC's images are no larger
    config.data.threads = 0  # for decoding, and processes for the SVMs; 0 is one per core
    config.data.max_bad_fraction = 0.0  # more unreadable images than this end the run
    config.data.max_pixels = 2**26  # of an image (8192 x 8192); more are unreadable

    # The view whose features count. "squash": the whole image as a square of `crop`, as VISSL has it, there by way of
    # a short side of 256; "crop": short side to `resize`, central square.
    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.fit = "squash"
    config.eval.resize = 256  # 0: as in the pre-training run
    config.eval.crop = 224  # 0: as in the pre-training run

    config.costs = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)  # C, chosen for each class
    # Images where a class is "difficult" never count in its test. In its training they are "ignored", or "negative", as
    # VISSL's code has it.
    config.difficult = "ignored"
    return config.lock()
