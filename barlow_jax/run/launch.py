"""What both entry points need around their loop: flags, errors for people, stop signals, the work folder."""

import contextlib
import datetime
import errno
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import traceback

import jax
import numpy as np
from absl import app, flags

from barlow_jax.errors import UserError
from barlow_jax.run import cluster, lock
from barlow_jax.run.checkpoint import hide_tracebacks, holds_checkpoints, newest_step

CONFIG_FILE = "config.json"
CHANGES_FILE = "config_changes.jsonl"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)


def run(main, *, arguments=False):
    """Parses the flags and runs main(), which returns the exit status, or None for 0.

    What the user can put right becomes one sentence and exit status 1.

    Args:
      arguments: whether main takes what stands on the command line beside the flags, a list of texts.
    """
    try:
        app.run(lambda argv: _guarded(main, argv, arguments), flags_parser=_parse_flags)
    except UserError as error:
        if not jax.distributed.is_initialized():
            sys.exit(f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
        cluster.leave(1)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        print("error: If another process has ended, this one only follows; see the logs of all.", file=sys.stderr)
        cluster.leave(1)


def _guarded(main, argv, arguments):
    if len(argv) > 1 and not arguments:
        raise UserError(f"{argv[1]!r} is no flag; a config field is set with --config.FIELD=VALUE.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for chatty in ("jax", "orbax", "tensorflow", "absl"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    hide_tracebacks()
    try:
        cluster.join()
        return main(argv[1:]) if arguments else main()
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        where = f" for {error.filename}" if error.filename else ""
        raise UserError(
            f"There is no space{where} ({error.strerror}); free some and start again with the same line, the run goes "
            "on from its last checkpoint."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = str(error).splitlines()[0].split("RESOURCE_EXHAUSTED: ")[-1]
        raise UserError(f"The device has too little memory ({what.rstrip('.')}); lower config.batch_size.") from error


def _parse_flags(args):
    with flag_errors():
        return flags.FLAGS(args)


@contextlib.contextmanager
def flag_errors():
    """What absl and ml_collections raise about flags is a UserError."""
    try:
        yield
    except flags.Error as error:
        raise UserError(_sentence(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # From ml_collections: an unknown field, or a value of another type.
        raise UserError(f"{_sentence(error)} See the config file for its fields and their types.") from None
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"The file of --config cannot be read ({reason}); give one of configs/, or your own.") from None


def _sentence(error):
    """The message of a library's exception as one sentence."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, KeyError | AttributeError):  # ml_collections quotes what is quoted already
        text = "config has no field " + text.replace("\\n", " ").replace("\\'", "'").replace("''", "'")
    if "Traceback" in text:  # a config file that raised: what counts is at the end
        text = text.strip().splitlines()[-1].split(": ", 1)[-1]
    text = " ".join(text.split())
    return text if text.endswith((".", "?")) else f"{text}."


def config_of(flag):
    """The config that --config named."""
    with flag_errors():
        config = flag.value
        getattr(config, "to_dict", None)  # one that could not be loaded raises when it is looked at, not before
    if config is None:
        raise UserError("--config is missing; give the file of an experiment, such as --config=configs/demo.py.")
    return config


class StopSignals:
    """Turns SIGTERM, Ctrl-C and SIGUSR1 into a request that the loop looks at after each step.

    The run saves, and ends with status 0; the same line goes on from there. A second Ctrl-C stops at once.

    SIGUSR1 says that a SLURM job is near its time limit, and asks to be started again: `sbatch --signal=USR1@120`
    sends it 120 s before. When the checkpoint is complete, process 0 runs `scontrol requeue $SLURM_JOB_ID`. Outside of
    a SLURM job, or where there is no scontrol, as inside most containers, that is left to the job's script and logged.

    Several processes have to stop at the same step. There JAX's own service takes SIGTERM, and the other two signals
    are passed on to it; `Checkpoints.reached_preemption` tells when, and `received` stays None. A signal to one process
    stops all.
    """

    def __init__(self):
        self.received = None
        self._last = None
        self._again = False
        self._alone = jax.process_count() == 1
        for number in (signal.SIGINT, signal.SIGUSR1, *([signal.SIGTERM] if self._alone else [])):
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        del frame
        if self._last == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._last = number
        self._again |= number == signal.SIGUSR1
        if self._alone:
            self.received = signal.Signals(number)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def requeue(self):
        """Puts the SLURM job back into the queue if SIGUSR1 asked for it; every process calls it once it has saved.

        Raises:
          UserError: SLURM refuses.
        """
        if cluster.on_any_process(self._again):
            cluster.on_process_0(requeue_job)


def requeue_job():
    """`scontrol requeue` for the job that this process belongs to; UserError if SLURM refuses."""
    job, scontrol = os.environ.get("SLURM_JOB_ID"), shutil.which("scontrol")
    if not job or not scontrol:
        why = f"there is no scontrol to requeue job {job} with" if job else "this is no SLURM job"
        log.warning("SIGUSR1 asks for a new start, and %s: start the same line again", why)
        return
    try:
        done = subprocess.run([scontrol, "requeue", job], capture_output=True, text=True, timeout=100)
        refusal = done.returncode and (done.stderr.strip() or f"status {done.returncode}")
    except subprocess.TimeoutExpired:
        refusal = "no answer within 100 s"
    if refusal:
        raise UserError(
            f"The run is saved, but SLURM does not requeue job {job} ({' '.join(refusal.split())}); submit it again, "
            "with #SBATCH --requeue."
        )
    log.info("SLURM job %s is back in the queue", job)


def resume(checkpoints, state, source, total_steps):
    """The state to go on from, and what was saved beside it: of the last checkpoint, or `state` as it is and {}.

    Args:
      source: of the training images; a checkpoint holds as "images" how many there were.
    Raises:
      UserError: there are more or fewer now.
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
    log.info("going on from step %d of %d", int(state.step), total_steps)
    return state, saved


def due(done, every):
    """Whether something that happens every so many steps (0: never) happens after `done` steps."""
    return every > 0 and done % every == 0


def close(*things):
    """Closes all of them in this order, also where one fails; the last failure is what is raised."""
    with contextlib.ExitStack() as stack:
        for thing in reversed(things):
            stack.callback(thing.close)


def checked(report, step, checkpoints):
    """The report of a step as it is, or the end of the run where its loss is not a number."""
    loss = float(report["loss"])
    if not np.isfinite(loss):
        last = checkpoints.latest_step()
        raise UserError(
            f"The loss is {loss} at step {step}; lower the learning rate or set config.precision=float32 "
            f"(last checkpoint: {'none' if last is None else f'step {last}'})."
        )
    return report


def prepare_workdir(workdir, config, *, free=(), allowed=()):
    """Makes the run's folder, locks it for this run, and keeps its config in it.

    A folder that holds checkpoints of another config is refused, field by field, unless the fields are in `free` or
    `allowed`: going on would give a run that neither config describes. Changes that are not refused are logged and
    recorded in config_changes.jsonl, with the step of the last checkpoint; config.json is the config as it is now.

    Process 0 does it for all; where it is refused, all processes are.

    Args:
      workdir: path, or "" which is refused.
      config: plain nested dict.
      free: dotted names of fields, or of groups of fields, that do not change the result.
      allowed: the same, of fields that do, as --allow_changes names them; ("all",) is every field.
    Returns:
      pathlib.Path of the folder.
    Raises:
      UserError: the folder cannot be used, another run is using it, or the config has changed.
    """
    if not workdir:
        raise UserError("--workdir is missing; give the folder where checkpoints, metrics and pictures go.")
    if "://" in workdir:
        raise UserError(f"--workdir={workdir} is not on a file system; mount the bucket and give that folder.")
    folder = pathlib.Path(workdir).expanduser()
    config = json.loads(json.dumps(config))  # as it will be read back: tuples are lists

    def prepare():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.hold(folder)
            _keep_config(folder, config, free, allowed)
        except OSError as error:
            remedy = "free some space there" if error.errno in _NO_SPACE else "take another folder"
            raise UserError(f"--workdir {folder} cannot be written ({error.strerror}); {remedy}.") from error

    cluster.on_process_0(prepare)
    return folder


def _keep_config(folder, config, free, allowed):
    file = folder / CONFIG_FILE
    if file.exists() and holds_checkpoints(folder):
        try:
            old = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(
                f"{file} is damaged ({error}); remove it to go on with the config that this command gives."
            ) from error
        changes = changed_fields(old, config)
        check_changes(folder, changes, free, allowed)
        if changes:
            record = {
                "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
                "step": newest_step(folder),
                "changes": {name: {"was": was, "is": now} for name, (was, now) in changes.items()},
            }
            with (folder / CHANGES_FILE).open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            log.warning("changed since this run began: %s", "; ".join(_in_words(changes)))
    # Renamed into place, so that a kill leaves the old one or the new one.
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(config, indent=1))
    os.replace(temporary, file)


ABSENT = "absent"  # in place of the value of a field that one of two configs does not have


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
