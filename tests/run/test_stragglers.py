"""Who is late among several processes: by counts of the test's own, and of two real processes of which one is slow."""

import logging

import commands
import numpy as np
import pytest

from barlow_jax.run import stragglers
from barlow_jax.run.progress import Progress


class Result:
    """What a step gives: ready at once, or when it is waited for."""

    def __init__(self, ready):
        self.ready = ready

    def is_ready(self):
        return self.ready

    def block_until_ready(self):
        self.ready = True
        return self


@pytest.mark.parametrize(("ready", "late"), [(True, 1.0), (False, 0.01)])
def test_late_is_who_finds_its_devices_idle(ready, late):
    """A host that runs ahead of its devices waits for them; one behind them finds all steps done."""
    told, now = [], [0.0]
    counts = stragglers.Stragglers(lambda ours: told.append(ours) or np.stack([ours, ours]), processes=2)
    progress = Progress(100, shown=False, clock=lambda: now[0], stragglers=counts)
    for _ in range(100):
        with progress.waiting():
            now[0] += 0.3
        now[0] += 0.1
        progress.step(32, {"norm": Result(ready)})
        assert not told
    progress.rates()  # all processes call it after the same step, whatever they have counted
    [(share, own, waited)] = told
    assert share == pytest.approx(late) and waited == pytest.approx(0.75, abs=0.02)
    assert own == pytest.approx(0.75, abs=0.02)  # the 0.1 s between the images and `step` belong to the step
    progress.rates()
    assert len(told) == 1  # not before the next 100


@pytest.mark.parametrize(
    ("late", "own", "found"),
    [
        ([0.02, 0.9, 0.1, 0.0], [0.1, 0.95, 0.2, 0.1], (1,)),
        ([0.9, 0.2, 0.7, 0.1], [0.9, 0.3, 0.8, 0.2], (0, 2)),
        ([1, 1, 1, 1], [0.1, 0.1, 0.6, 0.1], (2,)),  # devices that take a step at a time are idle at each
        ([0.9, 0.9, 0.9, 0.1], [0.9, 0.9, 0.9, 0.1], ()),  # all are slow, and one is faster
        ([0.1, 0.1], [0.6, 0.1], ()),  # it has more to do, and is in time
        ([1.0, 1.0], [0.9, 0.9], ()),
        ([1.0, 1.0], [0.1, 0.5], (1,)),
    ],
)
def test_a_straggler_is_named_where_it_is_clear(late, own, found):
    assert stragglers.named(np.array(late), np.array(own)) == found


def test_it_is_said_once(caplog):
    shares = [[0.0, 0.12, 0.1], [0.93, 0.87, 0.61]]
    counts = stragglers.Stragglers(lambda ours: np.array(shares), processes=2)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for _ in range(stragglers.EVERY):
                counts.step(False)
            counts.compare()
    [line] = caplog.messages
    assert line.startswith(
        "over the last 100 steps all waited for process 1, whose host takes 87% of the time (61% wait"
    )
    assert "and 12% at most on the others" in line


SLOW = """
import os, runpy, sys, time
from barlow_jax.run import progress, stragglers
stragglers.EVERY = 20
waiting = progress.Progress.waiting
def slow(self):
    if os.environ["JAX_PROCESS_ID"] == "1":
        time.sleep(1)  # beside steps of a machine that is busy otherwise
    return waiting(self)
progress.Progress.waiting = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_of_two_processes_the_slow_one_is_named(tmp_path):
    line = (
        "train.py",
        "--config=demo",
        *commands.SMALL,
        "--config.data.resident_bytes=100000000",
        "--config.epochs=40",
    )
    line += ("--config.picture_every_epochs=0", "--config.eval.every_epochs=0", "--config.log_every_steps=20")
    place = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{commands.free_port()}", "JAX_NUM_PROCESSES": "2"}
    both = [
        commands.start("-c", SLOW, *line, f"--workdir={tmp_path}", **place, JAX_PROCESS_ID=str(k)) for k in range(2)
    ]
    log = tmp_path / "log.txt"
    commands.wait_for(both[0], lambda: log.exists() and "all waited for process 1, whose host takes" in log.read_text())
    for process in both:
        process.end()
    assert "all waited" not in (tmp_path / "log_1.txt").read_text()
