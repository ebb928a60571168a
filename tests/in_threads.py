"""Several processes of one run played by threads of one process: what they exchange goes through a barrier."""

import concurrent.futures
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from barlow_jax.run import cluster


def processes(monkeypatch, count, work):
    """[what work() returns or raises, as each of `count` processes]; only what `cluster` exchanges passes between."""
    place, barrier, given = threading.local(), threading.Barrier(count, timeout=60), [None] * count
    real = jax.process_index

    def gather(told):
        given[place.index] = np.array(told)
        barrier.wait()
        rows = np.stack(given)
        barrier.wait()  # before anybody gives something else
        return rows

    def run(index):
        place.index = index
        try:
            return work()
        except Exception as error:
            return error

    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: count)
        patch.setattr(jax, "process_index", lambda: getattr(place, "index", real()))
        patch.setattr(multihost_utils, "process_allgather", gather)
        patch.setattr(cluster, "MEETING", 0.02)
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(run, range(count)))
