"""What an epoch has cost: requests and bytes, in a line of log."""

import copy
import logging

from barlow_jax.data.remote.bucket import Counts

logger = logging.getLogger(__name__)


def total(buckets):
    """The counts of several buckets together."""
    numbers = [copy.copy(one.counts).numbers() for one in buckets]
    return Counts(*map(sum, zip(*numbers, strict=True)))


def told(batches, job, buckets, name):
    """The same batches; with the last of each epoch the log says what was read since the last such line.

    The readers are ahead: what is in flight for the next epoch is among it.
    """
    before = total(buckets)
    try:
        for step, batch in zip(job.steps, batches, strict=False):
            yield batch
            if job.epoch_steps and (step + 1) % job.epoch_steps == 0:
                now = total(buckets)
                logger.info("epoch %d of %s: %s", (step + 1) // job.epoch_steps, name, in_words(now.since(before)))
                before = now
    finally:
        batches.close()


def in_words(counts):
    """ "1,234 requests (5 again after a fault), 140.2 MB; 12 reads from the cache"."""
    again = f" ({counts.repeated:,} again after a fault)" if counts.repeated else ""
    kept = f"; {counts.cached:,} reads from the cache" if counts.cached else ""
    return f"{counts.requests:,} requests{again}, {counts.bytes / 1e6:,.1f} MB{kept}"
