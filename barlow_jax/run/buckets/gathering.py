"""One writer of checkpoints where every process has a disk of its own: process 0 has the whole state, and saves it.

Orbax would have every process write its part below one folder that all of them see. Weights that are on every device
(all, but with config.shard_params) are whole in process 0 anyway.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils


def whole(state):
    """The state as numpy arrays, copied, on process 0; every process calls it, and others get nothing of use."""

    def of(leaf):
        if not isinstance(leaf, jax.Array):
            return np.array(leaf)
        if not leaf.is_fully_replicated:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.array(leaf.addressable_data(0)) if jax.process_index() == 0 else None

    return jax.tree.map(of, state)


def nobody(*, key, timeout_ms):
    """Waits for the other processes of a save that has one."""


class Elsewhere:
    """In the place of Orbax's manager on processes that write nothing."""

    def __init__(self):
        self._last = None

    def all_steps(self):
        return [] if self._last is None else [self._last]

    def save(self, step, **_):
        self._last = step

    def reached_preemption(self, step):
        return multihost_utils.reached_preemption_sync_point(step)

    def wait_until_finished(self):
        """There is nothing to wait for."""

    reload = close = wait_until_finished
