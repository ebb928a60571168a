"""Commands of this package one after the other, each in a process of its own, and none that is done a second time.

    with Stages() as stages:
        problem = stages.run(folder, "train", ["train", "--config=demo", f"--workdir={folder}"])
        if stages.stopped: ...

What is done in a folder stands in its stages.json, with the words of each command: other words, or a command before it
that ran again, and it runs again. What a command prints goes to stages.log.
"""

import json
import logging
import pathlib
import signal
import subprocess
import sys
import time

from barlow_jax.errors import UserError
from barlow_jax.run import lock, signals, writing

DONE, LOG, LOCK = "stages.json", "stages.log", "stages.lock"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
COMMAND = (sys.executable, "-m", "barlow_jax.cli")

log = logging.getLogger(__name__)


class Stages(signals.Handling):
    """Runs commands until a signal comes, which goes to the one that is running: it saves, and no other is started.

    A second Ctrl-C kills it. Outside of the `with` signals do what they did before.
    """

    def __init__(self):
        super().__init__()
        self.stopped = None  # the signal
        self._running = None

    def _numbers(self):
        return [number for number in SIGNALS if not signals.is_ignored(number)]

    def _receive(self, number, frame):
        del frame
        again = self.stopped == number == signal.SIGINT
        self.stopped = signal.Signals(number)
        if self._running is not None:
            self._running.send_signal(signal.SIGKILL if again else number)

    def run(self, folder, stage, words):
        """Runs a command unless it is done; waits first for whatever else is running in the folder.

        Args:
          folder: of what is done, made if there is none.
          stage: the command's name among those of this folder.
          words: of the command, the first one its name, as behind `barlow-jax`.
        Returns:
          "" where it has come to its end, now or before; else what it said last. None if a signal came.
        Raises:
          UserError: the folder cannot be written.
        """
        folder = pathlib.Path(folder).expanduser()
        with writing.told(folder):
            folder.mkdir(parents=True, exist_ok=True)
        held = self._lock_of(folder, LOCK)
        try:
            lock.release(self._lock_of(folder, lock.FILE))  # of a run that somebody has started by itself
            done = read(folder)
            if self.stopped or done.get(stage) == list(words):
                return None if self.stopped else ""
            earlier = dict(list(done.items())[: list(done).index(stage)]) if stage in done else done
            _write(folder, earlier)
            log.info("%s (%s)", stage, folder / LOG)
            status, said = self._process(folder / LOG, words, held)
            if self.stopped and status != 0:
                return None
            if status == 0:
                _write(folder, earlier | {stage: list(words)})
                return ""
            return said or f"it ended with status {status}"
        finally:
            lock.release(held)

    def _lock_of(self, folder, name):
        """A lock in a folder, once nobody holds it: what another sweep has begun ends first, also if that is gone."""
        told = False
        with writing.told(folder):  # of a folder where no lock can be made, which nobody should wait for
            while not self.stopped:
                try:
                    return lock.hold(folder, patience=0, name=name)
                except UserError as error:
                    if not told:
                        log.info("waiting: %s", str(error).partition(";")[0])
                    told = True
                    time.sleep(1)

    def _process(self, file, words, held):
        """(exit status, last line that it printed) of a command, which has the lock too, and keeps it without us."""
        with writing.told(file), open(file, "ab") as output:
            begins = output.tell()
            # In a session of its own: Ctrl-C at the terminal comes to it once, from here.
            self._running = subprocess.Popen(
                [*COMMAND, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=() if held is None else (held,),
            )
            if self.stopped:  # in between
                self._running.send_signal(self.stopped)
            status = self._running.wait()
            self._running = None
        lines = file.read_bytes()[begins:].decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        errors = [line for line in said if line.startswith("error: ")]
        return status, (errors or said or [""])[-1]


def read(folder):
    """{stage: words} of what is done in a folder, in that order; UserError where the file is none of ours."""
    file = pathlib.Path(folder) / DONE
    try:
        done = json.loads(file.read_bytes())
        if not (isinstance(done, dict) and all(isinstance(words, list) for words in done.values())):
            raise ValueError("it is no object of lists")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); remove it, and what is done there is looked at anew."
        ) from error
    return done


def _write(folder, done):
    writing.text(folder / DONE, json.dumps(done, indent=1) + "\n")
