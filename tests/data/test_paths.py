"""Paths in one text: equal to the list of strings in all that is asked of them, and what they take of memory."""

import hashlib
import json
import os
import tracemalloc

import numpy as np
import pytest
from source_kinds import folder

from barlow_jax import data
from barlow_jax.data import paths as paths_module
from barlow_jax.data import walk
from barlow_jax.data.listed import ListedFiles
from barlow_jax.data.paths import Paths

NAMES = ["/s/b/1.jpg", "/s/a/2.jpg", "/s/a-b/3.jpg", "/s/a/é.jpg", "/s/a/" + os.fsdecode(b"\xe9.jpg"), "/s/日.png"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(paths_module, "PART", 4)


def listing(paths, labels=None):
    """`Files.listing` as version 0.1 has it, of strings."""
    first, last = min(paths), max(paths)
    shared = os.path.commonpath([first, last]) if len(paths) > 1 else os.path.dirname(first)
    names = os.fsencode("\0".join([path[len(shared) :] for path in paths]))
    found = hashlib.sha256(json.dumps({}).encode())
    for array in (np.frombuffer(names, np.uint8), labels):
        found.update(repr(None if array is None else (array.dtype.str, array.shape)).encode())
        found.update(b"" if array is None else array.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("n", [1, 3, 4, 5, 6])
def test_they_are_as_the_strings(n):
    names = NAMES[:n]
    found = Paths.of(names)
    assert len(found) == n and list(found) == names and found == names and found != [*names, "x"] and found != names[1:]
    assert [found[k] for k in range(-n, n)] == [names[k] for k in range(-n, n)] and found[np.int64(n - 1)] == names[-1]
    for part in (slice(None), slice(1, 5), slice(None, None, -2), slice(9, 10)):
        assert found[part] == names[part]
    rows = np.asarray([n - 1, 0, 0, -1, n // 2])
    assert found.take(rows) == [names[row] for row in rows] and found.take([]) == []
    assert found.encoded(rows[:2]) == [os.fsencode(names[row]) for row in rows[:2]]
    with pytest.raises(IndexError):
        found[n]


def test_the_listing_is_as_it_was(tmp_path):
    """Runs that were begun before go on: the order of training goes by it."""
    labels = np.arange(6, dtype=np.int32)
    for names in (NAMES, NAMES[:1], NAMES[1:2] * 2, [f"x/{k}/y/{k}.jpg" for k in range(9)], ["/a", "/b/c"]):
        source = data.sources.Files(names, name="x")
        assert source.listing() == listing(names)
        assert source.take([len(names) - 1, 0]).listing() == listing([names[-1], names[0]])
    labelled = data.sources.Files(NAMES, name="x", labels=labels, class_names=tuple("abcdef"))
    assert labelled.listing() == listing(NAMES, labels)


def test_a_folder_is_in_the_order_of_its_strings(tmp_path, monkeypatch):
    """Of whole paths, in which "-" and "." come before the "/" that ends the name of a folder, and "0" after it."""
    stems = ("a", "a-b", "a.d", "a0", "A", "é", os.fsdecode(b"\xe9"), "日", "\U0001f600", "\uffee")
    names = [f"{top}/{stem}{end}" for top in stems for stem in stems for end in (".jpg", "/1.jpg", "/x/2.png")]
    folder(tmp_path, *names)
    expected = sorted(str(tmp_path / name) for name in names)
    source = data.ImageFolder(tmp_path)
    assert source.paths == expected and source.listing() == listing(expected, source.labels)
    numbers = [source.class_names[label] for label in source.labels]
    assert numbers == [walk.readable(path[len(str(tmp_path)) + 1 :].split("/")[0]) for path in expected]
    monkeypatch.chdir(tmp_path)
    for root in (".", "a", "./a/"):
        inside = data.ImageFolder(root, labels="none")
        assert inside.paths == sorted(str(walk.local_path(root) / name) for name in inside_of(root, names))


def inside_of(root, names):
    return names if root == "." else [name[2:] for name in names if name.startswith("a/")]


LINES = ["a/1.jpg", "./a/1.jpg", "a//1.jpg", "a/./1.jpg", "a/../a/1.jpg", "{root}/a/1.jpg", "a/.b.jpg", "a/1.jpg"]


@pytest.mark.parametrize("lines", [LINES, [LINES[0], LINES[5], LINES[6]], *([line] for line in LINES)])
@pytest.mark.parametrize("base", ["", "relative"])
def test_lines_of_a_list_are_as_pathlib_joins_them(tmp_path, monkeypatch, lines, base):
    folder(tmp_path, "a/1.jpg", "a/.b.jpg")
    lines = [line.format(root=tmp_path) for line in lines]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    path = "list.txt" if base else tmp_path / "list.txt"
    assert ListedFiles(path).paths == [str(walk.local_path(path).parent / line) for line in lines]


def test_links_and_folders_that_a_list_names(tmp_path):
    folder(tmp_path, *(f"many/{k}.txt" for k in range(30)), "a.jpg", "b/x.jpg")
    os.symlink("a.jpg", tmp_path / "link.jpg")
    os.symlink("gone.jpg", tmp_path / "broken.jpg")
    names = ["many/7.txt", "a.jpg", "link.jpg", "broken.jpg", "b", "b/x.jpg", "no such/y.jpg", "broken.jpg"]
    paths = [str(tmp_path / name) for name in names]
    absent = [str(tmp_path / name) for name in ("broken.jpg", "b", "no such/y.jpg", "broken.jpg")]
    assert walk.missing(paths) == absent and walk.missing(paths[:3]) == []


def test_a_path_takes_five_bytes_more_than_its_name(monkeypatch):
    monkeypatch.setattr(paths_module, "PART", 1000)
    names = [f"/data/imagenet/train/n{k // 100:08}/n{k // 100:08}_{k}.JPEG" for k in range(20_000)]
    tracemalloc.start()
    try:
        found = Paths.of(names)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = sum(map(len, names)) - len(names) * len(os.path.commonprefix(names))
    assert held < 1.2 * (size + 5 * len(names)) and peak < 2.5 * held
    assert found == names
