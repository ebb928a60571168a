"""One run at a time in a work folder.

A run holds a lock of the operating system on the file `run.lock` in its folder until its process is gone. However it
went, by its end, kill -9 or a power cut, the kernel drops the lock, so there is no stale one on the same host; the file
stays, and says who was last. The lock (flock) reaches over NFS, and over Lustre and other file systems that are mounted
with it; a host that vanished without a word keeps it until the file server gives it up (NFS 4: its lease, 90 s), or
until somebody removes the file. File systems without locks are told in a warning, and nothing is held.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import time

from barlow_jax.errors import UserError

FILE = "run.lock"

# What the system says where a file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

log = logging.getLogger(__name__)


def hold(folder, patience=5.0, name=FILE):
    """Locks a work folder until `release`, or for the rest of this process's life.

    Args:
      folder: an existing folder on a file system.
      patience: seconds to wait for a run that is just ending.
      name: of the lock's file.
    Returns:
      The descriptor of the lock's file, which must stay open; None where the file system has no locks.
    Raises:
      UserError: another run holds it; the sentence names its process, host and start.
    """
    file, until = pathlib.Path(folder) / name, time.monotonic() + patience
    try:
        while (descriptor := _locked(file)) is None:
            if time.monotonic() > until:
                raise UserError(_refusal(file))
            time.sleep(0.25)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "%s is on a file system without locks (%s); nothing will stop a second run there", folder, error.strerror
        )
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
    return descriptor


@contextlib.contextmanager
def one_at_a_time(file):
    """Inside it no other process is in it for this file, which is made where it is missing, and may be replaced.

    Where the file system has no locks, or the file may not be written, all are.
    """
    descriptor = None
    try:
        while descriptor is None:  # again where somebody replaced the file that was waited for
            descriptor = _locked(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (*_NO_LOCKS, errno.EACCES, errno.EPERM):
            raise
    try:
        yield
    finally:
        release(descriptor)


def release(descriptor):
    """Gives back what `hold` returned."""
    if descriptor is not None:
        os.close(descriptor)


def _locked(file, how=fcntl.LOCK_EX | fcntl.LOCK_NB):
    """The descriptor of the file, locked; None if another has the lock, or put another file in its place."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # a program started from here does not inherit it
    try:
        fcntl.flock(descriptor, how)
        if _is(file, descriptor):
            return descriptor
    except BlockingIOError:
        pass  # held: as good as None
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is(file, descriptor):
    """Whether the path still leads to the locked file: somebody may have removed it in between."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _this_process():
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
    return holder | ({"job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {})


def _refusal(file):
    try:
        holder = json.loads(file.read_text())
        who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{file.parent} is in use by another run; stop it first, or take another --workdir."
    if "job" in holder:
        who += f", SLURM job {holder['job']}"
    # Here the kernel knows that it lives. Of another host the file server has to know.
    gone = "" if holder["host"] == socket.gethostname() else f", remove {file} if that host is gone"
    return f"{file.parent} is in use by another run ({who}); stop it first{gone}, or take another --workdir."
