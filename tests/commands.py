"""Real commands in processes of their own, and small image sets to run them on."""

import atexit
import contextlib
import functools
import importlib
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"

# A run of seconds: a small network on small images, everything else as the config has it.
SMALL = (
    "--config.arch=convnet",
    "--config.projector=(32,32)",
    "--config.precision=float32",
    "--config.image_size=24",
    "--config.batch_size=16",
    "--config.warmup_epochs=1",
    "--config.data.canvas=64",
    "--config.eval.resize=24",
    "--config.eval.crop=24",
    "--config.eval.batch_size=16",
    "--config.eval.lidar_images=0",
    "--config.log_every_steps=1",
    "--config.data.resident_bytes=0",
)


def pretraining_configs():
    """The names of the configs of train.py: those that have a projector."""
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
    return [name for name in names if "projector" in importlib.import_module(f"configs.{name}").get_config()]


def environment(devices=1, **more):
    """The environment of a command with that many simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)} | more


class _Started:
    """What can be asked of a program in a session of its own, so that it can be ended with all that it started.

    Its output goes to a file: it is read while the program runs, and nobody waits for a pipe that a child holds open.
    """

    def printed(self):
        """What it has printed so far; by position, as its own place in the file must not move."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode(errors="replace")

    def end(self):
        """Kills it and its children, whether or not it still runs; what it had printed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        output = self.printed()
        self._file.close()
        RUNNING.discard(self)
        return output


class Command(_Started, subprocess.Popen):
    """Any program, as a shell would start it."""

    def __init__(self, *words, cwd=ROOT, env=None):
        self._file = tempfile.TemporaryFile()
        words = [str(word) for word in words]
        super().__init__(words, cwd=cwd, env=env, stdout=self._file, stderr=subprocess.STDOUT, start_new_session=True)
        RUNNING.add(self)


class Forked(_Started):
    """A program of Python from a process that has loaded TensorFlow and JAX, see loaded.py; asked as a Popen is."""

    def __init__(self, *words, cwd=ROOT, env=None):
        self._file, self.returncode = tempfile.TemporaryFile(), None
        self._status, theirs = socket.socketpair()
        request = {"words": [str(word) for word in words], "cwd": str(cwd), "environment": env}
        with theirs:
            socket.send_fds(_loaded(), [json.dumps(request).encode()], [self._file.fileno(), theirs.fileno()])
        self.pid = self._number()
        RUNNING.add(self)

    def _number(self):
        answer = self._status.recv(4)
        if len(answer) < 4:
            raise AssertionError("the process that forks commands has ended: what does `python tests/loaded.py` say?")
        return int.from_bytes(answer, sys.byteorder, signed=True)

    def poll(self):
        """Its exit status if it has ended, minus the signal that ended it, or None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked command", timeout)
            self.returncode = self._number()
            self._status.close()
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


@functools.cache
def _loaded():
    """The socket that takes requests for forks, to a process that ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        words = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "loaded.py"), str(theirs.fileno())]
        # In a session of its own: Ctrl-C at the terminal is for the tests to take.
        options = {"pass_fds": [theirs.fileno()], "start_new_session": True, "stderr": subprocess.DEVNULL}
        origin = subprocess.Popen(words, env=environment(TF_CPP_MIN_LOG_LEVEL="3"), **options)

    def close():
        ours.close()
        origin.wait()

    atexit.register(close)
    return ours


RUNNING = set()  # commands that nobody has ended yet


def end_all(but=()):
    """Ends what tests have left running."""
    for process in RUNNING - set(but):
        process.end()


atexit.register(end_all)  # sessions of their own do not end with the terminal's


def start(*command, devices=1, prefix=(), **more):
    """The command (script and arguments, -m and module, or -c and code), running; prefix: words in front of Python."""
    if prefix or command[0] == "-c" or "PYTHONPATH" in more:
        return Command(*prefix, sys.executable, *command, env=environment(devices, **more))
    return Forked(*command, env=environment(devices, **more))


def finish(process, timeout=250):
    """What a command printed that ends by itself; one that does not within `timeout` seconds is killed: a failure."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still running after {timeout} s:\n{process.end()}") from None
    return process.end()


def run(*command, devices=1, timeout=300, prefix=(), **more):
    """The command's exit status and what it printed."""
    process = start(*command, devices=devices, prefix=prefix, **more)
    output = finish(process, timeout)
    return process.returncode, output


def wait_for(process, condition, timeout=250):
    """Until a running command has come so far."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended too early, with status {process.returncode}:\n{process.end()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not so far after {timeout} s:\n{process.end()}")
        time.sleep(0.02)


def assert_refused(status, output, pattern):
    """The command ended with one sentence, in which the pattern is found."""
    assert status == 1 and "Traceback" not in output, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: ") and re.search(pattern, last), output


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def lines(workdir):
    """metrics.jsonl without what a clock measured."""
    clock = ("images_per_second", "data_wait")
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    complete = text[: text.rfind("\n") + 1].splitlines()  # the command may still be writing
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in complete]


def photographs(folder, classes=3, each=16, size=(40, 48)):
    """A folder of JPEGs with class folders: coloured blobs, one colour range a class."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        sub = pathlib.Path(folder) / f"class{c}"
        sub.mkdir(parents=True)
        for k in range(each):
            coarse = rng.uniform(0, 120, (5, 6, 3)) + 120 * (np.arange(3) == c)
            Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.BICUBIC).save(sub / f"{k:03}.jpg", quality=90)
    return folder


def documented(word, page="pytorch.md"):
    """The first block of Python in a page of docs/ that holds a word."""
    text = (ROOT / "docs" / page).read_text()
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if word in block)
