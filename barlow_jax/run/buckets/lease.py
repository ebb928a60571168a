"""One run at a time in a work folder in a bucket, where nobody can hold a lock: a lease, which its holder renews.

The object `run.lock` says who holds it. It is written under conditions alone (if there is none, if it is still the
version that was read), so of two that want it one gets it. A run renews it every RENEW seconds. Whoever finds it held
watches it: a new version means that its holder lives, and none for HOLD seconds, by the watcher's own clock, that it is
gone. So the clocks of two hosts need not agree, and a run that was killed is waited for HOLD seconds; one that ended
has said so.

A holder that could not renew for HOLD seconds (its host slept, the bucket was away) writes nothing more until it has
looked: what others have taken over in the meantime it leaves alone, and ends.
"""

import json
import logging
import threading
import time

from barlow_jax.data.remote import bucket, objects
from barlow_jax.errors import UserError

FILE = "run.lock"
HOLD, RENEW, LOOK = 60.0, 10.0, 1.0  # seconds: until a silent run counts as gone; between its signs; between two looks

log = logging.getLogger(__name__)


class Lease:
    """The lease of a folder.

    Args:
      folder: an objects.Folder.
      me: dict that says who we are, for people; "staging": what tells this host's copy of the folder from others.
    Attributes:
      before: what the object said before it was ours; {} where there was none.
    """

    def __init__(self, folder, me):
        self._folder, self._me, self.before = folder, me, {}
        self._version, self._renewed, self._count = None, 0.0, 0
        self._lost, self._lock, self._ended, self._thread = None, threading.Lock(), threading.Event(), None

    def take(self):
        """Waits until it is ours or known to be another's; UserError names that one."""
        seen, since, told = None, 0.0, False
        while True:
            holder, version = self._read()
            mine = holder.get("staging") == self._me["staging"]  # whoever held it was here, and here we are alone
            silent = seen is not None and version == seen and time.monotonic() - since > HOLD
            if version is None or holder.get("ended") or mine or silent:
                if self._written(version or objects.ABSENT):
                    self.before = holder
                    if silent and not mine:
                        log.warning("%s was not heard of for %.0f s and is taken for gone", in_words(holder), HOLD)
                    break
                continue
            if seen is not None and version != seen:
                raise UserError(
                    f"{self._folder.address} is in use by another run ({in_words(holder)}); stop it first, or take "
                    "another --workdir."
                )
            if seen is None:
                seen, since = version, time.monotonic()
            elif not told and time.monotonic() - since > 2 * RENEW:
                log.info("%s is silent; in %.0f s it counts as gone", in_words(holder), HOLD - 2 * RENEW)
                told = True
            time.sleep(LOOK)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self):
        """Raises UserError where the lease is another's; to be called before anything is written."""
        with self._lock:
            if self._lost is None and time.monotonic() - self._renewed > HOLD:
                self._write_again()
            if self._lost is not None:
                raise self._lost

    def release(self):
        """Says that the run has ended; a bucket that is away finds out by itself."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            try:
                with self._lock:
                    if self._lost is None and not self._written(self._version, ended=True):
                        log.warning("%s was taken over by another run", self._folder.address)
            except UserError as error:
                log.warning("%s is not given back before %.0f s: %s", self._folder.address, HOLD, error)

    def _renew(self):
        while not self._ended.wait(RENEW):
            with self._lock:
                try:
                    if self._lost is None:
                        self._write_again()
                except UserError as error:
                    log.warning("the lease of %s is not renewed: %s", self._folder.address, error)

    def _write_again(self):
        if not self._written(self._version):
            holder, version = self._read()
            if version is None and self._written(objects.ABSENT):  # somebody has removed it: it is ours still
                return
            self._lost = UserError(
                f"{self._folder.address} was taken over by another run ({in_words(holder)}), as this one was silent; "
                "what it has not saved there is lost."
            )

    def _written(self, replaced, ended=False):
        self._count += 1
        content = json.dumps(self._me | {"renewal": self._count} | ({"ended": True} if ended else {})).encode()
        begun = time.monotonic()
        try:
            self._version = self._folder.put(FILE, content, only=replaced)
        except objects.Changed:
            return False
        self._renewed = begun
        return True

    def _read(self):
        """({who holds it}, version), or ({}, None) where there is no such object."""
        try:
            content, version = self._folder.get(FILE)
        except bucket.Gone:
            return {}, None
        try:
            holder = json.loads(content)
        except (ValueError, RecursionError):
            holder = None
        return (holder if isinstance(holder, dict) else {}), version


def in_words(holder):
    """Who holds a lease, for people."""
    parts = [f"process {holder.get('process', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"]
    return ", ".join(parts + ([f"SLURM job {holder['job']}"] if "job" in holder else []))
