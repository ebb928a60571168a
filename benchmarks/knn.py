"""Time and memory of the nearest-neighbour search: 100,000 x 10,000 features of width 2048.

    python benchmarks/knn.py
    python benchmarks/knn.py --bank=1281167 --queries=50000        (ImageNet, on an accelerator)

The features are drawn at random in blocks, as a memory-mapped file would give them, so that what is measured is the
search. Memory: on the CPU the growth of the process's peak, on an accelerator the peak that the device reports.
`--check` also searches 50 rows by numpy in float64 and compares.
"""

import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np
from absl import app, flags

from barlow_jax import metrics, sharding

BANK = flags.DEFINE_integer("bank", 100_000, "Training rows.")
QUERIES = flags.DEFINE_integer("queries", 10_000, "Test rows.")
WIDTH = flags.DEFINE_integer("width", 2048, "Width of the features.")
CHECK = flags.DEFINE_bool("check", False, "Compare 50 test rows with numpy.")

KS = (1, 10, 20, 100, 200)
CLASSES = 1000


class Drawn:
    """Random features [n, width] that exist only in the block that is asked for."""

    def __init__(self, n, width, seed):
        self.shape, self._seed = (n, width), seed

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        rng = np.random.default_rng((self._seed, rows.start))
        return rng.standard_normal((rows.stop - rows.start, self.shape[1]), np.float32)


def peak_bytes():
    """The device's peak where it reports one, else that of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def nearest_labels(bank, labels, queries, k, block=4096):
    """Labels of the k nearest training rows in float64, [m, k]."""
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    similarity = []
    for start in range(0, len(bank), block):
        rows = bank[start : min(start + block, len(bank))].astype(np.float64)
        similarity.append(queries @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T)
    return labels[np.argsort(-np.concatenate(similarity, 1), axis=1, kind="stable")[:, :k]]


def main(_):
    mesh = sharding.make_mesh()
    bank, labels = Drawn(BANK.value, WIDTH.value, 0), np.random.default_rng(1).integers(0, CLASSES, BANK.value)
    queries = Drawn(QUERIES.value, WIDTH.value, 2)[0 : QUERIES.value]
    options = {"num_classes": CLASSES, "mesh": mesh}
    small = Drawn(4096, WIDTH.value, 0)
    metrics.knn_predict(small, labels[:4096], queries[:512], k=KS, **options)  # compiles what the size does not change
    before, cpu, start = peak_bytes(), time.process_time(), time.perf_counter()
    predicted = metrics.knn_predict(bank, labels, queries, k=KS, **options)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{jax.devices()[0].device_kind}, {mesh.size} devices, jax {jax.__version__}")
    print(f"{len(bank)} x {len(queries)} features of width {WIDTH.value}: {wall:.1f} s, {cpu:.1f} s of CPU")
    print(
        f"peak {peak_bytes() / 1e6:.0f} MB, {(peak_bytes() - before) / 1e6:.0f} MB more than before; "
        f"all features together are {4e-6 * WIDTH.value * (len(bank) + len(queries)):.0f} MB"
    )
    if CHECK.value:
        nearest = nearest_labels(bank, labels, queries[:50].astype(np.float64), 1)
        print(f"nearest neighbour equal to numpy's in {(nearest[:, 0] == predicted[0, :50]).sum()} of 50 rows")


if __name__ == "__main__":
    app.run(main)
