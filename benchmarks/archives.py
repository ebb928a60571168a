"""Reading the same images from a folder, from tar shards, array_record files and Parquet, as training reads them.

    python benchmarks/archives.py --index=128000
    python benchmarks/archives.py --images=FOLDER [--count=6000] [--batches=20] [--rounds=5] [--rows=100]

FOLDER's files, again and again under other names until there are `count`, are written as a folder of 10 classes, as
tar shards and array_record files by `barlow-jax pack`, and as Parquet with `rows` images in a row group. In each
round all are read by data.train_batches, by turns, in an order over the whole set: batches of 64, canvas 512. Printed
are medians. Parquet is read in stored order too, as evaluations do, where each row group is read once; take a `count`
that makes more than the 256 MB of row groups that are kept. What is read is in the disk's cache. --index opens tar
shards of so many tiny samples instead, twice: by their headers, and by the index that is kept.
"""

import io
import os
import pathlib
import statistics
import sys
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pyarrow
from absl import app, flags
from pyarrow import parquet

from barlow_jax.data import eval_batches, open_source, pack, pack_forms, train_batches

IMAGES = flags.DEFINE_string("images", "", "Folder of images.")
COUNT = flags.DEFINE_integer("count", 6000, "Images of the set.")
BATCHES = flags.DEFINE_integer("batches", 20, "Batches in each round.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; each has all kinds.")
ROWS = flags.DEFINE_integer("rows", 100, "Images in a row group of Parquet.")
INDEX = flags.DEFINE_integer("index", 0, "Open tar shards of so many samples instead, 10,000 in each.")
BATCH_SIZE, CANVAS, SHARDS = 64, 512, 4


def written(folder):
    """{name: (kind, path, split) of the set} below a folder."""
    given = open_source("folder", IMAGES.value, "", labels="none")
    for k in range(COUNT.value):
        path = folder / "folder" / f"class{k % 10}" / f"{k:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(given.encoded(k % len(given)))
    source = open_source("folder", str(folder / "folder"), "")
    per_shard = -(-COUNT.value // SHARDS)
    for kind, form in pack_forms.FORMS.items():
        pack.pack(source, form(str(folder / kind), "train"), pack.Size(), per_shard, 2)
    (folder / "parquet").mkdir()
    for k in range(SHARDS):
        rows = range(k * per_shard, min((k + 1) * per_shard, COUNT.value))
        table = {"image": [{"bytes": source.encoded(row), "path": None} for row in rows], "label": source.labels[rows]}
        path = folder / "parquet" / f"train-{k}.parquet"
        parquet.write_table(pyarrow.table(table), path, row_group_size=ROWS.value)
    paths = {kind: (kind, str(folder / kind), "") for kind in ("folder", "tar", "parquet")}
    return paths | {"array_record": ("tfds", str(folder), "train")}


def rate(batches):
    """(images a second of wall time, of CPU time) of some batches, after the first."""
    next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    rows = sum(len(next(batches)["index"]) for _ in range(BATCHES.value))
    return rows / (time.perf_counter() - wall), rows / (time.process_time() - cpu)


def opening(folder):
    """Says how long tar shards take to open, by their headers and by the index."""
    for first in range(0, INDEX.value, 10_000):
        with tarfile.open(folder / f"train-{first // 10_000:05}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for k in range(first, min(first + 10_000, INDEX.value)):
                for ending, content in (("jpg", bytes(500)), ("cls", b"%d" % (k % 1000))):
                    member = tarfile.TarInfo(f"n01440764_{k:07}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    for how in ("headers", "index"):
        wall, cpu = time.perf_counter(), time.process_time()
        n = len(open_source("tar", str(folder)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{n} samples by their {how}: {wall:.2f} s, {cpu:.2f} s of CPU time, {1e6 * cpu / n:.1f} us each")


def main(_):
    with tempfile.TemporaryDirectory() as folder:
        if INDEX.value:
            return opening(pathlib.Path(folder))
        paths = written(pathlib.Path(folder))
        opened, found = {}, {}
        for name, (kind, path, split) in paths.items():
            more = {"name": name} if kind == "tfds" else {}
            for start in ("first", "second"):
                began = time.perf_counter()
                opened[name] = open_source(kind, path, split, **more)
                print(f"{name:12} opened in {time.perf_counter() - began:.3f} s, the {start} time")
        for _ in range(ROUNDS.value):
            for kind, source in opened.items():
                batches = train_batches(source, batch_size=BATCH_SIZE, seed=0, canvas=CANVAS, last="wrap")
                found.setdefault(f"{kind}, order over the whole set", []).append(rate(batches))
                batches.close()
            sizes = {"batch_size": BATCH_SIZE, "canvas": CANVAS, "resize_short": 256, "crop": 224}
            batches = eval_batches(opened["parquet"], threads=os.cpu_count(), **sizes)
            found.setdefault("parquet, stored order (evaluation)", []).append(rate(batches))
            batches.close()
        for name, rates in found.items():
            wall, cpu = (statistics.median(part) for part in zip(*rates, strict=True))
            print(f"{name:36} {wall:8,.0f} images/s of wall time {cpu:8,.0f} of one core's")


if __name__ == "__main__":
    app.run(main)
