"""Data sets of tensorflow-datasets, prepared by its own writer from a few drawn images."""

import contextlib
import io

import numpy as np
from PIL import Image


def photo(number, size=(40, 48)):
    """A drawn photograph as the bytes of a JPEG; `number` tells them apart."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)).resize(size[::-1], Image.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _value(key, feature, number):
    """Something that a feature takes: the image for an image, the label number % classes, and what fills the rest."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        if None in feature.shape:
            return io.BytesIO(photo(number))
        pixels = np.asarray(Image.open(io.BytesIO(photo(number, feature.shape[:2]))))
        return pixels[..., : feature.shape[-1]]
    if isinstance(feature, tfds.features.ClassLabel):
        return number % feature.num_classes
    return [] if isinstance(feature, tfds.features.Sequence) else str(number)


def prepare(name, data_dir, file_format, splits, *, shards=3, version=None, image=None, unlabelled=()):
    """Writes a set that TFDS knows by name, with that many examples in each split; returns its builder.

    Example k of a split has label k % classes, or -1 in the splits `unlabelled`. image: number -> bytes of its image
    file, `photo` if None.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(data_dir), file_format=file_format, try_gcs=False)

    def examples(split, count):
        for number in range(count):
            values = {key: _value(key, feature, number) for key, feature in builder.info.features.items()}
            if split in unlabelled:
                values["label"] = -1
            if image is not None:
                values["image"] = io.BytesIO(image(number))
            yield f"{number:04}", values

    builder._split_generators = lambda dl_manager: {split: examples(split, count) for split, count in splits.items()}
    builder.MANUAL_DOWNLOAD_INSTRUCTIONS = None  # the images are drawn, not downloaded
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # progress bars
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return builder
