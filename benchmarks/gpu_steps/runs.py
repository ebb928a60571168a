"""Runs of train.py in processes of their own, as a user starts them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from .paths import ROOT


def line(program, workdir, **fields):
    """The words of a command: train or linear_eval, with these fields (dots as two underscores)."""
    words = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return [sys.executable, str(ROOT / f"{program}.py"), f"--workdir={workdir}", *words]


class Run:
    """A command that is running, or has ended; its output is in LOG."""

    def __init__(self, words, log):
        self.log = pathlib.Path(log)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )

    def running(self):
        return self._process.poll() is None

    def stop(self, seconds=60):
        """Has it save and end, as a cluster does; its exit status, 0 of one that took too long and was killed.

        That one goes on from its last checkpoint.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return 0

    def kill(self):
        self._process.kill()
        self._process.wait()

    def wait(self, until, ready=lambda: False):
        """Until it has ended (its status), or something is ready or time.monotonic() has come to `until` (None)."""
        while self.running():
            if ready() or time.monotonic() > until:
                return None
            time.sleep(0.01)
        return self._process.returncode

    def said(self):
        """Its last line that says something."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][-300:] if lines else "nothing"


def metrics(workdir):
    """The whole lines of metrics.jsonl."""
    file = pathlib.Path(workdir) / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
