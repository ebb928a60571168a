"""Objects below an address, read and written: what a work folder in a bucket is made of.

    folder = objects.Folder("gs://bucket/runs/r50")
    version = folder.put("config.json", b"{}", only=objects.ABSENT)     # Changed if there is one already
    folder.put("config.json", b"[]", only=version)                      # Changed if it is no longer that one

A fault that may pass is tried again for PATIENCE seconds. Then a UserError says so; unlike a `bucket.Bucket`, which a
run reads its images from, a folder may be asked again after it: a bucket that was away ends nothing by itself.
"""

import concurrent.futures
import pathlib
import random
import re
import time

from barlow_jax.data.remote import bucket
from barlow_jax.errors import UserError

ABSENT = "create"  # in the place of a version: there must be no such object
PATIENCE = 300.0  # seconds for which a fault is tried again
SIDE_BY_SIDE = 16  # files at a time
LARGE = 2**23  # bytes from which a file goes up in parts of this size, side by side, under no condition

_FULL = re.compile(r"(?i)quota|insufficient ?storage|status(?: code)?:? 507")


class Changed(Exception):
    """The object is not the one that was to be replaced."""


class Folder(bucket.Bucket):
    """Objects below an address, by their names from there on; from any number of threads.

    Methods raise `bucket.Gone` where an object is missing, and UserError where none could be had.
    Attributes: address, without a slash at its end; patience, in seconds.
    """

    def __init__(self, address, patience=PATIENCE):
        root, name = bucket.split(address)
        if root.startswith("http"):
            raise UserError(f"{address} is on a web server, where nothing can be written; give a folder, or a bucket.")
        super().__init__(root)
        self.prefix, self.patience = name.strip("/"), patience
        self.address = f"{root}/{self.prefix}".rstrip("/")

    def names(self, below=""):
        """{name: bucket.Object} of what is there, at any depth."""
        top = self._full(below)
        cut = len(self.prefix) + 1 if self.prefix else 0
        return {one.name[cut:]: one for one in self.list(top)}

    def get(self, name):
        """(content, version) of an object."""

        def ask():
            answer = self._library.get(self._store, self._full(name))
            content = bytes(answer.bytes())
            if len(content) != answer.meta["size"]:
                raise OSError(5, f"{len(content)} bytes came of {answer.meta['size']}")
            return content, _version(answer.meta)

        return self._asked(ask, self._full(name))

    def download(self, wanted):
        """Writes objects to files, each whole or not at all; those that have vanished or changed are returned.

        wanted: list of (bucket.Object, pathlib.Path).
        """
        with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE, "download") as pool:
            came = list(pool.map(lambda pair: self._download(*pair), wanted))
        return [one for (one, _), there in zip(wanted, came, strict=True) if not there]

    def _download(self, one, path):
        try:
            content = self.read_large(one) if one.size > bucket.PART else self.read(one)
        except bucket.Gone:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.unfinished")
        beside.write_bytes(content)
        beside.replace(path)
        return True

    def put(self, name, content, only=None):
        """Writes an object; its version.

        Args:
          content: bytes, or the pathlib.Path of a file.
          only: the version that it replaces, or ABSENT; None: whatever is there. Of a file from LARGE on it is not
            looked at, as parts have no conditions.
        Raises:
          Changed: there is another.
        """
        large = isinstance(content, pathlib.Path) and content.stat().st_size >= LARGE
        if isinstance(content, pathlib.Path) and not large:
            content = content.read_bytes()
        if large:
            how = {"chunk_size": LARGE, "max_concurrency": 8}
        else:
            how = {"mode": only or "overwrite", "use_multipart": False}

        def ask():
            try:
                return _version(self._library.put(self._store, self._full(name), content, **how))
            except FileNotFoundError as error:
                if bucket.NO_BUCKET.search(str(error)):
                    raise
                if isinstance(only, dict):  # the one that it replaces was removed
                    raise Changed(name) from None
                raise OSError(f"what was sent of it has vanished ({bucket.in_one_line(error)})") from None

        try:
            return self._asked(ask, self._full(name), "written")
        except Changed:
            # The answer to a try before may have been lost, and then it is our own that is in the way.
            try:
                there, version = self.get(name)
            except bucket.Gone:
                raise Changed(name) from None
            if there == content:
                return version
            raise

    def remove(self, names):
        """Deletes objects, in this order; one that is not there is as good as deleted."""
        for name in names:
            try:
                full = self._full(name)
                self._asked(lambda full=full: self._library.delete(self._store, full), full, "written")
            except bucket.Gone:
                continue

    def _full(self, name):
        return "/".join(filter(None, (self.prefix, name)))

    def _asked(self, ask, name, verb="read"):
        until, pause = time.monotonic() + self.patience, bucket.FIRST_PAUSE
        while True:
            self._count(requests=1)
            try:
                return ask()
            except (bucket.Gone, Changed):
                raise
            except FileNotFoundError as error:
                if not bucket.NO_BUCKET.search(str(error)):
                    raise bucket.Gone(2, "it is not there (404)") from None
                raise UserError(f"{self.root} does not exist: correct the address.") from None
            except Exception as error:  # the library's, one class for nearly all of them
                if type(error).__name__ in ("AlreadyExistsError", "PreconditionError"):
                    raise Changed(name) from None
                refused = self._refused(error, name)
                if refused is not None:
                    raise UserError(refused.replace(" be read", f" be {verb}")) from None
                left = until - time.monotonic()
                if left <= 0 or _FULL.search(str(error)):
                    raise UserError(
                        f"{self.where(name)} could not be {verb} ({_said(error)}): see to the network and "
                        "the bucket, then start again."
                    ) from None
            self._count(repeated=1)
            time.sleep(min(pause * random.uniform(0.5, 1.5), max(left, 0)))
            pause = min(2 * pause, bucket.LONGEST_PAUSE)


def _said(error):
    """What an error says, in one line; of an answer, its status and what comes behind it."""
    text = bucket.in_one_line(error, 1000)
    return text[max(text.find("status code: "), 0) :].removeprefix("status code: ")[:160]


def _version(meta):
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
