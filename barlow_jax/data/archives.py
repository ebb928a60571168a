"""What sources of shards have in common, each a file of many images: tar.py and parquet.py have the rest."""

import copy
import re

import numpy as np

from barlow_jax.data import readers, shards, walk
from barlow_jax.data.fingerprint import fingerprint
from barlow_jax.data.pixels import Reading
from barlow_jax.data.remote.bucket import IN_FLIGHT
from barlow_jax.data.remote.telling import told
from barlow_jax.data.sources import MAX_CLASSES, Encoded
from barlow_jax.errors import UserError


class Archive(Encoded):
    """Encoded images in shards, in the order of the shards' names and of the images in each.

    path, split, cache: see `shards.find`. class_names: of another split, where this one must be numbered like it; () is
      what the set says itself.
    reading: fields of pixels.Reading; channels of 0 are 3.
    A subclass says which `ending` its shards have, and what `_open` finds in them.
    """

    ending = ""
    together = True

    def __init__(self, path, split, *, class_names=(), cache=None, **reading):
        folder, self._shards = shards.find(path, split, self.ending, cache)
        self.reading = Reading.of(reading)
        self.name = walk.readable(
            self._shards[0].path if folder.alone else ":".join(filter(None, (folder.root, split)))
        )
        if folder.store:
            self.afar = readers.Afar([folder.store], IN_FLIGHT)
        self._rows, self._listing = None, None
        stored, names = self._open(folder, split)
        self.labels, self.class_names, self.num_classes = numbered(stored, tuple(class_names) or names, self.name)
        if self._rows is None:
            self._rows = np.arange(len(stored))
        if not len(self._rows):
            raise UserError(f"{self.name} holds no image: point config.data.path to shards that do.")

    def _open(self, folder, split):
        """(label of each image: integers [n], -1 without, or list of str, "" without; names of the classes or None)."""
        raise NotImplementedError

    def _contents(self):
        """Arrays that tell, for the rows of this source, which images they are, wherever the shards lie."""
        raise NotImplementedError

    def __len__(self):
        return len(self._rows)

    def take(self, rows):
        """The examples `rows` (int [m]) as a source of their own."""
        part = copy.copy(self)
        part._rows, part._listing = self._rows[rows], None
        part.labels = None if self.labels is None else self.labels[rows]
        return part

    def fetch(self):
        """The function for tf.data that `Encoded.fetch` describes."""
        from barlow_jax.data import decode

        return decode.from_reads(self._one, self.labels, len(self))

    def _one(self, index):
        return self.encoded(index) if self.blocks is None else self.blocks[index]

    def batches(self, job):
        """The batches that a readers.Job asks for; afar, the log says at the end of an epoch what was read for it."""
        found = super().batches(job)
        return told(found, job, self.afar.buckets, self.name) if self.afar else found

    def fingerprint(self):
        """Of the state of the shards, the rows and the labels; see `fingerprint.fingerprint`."""
        about, files = self.reading.told(), [shard.path for shard in self._shards]
        if self.afar:  # by what the bucket has said of its objects
            about, files = about | {"shards": [[shard.path, *shard.state()] for shard in self._shards]}, []
        return fingerprint(about, arrays=[self._rows, self.labels], files=files)

    def listing(self):
        """Of the images' names in the shards, and the labels; see `protocol.Source.listing`."""
        if self._listing is None:
            self._listing = fingerprint({}, arrays=[*self._contents(), self.labels])
        return self._listing


def numbered(stored, class_names, name):
    """(labels int32 [n] or None, class_names or None, number of classes or None) of what shards say of each image.

    stored: integers [n], -1 = unlabelled, or list of str, "" = unlabelled; where all of these are whole numbers they
      are taken for such, else for names of classes, which are numbered in sorted order.
    class_names: by number, where they are known, or None. name: of the set, for messages.
    UserError for a number that is none of a class, and for a name that is none of class_names.
    """
    if isinstance(stored, list):
        places = {}
        inverse = np.fromiter((places.setdefault(text, len(places)) for text in stored), np.int64, len(stored))
        values, class_names = _values([*places], class_names, name)
        labels = np.asarray(values, np.int64)[inverse] if stored else np.zeros(0, np.int64)
    else:
        labels = np.asarray(stored, np.int64)
    if not len(labels) or labels.max() < 0:
        return None, None, None
    if labels.min() < -1 or labels.max() >= MAX_CLASSES:
        raise UserError(
            f"{name} has the label {labels.min() if labels.min() < -1 else labels.max()}, but classes count from 0 to "
            f"{MAX_CLASSES - 1:,}, and -1 is unlabelled: number them anew."
        )
    if class_names and labels.max() >= len(class_names):
        raise UserError(
            f"{name} has the label {labels.max()}, but names of only {len(class_names)} classes: see to both."
        )
    return labels.astype(np.int32), class_names or None, len(class_names) if class_names else int(labels.max()) + 1


def _values(texts, class_names, name):
    """(number of each text, names of the classes) of the different labels of a set, "" being none."""
    told = [text for text in texts if text]
    if all(re.fullmatch(r"-?[0-9]{1,9}", text) for text in told):
        return [int(text) if text else -1 for text in texts], class_names
    class_names = class_names or tuple(sorted(told))
    number = {text: k for k, text in enumerate(class_names)}
    if unknown := sorted(text for text in told if text not in number):
        raise UserError(
            f"{name} has the class {unknown[0][:80]!r}, which is none of the {len(number)} that are known: see to "
            f"{shards.CLASSES} beside the shards, or to the training images' classes."
        )
    return [number[text] if text else -1 for text in texts], class_names
