"""Every kind of source gives what data/protocol.py says, and a fingerprint that follows its content."""

import json
import os
import re
import subprocess
import sys

import commands
import numpy as np
import pytest
import source_kinds
from PIL import Image

from barlow_jax import data
from barlow_jax.data.protocol import Source


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A folder of each kind, with the set in it."""
    found = {kind: tmp_path_factory.mktemp(kind) / "set" for kind in source_kinds.KINDS}
    for kind, root in found.items():
        source_kinds.write(kind, root)
    return found


@pytest.fixture(params=source_kinds.KINDS)
def kind(request):
    return request.param


def canvases(source):
    (batch,) = data.eval_batches(source, batch_size=len(source), canvas=48, resize_short=20, crop=20, threads=2)
    assert batch["mask"].all()
    return batch["canvas"], batch["label"]


def test_what_every_source_gives(roots, kind):
    source = source_kinds.opened(kind, roots[kind])
    members = [name for name in vars(Source) if name == "__len__" or not name.startswith("_")]
    assert len(members) == 17 and not [name for name in members if not hasattr(source, name)]
    n = len(source)
    assert n == source_kinds.COUNT or kind == "digits"
    assert source.channels == 3 and isinstance(source.name, str) and source.name
    assert (source.class_names is None) == (kind in ("listed", "voc", "npz"))
    assert source.num_classes == {"folder": 2, "npz": 2, "tar": 2, "parquet": 2, "listed": None, "voc": None}.get(
        kind, 10
    )
    assert len({source.where(k) for k in range(n)}) == n and all(isinstance(source.where(k), str) for k in range(n))
    if source.images is not None:
        assert source.images.shape == (n, *source.shape) and source.why_unreadable(0) == ""
    else:
        assert source.shape is source.sizes is None and "save it anew" in source.why_unreadable(0)
    of_files = (40, 48) if kind in ("array_record", "tfrecord") else (20, 24)
    assert {source.stored_size(k) for k in range(n)} == {source.shape[:2] if source.shape else of_files}
    pixels, labels = canvases(source)
    if source.labels is not None:
        assert source.labels.dtype == np.int32 and np.array_equal(source.labels, labels)
    assert (labels.max() >= 0) == (source.num_classes is not None)


def test_a_part_is_a_source_too(roots, kind):
    source = source_kinds.opened(kind, roots[kind])
    pixels, labels = canvases(source)
    for rows in (np.asarray([4, 1]), np.arange(2, 5)):
        part = source.take(rows)
        assert len(part) == len(rows) and len(source) == len(pixels) and type(part) is type(source)
        assert [part.where(k) for k in range(len(rows))] == [source.where(row) for row in rows]
        assert np.array_equal(canvases(part)[0], pixels[rows]) and np.array_equal(canvases(part)[1], labels[rows])
        assert part.take([1]).where(0) == source.where(rows[1])
        assert part.fingerprint() == source.take(rows).fingerprint() != source.fingerprint()
        assert part.listing() == source.take(rows).listing() != source.listing()
    assert source.take([4, 1]).fingerprint() != source.take([1, 4]).fingerprint()


def test_a_fingerprint_is_the_same_in_another_process(roots):
    code = """if True:
        import json, sys
        sys.path[:0] = ["tests"]
        import source_kinds
        print(json.dumps({k: source_kinds.opened(k, r).fingerprint() for k, r in json.loads(sys.argv[1]).items()}))
        """
    given = json.dumps({kind: str(root) for kind, root in roots.items()})
    result = subprocess.run(
        [sys.executable, "-c", code, given], cwd=commands.ROOT, capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == {kind: source_kinds.opened(kind, root).fingerprint() for kind, root in roots.items()}
    assert len(set(found.values())) == len(found) and all(re.fullmatch("[0-9a-f]{64}", one) for one in found.values())


def test_a_fingerprint_follows_the_pixels(tmp_path, kind):
    root = tmp_path / "set"
    source_kinds.write(kind, root)
    before = source_kinds.opened(kind, root)
    first = before.fingerprint()
    assert source_kinds.opened(kind, root).fingerprint() == first
    source_kinds.write(kind, root, seed=1)
    after = source_kinds.opened(kind, root, seed=1)
    assert [after.where(k) for k in range(len(after))] == [before.where(k) for k in range(len(before))]
    assert after.fingerprint() != first
    # It is found when it is asked for: files are looked at again, and what is in memory has not changed.
    assert (before.fingerprint() == first) == (before.images is not None)


def test_a_fingerprint_follows_each_thing_it_depends_on(tmp_path):
    source_kinds.write("folder", tmp_path)
    files, found = data.ImageFolder(tmp_path, class_names=("a", "b")), []
    file = files.paths[3]

    def seen(source):
        assert source.fingerprint() not in found
        found.append(source.fingerprint())

    seen(files)
    seen(data.ImageFolder(tmp_path, class_names=("b", "a")))
    seen(data.ImageFolder(tmp_path, labels="none"))
    seen(data.ImageFolder(tmp_path, class_names=("a", "b"), channels=1))
    os.utime(file, ns=(0, os.stat(file).st_mtime_ns + 1))
    seen(files)
    os.utime(file, ns=(0, os.stat(file).st_mtime_ns - 1))
    assert files.fingerprint() == found[0]
    os.remove(file)
    seen(files)  # and no error: whoever reads it replaces it, or complains
    images = source_kinds.PIXELS
    seen(data.Arrays(images))
    seen(data.Arrays(images, np.arange(6)))
    seen(data.Arrays(images, np.arange(6)[::-1]))
    seen(data.Arrays(images.reshape(6, 4, 5, 3)))
    seen(data.Arrays(images[:, ::-1]))
    seen(data.Arrays(images, sizes=np.full((6, 2), 3, np.int32)))
    assert data.Arrays(images, name="other").fingerprint() == data.Arrays(images.copy()).fingerprint()


def test_of_files_in_many_parts(tmp_path, monkeypatch):
    """More files than a thread asks about in a row: the same, in the order of the paths."""
    source_kinds.write("folder", tmp_path)
    source = data.ImageFolder(tmp_path)
    whole, turned = source.fingerprint(), source.take([5, 4, 3, 2, 1, 0]).fingerprint()
    monkeypatch.setattr("barlow_jax.data.fingerprint.PART", 2)
    assert source.fingerprint() == whole != turned == source.take([5, 4, 3, 2, 1, 0]).fingerprint()


def test_nobody_asks_a_source_for_its_class():
    asks = re.compile(r"(isinstance|hasattr|getattr)\(\s*(self\.)?_?(\w*source\w*|train|val|test|bank|images)\s*,")
    for file in (*(commands.ROOT / "barlow_jax").rglob("*.py"), *commands.ROOT.glob("*.py")):
        assert not asks.search(file.read_text()), file


def test_a_listing_is_of_names_and_order_wherever_the_files_lie(tmp_path):
    """Files that were moved are the same images; renamed, added or left out they are others."""

    def folder(name, *files):
        (tmp_path / name).mkdir()
        for k, file in enumerate(files):
            Image.fromarray(np.full((4, 4, 3), k, np.uint8)).save(tmp_path / name / file)
        return data.ImageFolder(tmp_path / name)

    one = folder("one", "a.png", "b.png", "c.png")
    assert one.listing() == folder("moved", "a.png", "b.png", "c.png").listing() != one.fingerprint()
    assert len({source.listing() for source in (one, folder("two", "a.png", "b.png", "d.png"), one.take([0, 1]))}) == 3
    alone = [
        source.listing() for source in (one.take([0]), data.ImageFolder(tmp_path / "moved").take([0]), one.take([1]))
    ]
    assert alone[0] == alone[1] != alone[2]  # of one file the folder is shared, and not its name
    held = data.in_memory(one, max_bytes=10**6, canvas=8)
    assert held.listing() == one.listing()
    arrays = data.Arrays(np.zeros((3, 4, 4, 3), np.uint8))
    assert arrays.listing() == arrays.fingerprint() != data.Arrays(np.ones((3, 4, 4, 3), np.uint8)).listing()
