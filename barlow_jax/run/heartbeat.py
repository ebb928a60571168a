"""A sign of life for a supervisor: a small file, written anew while the command gets on.

    with heartbeat.beating():          # writes the file that BARLOW_JAX_HEARTBEAT names; nothing where it names none
        heartbeat.beat(step=7, of=90)  # as often as one likes: written every few seconds

A thread of its own would beat for a process that hangs, so the beats come from the work itself: steps that are done,
pauses that begin and end, parts of an evaluation. The file is as old as the last of them.
"""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import socket
import time

import jax

from barlow_jax.errors import UserError
from barlow_jax.run import writing

VARIABLE = "BARLOW_JAX_HEARTBEAT"  # "{process}" in it is the number of the process, where several share a disk
EVERY = 10.0  # seconds between writes

log = logging.getLogger(__name__)
_heart = None  # of this process, as its log is


class _Heart:
    def __init__(self, path, clock=time.monotonic):
        self.path, self._clock = path, clock
        self._next, self._refused, self._told = clock(), False, {}

    def beat(self, told):
        self._told |= told
        if self._clock() < self._next:
            return
        self._next = self._clock() + EVERY
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        here = {"time": now, "process": jax.process_index(), "host": socket.gethostname(), "pid": os.getpid()}
        try:
            writing.text(self.path, json.dumps(here | self._told) + "\n")
        except UserError as error:  # no run should end for it; the supervisor will see to that
            if not self._refused:
                log.warning("no sign of life for the supervisor: %s", error)
            self._refused = True


@contextlib.contextmanager
def beating(environment=os.environ):
    """Beats once, and whenever `beat` is called inside it; the file is removed at the end, however that comes about."""
    global _heart
    named = environment.get(VARIABLE, "").replace("{process}", str(jax.process_index()))
    if not named:
        yield
        return
    before, _heart = _heart, _Heart(pathlib.Path(named))
    try:
        beat()
        yield
    finally:
        with contextlib.suppress(OSError):  # as above: an old file is the worst that can come of it
            _heart.path.unlink(missing_ok=True)
        _heart = before


def beat(**told):
    """Something was done; told: what a person may want to know of it, such as step and of, kept until told anew."""
    if _heart:
        _heart.beat(told)
