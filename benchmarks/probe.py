"""What many heads cost: the fast probe with 40 heads against one head, on cached features.

    python benchmarks/probe.py
    python benchmarks/probe.py --rows=200000 --classes=1000          (an accelerator)

Features are random and lie in the host's memory, as the cache gives them. Both fits see the same batches, from the host
to the last update; each row is the median of three alternating runs after one that compiles.
"""

import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np
from absl import app, flags

from barlow_jax import sharding
from barlow_jax.evaluation import heads

ROWS = flags.DEFINE_integer("rows", 50_000, "Images.")
WIDTH = flags.DEFINE_integer("width", 2048, "Width of the features.")
CLASSES = flags.DEFINE_integer("classes", 10, "Classes.")
HEADS = flags.DEFINE_integer("heads", 40, "Heads to compare with one.")
BATCH = flags.DEFINE_integer("batch", 1024, "Rows of a step.")
EPOCHS = flags.DEFINE_integer("epochs", 2, "Epochs of a fit.")


def main(_):
    mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
    features = rng.standard_normal((ROWS.value, WIDTH.value), np.float32)
    labels = rng.integers(0, CLASSES.value, ROWS.value).astype(np.int32)

    def fit(count):
        start, cpu = time.perf_counter(), time.process_time()
        trained = heads.fit(
            [features],
            labels,
            num_classes=CLASSES.value,
            grid=[(0.1, 1e-6)] * count,
            epochs=EPOCHS.value,
            batch_size=BATCH.value,
            standardize=False,
            mesh=mesh,
        )
        jax.block_until_ready(trained)
        return time.perf_counter() - start, time.process_time() - cpu

    counts = (1, HEADS.value)
    for count in counts:
        fit(count)
    runs = {count: [] for count in counts}
    for _ in range(3):
        for count in counts:
            runs[count].append(fit(count))
    print(
        f"{jax.devices()[0].device_kind}, {mesh.size} devices, jax {jax.__version__}; {ROWS.value} x {WIDTH.value} "
        f"features, {CLASSES.value} classes, {EPOCHS.value} epochs of batches of {BATCH.value}"
    )
    print(f"{'heads':>6}{'s':>10}{'CPU s':>10}")
    medians = {}
    for count in counts:
        medians[count] = [statistics.median(values) for values in zip(*runs[count], strict=True)]
        print(f"{count:6}{medians[count][0]:10.2f}{medians[count][1]:10.2f}")
    ratios = [many / one for many, one in zip(medians[counts[1]], medians[1], strict=True)]
    print(f"{counts[1]} heads cost {ratios[0]:.2f} times one head, {ratios[1]:.2f} times in CPU seconds")


if __name__ == "__main__":
    app.run(main)
