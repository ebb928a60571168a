"""Images from afar, without a network: the cache, the readers, the tables, by stand-ins for a bucket.

test_remote_emulated.py has the library and servers.
"""

import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import source_kinds
from ml_collections import ConfigDict
from source_kinds import one_sentence
from stored import Stored, instruction, tfrecord

from barlow_jax import data
from barlow_jax.data import shards as any_shards
from barlow_jax.data.remote import array_record, bucket, cache, files, prepared, shards
from barlow_jax.errors import UserError
from barlow_jax.evaluation import image_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("far")
    source_kinds.write("folder", root)
    return root


@pytest.fixture
def far(folder, monkeypatch):
    """The folder as a source of a stand-in, and the stand-in."""
    contents = {f"set/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*.jpg")}
    contents |= {"set/.hidden/1.jpg": b"", "set/a/notes.txt": b"", "set/__MACOSX/a/2.jpg": b""}
    stored = Stored(contents)
    monkeypatch.setattr(bucket, "opened", lambda address, cache=None: (stored, "set"))
    return files.open_folder("gs://b/set", class_names=("a", "b")), stored


def batches(source, start=0, count=2, **more):
    found = data.train_batches(
        source, batch_size=4, seed=3, canvas=32, start_step=start, last="wrap", threads=2, **more
    )
    try:
        return [next(found) for _ in range(count)]
    finally:
        found.close()


def test_a_bucket_gives_the_folders_batches_at_any_step(folder, far, caplog):
    caplog.set_level(logging.INFO)
    local, (source, _) = data.ImageFolder(folder, class_names=("a", "b")), far
    assert source.listing() == local.listing()
    assert source.where(1) == f"gs://b/set/{pathlib.Path(local.where(1)).relative_to(folder)}"
    np.testing.assert_array_equal(source.labels, local.labels)
    for ours, theirs in zip(batches(source, 101, 3), batches(local, 101, 3), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    told = [record.getMessage() for record in caplog.records if "requests" in record.getMessage()]
    assert told and told[0].startswith("epoch 51 of gs://b/set: ") and "MB" in told[0]
    part = source.take(np.asarray([4, 1]))
    assert part.encoded(1) == source.encoded(1) and part.fingerprint() != source.fingerprint()


def test_fingerprints_change_with_sizes_and_versions(far):
    source, _ = far
    before = source.fingerprint()
    for name in ("_sizes", "_written"):
        changed = source.take(np.arange(len(source)))
        assert changed.fingerprint() == before
        setattr(changed, name, getattr(changed, name) + 1)
        assert changed.fingerprint() != before
    changed._versions = np.asarray([b"w"] * len(source))
    assert changed.fingerprint() != before


def test_an_object_that_vanishes_is_an_unreadable_image(far):
    source, stored = far
    gone = source.paths[2].partition("b/")[2]
    del stored.contents[gone]
    found = data.train_batches(source, batch_size=4, seed=3, canvas=32, last="wrap", threads=2)
    shown = np.concatenate([next(found)["index"] for _ in range(4)])
    found.close()
    assert 2 not in shown and found.bad_files == {f"gs://b/{gone}": "it is not there (404)"}


def test_an_outage_ends_the_run_and_replaces_no_image(far):
    source, stored = far
    stored.ends = [source.paths[2].partition("b/")[2]]
    found = data.train_batches(source, batch_size=4, seed=3, canvas=32, last="wrap", threads=2)
    with pytest.raises(UserError, match="may not be read"):
        for _ in range(4):
            next(found)
    found.close()
    assert not found.bad_files


def test_without_the_library_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    for open_ in (
        lambda: data.open_source("folder", "gs://bucket/images"),
        lambda: data.open_source("npz", "https://host/set.npz"),
        lambda: data.open_source("tfds", "s3://bucket/sets", name="imagenette"),
    ):
        with pytest.raises(UserError, match=r"needs obstore: pip install 'barlow-jax\[buckets\]'") as caught:
            open_()
        one_sentence(caught)


def test_what_the_library_says_is_told_with_its_cause():
    """Of obstore 0.9: what it shows, and what it adds for those who debug it."""
    shown = (
        "Generic S3 error: Error performing GET http://127.0.0.1:9/runs?list-type=2&prefix=abc in 106.872754ms, after "
        "1 retries, max_retries: 1, retry_timeout: 180s  - HTTP error: error sending request"
    )
    inner = 'ConnectError(\n "tcp connect error",\n Os {\n code: 111,\n message: "Connection refused",\n },\n )'
    said = bucket.in_one_line(Exception(f"{shown}\n\nDebug source:\n{inner}"))
    assert said.startswith("Connection refused: Generic S3 error: Error performing GET http://127.0.0.1:9/runs?")
    assert said.endswith("- HTTP error: error sending request") and "retries" not in said
    assert bucket.in_one_line(Exception(shown)).startswith("Generic S3 error")


def test_a_server_that_does_not_answer_is_told_of_while_it_is_tried_again(monkeypatch, caplog):
    store = object.__new__(bucket.Bucket)
    store.root, store.scheme, store.counts, store.outage = "s3://b", "s3", bucket.Counts(), None
    store._lock, store._told = threading.Lock(), -bucket.TOLD_EVERY
    monkeypatch.setattr(bucket.time, "sleep", lambda seconds: None)

    def ask():
        raise RuntimeError("no route")

    for _ in range(2):
        store.outage = None
        with pytest.raises(UserError, match="after 10 tries"):
            store._asked(ask, "x")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "s3://b does not answer as it should (no route); trying again, for a minute"


def test_a_split_of_far_shards_may_end_in_tar(monkeypatch):
    monkeypatch.setattr(any_shards, "in_far_folder", lambda address: ["a.tar"] if address == "s3://b/set" else [])
    monkeypatch.setattr(image_sets, "open_source", lambda *words, **more: words)
    assert image_sets.open_any("s3://b/set:train-0.tar") == ("tar", "s3://b/set", "train-0.tar")
    assert image_sets.open_any("s3://b/set:train") == ("tar", "s3://b/set", "train")
    assert image_sets.open_any("s3://b/x.tar") == ("tar", "s3://b/x.tar", "")


@pytest.mark.parametrize("address", ["ftp://x/y", "gs://", "https://host/a?b=c"])
def test_addresses_that_are_none(address):
    with pytest.raises(UserError) as caught:
        bucket.split(address)
    one_sentence(caught)
    assert bucket.split("gs://b//c//d e.jpg") == ("gs://b", "c/d e.jpg")


def test_the_fields_reach_the_cache(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr("barlow_jax.data.kinds.open_remote", lambda address, **more: asked.update(more, at=address))
    config = ConfigDict(dict(kind="folder", name="", path="gs://b/i", train="train", file_list="", channels=0))
    from barlow_jax.data.kinds import open_fields

    open_fields(config, "train", {"value_range": (), "max_pixels": 1})  # as older configs are
    assert asked["at"] == "gs://b/i/train" and asked["cache"] is None
    config.cache, config.cache_bytes = str(tmp_path / "kept"), 1000
    open_fields(config, "train", {"value_range": (), "max_pixels": 1})
    assert asked["cache"].folder == tmp_path / "kept" and asked["cache"].max_bytes == 1000


# The cache.


def test_the_cache_keeps_whole_reads_and_no_others(tmp_path):
    kept = cache.Cache(tmp_path, 2**20)
    kept.put("a", b"12345")
    assert kept.get("a", 5) == b"12345" and kept.get("a", 4) is None and kept.get("b", 5) is None
    path = kept.path("a")
    whole = path.read_bytes()
    for damaged in (whole[:-5], b"X" + whole[1:], b"", bytes(9)):
        path.write_bytes(damaged)
        assert kept.get("a", 5) is None
    kept.put("a", b"12345")
    assert kept.get("a", 5) == b"12345"
    assert not list((tmp_path / "partial").iterdir())


def test_the_cache_stops_at_its_bound_and_counts_anew(tmp_path):
    kept = cache.Cache(tmp_path, 10 * 4096)
    for k in range(20):
        kept.put(str(k), bytes(4000))
    assert sum(kept.get(str(k), 4000) is not None for k in range(20)) == 10
    kept.put("table", b"x", beyond=True)
    assert kept.get("table", 1) == b"x"
    del kept
    for entry in list(tmp_path.glob("??/*"))[:6]:
        entry.unlink()
    again = cache.Cache(tmp_path, 10 * 4096)
    for k in range(20, 40):
        again.put(str(k), bytes(4000))
    assert len(list(tmp_path.glob("??/*"))) in (10, 11)  # the table may be among those that went
    with pytest.raises(UserError, match="config.data.cache"):
        cache.Cache("/proc/nowhere", 1)


FILL = """
import sys, types
sys.modules["barlow_jax.data"] = package = types.ModuleType("barlow_jax.data")  # the cache needs nothing of it
package.__path__ = ["barlow_jax/data"]
from barlow_jax.data.remote.cache import Cache
kept, number = Cache(sys.argv[1], int(sys.argv[2])), 0
print("on", flush=True)
while True:
    kept.put(str(number), str(number).encode() * 1500)
    number += 1
"""


def test_two_processes_may_open_a_folder_at_once(tmp_path, monkeypatch):
    """The other one makes the folders while this one clears away what was half written."""
    remove = shutil.rmtree

    def removed(folder):
        remove(folder)
        folder.mkdir()

    monkeypatch.setattr(cache.shutil, "rmtree", removed)
    assert (cache.Cache(tmp_path, 2**20).folder / "partial").is_dir()


def test_processes_that_are_killed_leave_whole_entries_and_hold_the_bound(tmp_path):
    root = pathlib.Path(cache.__file__).parents[3]
    for bound in (2**21, 2**22):  # the second finds what the first left
        line, words = [sys.executable, "-c", FILL, tmp_path, str(bound)], {"stdout": subprocess.PIPE, "cwd": root}
        with subprocess.Popen(line, **words) as first, subprocess.Popen(line, **words) as second:
            said = [one.stdout.readline() for one in (first, second)]
            time.sleep(0.03)
            for one in (first, second):
                os.kill(one.pid, signal.SIGKILL)
        assert said == 2 * [b"on\n"]
    left = cache.Cache(tmp_path, 2**22)
    assert not list((tmp_path / "partial").iterdir())
    entries = {path for path in tmp_path.glob("??/*")}
    assert 0 < 4096 * sum(-(-path.stat().st_size // 4096) for path in entries) <= 2**22
    for number in range(10_000):
        content = str(number).encode() * 1500
        if left.path(str(number)) in entries:
            assert left.get(str(number), len(content)) == content
            entries.discard(left.path(str(number)))
    assert not entries


# Tables of records.


def test_tfrecord_files_are_read_through_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PART", 50)
    records = [[bytes([k]) * (7 * k % 90 + 1) for k in range(60)], [b"x", b"yz", b""]]
    stored = Stored({str(k): tfrecord(some) for k, some in enumerate(records)}, cache.Cache(tmp_path, 2**20))
    opened = shards.TFRecords([instruction(60, 2, 50), instruction(3)], stored, stored.objects())
    assert len(opened) == 53
    opened.prepare()
    wanted = records[0][2:52] + records[1]
    assert [opened[k] for k in range(53)] == wanted
    assert stored.cache.get("0 12", 1) == records[0][0]  # records that pass by are kept
    before = stored.counts.bytes
    again = shards.TFRecords([instruction(60, 2, 50), instruction(3)], stored, stored.objects())
    again.prepare()
    assert stored.counts.bytes == before and again[52] == b"" and again[49] == records[0][51]
    for content, words in (
        (tfrecord(records[1])[:-1], "ends in record 2 of 3"),
        (tfrecord(records[1]) + b"more", "more than the 3 records"),
    ):
        broken = Stored({"0": content}, cache.Cache(tmp_path / words[:4], 2**20))
        with pytest.raises(UserError, match=words) as caught:
            shards.TFRecords([instruction(3)], broken, broken.objects()).prepare()
        one_sentence(caught)
    stored.cache = None
    with pytest.raises(UserError, match="config.data.cache") as caught:
        shards.TFRecords([instruction(60)], stored, stored.objects()).prepare()


def test_array_record_files_are_read_as_their_library_reads_them(tmp_path):
    pytest.importorskip("array_record", reason="array_record is for Linux")
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    rng = np.random.default_rng(0)
    records = [rng.integers(0, 256, int(size), np.uint8).tobytes() for size in rng.integers(0, 70_000, 12)]
    path = tmp_path / "x.array_record"
    for options in ("group_size:1,uncompressed", "group_size:5,uncompressed"):
        writer = ArrayRecordWriter(str(path), options)
        for record in records:
            writer.write(record)
        writer.close()
        assert ArrayRecordReader(str(path)).num_records() == 12
        stored = Stored({"x": path.read_bytes()})
        opened = array_record.ArrayRecords([instruction(12, 3, 8)], stored, stored.objects())
        assert [opened[k] for k in range(8)] == records[3:11]
    for content in (path.read_bytes()[: 2**16 + 50], bytes(2**17), b""):
        stored = Stored({"x": content})
        with pytest.raises(UserError, match="prepare the set again") as caught:
            array_record.ArrayRecords([instruction(12)], stored, stored.objects()).prepare()
        one_sentence(caught)


def test_the_newest_version_of_one_set_is_taken():
    names = [f"sets/voc/{year}/{version}/dataset_info.json" for year in (2007, 2012) for version in ("4.0.0", "10.0.0")]
    assert prepared._chosen(names[:2], "x") == "sets/voc/2007/10.0.0"
    with pytest.raises(UserError, match="several sets .2007, 2012."):
        prepared._chosen(names, "x")
    with pytest.raises(UserError, match="No set lies prepared"):
        prepared._chosen(["sets/voc/a.json"], "x")
