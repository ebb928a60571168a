"""The work folder of a run: made, locked for this run, and its config kept in it.

    with workdir.opened(wanted.workdir, config.to_dict(), free=free.PRETRAINING, allowed=names) as folder:
        state, saved = workdir.resume(checkpoints, state, source, total_steps)
        ...                             # the lock is given back at the end

A folder that holds a run with another config is refused, field by field.
"""

import contextlib
import datetime
import functools
import json
import logging
import os
import sys

import jax

from barlow_jax.errors import UserError
from barlow_jax.run import cluster, config_files, lock, writing
from barlow_jax.run.buckets import reading, staging
from barlow_jax.run.checkpoint import holds_checkpoints, newest_step
from barlow_jax.run.trees import ABSENT

CONFIG_FILE = "config.json"
CHANGES_FILE = "config_changes.jsonl"

COMPLETE = ("barlow_twins", "linear")  # the configs that have every field of a training and of an evaluation

log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(named, config, *, free=(), allowed=()):
    """Makes the run's folder, locks it until the `with` ends, and keeps its config in it.

    A folder that holds checkpoints of another config is refused, field by field, unless the fields are in `free` or
    `allowed`: going on would give a run that neither config describes. Changes that are not refused are logged and
    recorded in config_changes.jsonl, with the step of the last checkpoint; config.json is the config as it is now.

    Process 0 does it for all; where it is refused, all processes are.

    Args:
      named: path, or "" which is refused.
      config: plain nested dict.
      free: dotted names of fields, or of groups of fields, that do not change the result.
      allowed: the same, of fields that do, as --allow_changes names them; ("all",) is every field.
    Yields:
      pathlib.Path of the folder.
    Raises:
      UserError: the folder cannot be used, another run is using it, or the config has changed.
    """
    if not named:
        raise UserError("--workdir is missing; give the folder where checkpoints, metrics and pictures go.")
    config = json.loads(json.dumps(config))  # as it will be read back: tuples are lists
    with _on_this_host(named) as folder, _locked(folder, config, free, allowed):
        yield folder


def _on_this_host(named):
    """A context of the folder to work in."""
    return staging.opened(named) if reading.is_address(named) else contextlib.nullcontext(reading.named(named))


@contextlib.contextmanager
def _locked(folder, config, free, allowed):
    held = []

    def prepare():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.append(lock.hold(folder))
            _keep_config(folder, config, free, allowed)
        except OSError as error:
            remedy = "free some space there" if error.errno in writing.NO_SPACE else "take another folder"
            raise UserError(f"--workdir {folder} cannot be written ({error.strerror}); {remedy}.") from error

    try:
        cluster.on_process_0(prepare)
        with _logged(folder):
            yield
    finally:
        for descriptor in held:
            lock.release(descriptor)


class _LogFile(logging.FileHandler):
    """Given up with one sentence where it cannot be written: for the sake of its log alone no run should end."""

    def handleError(self, record):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logging.root.removeHandler(self)
        log.warning("%s cannot be written (%s); log lines do not go there any more.", self.baseFilename, error.strerror)

    def close(self):
        with contextlib.suppress(OSError):  # what is left of a line that `handleError` has told of
            super().close()


@contextlib.contextmanager
def _logged(folder):
    """Inside it all log lines go to log.txt in the folder too, those of process 3 to log_3.txt."""
    index = jax.process_index()
    file = folder / (f"log_{index}.txt" if index else "log.txt")
    if os.path.lexists(file) and not file.is_file():  # a pipe would be waited for
        raise UserError(f"{file} is no file; remove it.")
    with writing.told(file):
        handler = _LogFile(file, encoding="utf-8", errors="backslashreplace")
    told = next((one.formatter for one in logging.root.handlers if one.formatter), None)
    handler.setFormatter(told or logging.Formatter("%(asctime)s %(message)s"))
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        handler.close()


def resume(checkpoints, state, source, total_steps, init=""):
    """The state to go on from, and what was saved beside it: of the last checkpoint, or `state` as it is and {}.

    Args:
      source: of the training images; a checkpoint holds as "images" how many there were, and as "names" their listing.
      init: the weights that it is to begin from, "" where it does not say; a checkpoint holds those that it began from.
    Raises:
      UserError: there are more or fewer now, the run has gone further than it is to go, or it began otherwise.
    """
    if checkpoints.latest_step() is None:
        log.info("starting at step %d of %d", int(state.step), total_steps)
        return state, {}
    state, saved = checkpoints.restore(state)
    if saved["images"] != len(source):
        raise UserError(
            f"{source.name} holds {len(source)} images and had {saved['images']} when this run began, so the order "
            "would change; restore the images, or take another --workdir."
        )
    if saved.get("names", source.listing()) != source.listing():
        raise UserError(
            f"{source.name} holds other images, or in another order, than when this run began, so the order would "
            "change; restore their names, or take another --workdir."
        )
    if init and init != saved.get("init", init):
        began = f"--init={saved['init']}" if saved["init"] else "random weights"
        raise UserError(
            f"--init is {init}, but this run began from {began} and goes on from its checkpoint: leave --init out, or "
            "take another --workdir."
        )
    if int(state.step) > total_steps:
        raise UserError(
            f"This run has done {int(state.step)} steps, and its config ends at step {total_steps}; set config.epochs "
            "higher, or take another --workdir."
        )
    log.info("going on from step %d of %d", int(state.step), total_steps)
    return state, saved


def began_with(named, names):
    """{name: value} of dotted names of fields in the config of a run that goes on; {} where none does, or none is read.

    A config.json that is damaged or another run's is told of where the folder is `opened`.
    """
    folder = reading.named(named)
    try:
        if reading.is_address(named):
            config = reading.config(folder, CONFIG_FILE)
        elif not named or not (folder / CONFIG_FILE).is_file() or not holds_checkpoints(folder):
            return {}
        else:
            config = json.loads((folder / CONFIG_FILE).read_bytes())
        values = {name: functools.reduce(lambda group, part: group[part], name.split("."), config) for name in names}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _keep_config(folder, config, free, allowed):
    file = folder / CONFIG_FILE
    if os.path.lexists(file) and not file.is_file():  # a pipe would be waited for
        raise UserError(f"{file} is no file; remove it to go on with the config that this command gives.")
    if file.exists() and holds_checkpoints(folder):
        try:
            old = json.loads(file.read_bytes().decode())
            if not isinstance(old, dict):
                raise ValueError("it is no object of JSON")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{file} is damaged ({error}); remove it to go on with the config that this command gives."
            ) from error
        changes = _without_new_fields(changed_fields(old, config))
        check_changes(folder, changes, free, allowed)
        if changes:
            record = {
                "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
                "step": newest_step(folder),
                "changes": {name: {"was": was, "is": now} for name, (was, now) in changes.items()},
            }
            writing.append(folder / CHANGES_FILE, [json.dumps(record)])
            log.warning("changed since this run began: %s", "; ".join(_in_words(changes)))
    writing.text(file, json.dumps(config, indent=1))


def changed_fields(old, new, prefix=""):
    """{dotted name: (was, is)} of every field that differs between two nested dicts."""
    found = {}
    for key in sorted(old.keys() | new.keys()):
        name, was, now = f"{prefix}{key}", old.get(key, ABSENT), new.get(key, ABSENT)
        if isinstance(was, dict) and isinstance(now, dict):
            found |= changed_fields(was, now, f"{name}.")
        elif was != now:
            found[name] = (was, now)
    return found


def _without_new_fields(changes):
    """The changes but for fields that are younger than the run and have the value of the configs that come along.

    With that value a run is what it was before there was a choice, so it may go on.
    """
    if not any(was == ABSENT for was, _ in changes.values()):
        return changes
    fresh = [json.loads(json.dumps(config_files.load(name).to_dict())) for name in COMPLETE]

    def is_new(name, was, now):
        return was == ABSENT and any(_matches(config, name.split("."), now) for config in fresh)

    return {name: (was, now) for name, (was, now) in changes.items() if not is_new(name, was, now)}


def _matches(config, names, value):
    """Whether a nested dict has a value at a path of names, and it is this one."""
    for name in names:
        if not isinstance(config, dict) or name not in config:
            return False
        config = config[name]
    return type(config) is type(value) and config == value


def check_changes(folder, changes, free, allowed):
    """Raises UserError if a field has changed, see `changed_fields`, that is neither free nor allowed to."""

    def among(name, fields):
        return any(f"{name}.".startswith(f"{field.removeprefix('config.')}.") for field in fields)

    refused = {} if "all" in allowed else {n: c for n, c in changes.items() if not among(n, (*free, *allowed))}
    if refused:
        raise UserError(
            f"{folder} holds a run with another config ({'; '.join(_in_words(refused))}); take those values to go on "
            f"with it, or another --workdir, or go on with the new ones by --allow_changes={','.join(refused)}."
        )


def _in_words(changes):
    return [f"config.{name} was {was!r} and is {now!r}" for name, (was, now) in changes.items()]
