"""A process that has loaded TensorFlow and JAX and forks one for each command of the tests: a third of their time.

    python tests/loaded.py FD        # commands.Forked has the other end of this socket

A request is {"words", "cwd", "environment"} in JSON with two file descriptors: where the output goes, and a socket that
is told the process's number first and, when it has ended, its status. The command runs in a session of its own, as
`python WORDS` would: nothing of this project is loaded before. JAX reads its variables when it is imported, so a
command that has others than this process starts from nothing.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

LOADED = ("tensorflow", "absl.app", "ml_collections", "tensorstore", "PIL.Image")
WITH_JAX = ("jax.numpy", "flax.nnx", "optax", "orbax.checkpoint")
LATER = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # what JAX reads when they are needed


def say(connection, number):
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        connection.send(number.to_bytes(4, sys.byteorder, signed=True))


def serve(requests):
    """Forks a process a request until the other end is closed; returns in each of them, with its words."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running = {}
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 512)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    connection = running.pop(pid)
                    say(connection, os.waitstatus_to_exitcode(status))
                    connection.close()
        if requests in ready:
            message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
            if not message:
                os._exit(0)
            output, connection = descriptors[0], socket.socket(fileno=descriptors[1])
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (requests, connection, *running.values()):
                    one.close()
                os.close(woken), os.close(wakes)
                return become(json.loads(message), output)
            say(connection, pid)
            os.close(output)
            running[pid] = connection


def read_by_jax(environment):
    """What importing JAX made of these variables holds for any others that agree here."""
    return {name: value for name, value in environment.items() if name.startswith("JAX_") and name not in LATER}


def become(request, output):
    """This process as one that was just started: session, output, folder, environment. Returns its words."""
    of_jax = read_by_jax(os.environ)
    os.setsid()
    os.dup2(output, 1), os.dup2(output, 2), os.close(output)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if read_by_jax(os.environ) != of_jax:
        os.execv(sys.executable, [sys.executable, *request["words"]])
    return request["words"]


def main():
    sys.modules["jax"] = None  # TensorFlow would load it, for its converter to TFLite
    for name in LOADED:
        importlib.import_module(name)
    del sys.modules["jax"]
    for name in WITH_JAX:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each fork takes apart all that is loaded when it ends: 1.3 s instead of 0.3
    assert "barlow_jax" not in sys.modules
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
