"""Records of array_record files in buckets, by position: a table at the end of each file, then a request a record.

The library that writes them reads local files only. The format is Riegeli's (github.com/google/riegeli, the page
"Riegeli/records file format"): chunks of records, compressed by Zstandard, with 24 bytes of another kind at every
64 KiB of the file. The last 64 KiB begin with a chunk that says where the table lies; its first record is about the
file, the others say where each chunk begins.
"""

import struct

import numpy as np

from barlow_jax.data.blocks import pieces_of
from barlow_jax.data.remote.bucket import IN_FLIGHT, INSTALL, in_one_line
from barlow_jax.data.remote.shards import Shards
from barlow_jax.errors import UserError

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 2**16, 24, 40
PLAIN, ZSTD = 0, ord("z")


class ArrayRecords(Shards):
    """array_record files. UserError names one that is none, or is of a kind that is not read."""

    AT_ONCE = IN_FLIGHT

    def __getitem__(self, index):
        shard, row = self._place(index)
        start, length = self._span(shard, row)
        return self._cut(shard, row, self._bucket.read(self._objects[shard], start, length))

    def _span(self, shard, row):
        """(start, length) of the chunk that holds a record."""
        starts, firsts = self.table(shard)
        chunk = int(np.searchsorted(firsts, row, side="right")) - 1
        return int(starts[chunk]), int(starts[chunk + 1] - starts[chunk])

    def _pieces(self, shard, start, length):
        return pieces_of(shard, start, length, lambda k, *span: self._bucket.read(self._objects[k], *span))

    def _cut(self, shard, row, piece):
        """The record in the bytes of its chunk; OSError where these are damaged."""
        start, firsts = self._span(shard, row)[0], self.table(shard)[1]
        first = firsts[np.searchsorted(firsts, row, side="right") - 1]
        try:
            return records_of(without_block_headers(piece, start))[row - int(first)]
        except UserError:
            raise
        except Exception as error:  # of Zstandard, and whatever damaged lengths lead to
            raise OSError(5, f"its record is damaged ({in_one_line(error)})") from None

    def _look(self, shard):
        """Where the chunks begin, and the last ends, int64 [c + 1]; the first record of each, int64 [c]."""
        size = self._objects[shard].size
        last = (size - 1) // BLOCK * BLOCK
        try:
            footer = _fields(self._chunk(shard, last, size)[0])[1]
            told = [_fields(record) for record in self._chunk(shard, footer, last)[1:]]
            starts = np.asarray([*(one.get(1, 0) for one in told), footer], np.int64)
            counts = np.asarray([one.get(3, 0) for one in told], np.int64)
        except (IndexError, KeyError, ValueError, struct.error) as error:
            raise UserError(
                f"{self._where(shard)} is no array_record file that can be read ({error}): prepare the set again."
            ) from None
        if counts.sum() != self._counts[shard]:
            raise UserError(
                f"{self._where(shard)} holds {counts.sum()} records and its set says {self._counts[shard]}: prepare "
                "the set again."
            )
        return starts, np.cumsum(counts) - counts

    def _chunk(self, shard, start, stop):
        """The records of the chunk that begins at `start` and has ended at `stop`: list of bytes."""
        return records_of(without_block_headers(self._bucket.read(self._objects[shard], start, stop - start), start))


def without_block_headers(data, start):
    """What stands in a file from `start` on, without the header of each block."""
    at = -start % BLOCK
    parts = [data[:at]]
    while at < len(data):
        parts.append(data[at + BLOCK_HEADER : at + BLOCK])
        at += BLOCK
    return b"".join(parts)


def records_of(chunk):
    """The records of a chunk: list of bytes. ValueError where it is of a kind that TFDS does not write."""
    size, _, kind = struct.unpack_from("<8xQQQ", chunk)
    count, kind = kind >> 8, chr(kind & 255)
    data = chunk[CHUNK_HEADER : CHUNK_HEADER + size]
    if kind != "r" or len(data) != size:
        raise ValueError(f"it has a chunk of kind {kind!r} and {len(data)} of {size} bytes")
    length, place = _varint(data, 1)
    sizes = _plain(data[place : place + length], data[0])
    values, records, at, start = _plain(data[place + length :], data[0]), [], 0, 0
    for _ in range(count):
        of_record, at = _varint(sizes, at)
        records.append(values[start : start + of_record])
        start += of_record
    if start != len(values):
        raise ValueError(f"its records have {start} bytes together, and it has {len(values)}")
    return records


def _plain(data, compression):
    if compression == PLAIN:
        return data
    if compression != ZSTD:
        raise ValueError(f"it is compressed by {chr(compression)!r}, and only Zstandard is read")
    try:
        import zstandard
    except ImportError:
        raise UserError(f"Reading array_record files from buckets needs zstandard: {INSTALL}.") from None
    length, place = _varint(data, 0)
    return zstandard.ZstdDecompressor().decompress(data[place:], max_output_size=length)


def _varint(data, place):
    """A number of protocol buffers at a place, and the place behind it."""
    found = shift = 0
    while True:
        byte = data[place]
        found, place, shift = found | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return found, place


def _fields(message):
    """The whole numbers of a message by their fields: those that the table has are all of this kind."""
    found, place = {}, 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7:
            raise ValueError("its table has fields of another kind")
        found[key >> 3], place = _varint(message, place)
    return found
