"""Stop signals: a run that is asked to stop saves first, and goes on later by the same line."""

import logging
import os
import shutil
import signal
import subprocess
import threading

import jax

from barlow_jax.errors import UserError
from barlow_jax.run import cluster

log = logging.getLogger(__name__)


class Handling:
    """Inside its `with`, signals go to `_receive`; outside of it to whom they went before."""

    def __init__(self):
        self._before = {}

    def _numbers(self):
        """The signals, asked for when the `with` begins."""
        raise NotImplementedError

    def _receive(self, number, frame):
        raise NotImplementedError

    def __enter__(self):
        for number in self._numbers():
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def is_ignored(number):
    """As nohup makes SIGHUP."""
    return signal.getsignal(number) == signal.SIG_IGN


class StopSignals(Handling):
    """Turns SIGTERM, Ctrl-C, SIGUSR1 and SIGHUP into a request that the loop looks at after each step.

        with StopSignals() as stop:
            ...                         # the handlers that were there before come back at the end

    The run says so at once, saves, and ends with status 0; the same line goes on from there. A second Ctrl-C stops at
    once. SIGHUP is a terminal that was closed, and is ignored where nohup has said so.

    SIGUSR1 says that a SLURM job is near its time limit, and asks to be started again: `sbatch --signal=USR1@120`
    sends it 120 s before. When the checkpoint is complete, process 0 runs `scontrol requeue $SLURM_JOB_ID`. Outside of
    a SLURM job, or where there is no scontrol, as inside most containers, that is left to the job's script and logged.

    Several processes have to stop at the same step. There JAX's own service takes SIGTERM, and the other signals are
    passed on to it; `Checkpoints.reached_preemption` tells when, and `received` stays None. A signal to one process
    stops all.

    Outside of the main thread, where Python lets nobody handle signals, nothing is handled.
    """

    def __init__(self):
        super().__init__()
        self.received = None
        self._last = None
        self._again = False
        self._alone = jax.process_count() == 1

    def _numbers(self):
        if threading.current_thread() is not threading.main_thread():
            return []
        numbers = [signal.SIGINT, signal.SIGUSR1, *([signal.SIGTERM] if self._alone else [])]
        return numbers if is_ignored(signal.SIGHUP) else [*numbers, signal.SIGHUP]

    def _receive(self, number, frame):
        del frame
        if self._last == number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._last is None:
            again = "; Ctrl-C again stops at once, unsaved" if number == signal.SIGINT else ""
            log.info("%s: the run saves after the steps that are on their way, and stops%s", _name(number), again)
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


def _name(number):
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


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
