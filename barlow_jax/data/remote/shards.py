"""Records of TFRecord files in buckets, by position.

A TFRecord file has no table of contents (records.TFRecords says how it is built), and a look at 12 bytes of each record
would be a request a record. So the first process that opens a file reads it through once and keeps the table, and the
records while there is room, in the cache; without a cache there would be nothing to keep it.
"""

import concurrent.futures
import logging
import struct

import numpy as np

from barlow_jax.data.blocks import pieces_of, taken
from barlow_jax.data.remote.bucket import PART
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

READ_THROUGH = 8  # files at a time, a part of PART bytes of each in memory


class Shards:
    """What files of records have in common: the records of a split by their numbers.

    instructions: TFDS's, each with filename, skip, take and examples_in_shard. bucket: a bucket.Bucket.
    objects: of each instruction, the bucket.Object of its file.
    """

    def __init__(self, instructions, bucket, objects):
        self._bucket, self._objects = bucket, objects
        self._counts = [i.examples_in_shard for i in instructions]
        self._skip = [i.skip for i in instructions]
        self._ends = np.cumsum([i.take for i in instructions])
        self._tables = [None] * len(objects)

    def __len__(self):
        return int(self._ends[-1])

    def _place(self, index):
        """The number of a record's file, and that of the record in it."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return shard, index - before + self._skip[shard]

    def together(self, indices):
        """These records, or the OSError for one that cannot be read, by few large reads: list of bytes."""
        shards, rows = zip(*(self._place(index) for index in indices), strict=True)
        spans = np.asarray([self._span(*place) for place in zip(shards, rows, strict=True)], np.int64).T
        return taken(self._cut, shards, rows, pieces=self._pieces(np.asarray(shards), *spans))

    def prepare(self):
        """Learns where the records of all files lie, several files at a time."""
        with concurrent.futures.ThreadPoolExecutor(self.AT_ONCE, "shards") as pool:
            list(pool.map(self.table, range(len(self._objects))))

    def table(self, shard):
        """What is known of a file's records, found when it is first asked for."""
        if self._tables[shard] is None:
            self._tables[shard] = self._look(shard)
        return self._tables[shard]

    def _where(self, shard):
        return self._bucket.where(self._objects[shard].name)


class TFRecords(Shards):
    """TFRecord files. UserError names one that is cut off, or says that a cache is needed."""

    AT_ONCE = READ_THROUGH

    def __getitem__(self, index):
        shard, row = self._place(index)
        one = self._objects[shard]
        if row == 0 and self._tables[shard] is None:  # when a set is opened it is asked for one record
            return self._bucket.read(one, 12, struct.unpack("<Q", self._bucket.read(one, 0, 8))[0])
        start, length = self.table(shard)[row]
        return self._bucket.read(one, int(start), int(length))

    def _span(self, shard, row):
        return self.table(shard)[row]

    def _pieces(self, shard, start, length):
        """What the cache has, which the look has put there record by record, and what lies between."""
        spans = [(self._objects[s], int(b), int(n)) for s, b, n in zip(shard, start, length, strict=True)]
        found = [self._bucket.kept(*span) for span in spans]
        missing = np.flatnonzero([one is None for one in found])
        parts = [array[missing] for array in (shard, start, length)]
        read = pieces_of(*parts, lambda shard, *span: self._bucket.fetched(self._objects[shard], *span))
        for k, content in zip(missing.tolist(), read, strict=True):
            found[k] = content
            if not isinstance(content, OSError):
                self._bucket.keep(*spans[k][:2], content)
        return found

    def _cut(self, shard, row, piece):
        return piece

    def _look(self, shard):
        """(start, length) of the data of a file's records: int64 [examples, 2]."""
        cache, one, wanted = self._bucket.cache, self._objects[shard], self._counts[shard]
        if cache is None:
            raise UserError(
                f"{self._where(shard)} is a TFRecord file, which has no table of contents: name a folder in "
                "config.data.cache, where the table is kept, or prepare the set as array_record."
            )
        key = f"table\0{self._where(shard)}\0{one.version}\0{one.written}\0{one.size}"
        with cache.alone(key):
            if (kept := cache.get(key, 16 * wanted)) is not None:
                return np.frombuffer(kept, np.int64).reshape(wanted, 2)
            logger.info("reading %s through once, for its table of contents (%.1f MB)", one.name, one.size / 1e6)
            spans = self._read_through(shard, one, wanted)
            cache.put(key, spans.tobytes(), beyond=True)
        return spans

    def _read_through(self, shard, one, wanted):
        spans, place, held, at = np.empty((wanted, 2), np.int64), 0, b"", 0  # held: what the file has from `at` on

        def until(end):
            nonlocal held, at
            if end > one.size:
                raise UserError(
                    f"{self._where(shard)} ends in record {k} of {wanted}: it was cut off, so prepare the set again."
                )
            while at + len(held) < end:
                start = at + len(held)
                held, at = held[place - at :] + self._bucket.fetched(one, start, min(PART, one.size - start)), place

        for k in range(wanted):
            until(place + 8)
            length = struct.unpack_from("<Q", held, place - at)[0]
            until(place + length + 16)
            spans[k] = place + 12, length
            self._bucket.keep(one, place + 12, held[place + 12 - at : place + 12 - at + length])
            place += length + 16
        if place != one.size:
            raise UserError(f"{self._where(shard)} holds more than the {wanted} records of its set: prepare it again.")
        return spans
