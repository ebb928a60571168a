"""Checkpoints of a run: asynchronous, atomic, and checked byte for byte (the only user of Orbax).

A checkpoint is a folder `<directory>/<step>/`: the arrays in Orbax's own format in `state/`, and `manifest.json` with
what the run wants to remember (`meta`, `metrics`) and the size and CRC-32 of every other file. Orbax renames the folder
into place only when all of that is written, so a killed save leaves nothing that looks finished.

Folders are on a file system. Those of a work folder in a bucket are in its copy on this host, and `buckets` keeps them
there: a save is complete when the bucket has it. Reading takes addresses (gs://...) too, of what was brought down.
"""

import json
import logging
import pathlib
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from barlow_jax.errors import UserError
from barlow_jax.run import manifest, trees
from barlow_jax.run.buckets import gathering, reading, staging

FOLDER = "checkpoints"  # inside a run's work folder
WEIGHTS = ("average", "last")  # of a run with config.ema, those that there are to read

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run: saves in the background, keeps the newest and the best.

    Every process of a run makes one and calls its methods in the same order, the last being `close` (or `with`).

    Args:
      directory: folder for the checkpoints; made if it does not exist.
      keep: how many of the newest to keep, at least 1.
      best_of: name of a metric given to `save`; the checkpoint where it is largest is kept as well. One without it, or
        where it is not finite, is never the best.
      asynchronous: False makes `save` return only when the checkpoint is complete.
    """

    def __init__(self, directory, *, keep: int = 3, best_of: str | None = None, asynchronous: bool = True):
        if keep < 1:
            raise UserError(f"keep is {keep}, but a run without checkpoints cannot be resumed; take 1 or more.")
        self.directory = epath.Path(directory).expanduser().absolute()
        self._asynchronous = asynchronous
        self._metrics: dict[int, dict] = {}  # of every checkpoint, by step
        self._pending: tuple[int, dict, dict] = (-1, {}, {})  # step, meta and metrics of the last save
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(keep, best_of, self._metrics),
            # Called on process 0 when the arrays of all processes are on the disk, before the folder is renamed.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal, barrier_sync_fn=_barrier),
            cleanup_tmp_directories=True,
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be made ({manifest.reason(error)}); take another work folder."
            ) from error
        self._mirror = staging.of(self.directory)  # None where the folder is not kept in a bucket
        self._gathers = self._mirror is not None and jax.process_count() > 1
        if self._gathers:
            options.multiprocessing_options = ocp.options.MultiprocessingOptions(active_processes={0})
            options.async_options.barrier_sync_fn, options.create = gathering.nobody, False
        there = not self._gathers or jax.process_index() == 0
        self._manager = ocp.CheckpointManager(self.directory, options=options) if there else gathering.Elsewhere()
        self._reload()
        if self._mirror:
            self._mirror.follow(pathlib.Path(self.directory), lambda metrics: _chosen(metrics, keep, best_of))

    def save(self, step: int, state: Any, meta: Mapping | None = None, metrics: Mapping | None = None) -> bool:
        """Starts to save `state` as of `step`; returns False if that step is saved already.

        Args:
          state: pytree of arrays (dicts, NamedTuples, registered dataclasses). It is copied before this returns, so
            the caller may donate it to the next step at once.
          meta: anything that JSON can hold; tuples come back as lists.
          metrics: numbers; one that is not finite is stored as null.
        Raises:
          UserError: this save, or the one before it, failed; older checkpoints are untouched.
        """
        self.wait()  # one save at a time: `_seal` must not take one step for another
        if step in self._manager.all_steps():
            return False
        metrics = {name: float(v) if np.isfinite(v) else None for name, v in (metrics or {}).items()}
        self._pending = (step, json.loads(json.dumps(meta or {})), metrics)
        self._metrics[step] = metrics
        if self._gathers:
            state = gathering.whole(state)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardSave(state))
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax and TensorStore raise a dozen types when a disk fails
            raise self._failure(error) from error
        if not self._asynchronous:
            self.wait()
        return True

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, whole or damaged; None if there is none."""
        return max(_steps(self.directory), default=None)

    def restore(self, state_like: Any, step: int | None = None) -> tuple[Any, dict]:
        """Reads (state, meta) of the newest whole checkpoint, or of `step`.

        A damaged checkpoint is named in a warning and moved aside to `<step>.damaged`, as the run will come to that
        step again and save it anew; then the one before it is used.

        Args:
          state_like: pytree of arrays or `jax.ShapeDtypeStruct`: gives the structure, shapes, dtypes and shardings of
            the result; the devices need not be those of the run that saved.
        Raises:
          UserError: there is nothing to restore, or all of it is damaged, or it does not fit `state_like`.
        """
        self.wait()
        chosen = _choose(self.directory, step, move_damaged=step is None)
        self._reload()
        folder = self.directory / str(chosen)
        _check_fit(folder, state_like)
        return _read_arrays(folder, state_like), manifest.read(folder)["meta"]

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster announced a preemption and all processes should save at `step`.

        Every process calls it at every step; always False without `jax.distributed`.
        """
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Blocks until the save in progress is complete; raises UserError if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever the saving thread met, see `save`
            raise self._failure(error) from error
        if self._mirror:
            self._mirror.settled(pathlib.Path(self.directory))

    def close(self) -> None:
        """Waits for the save in progress and ends Orbax's threads; raises UserError as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except UserError as failure:
            if error is None:
                raise
            log.error("%s", failure)  # what is already ending the run matters more

    def _seal(self) -> None:
        step, meta, metrics = self._pending
        unfinished = self.directory / f"{step}{ocp.utils.TMP_DIR_SUFFIX}"
        # An object store has no rename: there Orbax writes in place and adds a commit file at the end.
        manifest.write(unfinished if unfinished.exists() else self.directory / str(step), meta, metrics)

    def _reload(self) -> None:
        self._manager.reload()
        self._metrics.clear()
        for step in _steps(self.directory):
            try:
                self._metrics[step] = manifest.read(self.directory / str(step))["metrics"]
            except (OSError, ValueError):
                continue  # damaged: it cannot be the best, and `restore` is what reports it

    def _failure(self, error: Exception) -> UserError:
        self._reload()  # Orbax has already forgotten the steps it meant to delete after this save
        last = self.latest_step()
        left = "there is no earlier one" if last is None else f"step {last} is still there"
        return UserError(
            f"The checkpoint of step {self._pending[0]} could not be written to {self.directory} "
            f"({manifest.reason(error)}), {left}; see to free space and permissions, then start again."
        )


def newest_step(path) -> int | None:
    """Step of the newest complete checkpoint in a run's work folder, whole or damaged; None if there is none."""
    return max(_steps(epath.Path(path).expanduser() / FOLDER), default=None)


def holds_checkpoints(path) -> bool:
    """Whether a run's work folder has a complete checkpoint, whole or damaged."""
    return newest_step(path) is not None


def restore_params(path, *, step: int | None = None, ema: str = "average") -> tuple[dict, dict, dict]:
    """Reads (params, batch_stats, meta) of a checkpoint without knowing its model; never writes.

    Args:
      path: a run's work folder, its folder of checkpoints, or one checkpoint.
      step: which one; None is the newest whole one, damaged ones being named in warnings.
      ema: where an average of the weights was kept beside the last ones, which to read, one of WEIGHTS.
    Returns:
      Nested dicts of numpy arrays with string keys, also where the state had numbers; and what `Checkpoints.save` was
      given as meta, with the step, and where there is an average "averaged".
    Raises:
      UserError: there is nothing to restore, or all of it is damaged, or it holds no `params`.
    """

    def chosen(saved):
        names = ("average",) if ema == "average" and saved.get("average") else ("params", "batch_stats")
        return {name: saved[name] for name in saved if name in names}

    folder, read, meta = _restore(path, step, chosen)
    read = read.get("average", read)
    if "params" not in read:
        raise UserError(
            f"{folder} holds {sorted(_saved_tree(folder))} and no params; give the folder of a training run."
        )
    return read["params"], read.get("batch_stats", {}), meta


def restore_all(path, *, step: int | None = None) -> tuple[dict, dict]:
    """Reads (state, meta): every array of a checkpoint, the optimiser's too, as `restore_params` does."""
    return _restore(path, step)[1:]


def _restore(path, step, chosen=dict) -> tuple[epath.Path, dict, dict]:
    if reading.is_address(path):
        path = reading.checkpoint(str(path), step)
    path = epath.Path(path).expanduser().absolute()
    if path.name.isdigit() and (path / manifest.FILE).exists():
        path, step = path.parent, int(path.name)
    elif (path / FOLDER).is_dir():
        path = path / FOLDER
    folder = path / str(_choose(path, step))
    saved = _saved_tree(folder)
    wanted = chosen(saved)
    as_numpy = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)
    read = _read_arrays(folder, as_numpy) if wanted else {}
    told = {"step": int(folder.name)} | ({"averaged": True} if saved.get("average") else {})
    return folder, read, manifest.read(folder)["meta"] | told


def _barrier(*, key: str, timeout_ms: int) -> None:
    """Waits in a thread of Orbax's until every process is there.

    Where a save has failed on this process Orbax waits too, in a `finally`, for the others, which wait for this one at
    an earlier barrier: 20 minutes. So the failure goes on to the main thread instead, and the process ends.
    """
    failure = sys.exc_info()[1]
    if failure is not None and threading.current_thread() is not threading.main_thread():
        raise failure
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class _NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest `keep` steps and, of those with the metric, the best; of equals the newest.

    Orbax's BestN reads its metrics when a CheckpointManager is made, and one flipped bit in that file then ends the
    program before anything can be restored; ours are in the manifest.
    """

    def __init__(self, keep: int, best_of: str | None, metrics: Mapping[int, Mapping]):
        self._keep, self._best_of, self._metrics = keep, best_of, metrics

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        known = {one.step: self._metrics.get(one.step, {}) for one in checkpoints}
        kept = _chosen(known, self._keep, self._best_of)
        return [one.step in kept for one in checkpoints]


def _chosen(metrics: Mapping[int, Mapping], keep: int, best_of: str | None) -> set[int]:
    """Which steps to keep, of {step: metrics}: the newest, and the best, of equals the newest."""
    newest_first = sorted(metrics, reverse=True)
    scores = {step: metrics[step].get(best_of) for step in newest_first}
    best = max((step for step in newest_first if scores[step] is not None), key=scores.get, default=None)
    return {*newest_first[:keep], *([] if best is None else [best])}


def _steps(directory: epath.Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(entry.step for entry in ocp.path.step.standard_name_format().find_all(directory))


def _choose(directory: epath.Path, step: int | None, *, move_damaged: bool = False) -> int:
    """The newest whole step, or `step` if that is whole; process 0 decides for all."""
    chosen, damage = -1, {}
    if jax.process_index() == 0:
        for candidate in reversed(_steps(directory)):
            if step is None or step == candidate:
                folder = directory / str(candidate)
                reason = manifest.damage(folder)
                if reason is None:
                    chosen = candidate
                    break
                damage[candidate] = reason
                log.warning("Checkpoint %s is damaged (%s) and is not used.", folder, reason)
        if chosen >= 0 and move_damaged:
            for bad in damage:
                aside = directory / f"{bad}.damaged"
                aside.rmtree(missing_ok=True)
                (directory / str(bad)).rename(aside)
    if jax.process_count() > 1:  # the others wait here until the damaged ones are out of the way
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen < 0:
        raise _nothing_whole(directory, step, damage)
    return chosen


def _nothing_whole(directory: epath.Path, step: int | None, damage: Mapping[int, str]) -> UserError:
    if damage:
        reasons = "; ".join(f"step {bad}: {reason}" for bad, reason in damage.items())
        return UserError(
            f"No checkpoint in {directory} can be used ({reasons}); give another step or folder, or begin again."
        )
    wanted = "A checkpoint" if step is None else f"A checkpoint of step {step}"
    have = f"holds steps {_steps(directory)}" if _steps(directory) else "holds none"
    return UserError(f"{wanted} was expected in {directory}, which {have}; give the work folder of a training run.")


def _saved_tree(folder: epath.Path) -> Any:
    """The saved state with shape and dtype in place of every array, and NamedTuples as dicts."""
    return ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree


def _read_arrays(folder: epath.Path, like: Any) -> Any:
    # partial_restore: an evaluation leaves the optimiser, half of the bytes or more, unread.
    how = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(item=like, restore_args=how, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder / "state", args=args)


def _check_fit(folder: epath.Path, state_like: Any) -> None:
    wrong = trees.differences(state_like, _saved_tree(folder), told=lambda x: f"{np.dtype(x.dtype)}{[*x.shape]}")
    if wrong:
        # Parameters first: what differs in the optimiser or in the statistics only follows from them.
        name = min(wrong, key=lambda name: not name.startswith("params"))
        here, there = wrong[name]
        raise UserError(
            f"{folder} does not fit this run: {name} is {there} there and {here} here; use the config it was "
            "made with, or another work folder."
        )
