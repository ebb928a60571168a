"""What both entry points need around their loop: flags, errors for people, stop signals, the work folder."""

import json
import logging
import os
import pathlib
import signal
import sys

import jax
import numpy as np
from absl import app, flags

from barlow_jax.checkpoint import holds_checkpoints
from barlow_jax.errors import UserError

log = logging.getLogger(__name__)


def run(main):
    """Parses the flags and runs main(); what the user can put right becomes one sentence and exit status 1."""
    try:
        app.run(lambda argv: _guarded(main, argv), flags_parser=_parse_flags)
    except UserError as error:
        sys.exit(f"error: {error}")


def _guarded(main, argv):
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag; a config field is set with --config.FIELD=VALUE.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for chatty in ("jax", "orbax", "tensorflow", "absl"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        join_cluster()
        main()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = str(error).splitlines()[0].split("RESOURCE_EXHAUSTED: ")[-1]
        raise UserError(f"The device has too little memory ({what.rstrip('.')}); lower config.batch_size.") from error


def _parse_flags(args):
    try:
        return flags.FLAGS(args)
    except flags.Error as error:
        raise UserError(_sentence(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # From ml_collections: an unknown field, or a value of another type.
        raise UserError(f"{_sentence(error)} See the config file for its fields and their types.") from None


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
    try:
        config = flag.value
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"The file of --config cannot be read ({reason}); give one of configs/, or your own.") from None
    if config is None:
        raise UserError("--config is missing; give the file of an experiment, such as --config=configs/demo.py.")
    return config


def join_cluster():
    """Connects the processes of a run that has several, before JAX is used.

    SLURM and Open MPI tell each process its place; elsewhere three variables do, set for every process:
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    environment = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environment:
        try:
            count, index = (int(environment[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        except (KeyError, ValueError):
            raise UserError(
                "JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES and JAX_PROCESS_ID are not both whole numbers; "
                "set all three for every process, or none."
            ) from None
        jax.distributed.initialize(environment["JAX_COORDINATOR_ADDRESS"], count, index)
    elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 or int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        jax.distributed.initialize()


class StopSignals:
    """Turns SIGTERM and Ctrl-C into a request that the loop looks at after each step.

    A second Ctrl-C stops at once. With several processes JAX's own service takes the signals instead, because all have
    to stop at the same step: `Checkpoints.reached_preemption` tells.
    """

    def __init__(self):
        self.received = None
        if jax.process_count() > 1:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        del frame
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


def resume(checkpoints, state, source, total_steps):
    """The state to go on from, and what was saved beside it: of the last checkpoint, or `state` as it is and {}.

    Args:
      source: of the training images; a checkpoint holds as "images" how many there were.
    Raises:
      UserError: there are more or fewer now.
    """
    if checkpoints.latest_step() is None:
        log.info("starting at step 0 of %d", total_steps)
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


def prepare_workdir(workdir, config, *, free=()):
    """Makes the run's folder and keeps its config in it.

    A folder that holds checkpoints of another config is refused, field by field, unless the fields are in `free`: going
    on would give a run that neither config describes.

    Args:
      workdir: path, or "" which is refused.
      config: plain nested dict.
      free: dotted names of fields, or of groups of fields, that may differ.
    Returns:
      pathlib.Path of the folder.
    """
    if not workdir:
        raise UserError("--workdir is missing; give the folder where checkpoints, metrics and pictures go.")
    if "://" in workdir:
        raise UserError(f"--workdir={workdir} is not on a file system; mount the bucket and give that folder.")
    folder = pathlib.Path(workdir).expanduser()
    file = folder / "config.json"
    config = json.loads(json.dumps(config))  # as it will be read back: tuples are lists
    if file.exists() and holds_checkpoints(folder):
        changed = _differences(json.loads(file.read_text()), config)
        fixed = [line for name, line in changed if not any(f"{name}.".startswith(f"{f}.") for f in free)]
        if fixed:
            raise UserError(
                f"{folder} holds a run with another config ({'; '.join(fixed)}); take those values to go on with it, "
                "or another --workdir."
            )
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Renamed into place, so that a kill leaves the old one or the new one.
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(config, indent=1))
            os.replace(temporary, file)
        except OSError as error:
            raise UserError(f"--workdir {folder} cannot be written ({error.strerror}); take another folder.") from error
    return folder


def _differences(old, new, prefix=""):
    found = []
    for key in sorted(old.keys() | new.keys()):
        name, a, b = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{name}.")
        elif a != b:
            found.append((name, f"config.{name} was {a!r} and is {b!r}"))
    return found
