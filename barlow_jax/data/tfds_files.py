"""Files of a set of images as TFDS has them: records, and what describes them. records.py reads them."""

import errno
import os
import pathlib
import tempfile

from barlow_jax.data import decode  # first: it hides the accelerators from TensorFlow, which comes with TFDS

# isort: split
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

OPTIONS = "group_size:1,uncompressed"  # a record is read by itself, and image files are compressed already
NAMES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def write(path, images):
    """An array_record file of (bytes of an image file, class or -1). OSError where it cannot be written."""
    try:
        writer = ArrayRecordWriter(os.fspath(path), OPTIONS)
        try:
            for content, label in images:
                writer.write(record(content, label))
        finally:
            writer.close()
    except RuntimeError as error:  # all that the library says
        full = "No space left" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)[:200], os.fspath(path)) from error


def record(image, label):
    """A tf.train.Example as TFDS writes it: bytes."""
    train = decode.tf.train
    feature = {
        "image": train.Feature(bytes_list=train.BytesList(value=[image])),
        "label": train.Feature(int64_list=train.Int64List(value=[label])),
    }
    return train.Example(features=train.Features(feature=feature)).SerializeToString()


def image(record):
    """(bytes of the image file, class or -1) of what `record` made."""
    feature = decode.tf.train.Example.FromString(record).features.feature
    return feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0]


def describe(folder, name, version, splits, classes):
    """Writes what makes the files in a folder a set, dataset_info.json last.

    splits: {name: [{"images", "bytes"} of each shard]}. classes: their names by number, or how many there are.
    """
    about = {"names": list(classes)} if isinstance(classes, tuple) else {"num_classes": classes}
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(**about)}
    )
    of_set = tfds.core.dataset_info.DatasetIdentity(name, tfds.core.Version(version), os.fspath(folder), "")
    info = tfds.core.DatasetInfo(builder=of_set, features=features, supervised_keys=("image", "label"))
    info.set_file_format("array_record")
    template = {"data_dir": pathlib.Path(folder), "dataset_name": name, "filetype_suffix": "array_record"}
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[part["images"] for part in parts],
            num_bytes=sum(part["bytes"] for part in parts),
            filename_template=tfds.core.ShardedFileTemplate(split=split, template=NAMES, **template),
        )
        for split, parts in splits.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(infos))
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as beside:
        info.write_to_directory(beside)
        for file in sorted(os.listdir(beside), key=lambda file: (file == "dataset_info.json", file)):
            os.replace(os.path.join(beside, file), os.path.join(folder, file))
