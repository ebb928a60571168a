"""Image sets of tensorflow-datasets, addressed by index whatever the format of their files.

array_record files are made for random access. TFRecord files become so by one look at the length of every record
when the set is opened. So both give the order that image folders and arrays have: a global shuffle, the same for any
number of processes, that opens at any step at once.
"""

import concurrent.futures
import copy
import os
import pathlib
import resource
import struct

from barlow_jax.data import decode  # first: it hides the accelerators from TensorFlow, which comes with TFDS

# isort: split
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from barlow_jax.data import readers
from barlow_jax.data.fingerprint import fingerprint
from barlow_jax.data.pixels import Reading
from barlow_jax.data.remote import shards
from barlow_jax.data.remote.array_record import ArrayRecords
from barlow_jax.data.remote.bucket import IN_FLIGHT
from barlow_jax.data.remote.prepared import Prepared
from barlow_jax.data.remote.telling import told
from barlow_jax.data.sources import Encoded
from barlow_jax.data.walk import is_remote
from barlow_jax.errors import UserError

READERS = 32  # files looked through at a time; more than cores, as it is the disk that answers


class Records(Encoded):
    """One split of a tensorflow-datasets image set that has been prepared on this machine.

    name: such as "cifar10", "imagenet2012_subset/1pct" or "voc/2007:5.0.0".
    split: in TFDS's notation: "train", "train+validation", "train[:10%]".
    data_dir: where TFDS keeps its sets; "" is TFDS's own choice ($TFDS_DATA_DIR or ~/tensorflow_datasets). An address
      (gs://...) is read by ranges; cache: a remote.cache.Cache of what is read there, which TFRecord files need.
    reading: fields of pixels.Reading; channels of 0 are what the set says (1 or 3).

    Labels are the class label that TFDS supervises with, or the feature "label"; they stand in the records, so
    `labels` is None also where there are some; a split whose first label is -1 has none. shape is (height, width,
    channels) where all images share it, else None.
    UserError where the set or split does not exist, is not prepared (it gives the command), or holds no images.
    """

    labels = None

    def __init__(self, name, split, *, data_dir="", cache=None, **reading):
        prepared = Prepared(str(data_dir), name, cache) if is_remote(data_dir) else None
        builder = tfds.builder_from_directory(prepared.folder) if prepared else _open_builder(name, data_dir)
        info = _split_info(builder, name, split)
        features = builder.info.features
        image, label = _image_key(builder.info, name), _label_key(builder.info)
        height, width, stored_channels = features[image].shape
        self.name = f"{name}:{split}"
        self.reading = Reading.of(reading, usual=1 if stored_channels == 1 else 3)
        self.shape = None if None in (height, width) else (height, width, self.channels)
        self.class_names = tuple(features[label].names) if label else None
        self.num_classes = features[label].num_classes if label else None
        self._image, self._label = image, label
        kept = {key: features[key] for key in (image, label) if key}
        self._features = tfds.features.FeaturesDict(kept)
        instructions = [i for i in info.file_instructions if i.take]
        _allow_open_files(len(instructions))
        readers_here = {"array_record": ArrayRecordDataSource, "tfrecord": TFRecords}
        readers_afar = {"array_record": ArrayRecords, "tfrecord": shards.TFRecords}
        suffix = builder.info.file_format.file_suffix
        if suffix not in readers_here:
            raise UserError(
                f"{name} is prepared as {builder.info.file_format.value}, but only array_record and tfrecord can be "
                f"read: {_how_to_prepare(name, data_dir)}."
            )
        self._objects, self.together = None, bool(prepared)
        if prepared:
            self._objects = prepared.objects([os.path.basename(i.filename) for i in instructions])
            self._reader = readers_afar[suffix](instructions, prepared.bucket, self._objects)
            self.afar = readers.Afar([prepared.bucket], IN_FLIGHT)
        else:
            self._reader = readers_here[suffix](instructions)
        self._about = {"set": builder.info.full_name, "split": split, "examples": info.num_examples}
        self._files = [os.fspath(i.filename) for i in instructions]
        self._rows = np.arange(info.num_examples)
        if label and self._first()[1] < 0:  # a test split whose labels are kept secret, as ImageNet's
            self.num_classes = self.class_names = self._label = None

    def _first(self):
        """The first record, parsed. UserError where it is damaged."""
        try:
            return self.parse(self.read(0))
        except UserError:
            raise
        except Exception as error:  # of array_record and of TensorFlow's parser: whatever they run into
            damaged = isinstance(error, UnicodeError)  # TensorFlow quotes the bytes, and cannot
            reason = "its first record is damaged" if damaged else " ".join(str(error).split())[:100]
            raise UserError(
                f"{self._files[0]} cannot be read ({reason}): remove it, and prepare or pack the set again."
            ) from None

    def __len__(self):
        return len(self._rows)

    def take(self, rows):
        """The examples `rows` (int [m]) as a source of their own."""
        part = copy.copy(self)
        part._rows = self._rows[rows]
        return part

    def read(self, index):
        """One record as it is stored: bytes."""
        return self._reader[int(self._rows[index])] if self.blocks is None else self.blocks[index]

    def read_together(self, places):
        """Records from afar, or the OSError for one that cannot be read: list of bytes."""
        return self._reader.together(self._rows[places])

    def parse(self, record):
        """In a tf.data graph: a record -> (encoded image, label int32; -1 without labels)."""
        parts = self._features.deserialize_example(record, decoders={self._image: tfds.decode.SkipDecoding()})
        label = parts[self._label] if self._label else -1
        return parts[self._image], decode.tf.cast(label, decode.tf.int32)

    def batches(self, job):
        """The batches that a readers.Job asks for; afar, the log says at the end of an epoch what was read for it."""
        if not self.afar:
            return super().batches(job)
        self._reader.prepare()
        return told(super().batches(job), job, self.afar.buckets, self.name)

    def fetch(self):
        """The function for tf.data that `Encoded.fetch` describes."""
        return decode.from_records(self)

    def where(self, index):
        """What to call an example, for a person."""
        return f"{self.name}, record {self._rows[index]}"

    def fingerprint(self):
        """Of the set, the state of its files, and the rows; see `fingerprint.fingerprint`."""
        about = self._about | self.reading.told()
        if self._objects is not None:
            return fingerprint(about | {"files": self._objects}, arrays=[self._rows])
        return fingerprint(about, arrays=[self._rows], files=self._files)

    def listing(self):
        """Of the set and the rows; see `protocol.Source.listing`."""
        return fingerprint(self._about, arrays=[self._rows])

    def encoded(self, index):
        """The image file of one example: bytes."""
        return self.parse(self.read(index))[0].numpy()


class TFRecords:
    """TFRecord files as a sequence of records.

    instructions: TFDS's, each with filename, skip, take and examples_in_shard.
    A record is its length (8 bytes, little-endian), a checksum (4), the data, and a checksum (4); nothing in the file
    says where the n-th begins, so all lengths are read once, 12 bytes a record. Records are read without a look at
    their checksums. UserError names a file that is cut off or holds another number of records than its set says.
    """

    def __init__(self, instructions):
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            spans = list(pool.map(_spans_of, instructions))
        self._files = [os.fspath(i.filename) for i in instructions]
        self._file = np.repeat(np.arange(len(spans)), [len(s) for s in spans])
        self._spans = np.concatenate(spans)

    def __len__(self):
        return len(self._spans)

    def __getitem__(self, index):
        start, length = self._spans[index]
        with open(self._files[self._file[index]], "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, start)


def _spans_of(instruction):
    """(start, length) of the data of a file's records: int64 [take, 2]."""
    path, wanted = os.fspath(instruction.filename), instruction.examples_in_shard
    spans, place = np.empty((wanted, 2), np.int64), 0
    try:
        file = open(path, "rb", buffering=0)
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): prepare the data set again.") from None
    with file:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # or the disk reads far more than the 8 bytes
        for k in range(wanted):
            header = os.pread(descriptor, 8, place)
            length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
            if place + length + 16 > size:
                raise UserError(
                    f"{path} ends in record {k} of {wanted}: it was cut off, so prepare the data set again."
                )
            spans[k] = place + 12, length
            place += length + 16
    if place != size:
        raise UserError(f"{path} holds more than the {wanted} records of its data set: prepare the data set again.")
    return spans[instruction.skip : instruction.skip + instruction.take]


def _allow_open_files(count):
    """array_record keeps its files open, more than the 1,024 that a process usually may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _how_to_prepare(name, data_dir):
    """The command that prepares a set. Not `tfds build`, which does not start without Apache Beam."""
    where = f", data_dir={data_dir!r}" if data_dir else ""
    call = f"t.builder({name!r}{where}, file_format='array_record').download_and_prepare()"
    return f'python -c "import tensorflow_datasets as t; {call}"'


def _open_builder(name, data_dir):
    """The TFDS builder of a set that lies prepared in data_dir; of its newest prepared version if none is named."""
    folder = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR).expanduser()
    if prepared := _newest_prepared(folder / name.replace(":", "/")):
        return tfds.builder_from_directory(prepared)
    try:
        builder = tfds.builder(name, data_dir=folder, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise UserError(f"{name!r} is no data set that TFDS knows or that lies in {folder} ({reason}).") from None
    # A name without its configuration: TFDS knows the usual one.
    if prepared := ":" not in name and _newest_prepared(pathlib.Path(builder.data_path).parent):
        return tfds.builder_from_directory(prepared)
    by_hand = ""
    if instructions := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual = folder / "downloads" / "manual"
        by_hand = f"download by hand to {manual} what TFDS asks for ({' '.join(instructions.split())}), then "
    raise UserError(f"{name} is not prepared in {folder}: {by_hand}run {_how_to_prepare(name, data_dir)}")


def _newest_prepared(folder):
    """The folder of a prepared set: `folder` itself, or the highest version (1.0.0, 2.1.0) in it; None if neither."""
    if (folder / "dataset_info.json").exists():
        return folder
    versions = [path.parent for path in folder.glob("*.*.*/dataset_info.json")]
    versions = [path for path in versions if path.name.replace(".", "").isdigit()]
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def _split_info(builder, name, split):
    try:
        info = builder.info.splits[split]
        empty = info.num_examples == 0
    except (KeyError, ValueError) as error:
        held = ", ".join(builder.info.splits)
        raise UserError(f"{name} has no split {split!r} ({held} are prepared): choose one of them.") from error
    if empty:
        raise UserError(f"{name} has no example in {split!r}: choose another split.")
    return info


def _image_key(info, name):
    images = [key for key, feature in info.features.items() if type(feature) is tfds.features.Image]
    supervised = (info.supervised_keys or ("",))[0]
    for key in (supervised, "image"):
        if key in images:
            return key
    if len(images) != 1:
        raise UserError(f"{name} has {len(images)} image features ({', '.join(info.features)}), and one is needed.")
    return images[0]


def _label_key(info):
    """The feature that holds the class, or None."""
    supervised = (info.supervised_keys or ("", ""))[1]
    for key in (supervised, "label"):
        if key in info.features and isinstance(info.features[key], tfds.features.ClassLabel):
            return key
    return None
