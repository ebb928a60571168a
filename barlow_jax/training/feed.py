"""What the devices are fed: batches of numpy arrays on their way there, or a small set that lives there.

    resident(source, max_bytes, canvas=512)     the source as arrays, if it is small enough to live on the devices
    train_batches(source, start_step, mesh, ...)    batches on the devices, without end
    eval_batches(source, mesh, ...)             one pass of batches on the host, which `put` or `prefetch` sends off

Each process reads its own rows of a batch and no others.
"""

import collections
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from barlow_jax import augment
from barlow_jax.data import Source, order, pipeline
from barlow_jax.sharding import by_example, example_keys, replicated, round_up

log = logging.getLogger(__name__)

HostBatch = Mapping[str, np.ndarray]
Batch = dict[str, Array]


def put(batch: HostBatch, mesh: Mesh) -> Batch:
    """This process's rows (a dict of numpy arrays) as global arrays split by example."""
    sharding = by_example(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def prefetch(batches: Iterable[HostBatch], mesh: Mesh, ahead: int = 2) -> Iterator[Batch]:
    """Host batches -> device batches, `ahead` of them on their way while the devices compute."""
    queue = collections.deque()
    for batch in batches:
        queue.append(put(batch, mesh))
        if len(queue) > ahead:
            yield queue.popleft()
    while queue:
        yield queue.popleft()


class ResidentSet:
    """A small data set that lives on the devices: a batch is a gather, and no image crosses the host again.

    Args:
      images: uint8 [n, H, W, C]; labels: int32 [n] or None; sizes: int32 [n, 2] or None, as those of data.Arrays.
      seed, scale, ratio, views, small, small_scale: of the random boxes, which are drawn on the device.
    """

    def __init__(
        self, images, labels, mesh, *, seed, scale, ratio, views=2, small=0, small_scale=(0.05, 0.14), sizes=None
    ):
        self.mesh = mesh
        n, height, width, _ = images.shape
        held = {
            "images": np.asarray(images),
            "labels": np.full(n, -1, np.int32) if labels is None else labels.astype(np.int32),
            "sizes": np.full((n, 2), (height, width), np.int32) if sizes is None else sizes,
        }
        self._held = jax.device_put(held, replicated(mesh))

        def gather(held, index, step):
            keys = example_keys(seed, step, len(index))  # those of the views: `augment` keeps the two apart
            height, width = jnp.moveaxis(held["sizes"][index], -1, 0)
            boxes = {"boxes": augment.random_boxes(keys, height, width, views=views, scale=scale, ratio=ratio)}
            if small:
                options = {"views": small, "scale": small_scale, "ratio": ratio}
                boxes["small_boxes"] = augment.random_boxes(augment.keys_of_small(keys), height, width, **options)
            return {"canvas": held["images"][index], **boxes, "index": index, "label": held["labels"][index]}

        self._gather = jax.jit(gather, out_shardings=by_example(mesh))

    def batch(self, index, step):
        """The training batch of these examples. index: int [b], this process's rows; step: the training step."""
        index = jax.make_array_from_process_local_data(by_example(self.mesh), np.asarray(index, np.int32))
        return self._gather(self._held, index, np.int32(step))


def fits_on_devices(source: Source, max_bytes: int) -> bool:
    """Whether a source is small enough to live on the devices."""
    return source.images is not None and source.images.nbytes <= max_bytes


def resident(
    source: Source, max_bytes: int, *, canvas: int, threads: int | None = None, max_bad_fraction: float = 0.01
) -> Source:
    """The source as Arrays if it is small enough to live on the devices, else the source as it is.

    Args:
      max_bytes: that a set may take there.
      canvas: side in pixels of the largest image that may be among them.
      threads, max_bad_fraction: of reading, see `pipeline.train_batches`.
    """
    arrays = pipeline.in_memory(
        source, max_bytes=max_bytes, canvas=canvas, threads=threads, max_bad_fraction=max_bad_fraction
    )
    if arrays is None:
        return source
    height, width = arrays.images.shape[1:3]
    log.info(
        "%s lives on the devices: %d images of at most %d x %d pixels, %.1f MB",
        source.name,
        len(source),
        height,
        width,
        arrays.images.nbytes / 1e6,
    )
    return arrays


def train_batches(
    source: Source,
    start_step: int,
    mesh: Mesh,
    *,
    batch_size: int,
    seed: int,
    last: str,
    reference_world_size: int = 1,
    blocks: order.Mixing | None = None,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    views: int = 2,
    small: int = 0,
    small_scale: tuple[float, float] = (0.05, 0.14),
    canvas: int,
    resident_bytes: int = 0,
    threads: int | None = None,
    max_bad_fraction: float = 0.01,
) -> Iterator[Batch]:
    """Training batches on the devices, from `start_step` on, without end.

    Args:
      batch_size: over all devices.
      seed: of the order and the boxes.
      last, reference_world_size: how an epoch ends, see `order.steps_per_epoch` and `order.last_batch_size`.
      blocks: of an order of blocks, see `order.mixing`.
      crop_scale, crop_ratio, views: of the random boxes, and how many an image gets.
      small, small_scale: how many small ones it gets beside them, and their share of the area.
      resident_bytes: a source of Arrays that takes no more lives on the devices.
      canvas, threads, max_bad_fraction: of reading on the host, see `pipeline.train_batches`.
    Yields:
      {"canvas" uint8 [B, S, S, C], "boxes" float32 [B, views, 4], "index", "label" [B]}, global arrays split by
      example, and "small_boxes" [B, small, 4] where there are any; an epoch's last batch may have fewer rows.
    """
    order_of = {"last": last, "reference_world_size": reference_world_size, "blocks": blocks, **_process(mesh)}
    boxes_of = {"seed": seed, "scale": crop_scale, "ratio": crop_ratio, "views": views}
    boxes_of |= {"small": small, "small_scale": small_scale}
    if fits_on_devices(source, resident_bytes):
        held = ResidentSet(source.images, source.labels, mesh, sizes=source.sizes, **boxes_of)
        for step in itertools.count(start_step):
            _, index = order.batch_indices(len(source), batch_size, seed, step, **order_of)
            yield held.batch(index, step)
    batches = pipeline.train_batches(
        source,
        batch_size=batch_size,
        canvas=canvas,
        start_step=start_step,
        threads=threads,
        max_bad_fraction=max_bad_fraction,
        **boxes_of,
        **order_of,
    )
    try:
        yield from prefetch(batches, mesh)
    finally:
        batches.close()


def eval_batches(source: Source, mesh: Mesh, *, batch_size: int, **options: Any) -> pipeline.Batches:
    """One pass over a source, every image once: this process's batches, on the host.

    Args:
      batch_size: over all devices; rounded up to a multiple of their number.
      options: see `pipeline.eval_batches`.
    """
    return pipeline.eval_batches(source, batch_size=round_up(batch_size, mesh), **options, **_process(mesh))


def _process(mesh: Mesh) -> dict[str, Any]:
    """The place of this process among those that have devices in the mesh."""
    processes = sorted({device.process_index for device in mesh.devices.flat})
    return {"process_index": processes.index(jax.process_index()), "process_count": len(processes)}
