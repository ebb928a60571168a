"""The forms that a set is packed in: tar shards as WebDataset has them, and array_record files as TFDS has them.

OUT/train-00000.tar ...                                            tar: 000000017.jpg, 000000017.cls, ...
OUT/1.0.0/NAME-train.array_record-00000-of-00005 ...               array_record, NAME being OUT's own
OUT/1.0.0/dataset_info.json, features.json, label.labels.txt       which make it the set NAME of TFDS, in OUT's folder
OUT/classes.json, train.pack.json                                  of both, see pack.py
"""

import errno
import importlib.util
import io
import json
import os
import re
import tarfile

from barlow_jax.data import shards
from barlow_jax.data.tar import BLOCK
from barlow_jax.data.tars import Tars
from barlow_jax.errors import UserError

VERSION = "1.0.0"


class Tar:
    """Tar shards of one split in a folder; `ArrayRecord` has the same members."""

    name = "tar"
    beside = 3.5 * BLOCK  # bytes of a shard for each image, but for its own: headers, half a block, a label

    def __init__(self, out: str, split: str):
        self.out, self.split, self.folder = out, split, out

    def check(self, source):
        """UserError where a set cannot be packed in this form."""

    def path(self, shard: int, count: int) -> str:
        """Of a shard of `count`."""
        return os.path.join(self.folder, f"{self.split}-{shard:05}.tar")

    def others(self, count: int) -> list[str]:
        """Shards of the split that are not of a pack of `count`."""
        return [path] if os.path.exists(path := self.path(count, count)) else []

    def write(self, path, images):
        """Writes a shard. images: (row, bytes of the file, ending, class or -1) of each."""
        with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row, content, ending, label in images:
                _add(tar, f"{row:09}.{ending}", content)
                if label >= 0:
                    _add(tar, f"{row:09}.cls", str(label).encode())

    def finish(self):
        """Writes what describes the shards, where there is such."""

    def open(self):
        """The set that was packed."""
        return Tars(self.out, self.split)

    def image(self, source, row: int) -> tuple[bytes, int]:
        """(the file, the class or -1) of an image of such a set. OSError where it cannot be read."""
        return source.encoded(row), -1 if source.labels is None else int(source.labels[row])

    def flags(self) -> str:
        """That train on it."""
        return f"--config.data.kind=tar --config.data.path={self.out}"


def _add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class ArrayRecord:
    """array_record files of one split, each record a tf.train.Example of "image" and "label"."""

    name = "array_record"
    beside = 100  # in the record, its chunk and the table of chunks

    def __init__(self, out: str, split: str):
        self.out, self.split, self.folder = out, split, os.path.join(out, VERSION)
        self.set = os.path.basename(os.path.abspath(out))
        if importlib.util.find_spec("array_record") is None:
            raise UserError(
                "--format=array_record needs array_record, which there is for Linux: pip install array_record."
            )
        if not re.fullmatch("[a-z][a-z0-9_]*", self.set):
            raise UserError(
                f"{out} becomes a set of TFDS by the name {self.set!r}, which has to be small letters, digits and _ "
                "only: give another folder."
            )

    def check(self, source):
        if source.labels is not None and source.labels[0] < 0:
            raise UserError(
                f"{source.where(0)}, the first image, has no class and others have: a set of TFDS would be read as one "
                "without labels, so pack it with --format=tar."
            )

    def path(self, shard, count):
        return os.path.join(self.folder, f"{self._begins()}{shard:05}-of-{count:05}")

    def others(self, count):
        ours = {self.path(shard, count) for shard in range(count)}
        found = [os.path.join(self.folder, name) for name in os.listdir(self.folder) if name.startswith(self._begins())]
        return sorted(path for path in found if path not in ours)

    def write(self, path, images):
        from barlow_jax.data import tfds_files

        tfds_files.write(path, ((content, label) for _, content, _, label in images))

    def finish(self):
        """Describes all splits of the folder of which every shard is there."""
        from barlow_jax.data import tfds_files

        splits, classes = {}, 1
        for file in sorted(name for name in os.listdir(self.out) if name.endswith(".pack.json")):
            with open(os.path.join(self.out, file), encoding="utf-8") as stream:
                held = json.load(stream)
            if held.get("format") != self.name:
                continue
            parts = [held["shards"].get(str(k)) for k in range(-(-held["images"] // held["per_shard"]))]
            if all(parts):
                splits[file.removesuffix(".pack.json")] = parts
                classes = max(classes, held["classes"])
        tfds_files.describe(
            self.folder, self.set, VERSION, splits, shards.class_names(shards.Folder(self.out)) or classes
        )

    def open(self):
        from barlow_jax.data.records import Records

        return Records(self.set, self.split, data_dir=os.path.dirname(os.path.abspath(self.out)))

    def image(self, source, row):
        from barlow_jax.data import tfds_files

        try:
            return tfds_files.image(source.read(row))
        except RuntimeError as error:  # a checksum that is wrong
            raise OSError(errno.EIO, str(error)[:100]) from error

    def flags(self):
        above = os.path.dirname(os.path.abspath(self.out))
        return f"--config.data.kind=tfds --config.data.path={above} --config.data.name={self.set}"

    def _begins(self):
        return f"{self.set}-{self.split}.array_record-"


FORMS = {form.name: form for form in (Tar, ArrayRecord)}
