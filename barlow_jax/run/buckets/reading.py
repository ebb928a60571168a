"""What commands read in a bucket: a checkpoint of a run, its small files, or one file, brought down and kept here.

What was brought down is found under the version that the bucket gives it, so nothing stale is ever read.
"""

import contextlib
import hashlib
import json
import pathlib
import re
import shutil
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from barlow_jax.data.remote import bucket, objects
from barlow_jax.errors import UserError
from barlow_jax.run import lock, writing
from barlow_jax.run.buckets import mirror, staging

PAGE = (".json", ".jsonl", ".txt", ".png")  # what the page of a run and the table of results read
KEPT = 86400.0  # seconds for which what was read is kept, when another version is

_OF_RUN = re.compile(rf"(.*?)(?:/{mirror.CHECKPOINTS}(?:/(\d+))?)?/*")


def is_address(path):
    """Whether a path is an address, as of a bucket."""
    return "://" in str(path)


def named(path):
    """A path as it was given: an address as text, any other as pathlib.Path, the home folder in place of "~"."""
    return str(path).rstrip("/") if is_address(path) else pathlib.Path(path).expanduser()


def here_alone(path):
    """The path of a command that has no use for an address; UserError for one."""
    if is_address(path):
        raise UserError(f"--workdir={path} is no folder of this host, which this command needs; give one.")
    return named(path)


def run_of(address):
    """(address of a run, step or None) of an address of it, of its checkpoints or of one of them."""
    run, step = _OF_RUN.fullmatch(address).groups()
    return run, int(step) if step else None


def is_in(path, folder):
    """Whether a folder is, or holds, what is at a path; both as `named` gives them."""
    if is_address(path) or is_address(folder):
        return f"{path}/".startswith(f"{folder}/")
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def checkpoint(address, step=None):
    """The local folder of one checkpoint: the newest whole one of a run, or of `step`.

    Of several processes process 0 decides which, and each has its own.

    Raises:
      UserError: there is none.
    """
    run, own = run_of(address)
    step, below = own if step is None else step, mirror.CHECKPOINTS
    remote = objects.Folder(run)
    names = remote.names(below)
    there = mirror.checkpoints(names, below)
    for candidate in sorted(there, reverse=True):
        if not there[candidate].complete or step not in (None, candidate):
            continue
        if jax.process_count() > 1 and step is None:
            candidate = int(multihost_utils.broadcast_one_to_all(np.int32(candidate)))
        sealed = there[candidate].names[f"{below}/{candidate}/{mirror.manifest.FILE}"]
        directory = staging.place(run, "read") / _version(sealed) / below
        with _alone(directory):
            staging.newest(remote, names, below, directory, candidate)
        if (directory / str(candidate)).is_dir():
            _forget(directory.parent)
            return directory / str(candidate)
    wanted = "A checkpoint" if step is None else f"A checkpoint of step {step}"
    whole = [one for one, found in there.items() if found.complete]
    have = f"holds steps {whole}" if whole else "holds none"
    raise UserError(f"{wanted} was expected in {run}, which {have}; give the work folder of a training run.")


def file(address):
    """The local copy of one object, under its own name; UserError where there is none.

    A web server's files are read so too. A process brings its copy down once for each version of the object.
    """
    store, name = bucket.opened(address)
    one = store.head(name)
    if one is None:
        raise UserError(f"{address} is not there; correct the address.")
    kept = staging.place(address, "file") / _version(one)
    path = kept / staging.name(address)
    with _alone(kept):
        if not path.exists():
            with writing.whole(path) as unfinished:
                unfinished.write_bytes(store.read_large(one))
    _forget(kept)
    return path


def right_in(address):
    """Names of what lies right in a folder, files and folders; none of a web server, which has no listing."""
    store, name = bucket.opened(address)
    if store.scheme.startswith("http"):
        return set()
    found, folders = store.top(name)
    return {staging.name(one) for one in (*folders, *(one.name for one in found))}


def config(address, name):
    """What the JSON file of a run says, where the run has a checkpoint; {} where it has none."""
    remote = objects.Folder(address)
    there = mirror.checkpoints(remote.names(mirror.CHECKPOINTS), mirror.CHECKPOINTS)
    with contextlib.suppress(bucket.Gone):
        return json.loads(remote.get(name)[0]) if any(one.complete for one in there.values()) else {}
    return {}


def files(address):
    """The local folder of the files that a page shows, of the runs below an address; as they are now."""
    remote, kept = objects.Folder(address), staging.place(address, "files")
    folder, index = kept / staging.name(address), kept / staging.KNOWN
    names = {name: one for name, one in remote.names().items() if _is_shown(name)}
    if not names:
        raise UserError(f"{address} holds no run; give the folder of one, or one above several.")
    with _alone(kept):
        known = mirror.recorded(index)
        paths = {name: staging.inside(folder, name) for name in names}
        new = [name for name in names if known.get(name) != names[name] or not paths[name].exists()]
        missed = remote.download([(names[name], paths[name]) for name in new])  # written anew now: next time
        for name in known.keys() - names.keys():
            (folder / name).unlink(missing_ok=True)
        mirror.record(index, {name: one for name, one in names.items() if one not in missed})
    return folder


def _version(one):
    """What tells this version of an object from others, as the name of a folder."""
    return hashlib.sha256(f"{one.version} {one.written}".encode()).hexdigest()[:12]


def _is_shown(name):
    parts = name.split("/")
    return parts[-1].endswith(PAGE) and not {*parts} & {*staging.LEFT_THERE}


@contextlib.contextmanager
def _alone(folder):
    """One process of this host at a time."""
    with writing.told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.hold(folder, patience=3600.0)
    try:
        yield
    finally:
        lock.release(held)


def _forget(kept):
    """Removes other versions of what was brought down, but for those that a command may be reading now."""
    (kept / "used").touch()
    for other in kept.parent.iterdir():
        used = other / "used"
        if other != kept and used.exists() and time.time() - used.stat().st_mtime > KEPT:
            shutil.rmtree(other, ignore_errors=True)
