"""What a run leaves in its folder, kept in a bucket while it runs.

A checkpoint goes up when it is complete here, all its files first, then whatever else the run has written up to it, and
its manifest last: a checkpoint in the bucket without a manifest is none. Other files go up as they change, each whole
and under the condition that the bucket has what was put there last; a file of megabytes that grows, such as
metrics.jsonl, less often the larger it is.
"""

import concurrent.futures
import json
import logging
import pathlib
import re
import threading
import time

from barlow_jax.data.remote import objects
from barlow_jax.errors import UserError
from barlow_jax.run import manifest, writing
from barlow_jax.run.buckets import lease

LOOK = 0.5  # seconds between two looks for a checkpoint that is complete
EVERY, BYTES_A_SECOND = 30.0, 2**18  # a changed file goes up at most every 30 s, and at most so fast on the average
CHECKPOINTS = "checkpoints"
NOT_KEPT = (CHECKPOINTS, "compiled")  # the first in its own way; what is compiled belongs to a kind of machine

log = logging.getLogger(__name__)


class Mirror:
    """Keeps a local folder in a bucket until `close`.

    Args:
      folder: pathlib.Path; remote: an objects.Folder; held: the lease.Lease of that, or None on processes that
        hold none, whose checkpoints are process 0's.
      known: file of what the bucket has already, see `recorded`.
    """

    def __init__(self, folder, remote, held, known):
        self.folder, self.remote, self._lease = folder, remote, held
        self._record, self._known = known, recorded(known)
        self._versions, self._due = {}, {}
        self._followed, self._done, self._metrics = {}, {}, {}
        self._failure, self._told, self._ended = None, False, threading.Event()
        self._changed, self._busy = threading.Condition(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def follow(self, directory, chosen):
        """Keeps the checkpoints of a directory too.

        chosen: {step: metrics} of those in the bucket -> the steps that are to stay there.
        """
        if self._lease is None:
            return
        below = directory.relative_to(self.folder).as_posix()
        there = checkpoints(self.remote.names(below), below)
        whole = {step: self.remote.get(f"{below}/{step}/{manifest.FILE}")[0] for step, x in there.items() if x.complete}
        here = _complete(directory)
        with self._busy:
            self._metrics[below] = {step: _metrics(sealed) for step, sealed in whole.items()}
            self._done[below] = {one for one in here if whole.get(one[0]) == here[one].read_bytes()}
            self._followed[below] = chosen
            self._clear(below, there, keep=whole)

    def settled(self, directory):
        """Waits until every complete checkpoint of the directory is in the bucket; UserError where that fails."""
        below = directory.relative_to(self.folder).as_posix()
        with self._changed:
            while (
                below in self._followed
                and self._failure is None
                and self._thread.is_alive()
                and _complete(directory).keys() - self._done[below]
            ):
                self._changed.wait(1.0)
            if self._failure is not None:
                raise self._failure

    def close(self, at_once=False):
        """Brings up what is left, unless `at_once`, and ends; UserError where that cannot be."""
        self._ended.set()
        if at_once:
            return
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        try:
            self._bring_checkpoints()
            self._bring_files(all_=True)
        except (UserError, OSError) as error:
            raise self._failed(error) from None

    def _run(self):
        while not self._ended.wait(LOOK):
            try:
                self._bring_checkpoints()
            except (UserError, OSError) as error:
                with self._changed:
                    self._failure = self._failed(error)
                    self._changed.notify_all()
                return
            try:
                self._bring_files()
                self._told = False
            except (UserError, OSError) as error:
                if not self._told:
                    log.warning("%s waits for what changes in %s: %s", self.remote.address, self.folder, error)
                self._told = True

    def _failed(self, error):
        return UserError(f"{str(error).rstrip('.')}; what is not in {self.remote.address} is in {self.folder}.")

    def _bring_checkpoints(self):
        with self._busy:
            for below in tuple(self._followed):
                for one in sorted(_complete(self.folder / below).keys() - self._done[below]):
                    self._bring_checkpoint(below, one[0])
                    with self._changed:
                        self._done[below].add(one)
                        self._changed.notify_all()

    def _bring_checkpoint(self, below, step):
        begun, name, local = time.monotonic(), f"{below}/{step}", self.folder / below / str(step)
        try:
            told = manifest.read(local)
        except (OSError, ValueError):
            return  # damaged here: `restore` tells of it, and moves it out of the way
        self._check()
        sealed = (local / manifest.FILE).read_bytes()
        self.remote.remove(
            [f"{name}/{manifest.FILE}"]
        )  # of an earlier branch of this run: no longer whole from here on
        files = [path for path in local.rglob("*") if path.is_file() and path.name != manifest.FILE]
        with concurrent.futures.ThreadPoolExecutor(objects.SIDE_BY_SIDE, "upload") as pool:
            list(pool.map(lambda path: self._put(f"{name}/{path.relative_to(local).as_posix()}", path), files))
        there = self.remote.names(name)
        for file, (size, _) in told["files"].items():
            if file not in {one.removeprefix(f"{name}/") for one in there}:
                raise UserError(
                    f"{self.remote.address}/{name}/{file} has vanished: see to the bucket, then start again."
                )
            if there[f"{name}/{file}"].size != size:
                raise UserError(f"{self.remote.address}/{name}/{file} has another size than what was put there.")
        self._bring_files(all_=True)
        self._check()
        self.remote.put(f"{name}/{manifest.FILE}", sealed, only=objects.ABSENT)
        self._metrics[below][step] = told["metrics"]
        size = sum(size for size, _ in told["files"].values()) / 1e6
        log.info("step %d is in %s: %.1f MB in %.1f s", step, self.remote.address, size, time.monotonic() - begun)
        keep = {step, *self._followed[below](self._metrics[below])}
        self._clear(below, checkpoints(self.remote.names(below), below), keep)
        self._metrics[below] = {one: found for one, found in self._metrics[below].items() if one in keep}

    def _clear(self, below, there, keep):
        """Removes checkpoints, each with its manifest first: from then on it is none."""
        for step, one in there.items():
            if step not in keep:
                self._check()
                last = f"{below}/{step}/{manifest.FILE}"
                self.remote.remove([last, *(name for name in one.names if name != last)])

    def _bring_files(self, all_=False):
        """Files that have changed; all_: those too that were brought up a moment ago."""
        now, found = time.monotonic(), signs(self.folder)
        changed = [name for name, sign in found.items() if self._known.get(name) != sign]
        due = [name for name in changed if all_ or self._due.get(name, 0.0) <= now]
        gone = [name for name in self._known if name not in found]
        if due or gone:
            self._check()
        for name in due:
            try:
                self._put(name, self.folder / name)
            except FileNotFoundError:
                continue  # it has just been removed
            self._known[name] = found[name]
            self._due[name] = now + max(EVERY, found[name][0] / BYTES_A_SECOND)
        self.remote.remove(gone)
        for name in gone:
            del self._known[name]
        if due or gone:
            record(self._record, self._known)

    def _put(self, name, path):
        """Puts a file in place of what the bucket has, as far as we know; whoever holds the lease is right."""
        content = path if path.stat().st_size >= objects.LARGE else path.read_bytes()
        try:
            self._versions[name] = self.remote.put(name, content, only=self._versions.get(name, objects.ABSENT))
        except objects.Changed:
            self._check()
            self._versions[name] = self.remote.put(name, content)

    def _check(self):
        if self._lease is not None:
            self._lease.check()


def recorded(file):
    """{name: (size, time of change)} of the files that a bucket has as they are here.

    {} where nothing was recorded, or nothing that can be read, as after a power cut: then all of them go up anew.
    """
    try:
        return {name: tuple(sign) for name, sign in json.loads(file.read_text()).items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}


def record(file, known):
    """Writes what `recorded` reads."""
    writing.text(file, json.dumps(known))


class Checkpoint:
    """The objects of one checkpoint in a bucket."""

    def __init__(self):
        self.names, self.complete = {}, False  # {name: bucket.Object}; whether its manifest is there


def checkpoints(names, below):
    """{step: Checkpoint} among the objects of a folder: {name: bucket.Object}."""
    found = {}
    for name, one in names.items():
        parts = re.fullmatch(rf"{re.escape(below)}/(\d+)/(.+)", name)
        if parts:
            of_step = found.setdefault(int(parts[1]), Checkpoint())
            of_step.names[name] = one
            of_step.complete |= parts[2] == manifest.FILE
    return dict(sorted(found.items()))


def signs(folder):
    """{name: (size, time of change)} of the files of a work folder, less its checkpoints and what is half written."""
    found = {}
    for path in _files(folder):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue
        found[path.relative_to(folder).as_posix()] = state.st_size, state.st_mtime_ns
    return found


def _files(folder):
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name in (*NOT_KEPT, lease.FILE):
            continue
        if entry.is_dir():
            yield from _files(entry)
        elif entry.is_file():
            yield entry


def _complete(directory):
    """{(step, when its manifest was written): path of that} of the complete checkpoints of a local directory."""
    found = {}
    for path in pathlib.Path(directory).glob(f"*/{manifest.FILE}"):
        if path.parent.name.isdigit():
            try:
                found[int(path.parent.name), path.stat().st_mtime_ns] = path
            except FileNotFoundError:  # Orbax has just removed it
                continue
    return found


def _metrics(sealed):
    """Those in the bytes of a manifest; {} of one that is damaged, which then cannot be the best."""
    try:
        found = json.loads(sealed)["metrics"]
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}
