"""A work folder in a bucket, opened: a folder of this host to work in, brought up to date, and a mirror of it.

    with staging.opened("gs://bucket/runs/r50") as folder:      # pathlib.Path; all that is written there goes up

What lies here is taken for the run's own only if nobody has held the bucket's lease since: then it may be ahead of the
bucket, as after a network that was down, and goes up. Otherwise it is removed, and the newest whole checkpoint and the
small files are brought down.
"""

import contextlib
import datetime
import hashlib
import logging
import os
import pathlib
import re
import secrets
import shutil
import socket
import tempfile
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from barlow_jax.data.remote import objects
from barlow_jax.errors import UserError
from barlow_jax.run import cluster, lock, manifest, writing
from barlow_jax.run.buckets import lease, mirror

VARIABLE = "BARLOW_JAX_STAGING"  # the folder for all of this, if not one in the system's for temporary files
SUBFOLDER_LIMIT = 2**26  # bytes: a larger file of an evaluation inside of a run is not brought down with it
KNOWN = "known.json"  # beside the folder: which of its files the bucket has
LEFT_THERE = (*mirror.NOT_KEPT, "tensorboard", "profile", "wandb", "mlruns")  # nobody reads on in them
OWN_CHECKPOINTS = re.compile(rf"(?:seed_\d+/)?{mirror.CHECKPOINTS}")  # of the run, and not of an evaluation inside

_open = {}  # {local folder: its Mirror}

log = logging.getLogger(__name__)


def base():
    """The folder of this host for what belongs in buckets; made, and this user's alone."""
    folder = pathlib.Path(
        os.environ.get(VARIABLE) or pathlib.Path(tempfile.gettempdir(), f"barlow-jax-{os.getuid()}")
    ).expanduser()
    with writing.told(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise UserError(f"{folder} belongs to another user; set {VARIABLE} to a folder of your own.")
    return folder


def place(address, kind):
    """The folder of this host for an address."""
    return base() / kind / f"{name(address)}-{hashlib.sha256(address.rstrip('/').encode()).hexdigest()[:12]}"


def name(address):
    """The last part of an address: what its folder here is called, which is how pages and services name a run."""
    return address.rstrip("/").rpartition("/")[2]


def of(path):
    """The Mirror of the folder that a path is in, or None."""
    path = pathlib.Path(path)
    return next((one for folder, one in _open.items() if folder in (path, *path.parents)), None)


def shown(path):
    """A path for people: the address where it is in a folder that is kept in a bucket."""
    found = of(path)
    below = pathlib.Path(path).relative_to(found.folder).as_posix() if found else ""
    return f"{found.remote.address}/{below}".removesuffix("/.") if found else str(path)


@contextlib.contextmanager
def opened(address):
    """The local folder of an address, leased, brought up to date and mirrored until the `with` ends.

    Of several processes each has a folder of its own; process 0 holds the lease and keeps the checkpoints, every
    process the files that it writes.

    Raises:
      UserError: another run has it, or the bucket cannot be read or written.
    """
    remote, index = objects.Folder(address), jax.process_index()
    here = place(address, f"runs_{index}" if index else "runs")
    folder, kept = here / name(address), here / KNOWN
    with contextlib.ExitStack() as stack:

        def begin():
            with writing.told(here):
                identity = _alone(stack, here, address)
                held = lease.Lease(remote, _me() | {"staging": identity})
                held.take()
                stack.callback(held.release)
                ours = held.before.get("staging") == identity and jax.process_count() == 1
                brought(remote, folder, ours=ours)
                _mirrored(stack, mirror.Mirror(folder, remote, held, kept))

        cluster.long_on_process_0(begin)
        if jax.process_count() > 1:
            names = remote.names()
            chosen = _of_process_0(names, folder)

            def follow():
                with writing.told(here):
                    _alone(stack, here, address)
                    _as_process_0(remote, names, folder, chosen, f"log_{index}.txt")
                    _mirrored(stack, mirror.Mirror(folder, remote, None, kept))

            cluster.long_on_all(follow if index else lambda: None)
        yield folder


def _mirrored(stack, kept):
    """Has a Mirror found by `of`, and closed when the stack is."""

    def end(kind, error, trace):
        begun = time.monotonic()
        del _open[kept.folder]
        try:
            kept.close(at_once=kind is not None and issubclass(kind, KeyboardInterrupt))
        except UserError as failure:
            if error is None:
                raise
            if str(failure) != str(error):
                log.error("%s", failure)  # what is already ending the run matters more
        else:
            log.info("%s has all of it; the last of it took %.1f s", kept.remote.address, time.monotonic() - begun)

    _open[kept.folder] = kept
    stack.push(end)


def _of_process_0(names, folder):
    """{directory of checkpoints: the newest step that process 0 has there, or -1}, told to all processes."""
    told = {}
    for below in _own_checkpoints(names):
        here = max((int(one.parent.name) for one in folder.glob(f"{below}/*/{manifest.FILE}")), default=-1)
        told[below] = int(multihost_utils.broadcast_one_to_all(np.int32(here)))
    return told


def _as_process_0(remote, names, folder, chosen, own):
    """Gives another process the checkpoints that process 0 has taken, and its own log."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if own in names:
        remote.download([(names[own], folder / own)])
    mirror.record(folder.with_name(KNOWN), mirror.signs(folder))
    for below, step in chosen.items():
        if step >= 0:
            newest(remote, names, below, folder / below, step)


def _alone(stack, here, address):
    """Locks a folder of this host until the stack is closed; what tells it from those of other hosts."""
    here.mkdir(parents=True, exist_ok=True)
    try:
        stack.callback(lock.release, lock.hold(here))
    except UserError as error:
        raise UserError(f"{address} is in use on this host: {error}") from None
    identity = here / "identity"
    if not identity.exists() or not identity.read_text():  # empty after a power cut
        writing.text(identity, secrets.token_hex(8))
    return identity.read_text()


def _me():
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    found = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
    return found | ({"job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {})


def brought(remote, folder, ours):
    """Brings a local folder up to date, and records beside it what the bucket has as it is here.

    ours: whether what lies here is as new as the bucket, or newer.
    """
    begun, names = time.monotonic(), remote.names()
    if not ours:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    if not ours:
        small = [(one, inside(folder, name)) for name, one in names.items() if _is_wanted(name, one.size)]
        remote.download(small)
        size += sum(one.size for one, _ in small)
    record = folder.with_name(KNOWN)
    known = mirror.recorded(record) if ours else mirror.signs(folder)
    mirror.record(record, known)
    for below in _own_checkpoints(names):
        size += newest(remote, names, below, folder / below)
    if size:
        log.info("brought down from %s: %.1f MB in %.1f s", remote.address, size / 1e6, time.monotonic() - begun)


def _own_checkpoints(names):
    return sorted({found[0] for name in names if (found := OWN_CHECKPOINTS.match(name))})


def newest(remote, names, below, directory, step=None):
    """Sees to it that the newest whole checkpoint, or that of `step`, is in a local directory; bytes brought down.

    names: {name: bucket.Object} of what is there.
    """
    there = mirror.checkpoints(names, below)
    here = [int(one.name) for one in directory.iterdir() if one.name.isdigit()] if directory.is_dir() else []
    size = 0
    for candidate in sorted({*there, *here} if step is None else {step}, reverse=True):
        local, far = directory / str(candidate), there.get(candidate)
        if local.is_dir() and manifest.damage(local) is None:
            return size
        if far is None or not far.complete:
            continue
        shutil.rmtree(local, ignore_errors=True)
        size += checkpoint(remote, far, below, candidate, directory)
        reason = manifest.damage(local)
        if reason is None:
            return size
        log.warning("Checkpoint %s/%s/%d is damaged (%s) and is not used.", remote.address, below, candidate, reason)
        shutil.rmtree(local)
    return size


def checkpoint(remote, far, below, step, directory):
    """Brings one checkpoint down, as it is there, whole or damaged; its bytes."""
    beside = directory / f".{step}.unfinished"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    remote.download([(one, inside(beside, name.removeprefix(f"{below}/{step}/"))) for name, one in far.names.items()])
    beside.rename(directory / str(step))
    return sum(one.size for one in far.names.values())


def _is_wanted(name, size):
    parts = name.split("/")
    if parts[-1] == lease.FILE or {*parts[:-1]} & {*LEFT_THERE} or parts[-1].startswith("."):
        return False
    return len(parts) == 1 or size <= SUBFOLDER_LIMIT


def inside(folder, name):
    """The path of an object's name; UserError for one that leads out of the folder."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise UserError(f"{name!r} in a bucket is no name of a file; remove that object.")
    return folder / name
