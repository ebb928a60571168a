"""What is kept of a step that is not finite, in `nonfinite/STEP/` in the work folder, so that it can be run again.

    watch = Watch(workdir, method, state, batches_from, source, steps_per_epoch, last_checkpoint, meta)
    watch.check(state)              # as nonfinite.check, and check_all; what they refuse leaves a folder

The batch is a function of the step and is read again. The state is the one at hand: a step that is not finite leaves
all of it as it was, so where the run gives up it is what the bad step saw, bit for bit. Where a step was passed over
(config.on_nonfinite = "skip") and updates have followed before anybody looked, it is a later one, and the folder says
of which step.
"""

import json
import logging
import pathlib
import shlex
import shutil
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from barlow_jax import optim, views
from barlow_jax.data import Source
from barlow_jax.errors import UserError
from barlow_jax.run import cluster, writing
from barlow_jax.run.checkpoint import FOLDER as CHECKPOINTS
from barlow_jax.run.checkpoint import Checkpoints
from barlow_jax.training import nonfinite

FOLDER = "nonfinite"
CASE = "case.json"
KEPT = 3  # folders in a work folder, the newest
SPARE = 2  # of the free space of the disk one part in so many may be taken

_FACTS = ("config", "channels", "num_classes", "steps_per_epoch", "step", "state_of_step")  # in CASE
# What numpy, zipfile and json raise of files that are damaged or others'.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)

log = logging.getLogger(__name__)


class Watch:
    """Looks at the state when it is logged or saved, and keeps what a step saw that was not finite.

    Every process makes one and asks it at the same steps.

    Args:
      workdir: of the run.
      method: pretrain.Method; state: pretrain.TrainState that the run goes on from.
      batches_from: (start_step=) -> batches from there on, with `close`.
      source: of the images; steps_per_epoch: of the run.
      last_checkpoint: () -> its step, or None.
      meta: of the run's checkpoints, with "config" as a plain dict.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        method: Any,
        state: Any,
        batches_from: Callable[..., Any],
        source: Source,
        steps_per_epoch: int,
        last_checkpoint: Callable[[], int | None],
        meta: dict[str, Any],
    ):
        self._workdir, self._batches_from, self._where = workdir, batches_from, source.where
        self._facts = {"config": meta["config"], "channels": source.channels, "num_classes": source.num_classes}
        self._facts |= {"steps_per_epoch": steps_per_epoch}
        self._limits = (method.give_up_after, last_checkpoint)
        self._seen, self._has_kept = int(state.health["step"]), False

    def check(self, state: Any) -> None:
        """`nonfinite.check`; raises UserError if the run has given up."""
        self._checked(nonfinite.check, state)

    def check_all(self, state: Any) -> None:
        """`nonfinite.check_all`, before a state is saved; raises UserError."""
        self._checked(nonfinite.check_all, state)

    def _checked(self, check, state):
        try:
            check(state, *self._limits)
        except UserError as error:
            health = jax.device_get(state.health)
            given_up = health["in_a_row"] >= self._limits[0]
            # A state that is itself not finite: what it breaks is the step that would come next.
            step = int(health["step"]) if given_up else int(state.step) + 1
            kept = self._keep(state, step)
            raise UserError(f"{error}{f' To see why: {command(kept)}' if kept else ''}") from None
        fault = int(jax.device_get(state.health["step"]))
        if fault > self._seen:
            self._seen = fault
            # The first of them alone: a run that passes over many steps would write nothing else.
            kept = None if self._has_kept else self._keep(state, fault)
            to_see = f"; to see why: {command(kept)}" if kept else ""
            log.warning("step %d was not finite and is passed over%s", fault, to_see)

    def _keep(self, state, step):
        """The folder of a step, or None where it could not be kept, which is logged."""
        self._has_kept = True
        folder = self._workdir / FOLDER / str(step)
        try:
            batches = self._batches_from(start_step=step - 1)
            try:
                batch = next(batches)
            finally:
                batches.close()
            size = _nbytes(state) + _nbytes(batch)
            self._make_room(folder, size)
            case = self._facts | {"step": step, "state_of_step": int(state.step)}
            _write(folder, case, _before(state, step), batch, self._where)
        except (UserError, OSError, jax.errors.JaxRuntimeError) as error:  # the fault itself is what has to be told
            log.warning("what step %d saw could not be kept (%s)", step, " ".join(str(error).split()))
            return None
        log.info("what step %d saw is in %s, %.1f MB at most", step, folder, size / 1e6)
        return folder

    def _make_room(self, folder, size):
        """Leaves KEPT - 1 other folders; UserError where the disk has too little space for one more."""

        def prepare():
            with writing.told(folder):
                folder.parent.mkdir(exist_ok=True)
                free = shutil.disk_usage(folder.parent).free
                if size * SPARE > free:
                    raise UserError(f"it takes {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free there")
                there = sorted(folder.parent.iterdir(), key=lambda one: one.stat().st_mtime)
                others = [one for one in there if one != folder]
                for old in others[: max(0, len(others) - KEPT + 1)]:
                    log.info("%s is removed: the newest %d are kept", old, KEPT)
                    shutil.rmtree(old)
                shutil.rmtree(folder, ignore_errors=True)  # of this step, before the run was started again
                folder.mkdir()

        cluster.on_process_0(prepare)


def command(folder: pathlib.Path) -> str:
    """The line that replays a folder."""
    return shlex.join(["barlow-jax", "doctor", f"--replay={folder}"])


def _before(state, step):
    """The state as the bad step saw it: its number and the schedules' are set back, the record is empty."""

    def like(old, value):
        return jax.device_put(np.asarray(value, old.dtype), old.sharding)

    number = like(state.step, step - 1)
    health = jax.tree.map(lambda old: like(old, 0), state.health)
    return state._replace(step=number, opt_state=optim.going_on(state.opt_state, None, number), health=health)


def _write(folder, case, state, batch, where):
    index = jax.process_index()
    rows = {name: _rows_here(x) for name, x in batch.items() if name != "size"}
    places = next(iter(rows.values()))[0]
    held = {name: values for name, (_, values) in rows.items()}
    names = np.asarray([where(int(image)) for image in held["index"]])
    size = {"size": np.int32(batch["size"].pixels)} if "size" in batch else {}
    folder.mkdir(parents=True, exist_ok=True)  # process 0 has, but where each has a disk of its own
    writing.arrays(folder / f"batch_{index}.npz", held | size | {"place": places, "name": names})
    if index == 0:
        writing.text(folder / CASE, json.dumps(case | {"replay": command(folder)}, indent=1))
    with Checkpoints(folder / CHECKPOINTS, asynchronous=False) as checkpoints:
        checkpoints.save(case["step"] - 1, state)


def _rows_here(array):
    """(places in the global batch [b], rows [b, ...]) of an array split by example, those of this process."""
    parts = {shard.index[0].indices(len(array))[:2]: shard.data for shard in array.addressable_shards}
    places = [np.arange(*ends) for ends in sorted(parts)]
    return np.concatenate(places), np.concatenate([np.asarray(parts[ends]) for ends in sorted(parts)])


def _nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What `Watch` has kept but for the state: the case, the batch of all processes, what each row's image is called.

    Raises:
      UserError: the folder is none of ours, or damaged.
    """
    try:
        case = json.loads((folder / CASE).read_text())
        parts = []
        for file in sorted(folder.glob("batch_*.npz")):
            with file.open("rb") as stream, np.load(stream) as stored:  # numpy leaves a damaged file open
                parts.append({name: stored[name] for name in stored.files})
        sizes = [part.pop("size", None) for part in parts]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        joined = {name: joined[name] for name in dict.fromkeys(("index", "name", "place", *joined))}
        case = {name: case[name] for name in dict.fromkeys((*_FACTS, *case))}
    except _DAMAGE as error:
        wrong = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{folder} holds no step that can be replayed ({wrong}); give a folder nonfinite/STEP of a work folder."
        ) from error
    order = np.argsort(joined.pop("place"))
    names = [str(name) for name in joined.pop("name")[order]]
    batch: dict[str, Any] = {name: values[order] for name, values in joined.items()}
    if sizes[0] is not None:
        batch["size"] = views.Size(int(sizes[0]))
    return case, batch, names


def restored(folder: pathlib.Path, shapes: Any) -> Any:
    """The state that `Watch` has kept, as arrays with these shapes and shardings; UserError where it does not fit."""
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        return checkpoints.restore(shapes)[0]
