"""A stand-in for a bucket, without a network or its library: contents by name."""

import struct
from types import SimpleNamespace

from barlow_jax.data.remote import bucket
from barlow_jax.errors import UserError


class Stored:
    """A bucket.Bucket without a network: contents by name."""

    def __init__(self, contents, kept=None):
        self.contents, self.cache, self.root = contents, kept, "gs://b"
        self.counts, self.outage, self.ends, self.scheme = bucket.Counts(), None, (), "gs"

    def where(self, name):
        return f"gs://b/{name}"

    def objects(self):
        return [bucket.Object(name, len(content), "v", 0) for name, content in sorted(self.contents.items())]

    def fetched(self, one, start, length):
        if one.name in self.ends:
            self.outage = UserError(f"{one.name} may not be read (403): see to it.")
            raise self.outage
        if one.name not in self.contents:
            raise bucket.Gone(2, "it is not there (404)")
        self.counts.requests += 1
        self.counts.bytes += length
        return self.contents[one.name][start : start + length]

    def read(self, one, start=0, length=None):
        return self.fetched(one, start, one.size if length is None else length)

    def keep(self, one, start, content):
        self.cache.put(f"{one.name} {start}", content)

    def kept(self, one, start, length):
        return self.cache.get(f"{one.name} {start}", length)

    def list(self, prefix):
        return [one for one in self.objects() if one.name.startswith(prefix)]

    def heads(self, names):
        return [next((one for one in self.objects() if one.name == name), None) for name in names]


def tfrecord(records):
    return b"".join(struct.pack("<Q", len(r)) + b"crc." + r + b"crc." for r in records)


def instruction(count, skip=0, take=None):
    return SimpleNamespace(examples_in_shard=count, skip=skip, take=count - skip if take is None else take)
