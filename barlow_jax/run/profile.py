"""A profile of some steps of a run, by operation, for TensorBoard's or xprof's viewer."""

import contextlib

import jax


class Profile:
    """Names every step in whatever trace is taken, and takes one of the steps that were asked for.

    Args:
      folder: where it is written.
      steps: (first, last) of the steps to trace, counted from 1 as in the log; () for none. A run that goes on from a
        step between them begins there.
    """

    def __init__(self, folder, steps=()):
        self._folder, self._steps, self._running = folder, range(steps[0], steps[1] + 1) if steps else (), False

    @contextlib.contextmanager
    def step(self, step, state):
        """Around the call of a step, whose number is counted from 0; state: what it is given."""
        if self._running != (step + 1 in self._steps):
            jax.block_until_ready(state)  # all steps before this one are done: they belong to it, or do not
            if self._running:
                self.close()
            else:
                jax.profiler.start_trace(self._folder)
                self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def close(self):
        """Writes the trace, if one is being taken."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
