"""How far a run is: steps, images a second, the wait for data, the time that is left.

progress = Progress(total_steps, start=step)
with progress.waiting():
    batch = next(batches)
...
state, metrics = train_step(state, batch)
progress.step(len(batch), metrics)
writer.scalars(step, metrics | progress.rates())

What is shown is of steps that are done, and not of those that were handed to the devices, which return at once.
"""

import collections
import contextlib
import math
import sys
import time

import jax

from barlow_jax.run import heartbeat
from barlow_jax.run.stragglers import Stragglers


def due(done, every):
    """Whether something that happens every so many steps (0: never) happens after `done` steps."""
    return every > 0 and done % every == 0


def watched(items, total, name, *, shown=True, after=10.0, stream=None, clock=time.perf_counter):
    """The items as they are; after `after` seconds it begins to show how many of `total` have come, as Progress."""
    stream = stream or sys.stderr
    if shown and stream.isatty():
        from tqdm import tqdm

        items, shown = tqdm(items, name, total, leave=False, file=stream, delay=after, dynamic_ncols=True), False
    due = clock() + after
    for number, item in enumerate(items, 1):
        yield item
        heartbeat.beat(doing=name, done=number, of=total)
        if shown and clock() >= due and number < total:
            due = clock() + 60
            print(f"{name}: {number}/{total}", file=stream, flush=True)


def tracked(items, total, name):
    """The items as they are, with `watched` on process 0."""
    return watched(items, total, name, shown=jax.process_index() == 0)


Mark = collections.namedtuple("Mark", "time, steps, images, waited, own", defaults=[0.0])

AHEAD = 2  # steps that may be on their way: enough to keep the devices busy, few enough to stop soon


class Progress:
    """Counts steps and images that are done, measures the wait for data, and shows both with the time that is left.

    On a terminal it is a bar; elsewhere one plain line every `every` seconds, so that log files stay readable. Speeds
    are those of the last minute. They leave out the first step, which compiles, and what happens inside `paused`.
    No more than AHEAD steps are on their way at a time: `step` waits for the one before them.

    Args:
      total: steps of the whole run; start: steps already done.
      terms: names of the parts of the loss, which are shown beside it.
      shown: False only counts, for processes other than 0.
      every: seconds between plain lines.
      stream: where to show it.
      clock: returns seconds.
      stragglers: who compares this process with the others, a Stragglers; None: a new one.
    """

    def __init__(
        self, total, *, start=0, terms=(), shown=True, every=60.0, stream=None, clock=time.perf_counter, stragglers=None
    ):
        self._total, self._terms, self._every, self._clock = total, terms, every, clock
        self._stream = stream or sys.stderr
        self._now = Mark(0.0, start, 0, 0.0)
        self._marks = collections.deque(maxlen=60)  # at most one a second
        self._reported = None  # the mark of the last call of rates
        self._away = 0.0  # seconds inside `paused`
        self._pending, self._metrics = collections.deque(), {}
        self._stragglers = stragglers or Stragglers()
        self._freed = None  # since when this host has been at its own work
        self._plain = shown and not self._stream.isatty()
        self._next_line, self._shown_step = -math.inf, None
        self._bar = None
        if shown and not self._plain:
            from tqdm import tqdm

            layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(total=total, initial=start, file=self._stream, bar_format=layout, dynamic_ncols=True)

    @contextlib.contextmanager
    def waiting(self):
        """Around the call that gets the next batch."""
        start = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            own = 0.0 if self._freed is None else now - self._away - self._freed
            self._now = self._now._replace(waited=self._now.waited + now - start, own=self._now.own + own)

    @contextlib.contextmanager
    def paused(self):
        """Around what is not training, such as an evaluation: its time counts for no speed. All steps end first."""
        self._settle(0)
        start = self._clock()
        heartbeat.beat(doing="evaluation")
        try:
            yield
        finally:
            heartbeat.beat(doing="training")
            self._away += self._clock() - start

    def step(self, images, metrics=None):
        """One more step, on that many images.

        Args:
          metrics: arrays that are there when the step is done, with its "loss"; None: it is done.
        """
        self._stragglers.step(all(_is_ready(found) for _, found in self._pending))
        self._pending.append((images, metrics))
        self._settle(AHEAD)
        self._freed = self._clock() - self._away

    def _settle(self, ahead):
        """Counts the steps that are done, and waits until no more than `ahead` are on their way."""
        while self._pending:
            images, metrics = self._pending[0]
            if len(self._pending) <= ahead and not _is_ready(metrics):
                return
            jax.block_until_ready(metrics)
            self._pending.popleft()
            self._count(images, metrics)

    def _count(self, images, metrics):
        old = self._now
        self._metrics = metrics or {}
        self._now = Mark(self._clock() - self._away, old.steps + 1, old.images + images, old.waited, old.own)
        heartbeat.beat(step=self._now.steps, of=self._total)
        if self._reported is None:
            self._reported = self._now
        if not self._marks or self._now.time - self._marks[-1].time >= 1:
            self._marks.append(self._now)
            self._show()

    def rates(self):
        """{"images_per_second", "data_wait"} since the last call; {} before there is any.

        data_wait is the share of the time spent in `waiting`, 0 to 1. All of several processes call it after the same
        steps: now and then it compares them, see stragglers.py.
        """
        since, found = self._reported, {}
        if since is not None and since.steps != self._now.steps:
            self._reported = self._now
            self._stragglers.passed(*(getattr(self._now, n) - getattr(since, n) for n in ("time", "own", "waited")))
            found = _rates(since, self._now)
        self._stragglers.compare()
        return found

    def close(self):
        """Shows the last step that is done."""
        self._settle(len(self._pending))
        if self._marks and self._now.steps != self._shown_step:
            self._next_line = -math.inf
            self._show()
        if self._bar is not None:
            self._bar.close()

    def text(self):
        """Loss with its parts, speed of the last minute and time left, in words; "" after the first step."""
        first, steps = self._marks[0], self._now.steps - self._marks[0].steps
        if not steps:
            return ""
        rates = _rates(first, self._now)
        left = duration((self._now.time - first.time) / steps * (self._total - self._now.steps))
        shown = {name: f"{float(self._metrics[name]):.4g}" for name in ("loss", *self._terms) if name in self._metrics}
        parts = ", ".join(f"{name} {value}" for name, value in shown.items() if name != "loss")
        loss = "" if "loss" not in shown else f"loss {shown['loss']}" + (f" ({parts}), " if parts else ", ")
        speed = f"{rates['images_per_second']:.0f} images/s"
        return f"{loss}{speed}, {rates['data_wait']:.0%} waiting for data, {left} left"

    def _show(self):
        text = self.text()
        if self._bar is not None:
            self._bar.n = self._now.steps
            self._bar.set_postfix_str(text)
        elif self._plain and self._now.time >= self._next_line:
            self._next_line = self._now.time + self._every
            self._shown_step = self._now.steps
            print(f"step {self._now.steps}/{self._total}" + (text and f", {text}"), file=self._stream, flush=True)


def _is_ready(metrics):
    return all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))


def _rates(old, new):
    seconds = new.time - old.time
    return {
        "images_per_second": (new.images - old.images) / seconds,
        "data_wait": min((new.waited - old.waited) / seconds, 1.0),
    }


def duration(seconds):
    """0:42, 3:07:42 or 2 d 03:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
