"""How many planted duplicates the search for pairs finds, and how long it takes.

    python benchmarks/duplicates.py --checkpoint=runs/cifar/table5_baseline/seed_0 --images=cifar10.npz
    python benchmarks/duplicates.py --rows=100000

The first takes the test images of an .npz as train.py reads it, and puts changed copies of some in the place of others:
saved again as JPEG of quality 50, cropped to 26/32 of each side and enlarged, mirrored. The features are those of the
checkpoint, of its architecture as initialised, and the pixels; a table has, for some thresholds of the cosine
similarity, the pairs found, the share of planted ones among them (the set's own duplicates count as wrong) and the
share found of each kind. "best": the lowest threshold at which nine in ten pairs are planted ones. "nearest": the share
of copies and originals whose nearest other image is the other one, at any similarity.

The second draws rows at random, every hundredth nearly the one before it, and searches them.
"""

import io
import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from barlow_jax import experiment, sharding
from barlow_jax.data import load_npz
from barlow_jax.data.sources import Arrays
from barlow_jax.evaluation import features, pairs, subject
from barlow_jax.evaluation.nearest import nearest_rows

CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A run of train.py.")
IMAGES = flags.DEFINE_string("images", "", "An .npz with a split test.")
COPIES = flags.DEFINE_integer("copies", 400, "Planted duplicates of each kind.")
ROWS = flags.DEFINE_integer("rows", 0, "So many random rows in place of images.")
WIDTH = flags.DEFINE_integer("width", 512, "Numbers in a random row.")

THRESHOLDS = (0.999, 0.99, 0.98, 0.97, 0.95, 0.9)
MOST = 500_000


def jpeg(image):
    """Saved at quality 50, and read again."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=50)
    return Image.open(stream)


def cropped(image):
    """26/32 of each side, off the middle, at the old size."""
    width, height = image.size
    left, top = width // 16, height // 8
    box = (left, top, left + width * 26 // 32, top + height * 26 // 32)
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


KINDS = {"recompressed": jpeg, "cropped": cropped, "mirrored": ImageOps.mirror}


def planted(images, copies, seed=0):
    """The images with copies in the place of some, and {kind: {(place, later place), ...}} of those alike."""
    images, rng = images.copy(), np.random.default_rng(seed)
    order, told = rng.permutation(len(images)), {}
    for k, (kind, change) in enumerate(KINDS.items()):
        originals, places = order[2 * k * copies : 2 * (k + 1) * copies].reshape(2, copies)
        for original, place in zip(originals, places, strict=True):
            images[place] = np.asarray(change(Image.fromarray(images[original])))
        told[kind] = {(min(pair), max(pair)) for pair in zip(originals.tolist(), places.tolist(), strict=True)}
    return images, told


def features_of(images, baseline):
    judged = subject.load(CHECKPOINT.value, baseline)
    config = ConfigDict(judged.config).copy_and_resolve_references().unlock()
    config.eval.batch_size, config.precision = 256, "float32"
    mesh = sharding.make_mesh()
    graphdef, weights = subject.on_devices(judged, config, mesh)
    view = {name: tuple(config.views[name]) for name in ("mean", "std")}
    step = features.make_feature_step(graphdef, size=config.eval.crop, mesh=mesh, **view)
    batches = experiment.eval_batches(config, Arrays(images), mesh)
    return features.extract(step, *weights, batches, mesh, n=len(images)).features


def table(rows, told):
    """Lines of Markdown."""
    found = pairs.above(rows, 0.5, most=MOST, mesh=sharding.make_mesh())
    kinds = [
        next((kind for kind, those in told.items() if pair in those), "")
        for pair in zip(found.first.tolist(), found.second.tolist(), strict=True)
    ]
    right = np.array([kind != "" for kind in kinds])
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    good = np.flatnonzero(precision >= 0.9)
    best = [found.similarity[good[-1]]] if len(good) else []
    for threshold, name in [*((t, f"{t:g}") for t in THRESHOLDS), *((t, f"best: {t:.4f}") for t in best)]:
        count = int((found.similarity >= threshold).sum())
        full = f"{count}" if count < MOST else f"{MOST} or more"
        shares = [f"{kinds[:count].count(kind) / len(those):.3f}" for kind, those in told.items()]
        yield f"| {name} | {full} | {right[:count].mean() if count else float('nan'):.3f} | {' | '.join(shares)} |"


def nearest(rows, told):
    """The last line."""
    _, places = nearest_rows(rows, rows, 2, mesh=sharding.make_mesh())
    other = np.where(places[:, 0] == np.arange(len(rows)), places[:, 1], places[:, 0])
    shares = [np.mean([(other[a] == b, other[b] == a) for a, b in those]) for those in told.values()]
    return f"| nearest | | | {' | '.join(f'{share:.3f}' for share in shares)} |"


def find_planted():
    images, told = planted(load_npz(IMAGES.value, "test").images, COPIES.value)
    print(f"{len(images)} images, {COPIES.value} copies of each kind; {CHECKPOINT.value}")
    print(f"| features | threshold | pairs | planted among them | {' found | '.join(told)} found |")
    print("|---|---|---|---|---|---|---|")
    for baseline, name in (("", "trained"), ("random", "random network"), ("pixels", "pixels")):
        rows = features_of(images, baseline)
        for line in [*table(rows, told), nearest(rows, told)]:
            print(f"| {name} {line}", flush=True)


class Drawn:
    """Random rows [n, width], of which each hundredth is nearly the one before it, drawn when they are asked for."""

    def __init__(self, n, width):
        self.shape = (n, width)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        stop = min(rows.stop, len(self))
        drawn = np.random.default_rng((0, rows.start)).standard_normal((stop - rows.start, self.shape[1]), np.float32)
        drawn[1::100] = drawn[:-1:100][: len(drawn[1::100])] + 0.1 * drawn[1::100]
        return drawn


def search_rows():
    rows = Drawn(ROWS.value, WIDTH.value)
    small = Drawn(3 * pairs.BLOCK, WIDTH.value)
    pairs.above(small, 0.95, most=100_000, mesh=sharding.make_mesh())  # compiles what the size does not change
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    found = pairs.above(rows, 0.95, most=100_000, mesh=sharding.make_mesh())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{jax.devices()[0].device_kind}, {jax.device_count()} devices, jax {jax.__version__}")
    print(f"{ROWS.value} rows of {WIDTH.value}: {wall:.1f} s, {cpu:.1f} s of CPU, {found.found} pairs")
    print(f"peak {peak / 1000:.0f} MB, {(peak - before) / 1000:.0f} MB more than for {len(small)} rows")


def main(_):
    logging.set_verbosity(logging.WARNING)
    search_rows() if ROWS.value else find_planted()


if __name__ == "__main__":
    app.run(main)
