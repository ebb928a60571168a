"""Images from s3:// and gs:// by servers that stand in for the clouds, and from a web server with faults.

Needs what requirements-buckets.txt lists; `make test-buckets` runs it.
"""

import functools
import http.server
import os
import re
import threading
import time
import urllib.parse
import urllib.request

import cloud_servers
import numpy as np
import pytest
import source_kinds
from cloud_servers import KINDS, opened
from source_kinds import one_sentence

from barlow_jax import data
from barlow_jax.data.remote import bucket
from barlow_jax.errors import UserError
from barlow_jax.evaluation.image_sets import open_images

pytest.importorskip("obstore", reason="see requirements-buckets.txt")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A small set of each kind, in folders of these names."""
    root = tmp_path_factory.mktemp("sets")
    cloud_servers.write(root)
    odd = root / "folder" / "a" / "ü +#%.jpg"
    odd.write_bytes((root / "folder" / "a" / "0.jpg").read_bytes())
    return root


@pytest.fixture(scope="module", params=cloud_servers.BEGIN)
def cloud(request, sets):
    """The address of a bucket that holds the sets."""
    with cloud_servers.holding(request.param, sets) as address:
        yield address


def batches(source, step):
    found = data.train_batches(source, batch_size=4, seed=5, canvas=64, start_step=step, last="wrap", threads=2)
    try:
        return [next(found) for _ in range(2)]
    finally:
        found.close()


@pytest.fixture(scope="module")
def local(sets):
    """A function kind -> (the source of local files, two batches of it)."""

    @functools.cache
    def of(kind):
        source = opened(kind, sets)
        return source, batches(source, 123_456)

    return of


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_local_files_cold_and_warm(kind, cloud, local, tmp_path):
    """test_resume.py has many steps, and blocks."""
    (source, expected), far = local(kind), opened(kind, cloud, cache=str(tmp_path), cache_bytes=2**30)
    assert far.listing() == source.listing() and far.class_names == source.class_names and len(far) == len(source)
    same(batches(far, 123_456), expected)
    if far.images is None:
        before = far.afar.buckets[0].counts.cached
        same(batches(far, 123_456), expected)
        counts = far.afar.buckets[0].counts
        assert counts.cached - before >= 6 * (kind != "parquet") and counts.bytes < 10**6 and counts.repeated == 0


@pytest.mark.parametrize("kind", ["folder", "array_record", "tar", "parquet"])
def test_without_a_cache(kind, cloud, local):
    far = opened(kind, cloud)
    same(batches(far, 123_456), local(kind)[1])
    assert far.afar.buckets[0].counts.cached == 0


def test_fingerprints_go_by_what_the_cloud_says(cloud):
    for kind in ("folder", "array_record", "tar", "parquet"):
        first, second = (opened(kind, cloud) for _ in range(2))
        assert first.fingerprint() == second.fingerprint() != first.take(np.arange(3)).fingerprint()


def test_what_is_not_there(cloud, monkeypatch):
    monkeypatch.setattr(bucket, "TRIES", 1)
    for open_, words in (
        (lambda: data.open_source("folder", f"{cloud}/none"), "holds no image"),
        (lambda: data.open_source("npz", f"{cloud}/none.npz"), "does not exist"),
        (lambda: data.open_source("tar", f"{cloud}/none"), "holds no .tar file"),
        (lambda: data.open_source("tar", f"{cloud}/tar/none.tar"), "does not exist"),
        (lambda: data.open_source("parquet", f"{cloud}/parquet", "test"), "None of the 2 .parquet files"),
        (lambda: data.open_source("tfds", f"{cloud}/none", name="imagenette"), "No set lies prepared"),
        (lambda: data.open_source("folder", cloud.replace("sets", "no-such-bucket"), ""), "no-such-bucket"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_()
        one_sentence(caught)


def test_embed_takes_folders_and_lists(cloud, sets, tmp_path):
    assert len(open_images(f"{cloud}/folder", 3)) == 7
    for kind, named, count in (("tar", "tar", 6), ("tar", "tar/train-1.tar", 3), ("parquet", "parquet:train", 6)):
        found, local = open_images(f"{cloud}/{named}", 3), source_kinds.opened(kind, sets / kind)
        assert found.encoded(count - 1) == local.encoded(5) and len(found) == count
    (tmp_path / "list.txt").write_text(f"{cloud}/folder/b/1.jpg\n{cloud}/folder/a/0.jpg\n")
    found = open_images(str(tmp_path / "list.txt"), 3)
    assert [found.where(k) for k in range(2)] == [f"{cloud}/folder/b/1.jpg", f"{cloud}/folder/a/0.jpg"]
    assert found.encoded(0) == (sets / "folder" / "b" / "1.jpg").read_bytes()


# A web server, and what may go wrong with one.


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves `contents`, with the next of `faults` on the way."""

    contents, faults, seen = {}, [], []
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = urllib.parse.unquote(self.path.lstrip("/"))
        self.seen.append((self.command, name))
        fault = self.faults.pop(0) if self.faults and self.command == "GET" else ""
        if fault in ("503", "403", "429"):
            return self.answer(int(fault), b"no")
        if name not in self.contents:
            return self.answer(404, b"none")
        content = self.contents[name]
        if fault == "slow":
            time.sleep(1.5)
        if fault == "short":  # whole, by its own account
            content = content[:-3]
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        extra = {}
        if span:
            extra = {"Content-Range": f"bytes {span[1]}-{span[2]}/{len(content)}"}
            content = content[int(span[1]) : int(span[2]) + 1]
        self.answer(206 if span else 200, content, cut=fault == "cut", **extra)

    do_HEAD = do_GET

    def answer(self, status, content, cut=False, **headers):
        self.send_response(status)
        for key, value in {"Content-Length": len(content), "ETag": '"1"', **headers}.items():
            self.send_header(key, str(value))
        self.send_header("Last-Modified", "Thu, 01 Oct 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, *_):
        pass


@pytest.fixture
def web(sets, monkeypatch):
    """The address of a web server that holds the sets, its handler class; pauses and time-outs are short."""
    handler = type("Handler", (Faulty,), {"contents": cloud_servers.files_of(sets), "faults": [], "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(bucket, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(bucket, "TIME_OUT", "1s")
    monkeypatch.setattr(bucket, "TRIES", 3)
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_npz_and_a_list_on_a_web_server(web, sets, tmp_path, caplog):
    address, handler = web
    np.testing.assert_array_equal(
        data.load_npz(f"{address}/npz/set.npz").images, data.load_npz(sets / "npz" / "set.npz").images
    )
    with pytest.raises(UserError, match="lists no folder: give config.data.file_list") as caught:
        data.open_source("folder", f"{address}/folder", "")
    one_sentence(caught)
    (tmp_path / "some.txt").write_text("a/0.jpg\nb/1.jpg\nb/3.jpg\nb/missing.jpg\n")
    options = {"listed": str(tmp_path / "some.txt"), "labels": "folders"}
    far, local = (data.open_source("folder", f"{root}/folder", "", **options) for root in (address, sets))
    assert far.listing() == local.listing() and far.class_names == local.class_names
    np.testing.assert_array_equal(far.labels, local.labels)
    for ours, theirs in zip(batches(far, 3), batches(local, 3), strict=True):
        np.testing.assert_array_equal(ours["canvas"], theirs["canvas"])


@pytest.mark.parametrize("fault", ["503", "429", "slow", "cut", "short"])
def test_a_fault_that_passes_is_tried_again(web, sets, fault):
    address, handler = web
    store, name = bucket.opened(f"{address}/folder/a/0.jpg")
    one = store.head(name)
    handler.faults[:] = [fault, fault]
    assert store.read(one) == (sets / "folder" / "a" / "0.jpg").read_bytes()
    assert store.counts.repeated == 2 and store.outage is None
    handler.faults[:] = [fault, fault]
    if fault != "short":
        assert store.read(one, 5, 10) == (sets / "folder" / "a" / "0.jpg").read_bytes()[5:15]


@pytest.mark.parametrize(
    ("fault", "words"), [("503", "after 3 tries"), ("slow", "after 3 tries"), ("cut", "after 3 tries"), ("403", "403")]
)
def test_a_fault_that_stays_is_a_sentence(web, fault, words):
    address, handler = web
    store, name = bucket.opened(f"{address}/folder/a/0.jpg")
    one = store.head(name)
    handler.faults[:] = [fault] * 3
    with pytest.raises(UserError, match=words) as caught:
        store.read(one)
    one_sentence(caught)
    before = len(handler.seen)
    with pytest.raises(UserError, match=words):  # nothing is asked any more
        store.read(one)
    assert len(handler.seen) == before


def test_what_vanishes_or_changes_is_one_unreadable_image(web):
    address, handler = web
    store, name = bucket.opened(f"{address}/folder/a/0.jpg")
    one = store.head(name)
    for faults, now, words in (([], one._replace(name="folder/none.jpg"), "404"), (["short"] * 3, one, "bytes came")):
        handler.faults[:] = faults
        with pytest.raises(bucket.Gone, match=words):
            store.read(now)
    with pytest.raises(bucket.Gone, match="written anew"):
        store.read(one._replace(version="2", written=5))
    assert store.outage is None


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_without_credentials_a_sentence_names_them(scheme, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(bucket, "TRIES", 1)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(UserError, match="GOOGLE_APPL|AWS_ACCESS_KEY_ID|AZURE_STORAGE_ACCOUNT") as caught:
        data.open_source("folder", f"{scheme}://bucket/images", "")
    one_sentence(caught)


@pytest.mark.parametrize("fault", ["503", "slow", "cut", "short"])
def test_shards_come_whole_through_faults(web, sets, fault, monkeypatch, tmp_path):
    """The look through a tar, the foot of a Parquet file, images one by one and together."""
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path))
    address, handler = web
    for kind in ("tar", "parquet"):
        handler.faults[:] = [fault, fault]
        far = data.open_source(kind, f"{address}/{kind}", f"train-{{0..1}}.{kind}")
        local = source_kinds.opened(kind, sets / kind)
        assert far.listing() == local.listing() and not handler.faults
        wanted = [local.encoded(k) for k in range(6)]
        handler.faults[:] = [fault]
        assert far.read_together(np.arange(6)) == wanted and not handler.faults
        handler.faults[:] = [fault, fault]
        assert far.encoded(4) == wanted[4] and far.afar.buckets[0].outage is None
        assert far.afar.buckets[0].counts.repeated >= 3
