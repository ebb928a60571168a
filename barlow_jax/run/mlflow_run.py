"""A run of MLflow for all restarts of a run.

Where it goes says MLFLOW_TRACKING_URI, a server's address for one; without it everything stays in the work folder:
numbers in mlflow.db, pictures in mlflow_pictures/. MLFLOW_EXPERIMENT_NAME names the experiment.
"""

import contextlib
import logging
import os
import re
import time

from barlow_jax import fields
from barlow_jax.errors import UserError
from barlow_jax.run import writing

IDENTITY = "mlflow_id"  # a file of the work folder
EXPERIMENT = "barlow-jax"
MOST_PARAMS = 100  # that MLflow takes in one call
LONGEST_PARAM = 500  # characters, of MLflow 1; later ones take more

log = logging.getLogger(__name__)


class MLflow:
    """An output of `metric_writers.MetricWriter`; the id of its run is kept in the work folder.

    MLflow that cannot be reached ends a run at its start; later it is given up with a warning, and the run goes on.
    MLflow cannot take a number back. So of a run that goes on from a checkpoint the steps that were written before it
    was killed are not written again: on the same devices they are the same numbers.
    """

    def __init__(self, workdir, resume_step=None, config=None):
        try:
            from mlflow import MlflowClient, exceptions
            from mlflow.entities import Metric, Param
        except ImportError as error:
            why = "there is no mlflow" if error.name == "mlflow" else f"mlflow cannot be imported ({error})"
            raise UserError(f"config.mlflow is set, but {why}; pip install mlflow, or unset it.") from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of the tables that it makes
        self._metric, self._failure, self._given_up = Metric, exceptions.MlflowException, False
        local = not os.environ.get("MLFLOW_TRACKING_URI")
        with self._told():
            self._client = MlflowClient(f"sqlite:///{workdir / 'mlflow.db'}" if local else None)
            self._run = self._found(workdir / IDENTITY) if resume_step is not None else None
            self._written = {} if self._run else None  # {name: last step}; None of a new run, which has none
            if self._run is None:
                pictures = (workdir / "mlflow_pictures").as_uri() if local else None
                self._run = self._client.create_run(self._experiment(pictures), run_name=workdir.name).info.run_id
                writing.text(workdir / IDENTITY, self._run)
                params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in fields.flat(config or {}).items()]
                for start in range(0, len(params), MOST_PARAMS):
                    self._client.log_batch(self._run, params=params[start : start + MOST_PARAMS])
            else:
                self._client.update_run(self._run, status="RUNNING")

    def scalars(self, step, values):
        self._tried(self._log_fresh, step, values)

    def image(self, step, name, image):
        self._tried(self._client.log_image, self._run, image, f"{name}/{step:08d}.png")

    def close(self):
        self._tried(self._client.set_terminated, self._run)

    def _log_fresh(self, step, values):
        now = int(time.time() * 1000)
        fresh = [self._metric(name, value, now, step) for name, value in values.items() if self._is_fresh(name, step)]
        self._client.log_batch(self._run, metrics=fresh)

    def _tried(self, call, *arguments):
        if self._given_up:
            return
        self._given_up = not tried("MLflow", call, *arguments)

    def _found(self, identity):
        """The id of the run that is kept in the work folder; None where there is none, or MLflow has it no more."""
        kept = identity.read_text() if identity.is_file() else ""
        if not re.fullmatch(r"[0-9a-f]{32}", kept):
            return None
        try:
            found = self._client.get_run(kept).info.lifecycle_stage == "active"
        except self._failure:
            found = False
        if not found:
            log.warning("MLflow has no run %s any more; a new one begins", kept)
        return kept if found else None

    def _experiment(self, pictures):
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name, artifact_location=pictures)

    def _is_fresh(self, name, step):
        """Whether a number of this step was not written before the run was killed."""
        if self._written is None:
            return True
        if name not in self._written:
            history = self._client.get_metric_history(self._run, name)
            self._written[name] = max((point.step for point in history), default=-1)
        return step > self._written[name]

    @contextlib.contextmanager
    def _told(self):
        """What MLflow raises is a UserError."""
        try:
            yield
        except self._failure as error:
            raise UserError(
                f"MLflow does not take this run ({short(error)}); see to MLFLOW_TRACKING_URI, or set "
                "config.mlflow=False, which a run that goes on may change."
            ) from error


def tried(service, call, *arguments, **more):
    """Whether a call of a service went well; else a warning: for the sake of its log alone no run should end.

    Whatever it raises: of MLflow's own errors, and of what lies below, such as a bucket's client or a socket.
    """
    try:
        call(*arguments, **more)
    except Exception as error:
        log.warning("%s does not take what this run writes (%s); nothing more goes there.", service, short(error))
        return False
    return True


def short(error):
    """What an exception says, or where it says nothing its type, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
