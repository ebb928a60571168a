"""The two ways to read batches: of images in memory by numpy, of encoded images by tf.data (decode.py)."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from barlow_jax.data.pixels import Reading
from barlow_jax.errors import UserError

DETOUR = 100  # steps read the careful way after an unreadable file, 0.6 ms per image slower


@dataclasses.dataclass(frozen=True)
class Job:
    """What a reader is asked for. See decode.canvas_batches for the fields' contracts."""

    plan: Callable[..., Any]
    steps: range
    boxes_of: Callable[..., Any]
    margin_of: Callable[..., Any]
    canvas: int
    views: int
    tries: int
    threads: int
    prefetch: int
    cut: bool  # whether planned blank rows, all at a batch's end, are cut off when it is read
    epoch_steps: int = 0  # of training; an evaluation has one pass
    blocks: np.ndarray | None = None  # where the blocks of the order begin, and the last ends; None: there are none
    held: int = 0  # blocks that are needed at a time


@dataclasses.dataclass(frozen=True)
class Afar:
    """Of a source that is read over a network: what it reads from, and how many reads are on their way at a time."""

    buckets: list[Any]  # remote.bucket.Bucket
    in_flight: int

    def outage(self) -> UserError | None:
        """Why there is nothing more to be had, or None."""
        return next((one.outage for one in self.buckets if one.outage), None)


def array_batches(
    images: np.ndarray, sizes: np.ndarray | None, labels: np.ndarray | None, job: Job
) -> Iterator[dict[str, np.ndarray]]:
    """decode.canvas_batches for images that are in memory: the whole image is copied onto the canvas.

    images: uint8 or uint16 [n, H, W, C]. sizes: int32 [n, 2], or None where all are H x W. labels: int32 [n] or None.
    """
    height, width, channels = images.shape[1:]

    def batch(step):
        index, draws = job.plan(step)
        row = np.maximum(index, 0)
        shown = images[row]
        if (height, width) != (job.canvas, job.canvas):
            content = shown
            shown = np.zeros((len(index), job.canvas, job.canvas, channels), content.dtype)
            shown[:, :height, :width] = content
        shown[index < 0] = 0
        size = np.full((len(index), 2), (height, width), np.int32) if sizes is None else sizes[row]
        real_size = np.broadcast_to(size[:, None, :, None].astype(np.float64), (len(index), job.views, 2, 1))
        return {
            "canvas": shown,
            "boxes": job.boxes_of(draws, real_size[:, :, 0], real_size[:, :, 1], xp=np).astype(np.float32),
            "extent": size,
            "size": size,
            "label": np.full(len(index), -1, np.int32) if labels is None else labels[row],
            "index": index,
            "skipped": np.where(index < 0, -1, 0),
        }

    with concurrent.futures.ThreadPoolExecutor(job.threads, "arrays") as pool:
        pending = collections.deque()
        for step in job.steps:
            pending.append(pool.submit(batch, step))
            if len(pending) > job.prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def file_batches(
    fetch: Callable[..., Any], n: int, reading: Reading, job: Job, afar: Afar | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """decode.canvas_batches at full speed, and for DETOUR steps around each unreadable file the careful way.

    Both ways give the same pixels and boxes, so how often the reader changes over leaves no trace in the data.
    fetch: what `sources.Encoded.fetch` gives, for n images, to be read as `reading` says.
    afar: where it reads over a network. UserError where that fails for all images alike.
    """
    from barlow_jax.data import decode  # here, as TensorFlow takes seconds to import

    step, tries = job.steps.start, 0
    while step < job.steps.stop:
        stop = min(job.steps.stop, step + DETOUR) if tries else job.steps.stop
        try:
            for batch in decode.canvas_batches(
                fetch,
                n,
                job.plan,
                range(step, stop),
                job.boxes_of,
                job.margin_of,
                canvas=job.canvas,
                reading=reading,
                views=job.views,
                tries=tries,
                threads=job.threads,
                prefetch=job.prefetch,
                in_flight=afar.in_flight if afar else 0,
            ):
                if afar and (outage := afar.outage()):
                    raise outage  # no image is replaced for it
                yield batch
                step += 1
            tries = 0
        except decode.ReadError:
            if afar and (outage := afar.outage()):
                raise outage from None
            if tries:
                raise
            tries = job.tries
