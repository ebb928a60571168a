"""Sources of image files in buckets and on web servers, and whole files from there."""

import collections
import io
import logging

import numpy as np

from barlow_jax.data import readers, walk
from barlow_jax.data.arranging import arranged
from barlow_jax.data.fingerprint import fingerprint
from barlow_jax.data.paths import Paths
from barlow_jax.data.remote import bucket
from barlow_jax.data.remote.telling import told
from barlow_jax.data.sources import Files
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)


class RemoteFiles(Files):
    """Image files by their addresses, in the order they are given.

    buckets: {root: bucket.Bucket}, of all roots among the addresses. sizes: int64 [n], versions: bytes [n],
    written: int64 [n], see bucket.Object. Other arguments: see sources.Files.

    The order of training, `listing`, is that of a local folder with the same names: a run may move to a bucket.
    """

    def __init__(self, paths, *, buckets, sizes, versions, written, **more):
        super().__init__(paths, **more)
        self.afar = readers.Afar(list(buckets.values()), bucket.IN_FLIGHT)
        self._buckets, self._sizes, self._versions, self._written = buckets, sizes, versions, written

    def take(self, rows):
        """The examples `rows` (int [m]) as a source of their own."""
        part = super().take(rows)
        part._sizes, part._versions, part._written = (
            part[rows] for part in (self._sizes, self._versions, self._written)
        )
        return part

    def encoded(self, index):
        """The bytes of one file. bucket.Gone where it is not what it was."""
        root, name = bucket.split(self.paths[index])
        version, written = self._versions[index].decode(), int(self._written[index])
        return self._buckets[root].read(bucket.Object(name, int(self._sizes[index]), version, written))

    def fetch(self):
        """The function for tf.data that `Encoded.fetch` describes."""
        from barlow_jax.data import decode  # here, as TensorFlow takes seconds to import

        return decode.from_reads(self.encoded, self.labels, len(self))

    def batches(self, job):
        """The batches that a readers.Job asks for; at the end of an epoch the log says what was read for it."""
        return told(super().batches(job), job, self.afar.buckets, self.name)

    def fingerprint(self):
        """Of the addresses, sizes and versions as they were listed, and the labels."""
        names = np.frombuffer("\0".join(self.paths).encode(), np.uint8)
        versions = np.frombuffer(b"\0".join(self._versions), np.uint8)
        arrays = [names, self._sizes, versions, self._written, self.labels]
        return fingerprint(self.reading.told(), arrays=arrays)

    def listing(self):
        """That of a local folder with these files, see `protocol.Source.listing`."""
        if self._listing is None:
            paths = [path.partition("://")[2] for path in self.paths]
            self._listing = Files(paths, name=self.name, labels=self.labels).listing()
        return self._listing


def open_folder(address, *, labels="auto", class_names=None, listed="", cache=None, **reading):
    """sources.ImageFolder, of what lies below an address. Images are told by their names alone.

    On a web server, which has no listing, the images are those that `listed` names below the address, their classes by
    folder. cache: a cache.Cache, or None. reading: channels, value_range, max_pixels.
    UserError where nothing lies there or may be read.
    """
    store, prefix = bucket.opened(address, cache)
    prefix = prefix.strip("/")
    address = store.where(prefix).rstrip("/")
    if store.scheme.startswith("http"):
        objects = _on_a_server(store, prefix, listed)
    else:
        objects = store.list(prefix)
    cut = len(prefix) + 1 if prefix else 0
    objects, wanted = list(objects), walk.USUAL
    if not any(_kind(one.name[cut:], wanted) == "image" for one in objects):
        wanted = walk.SENSORS  # as walk.look has it
    by_name, folders, left_out = {}, set(), collections.Counter()
    for one in objects:
        name = one.name[cut:]
        kind = _kind(name, wanted)
        if kind in ("image", "other"):
            folders.update(name.split("/")[:-1][:1])
        if kind == "image":
            by_name[name] = one
        else:
            left_out[kind if kind != "other" else "of other names"] += 1
    found = walk.Found(Paths.of(sorted(by_name)), sorted(folders), left_out, [])
    walk.tell(address, found)
    if not by_name:
        raise UserError(f"{address} holds no image: put files named {', '.join(walk.EXTENSIONS)} below it.")
    files, numbers, class_names, name = arranged(address, found.images, found.folders, labels, class_names, listed)
    pairs = [(store, by_name[file]) for file in files]
    return _of(pairs, name=name, labels=numbers, class_names=class_names, **reading)


def _of(pairs, **more):
    """RemoteFiles of pairs of Bucket and Object."""
    return RemoteFiles(
        [store.where(one.name) for store, one in pairs],
        buckets={store.root: store for store, _ in pairs},
        sizes=np.asarray([one.size for _, one in pairs], np.int64),
        versions=np.asarray([one.version.encode() for _, one in pairs], bytes),
        written=np.asarray([one.written for _, one in pairs], np.int64),
        **more,
    )


def _kind(name, wanted):
    """ "image", "other", or in words why a name below a folder is left out."""
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if walk.ARCHIVES_REST in parts:
        return walk.ARCHIVES_REST
    return "image" if parts[-1].lower().endswith(wanted.endings) else "other"


def _on_a_server(store, prefix, listed):
    """The objects that a list names below an address of a web server, each asked for once."""
    if not listed:
        return store.list(prefix)  # says that it cannot
    names = [f"{prefix}/{line}".lstrip("/") for line in dict.fromkeys(walk.read_list(listed))]
    return [one for one in store.heads(names) if one is not None]


def open_list(lines, name, *, cache=None, **more):
    """RemoteFiles that a list names, in its order: by address, or by a path from where the list `name` lies.

    more: channels, value_range, max_pixels. UserError names the first that is not there.
    """
    base = name.rpartition("/")[0]
    addresses = [line if walk.is_remote(line) else f"{base}/{line}" for line in lines]
    if here := [line for line in addresses if not walk.is_remote(line)]:
        raise UserError(f"{name} names {here[0]}, a file on this machine, among addresses: take two lists.")
    if not addresses:
        raise UserError(f"The file list {name} is empty: give a text file, one image a line.")
    pairs = [bucket.split(address) for address in addresses]
    buckets = {root: bucket.Bucket(root, cache) for root in dict.fromkeys(root for root, _ in pairs)}
    by_root = {root: iter(buckets[root].heads([n for r, n in pairs if r == root])) for root in buckets}
    found = [(buckets[root], next(by_root[root])) for root, _ in pairs]
    missing = [address for address, (_, one) in zip(addresses, found, strict=True) if one is None]
    if missing:
        raise UserError(
            f"{missing[0]}, which {name} names, does not exist, nor do {len(missing) - 1} other of its {len(found)} "
            "lines; correct the list."
        )
    return _of(found, name=name, **more)


def content(address, cache=None):
    """All of a file: io.BytesIO. UserError where it is not there."""
    store, name = bucket.opened(address, cache)
    one = store.head(name)
    if one is None:
        raise UserError(f"{address} does not exist: correct the address.")
    try:
        return io.BytesIO(store.read_large(one))
    except bucket.Gone as error:
        raise UserError(f"{address} cannot be read ({error.strerror}): start again.") from None
