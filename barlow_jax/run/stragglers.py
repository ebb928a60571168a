"""Which of several processes the others wait for.

A step takes as long as the slowest host needs to hand it over. A host that finds its devices idle when it hands over a
step is late; where one is late and spends far more time before that than the others do, on its images or on anything
else, they wait for it. Where all are alike there is no straggler, and `data_wait` among the metrics says whether images
are why.
"""

import logging

import jax
import numpy as np
from jax.experimental import multihost_utils

EVERY = 100  # steps between two looks at the others: one small message each
OFTEN, FAR = 0.5, 0.25  # least share of the steps that are late, and least distance to the others in shares of the time

log = logging.getLogger(__name__)


class Stragglers:
    """Counts, compares with the other processes now and then, and says on process 0 whom they wait for, once.

    gather: what a process counts, an array -> those of all, stacked; processes: how many there are, None asks JAX.
    """

    def __init__(self, gather=multihost_utils.process_allgather, processes=None):
        self._gather = gather
        self._several = (processes or jax.process_count()) > 1
        self._named = ()
        self._begin()

    def _begin(self):
        self._steps, self._late, self._took, self._own, self._waited = 0, 0, 0.0, 0.0, 0.0

    def step(self, late):
        """One more step was handed over; late: the devices had nothing left to do."""
        self._steps += 1
        self._late += bool(late)

    def passed(self, seconds, own, waited):
        """So many seconds went by, `own` of them before steps were handed over, `waited` of these for images."""
        self._took += seconds
        self._own += own
        self._waited += waited

    def compare(self):
        """All processes call it after the same step."""
        if not self._several or self._steps < EVERY:
            return
        took = max(self._took, 1e-9)
        ours = np.array([self._late / self._steps, self._own / took, self._waited / took], np.float32)
        late, own, waited = np.asarray(self._gather(ours)).T
        found = named(late, own)
        if found and found != self._named and jax.process_index() == 0:
            log.warning("%s", in_words(found, own, waited, self._steps))
        self._named = found
        self._begin()


def named(late, own):
    """The numbers of the processes that hold up the others, in ascending order.

    Args:
      late: float [processes], the share of its steps for which the devices had to wait for the host of each.
      own: float [processes], the share of the time that went by before it handed steps over.
    """
    usual = np.sort(own)[(len(own) - 1) // 2]
    return tuple(int(index) for index in np.flatnonzero((late >= OFTEN) & (own - usual >= FAR)))


def in_words(found, own, waited, steps):
    """A sentence on the processes that `named` has found; waited: float [processes], share of the time, for images."""
    others = np.delete(own, found).max()
    each = [
        f"process {k}, whose host takes {own[k]:.0%} of the time ({waited[k]:.0%} waiting for images)" for k in found
    ]
    return (
        f"over the last {steps} steps all waited for {', and for '.join(each)} before it hands over a step, and "
        f"{others:.0%} at most on the others; see to the disk, the cores and what else runs there"
    )
