"""What a run writes down: JSON lines, TensorBoard, Weights & Biases if asked for.

    writer = metric_writers.create(workdir, jax.process_index(), resume_step=step)
    writer.scalars(step, {"loss": loss})

Only process 0 writes. A run that was killed and resumed leaves the same `metrics.jsonl` as one that was not, because
what lies beyond the checkpoint is cut off before the run writes it again.
"""

import contextlib
import logging
import os
import pathlib
import re
import secrets
import time

import jax
import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.run import json_lines, writing
from barlow_jax.run.mlflow_run import MLflow, short, tried

FILE = "metrics.jsonl"

log = logging.getLogger(__name__)


def of_run(config, workdir, start_step, shown=None):
    """The writer of the run that a config describes, on this process.

    Args:
      start_step: that it goes on from; 0 is a new run.
      shown: dict that W&B and MLflow show with the run; None is the config.
    """
    services = {"wandb": config.wandb, "mlflow": config.mlflow, "config": shown or config.to_dict()}
    return create(workdir, jax.process_index(), resume_step=start_step or None, **services)


def create(workdir, process_index=0, *, wandb=False, mlflow=False, resume_step=None, config=None):
    """The writer of a run.

    Args:
      workdir: the run's work folder, on a file system; made if it does not exist.
      process_index: every process but 0 gets a writer that does nothing.
      wandb: also to Weights & Biases, as one W&B run over all restarts; WANDB_PROJECT, WANDB_MODE and so on apply.
      mlflow: also to MLflow, as one run over all restarts, see `mlflow_run`.
      resume_step: step of the checkpoint that the run goes on from; what was written for later steps is cut off.
        None is a new run, which starts with empty files.
      config: dict that W&B and MLflow show with the run.
    Raises:
      UserError: wandb or mlflow is not installed, or workdir is not on a file system or cannot be written. Later, too,
        the writer raises it where a file cannot be written.
    """
    if process_index != 0:
        return MetricWriter([])
    if "://" in str(workdir):
        raise UserError(f"Metrics cannot be appended to files in {workdir}; give a folder of this host.")
    workdir = pathlib.Path(workdir).expanduser().absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    # Those of others first, because they may be missing, and then no file should have been touched.
    with _writing_to(workdir):
        outputs = [WeightsAndBiases(workdir, resume_step, config)] if wandb else []
        outputs += [MLflow(workdir, resume_step, config)] if mlflow else []
        outputs += [JsonLines(workdir / FILE, resume_step), TensorBoard(workdir / "tensorboard", resume_step)]
    return MetricWriter(outputs, workdir)


@contextlib.contextmanager
def _writing_to(folder):
    """An operating system that cannot write, as on a full disk, is a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Metrics could not be written to {folder} ({error.strerror}); see to free space and permissions, then "
            "start again."
        ) from error


class MetricWriter:
    """Hands everything to each of its outputs."""

    def __init__(self, outputs, folder=None):
        self._outputs, self._folder = outputs, folder

    def scalars(self, step, values):
        """Writes {name: number}; numbers may be Python's, numpy's or scalars on a device."""
        if self._outputs:
            values = {name: number(value) for name, value in jax.device_get(values).items()}
        with _writing_to(self._folder):
            for output in self._outputs:
                output.scalars(int(step), values)

    def image(self, step, name, image):
        """Writes a picture, uint8 [H, W, 3]."""
        with _writing_to(self._folder):
            for output in self._outputs:
                output.image(int(step), name, image)

    def close(self):
        with _writing_to(self._folder), contextlib.ExitStack() as stack:  # the others are closed too where one fails
            for output in self._outputs:
                stack.callback(output.close)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class JsonLines:
    """One line of JSON a write: {"step": 300, "loss": 5.25, ...}. What is not finite is null: JSON has no NaN."""

    def __init__(self, path, resume_step=None):
        keep_until(path, -1 if resume_step is None else resume_step)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step, values):
        self._file.write(json_lines.text({"step": step} | values) + "\n")
        self._file.flush()  # a killed run keeps every line

    def image(self, step, name, image):
        """Lines hold no pictures."""

    def close(self):
        self._file.close()


def finite(values):
    """{name: number}, None in the place of what is not finite: as lines have it."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def keep_until(path, step):
    """Drops the lines of later steps from a file of JSON lines, and a line that a kill left half-written.

    The file is replaced in one move, so that being killed here loses nothing.
    """
    if not os.path.lexists(path):
        return
    kept, dropped = [], []
    for number, (line, found) in enumerate(_lines(path), 1):
        if found is None:
            dropped.append(number)
        elif found["step"] <= step:
            kept.append(f"{line}\n")
    if dropped:
        log.warning(
            "%d lines of %s are none of ours, as a killed run may leave them (first line %d); they are dropped.",
            len(dropped),
            path,
            dropped[0],
        )
    writing.text(path, "".join(kept))


def read(path):
    """The lines of a metrics.jsonl, as dicts of numbers and None with an integer "step"; [] where there is no file.

    What is none of ours, as a run that was killed while it wrote may leave it, is left out, and counted in a warning.

    Raises:
      UserError: the file cannot be read.
    """
    lines = [found for _, found in _lines(path)]
    ours = [found for found in lines if found is not None and all(map(_is_plain, found.values()))]
    if len(ours) < len(lines):
        log.warning("%d of %d lines of %s are no metrics; they are left out.", len(lines) - len(ours), len(lines), path)
    return ours


def _lines(path):
    """[(line, the dict that it is, or None where that has no step)] of a file of JSON lines."""
    return [(line, found if _has_step(found) else None) for line, found in json_lines.read(path)]


def _has_step(found):
    step = found.get("step") if isinstance(found, dict) else None
    return type(step) is int and 0 <= step < 2**53


def _is_plain(value):
    """Whether a value is one that can be drawn: a number, or the null that stands for one that was not finite."""
    return value is None or type(value) in (int, float) and abs(value) < 1e300


class TensorBoard:
    """Event files; those of a resumed run tell TensorBoard to forget the steps after the checkpoint.

    Written as they come: tensorboardX's SummaryWriter leaves it to a thread, which dies when the disk is full, and ten
    events later the run waits for it for ever.
    """

    def __init__(self, folder, resume_step=None):
        from tensorboardX import event_file_writer, summary  # import torch where there is one
        from tensorboardX.proto import event_pb2

        self._event, self._summary = event_pb2.Event, summary
        folder.mkdir(parents=True, exist_ok=True)
        # Files cannot be cut: from a session start on, TensorBoard hides older events of later steps.
        purge_step = 0 if resume_step is None else resume_step + 1
        # File names have seconds only, so a quick restart would overwrite without the suffix.
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), f".from{purge_step}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=purge_step, session_log=start))
        self._flush_time = 0.0

    def scalars(self, step, values):
        for name, value in values.items():
            found = self._summary.scalar(name, 0.0)
            found.value[0].simple_value = value  # here, as it would print a warning of what is not finite
            self._write(self._event(step=step, summary=found))
        if time.monotonic() > self._flush_time:
            self._writer.flush()
            self._flush_time = time.monotonic() + 30

    def image(self, step, name, image):
        self._write(self._event(step=step, summary=self._summary.image(name, image, dataformats="HWC")))

    def close(self):
        self._writer.close()

    def _write(self, event):
        event.wall_time = time.time()
        self._writer.write_event(event)


class WeightsAndBiases:
    """One W&B run for all restarts of a run; its id is kept in the work folder."""

    def __init__(self, workdir, resume_step=None, config=None):
        try:
            import wandb
        except ImportError as error:
            why = "there is no wandb" if error.name == "wandb" else f"wandb cannot be imported ({error})"
            raise UserError(f"config.wandb is set, but {why}; pip install wandb, or unset it.") from error
        self._wandb, identity, self._given_up = wandb, workdir / "wandb_id", False
        found = identity.read_bytes() if resume_step is not None and identity.is_file() else b""
        if not re.fullmatch(rb"[0-9a-f]{8}", found):
            found = secrets.token_hex(4).encode()
            writing.text(identity, found.decode())
        run = {"id": found.decode(), "resume": "allow", "name": workdir.name, "dir": str(workdir), "config": config}
        try:
            self._run = wandb.init(**run)
            # W&B's own step only grows, and a resumed run goes back: ours is an ordinary value, and the axis of others.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # of W&B, and of what lies below it
            raise UserError(
                f"W&B does not take this run ({short(error)}); see to its variables and the network, or set "
                "WANDB_MODE=offline, or config.wandb=False, which a run that goes on may change."
            ) from error

    def scalars(self, step, values):
        self._tried(lambda: self._run.log({"step": step} | values))

    def image(self, step, name, image):
        self._tried(lambda: self._run.log({"step": step, name: self._wandb.Image(image)}))

    def close(self):
        self._tried(self._run.finish)

    def _tried(self, call):
        self._given_up = self._given_up or not tried("W&B", call)


def number(value):
    """A scalar of numpy or of Python as Python's int or float."""
    value = np.asarray(value)
    if value.dtype.kind in "biu":
        return int(value)
    # The shortest text that names this float32: 0.1 and not 0.10000000149011612.
    return float(str(value[()]))
