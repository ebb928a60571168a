"""Files of weights by their addresses, from a cloud in this process and from a web server."""

import contextlib
import functools
import http.server
import threading

import bucket_server
import jax
import numpy as np
import pytest
import stored_runs
from official import write_backbone
from source_kinds import one_sentence

from barlow_jax.data.remote import bucket
from barlow_jax.errors import UserError
from barlow_jax.evaluation import frozen, subject
from barlow_jax.run.buckets import staging
from barlow_jax.weights import as_run, files

FILE = "gs://b/nets/r18.pth"


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "host"))
    monkeypatch.setattr(bucket, "FIRST_PAUSE", 0.01)
    with stored_runs.on(stored_runs.Cloud(), monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def local(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("nets") / "r18.pth"
    write_backbone(golden, path)
    return path


def arrays(weights):
    return jax.tree.leaves(files.backbone(weights))


def test_a_file_is_brought_down_once_for_each_of_its_versions(cloud, local):
    cloud.put(None, "nets/r18.pth", local)
    gets = []
    cloud.fault = lambda what, name: gets.append(name) if what == "get" else None
    for _ in range(2):
        assert as_run.is_file(FILE) and len(gets) < 2
        for here, there in zip(arrays(files.load(FILE)), arrays(files.load(local)), strict=True):
            np.testing.assert_array_equal(here, there)
        assert gets  # in parts of 8 MiB, the first time
        gets[:] = ["once"]
    cloud.put(None, "nets/r18.pth", b"another")
    with pytest.raises(UserError, match="r18.pth") as caught:
        files.load(FILE)
    one_sentence(caught)
    assert gets == ["once", "nets/r18.pth"]


def test_what_is_judged_bears_the_address(cloud, local):
    cloud.put(None, "nets/r18.pth", local)
    judged = subject.load(FILE)
    assert judged.path == frozen.run_folder(judged.path) == FILE and judged.sha256 == subject.load(str(local)).sha256


def test_a_folder_as_the_hub_has_them_and_a_run_with_such_a_file_in_it(cloud, local, tmp_path):
    files.save(tmp_path / "model.safetensors", "timm", files.load(local))
    cloud.put(None, "hub/r18/model.safetensors", tmp_path / "model.safetensors")
    cloud.put(None, "runs/a/model.safetensors", b"")
    cloud.put(None, "runs/a/checkpoints/10/manifest.json", b"{}")
    assert as_run.is_file("gs://b/hub/r18") and not as_run.is_file("gs://b/runs/a") and not as_run.is_file("gs://b/hub")
    for here, there in zip(arrays(files.load("gs://b/hub/r18")), arrays(files.load(local)), strict=True):
        np.testing.assert_array_equal(here, there)


def test_one_that_is_not_there_is_one_sentence(cloud):
    with pytest.raises(UserError, match=r"gs://b/nets/r18.pth is not there; correct the address") as caught:
        files.load(FILE)
    one_sentence(caught)


def test_from_a_web_server(local, monkeypatch, tmp_path):
    pytest.importorskip("obstore")
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "host"))
    with bucket_server.serving() as server:
        server.put("r18.pth", local.read_bytes())
        address = f"http://127.0.0.1:{server.server_port}/{bucket_server.BUCKET}"
        assert as_run.is_file(f"{address}/r18.pth") and not as_run.is_file(f"{address}/r18")
        for here, there in zip(arrays(files.load(f"{address}/r18.pth")), arrays(files.load(local)), strict=True):
            np.testing.assert_array_equal(here, there)
        with pytest.raises(UserError, match="none.pth is not there"):
            files.load(f"{address}/none.pth")


def test_a_web_server_that_knows_no_ranges_is_one_sentence(monkeypatch, tmp_path):
    pytest.importorskip("obstore")
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "host"))
    (tmp_path / "large.pth").write_bytes(bytes(bucket.PART + 1))
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="its server knows no ranges: copy it to this host") as caught:
            files.load(f"http://127.0.0.1:{server.server_port}/large.pth")
        one_sentence(caught)
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        with contextlib.suppress(ConnectionError):
            super().copyfile(source, outputfile)
