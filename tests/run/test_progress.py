"""Speeds, waits and times left, by a clock of the test's own."""

import io

import pytest

from barlow_jax.run import progress
from barlow_jax.run.progress import Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(progress, clock, steps, *, wait, work, images=32):
    for _ in range(steps):
        with progress.waiting():
            clock.now += wait
        clock.now += work
        progress.step(images)


def test_rates_leave_out_the_compilation_and_the_pauses():
    clock = Clock()
    progress = Progress(1000, start=100, shown=False, clock=clock)
    assert progress.rates() == {}
    train(progress, clock, 1, wait=5, work=100)  # reads the first batch and compiles
    assert progress.rates() == {}
    train(progress, clock, 10, wait=0.5, work=1.5)
    with progress.paused():
        clock.now += 300  # an evaluation
    assert progress.rates() == pytest.approx({"images_per_second": 16, "data_wait": 0.25})
    train(progress, clock, 10, wait=0, work=1)
    assert progress.rates() == pytest.approx({"images_per_second": 32, "data_wait": 0})
    assert progress.rates() == {}
    # 20 steps in 30 s, 879 steps to go
    assert progress.text() == "21 images/s, 17% waiting for data, 21:58 left"


def test_a_log_file_gets_a_plain_line_now_and_then():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(500, shown=True, every=60, stream=stream, clock=clock)
    train(progress, clock, 301, wait=0.1, work=0.4)
    progress.close()
    printed = stream.getvalue().splitlines()
    assert printed[0] == "step 1/500"
    assert printed[1] == "step 121/500, 64 images/s, 20% waiting for data, 3:10 left"
    assert [line.split(",")[0] for line in printed] == ["step 1/500", "step 121/500", "step 241/500", "step 301/500"]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_speed_is_that_of_the_last_minute():
    clock = Clock()
    progress = Progress(10_000, shown=False, clock=clock)
    train(progress, clock, 100, wait=0, work=10)
    train(progress, clock, 200, wait=0, work=0.5)
    assert progress.text().startswith("64 images/s, 0% waiting")


def test_a_terminal_gets_a_bar():
    clock, stream = Clock(), Terminal()
    progress = Progress(200, start=100, stream=stream, clock=clock)
    train(progress, clock, 50, wait=0.1, work=0.9)
    progress.close()
    last = [part for part in stream.getvalue().replace("\n", "\r").split("\r") if part.strip()][-1]
    assert "75%" in last and "150/200, 32 images/s, 10% waiting for data, 0:50 left" in last


def test_nothing_is_shown_by_other_processes():
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        progress = Progress(10, shown=False, stream=stream, clock=clock)
        train(progress, clock, 10, wait=1, work=1)
        progress.close()
        assert stream.getvalue() == ""


def test_a_pass_of_more_than_ten_seconds_shows_how_far_it_is():
    now, shown = [0.0], io.StringIO()

    def batches(seconds):
        for number in range(4):
            now[0] += seconds
            yield number

    def watch(seconds, **options):
        passed = progress.watched(batches(seconds), 4, "validation", stream=shown, clock=lambda: now[0], **options)
        return list(passed)

    assert watch(3.0, shown=False) == watch(2.0) == [0, 1, 2, 3] and not shown.getvalue()
    assert watch(6.0) == [0, 1, 2, 3]
    assert shown.getvalue() == "validation: 2/4\n"  # the next line is due after a minute
    shown = Terminal()
    assert watch(6.0, after=0.0) == [0, 1, 2, 3] and "validation" in shown.getvalue()


def test_a_run_that_never_steps_closes_quietly():
    stream = io.StringIO()
    Progress(10, stream=stream).close()
    assert stream.getvalue() == ""


def test_durations():
    assert [progress.duration(s) for s in (0, 42.4, 62, 3600, 11262, 90000)] == [
        "0:00",
        "0:42",
        "1:02",
        "1:00:00",
        "3:07:42",
        "1 d 01:00",
    ]


class Later:
    """An array that is there when it is told so; waiting for it is that."""

    def __init__(self):
        self.there, self.waited = False, False

    def is_ready(self):
        return self.there

    def block_until_ready(self):
        self.there = self.waited = True
        return self

    def __float__(self):
        return 7.0


def test_steps_count_when_they_are_done_and_few_are_on_their_way():
    """Handing a step to the devices takes no time: without this a run of 1 image/s shows thousands."""
    now = [0.0]
    progress = Progress(100, shown=False, clock=lambda: now[0])
    results = [Later() for _ in range(6)]
    for result in results[:2]:
        progress.step(10, {"loss": result})
    assert not any(result.waited for result in results) and progress._now.steps == 0
    now[0] = 5.0
    progress.step(10, {"loss": results[2]})  # a third is one too many: the first is waited for
    assert [result.waited for result in results[:3]] == [True, False, False] and progress._now.steps == 1
    assert progress.rates() == {}  # the first step compiles
    now[0] = 15.0
    progress.step(10, {"loss": results[3]})
    assert progress.rates()["images_per_second"] == 1.0
    assert progress.text().startswith("loss 7, 1 images/s")
    progress._terms = ("on_diag", "off_diag")
    progress._metrics = {"loss": 7.5, "on_diag": 5.0, "off_diag": 2.5}
    assert progress.text().startswith("loss 7.5 (on_diag 5, off_diag 2.5), 1 images/s, ")
    with progress.paused():  # an evaluation begins when all is done
        assert all(result.there for result in results[:4]) and progress._now.steps == 4
    progress.step(10, {"loss": results[4]})
    results[4].there = True
    progress.close()
    assert progress._now.steps == 5
