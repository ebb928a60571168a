"""What lies below an address, and byte ranges of it: gs://BUCKET, s3://BUCKET, az://CONTAINER, https://HOST.

Requests are made by obstore (Rust's object_store), which signs them with what the environment says, as the clouds' own
tools do; trying again is ours, so that requests are counted and no fault is tried for longer than `TRIES` says.
"""

import concurrent.futures
import dataclasses
import logging
import os
import random
import re
import threading
import time
from typing import NamedTuple

from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

SCHEMES = ("gs", "s3", "az", "https", "http")
IN_FLIGHT = 64  # requests of a process at a time: at 20 ms an answer enough for 3,200 images a second
TRIES = 10  # of a request, with pauses of 0.2, 0.4, ... 20 s between: a minute
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0
TOLD_AFTER, TOLD_EVERY = 4, 60.0  # faults in a row, 3 s, and seconds between lines that say so
TIME_OUT = "60s"  # of one answer to its end; a connection has 5 s
PART = 2**23  # bytes of a request where an object is read whole and may be large

INSTALL = "pip install 'barlow-jax[buckets]'"
CREDENTIALS = {
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true if the bucket is public",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true if the bucket is public",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true if it is public",
}
# Where the clouds' own tools look for a server that stands in; http:// is allowed to it.
EMULATORS = {"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL", "az": "AZURITE_BLOB_STORAGE_URL"}
FINAL = re.compile(r"status(?: code)?:? 4(?!08|29)\d\d")  # answers that will not change, in the library's words
CAUSE = re.compile(r'(?:message|error): "([^"]+)"')  # in what the library adds for those who debug it
NO_BUCKET = re.compile("NoSuchBucket|bucket does not exist|ContainerNotFound")


class Object(NamedTuple):
    """One object: its name in its bucket, and of its content what tells it from any other."""

    name: str
    size: int  # in bytes
    version: str  # ETag or generation; "" where the server says none
    written: int  # when, in seconds since 1970


class Gone(OSError):
    """An object that is not there, or no longer what it was: one image is unreadable, the run goes on."""


class _WrongLength(OSError):
    """Another number of bytes than the object had in the listing."""


@dataclasses.dataclass
class Counts:
    """What has been asked for and come, in this process."""

    requests: int = 0  # sent, the repeated ones among them
    repeated: int = 0  # after a fault
    bytes: int = 0  # of content that came
    cached: int = 0  # reads that the cache answered

    def since(self, before):
        """What was added after `before`, a copy of these numbers."""
        return Counts(*(now - then for now, then in zip(self.numbers(), before.numbers(), strict=True)))

    def numbers(self):
        return dataclasses.astuple(self)


def split(address):
    """An address as (root, name): ("gs://BUCKET", "a/b.jpg"). UserError where it is none that can be read."""
    found = re.fullmatch(r"(\w+)://([^/]+)/*(.*)", address, re.DOTALL)
    if found is None or found[1] not in SCHEMES:
        raise UserError(f"{address} is no address that can be read: it begins with gs://, s3://, az:// or https://.")
    if found[1].startswith("http") and "?" in found[3]:
        raise UserError(f"{address} has a query, which is not sent: give an address without one.")
    return f"{found[1]}://{found[2]}", re.sub("/+", "/", found[3])


def opened(address, cache=None):
    """The Bucket of an address, and the name in it."""
    root, name = split(address)
    return Bucket(root, cache), name


class Bucket:
    """Objects below a root, from any number of threads.

    root: as `split` gives it. cache: a cache.Cache, or None.
    Attributes: cache; counts (Counts); outage, the UserError for which reading ended, or None.
    Methods raise `Gone` where one object is missing, and UserError where no other would come either: no credentials,
    not allowed, no answer after TRIES.
    """

    def __init__(self, root, cache=None):
        self.root, self.scheme, self.cache = root, root.partition("://")[0], cache
        self.counts, self.outage, self._lock = Counts(), None, threading.Lock()
        self._told = -TOLD_EVERY
        self._library = _library()
        try:
            self._store = _store(root)
        except Exception as error:  # of each cloud its own: what is missing in the environment
            remedy = CREDENTIALS.get(self.scheme, "correct the address")
            raise UserError(f"{root} cannot be opened ({in_one_line(error)}): {remedy}.") from None

    def where(self, name):
        """The address of an object."""
        return f"{self.root}/{name}"

    def list(self, prefix):
        """The objects below a folder, at any depth, sorted by name: list of Object.

        Its sub-folders are asked for side by side, 1,000 objects to a request. UserError of a web server, which has
        no listing.
        """
        if self.scheme.startswith("http"):
            raise UserError(
                f"{self.where(prefix)} is on a web server, which lists no folder: give config.data.file_list."
            )
        found, folders = self.top(prefix)
        with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT, "list") as pool:
            below = list(pool.map(self._all_below, folders))
        found += [_object(one) for part in below for one in part]
        return sorted(one for one in found if not one.name.endswith("/"))

    def top(self, prefix):
        """What lies right in a folder: (list of Object, list of the prefixes of its sub-folders)."""
        prefix = prefix.strip("/")
        top = self._asked(lambda: self._library.list_with_delimiter(self._store, prefix or None), prefix)
        return [_object(one) for one in top["objects"]], list(top["common_prefixes"])

    def _all_below(self, prefix):
        def ask():
            found = []
            for part in self._library.list(self._store, prefix, chunk_size=1000):
                found += part
                self._count(requests=1)
            return found

        found = self._asked(ask, prefix)
        self._count(requests=-1 if found else 0)  # _asked has counted the first
        return found

    def heads(self, names):
        """Size and version of objects, side by side: list of Object, None in place of one that is not there."""
        with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT, "head") as pool:
            return list(pool.map(self.head, names))

    def head(self, name):
        """Size and version of one object, or None where it is not there."""
        try:
            return _object(self._asked(lambda: self._library.head(self._store, name), name))
        except Gone:
            return None

    def read(self, one, start=0, length=None):
        """Bytes of an Object: all, or `length` of them from `start` on. `Gone` where it is no longer what it was."""
        length = one.size - start if length is None else length
        if length == 0:
            return b""
        if (kept := self.kept(one, start, length)) is not None:
            return kept
        found = self.fetched(one, start, length)
        if self.cache:
            self.keep(one, start, found)
        return found

    def kept(self, one, start, length):
        """What the cache has of `read`, or None."""
        found = self.cache.get(self._key(one, start, length), length) if self.cache else None
        self._count(cached=int(found is not None))
        return found

    def keep(self, one, start, content):
        """Puts into the cache what `read` would put there."""
        self.cache.put(self._key(one, start, len(content)), content)

    def _key(self, one, *span):
        return "\0".join(map(str, (self.where(one.name), one.version, one.written, one.size, *span)))

    def read_large(self, one):
        """All of an object that may be large, PART bytes a request, side by side."""
        key = self._key(one)
        if self.cache and (kept := self.cache.get(key, one.size)) is not None:
            self._count(cached=1)
            return kept
        with concurrent.futures.ThreadPoolExecutor(8, "parts") as pool:
            starts = range(0, one.size, PART)
            parts = pool.map(lambda start: self.fetched(one, start, min(PART, one.size - start)), starts)
            found = b"".join(parts)
        if self.cache:
            self.cache.put(key, found)
        return found

    def fetched(self, one, start, length):
        """`read`, past the cache."""
        ranged = {} if (start, length) == (0, one.size) else {"options": {"range": (start, start + length)}}

        def ask():
            answer = self._library.get(self._store, one.name, **ranged)
            now = _object(answer.meta)
            # Both, as a cloud may write the tag of one object in two ways, and the time in halves of a second.
            if now.version != one.version and now.written != one.written:
                raise Gone(2, "it was written anew since the set was opened")
            found = bytes(answer.bytes())
            self._count(bytes=len(found))
            if now.size != one.size or len(found) != length:
                raise _WrongLength(5, f"{len(found)} bytes came of {length}, of an object of {now.size}")
            return found

        return self._asked(ask, one.name)

    def _asked(self, ask, name):
        """What `ask()` returns, tried again after faults that may pass."""
        pause, fault = FIRST_PAUSE, None
        for number in range(TRIES):
            if self.outage is not None:
                raise self.outage
            if number:
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, LONGEST_PAUSE)
            self._count(requests=1, repeated=int(number > 0))
            try:
                return ask()
            except Gone:
                raise
            except FileNotFoundError as error:
                if not NO_BUCKET.search(str(error)):
                    raise Gone(2, "it is not there (404)") from None
                refused = self._refused(error, name)
            except Exception as error:  # the library's, one class for nearly all of them
                refused, fault = self._refused(error, name), error
            if refused is not None:
                raise self._ended(refused)
            if number == TOLD_AFTER:
                self._tell(fault)
        if isinstance(fault, _WrongLength):
            raise Gone(5, fault.strerror)
        said = f"{self.where(name)} cannot be read, after {TRIES} tries ({in_one_line(fault)})"
        raise self._ended(f"{said}: see to the network, then start again.")

    def _tell(self, fault):
        """Says that requests are tried again, once in a while."""
        with self._lock:
            if time.monotonic() - self._told < TOLD_EVERY:
                return
            self._told = time.monotonic()
        told = self.root, in_one_line(fault)
        logger.warning("%s does not answer as it should (%s); trying again, for a minute", *told)

    def _refused(self, error, name):
        """The sentence for an answer that would not change, or None."""
        if isinstance(error, _WrongLength):
            return None
        kind, words = type(error).__name__, str(error)
        if NO_BUCKET.search(words):
            return f"{self.root} does not exist: correct the address."
        remedy = CREDENTIALS.get(self.scheme, "give another address")
        if kind in ("PermissionDeniedError", "UnauthenticatedError"):
            number = 403 if kind == "PermissionDeniedError" else 401
            return f"{self.where(name)} may not be read ({number}): {remedy}."
        if "169.254.169.254" in words or "metadata.google.internal" in words or "credential" in words.lower():
            return f"{self.where(name)} cannot be read, as there are no credentials: {remedy}."
        if "range request not supported" in words.lower():
            return f"{self.where(name)} cannot be read in parts, as its server knows no ranges: copy it to this host."
        if FINAL.search(words):
            return f"{self.where(name)} cannot be read ({in_one_line(error)}): correct the address or the credentials."
        return None

    def _ended(self, sentence):
        self.outage = self.outage or UserError(sentence)
        return self.outage

    def _count(self, **more):
        with self._lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)


def in_one_line(error, longest=160):
    """What an error says, in one line; of the library's, which quotes whole answers, the cause and the beginning."""
    text, _, inner = str(error).partition("\n\nDebug source")
    text = re.sub(r" in [0-9.]+.?s(, after [0-9]+ retries, max_retries: [0-9]+, retry_timeout: [0-9]+s)?", "", text)
    cause = CAUSE.findall(inner)[-1:]  # such as "Connection refused", which only the innermost of its errors says
    return " ".join(re.sub(r"<[^>]*>", " ", ": ".join([*cause, text])).split())[:longest] or type(error).__name__


def _object(meta):
    version = (meta["e_tag"] or meta["version"] or "").strip('"')
    return Object(meta["path"], meta["size"], version, int(meta["last_modified"].timestamp()))


def _library():
    try:
        import obstore
    except ImportError:
        raise UserError(f"What lies in a bucket or on a web server needs obstore: {INSTALL}.") from None
    return obstore


def _store(root):
    """The library's store of a root. Whatever else it needs, it reads in the environment."""
    from obstore import store

    scheme, _, rest = root.partition("://")
    emulator = os.environ.get(EMULATORS.get(scheme, ""), "")
    more = {
        "client_options": {
            "timeout": TIME_OUT,
            "connect_timeout": "5s",
            "allow_http": scheme == "http" or emulator.startswith("http://"),
        },
        "retry_config": {"max_retries": 0},
    }
    if scheme == "s3":
        return store.S3Store(rest, **more)
    if scheme == "gs":
        if emulator:
            anyone = {"token": "none", "expires_at": None}  # skip_signature would hold for reading alone
            return store.GCSStore(rest, base_url=emulator, credential_provider=lambda: anyone, **more)
        return store.GCSStore(rest, **more)
    if scheme == "az":
        return store.AzureStore(rest, **more)
    return store.HTTPStore.from_url(root, **more)
