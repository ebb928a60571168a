"""Kept lists: which changes below a folder are seen, which files are believed, and that nothing depends on them."""

import logging
import os
import pathlib
import time

import numpy as np
import pytest
from PIL import Image
from source_kinds import PIXELS, folder

from barlow_jax import data
from barlow_jax.data import kept, walk

FILES = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/deep/1.jpg", "b/deep.jpg", "b/notes.txt")


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """The folder of kept lists; every folder of images is worth one, and a clock that is ahead makes it old enough."""
    monkeypatch.setenv("BARLOW_JAX_LISTS", str(tmp_path / "lists"))
    monkeypatch.setattr(kept, "WORTH", 1)
    monkeypatch.setattr(kept, "_file_system", lambda path: "ext4")
    monkeypatch.setattr(kept, "RECENT", 10)
    monkeypatch.setattr(kept.time, "time", lambda now=time.time: now() + 20)
    return tmp_path / "lists"


@pytest.fixture
def images(tmp_path):
    return folder(tmp_path / "images", *FILES)


@pytest.fixture
def looked(monkeypatch):
    """The folders that were looked through, by name, since it was cleared."""
    found, scan = [], os.scandir

    def told(path):
        if "images" in str(path) or "store" in str(path):
            found.append(pathlib.Path(path).name)
        return scan(path)

    monkeypatch.setattr(os, "scandir", told)
    return found


def plain(root):
    """What a look without lists finds."""
    found = sorted(os.path.relpath(os.path.join(top, name), root) for top, _, names in os.walk(root) for name in names)
    return [name for name in found if name.endswith(walk.EXTENSIONS)]


def look(root, looked=None):
    """The images, and of which folders the entries were asked for."""
    if looked is not None:
        looked.clear()
    found = walk.look(root)
    return list(found.images), found, None if looked is None else sorted(looked)


def test_an_unchanged_folder_is_not_looked_through_again(lists, images, looked):
    first, found, seen = look(images, looked)
    assert first == plain(images) and seen == ["a", "b", "deep", "images"]
    assert len(list(lists.iterdir())) == 1
    again, same, seen = look(images, looked)
    assert again == first and seen == [] and same.left_out == found.left_out and same.folders == ["a", "b"]
    source, other = data.ImageFolder(images), data.ImageFolder(images, labels="none")
    assert source.labels.tolist() == [0, 0, 1, 1, 1] and source.class_names == ("a", "b") and other.labels is None


def rewrite(path):
    path.write_bytes(b"\xff\xd8\xff as an image begins")


# What is done below the folder, and which folders are then looked through again.
CHANGES = {
    "a file comes": (lambda root: (root / "a" / "0.jpg").write_bytes(b""), ["a"]),
    "a file goes": (lambda root: (root / "b" / "1.jpg").unlink(), ["b"]),
    "a file is renamed": (lambda root: (root / "a" / "1.jpg").rename(root / "a" / "3.jpg"), ["a"]),
    "a file moves": (lambda root: (root / "a" / "1.jpg").rename(root / "b" / "9.jpg"), ["a", "b"]),
    "a folder comes": (lambda root: folder(root, "c/1.jpg"), ["c", "images"]),
    "a folder is renamed": (lambda root: (root / "b").rename(root / "d"), ["d", "deep", "images"]),
    "deep down": (lambda root: (root / "b" / "deep" / "2.jpg").write_bytes(b""), ["deep"]),
    "a text becomes an image": (lambda root: rewrite(root / "b" / "notes.txt"), ["b"]),
    "a folder's rights change": (lambda root: (root / "a").chmod(0o700), ["a"]),
    "its time is put back": (lambda root: put_back(root / "a"), ["a"]),
    "an image is rewritten": (lambda root: rewrite(root / "a" / "1.jpg"), []),  # its name is the same
}


def put_back(path):
    """As rsync and tar do: a file comes, and the folder gets the time that it had."""
    before = path.stat()
    (path / "0.jpg").write_bytes(b"")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_seen_and_only_that_is_looked_through(lists, images, looked, change):
    look(images)
    time.sleep(0.01)  # more than a tick of the clock that files have
    done, again = CHANGES[change]
    done(images)
    found, _, seen = look(images, looked)
    expected = plain(images)
    if change == "a text becomes an image":
        expected = sorted([*expected, "b/notes.txt"])
    assert found == expected and seen == again
    assert look(images, looked)[0::2] == (found, [])


def test_folders_with_links_are_looked_through_every_time(lists, images, tmp_path, looked):
    folder(tmp_path / "store", "x.jpg")
    rewrite(tmp_path / "store" / "x.jpg")
    os.symlink(tmp_path / "store", images / "linked")
    os.symlink(tmp_path / "store" / "x.jpg", images / "a" / "link.jpg")
    look(images)
    found, _, seen = look(images, looked)
    assert "linked/x.jpg" in found and seen == ["a", "images"]
    (images / "linked").unlink()
    os.symlink(tmp_path / "store" / "x.jpg", images / "linked")  # a link to a folder becomes one to an image
    assert "linked" in look(images)[0] and "linked/x.jpg" not in look(images)[0]


def test_a_folder_that_has_just_changed_is_looked_through_again(lists, images, looked, monkeypatch):
    """Of two changes at one tick of the clock a time tells the first only."""
    monkeypatch.setattr(kept, "RECENT", 100)
    look(images)
    assert look(images, looked)[2] == ["a", "b", "deep", "images"]


def test_many_files_that_had_to_be_opened(lists, images, looked, monkeypatch):
    monkeypatch.setattr(kept, "ASKED", 2)
    folder(images, "b/more", "b/yet more", "a/one", "a/two")
    look(images)
    assert look(images, looked)[2] == ["b"]


def test_file_systems_whose_folders_have_no_times(lists, images, looked, monkeypatch):
    monkeypatch.setattr(kept, "_file_system", lambda path: "fuse.gcsfuse")
    look(images)
    assert not lists.exists() and look(images, looked)[2] == ["a", "b", "deep", "images"]


def test_the_type_of_a_file_system():
    assert kept._file_system("/proc/self") == "proc" and kept._file_system("/sys/no such thing") == "sysfs"


def damage(name):
    def cut(path):
        path.write_bytes(path.read_bytes()[:-100])

    def flip(path):
        content = bytearray(path.read_bytes())
        content[content.find(b"2.jpg")] ^= 1
        path.write_bytes(content)

    def empty(path):
        path.write_bytes(b"")

    def of_another_version(path):
        arrays = dict(np.load(path))
        arrays["about"] = np.frombuffer(arrays["about"].tobytes().replace(b".jpeg", b".jpex"), np.uint8)
        np.savez(path, **arrays)

    def not_together(path):
        arrays = dict(np.load(path))
        np.savez(path, **arrays | {"sizes": arrays["sizes"][:-1]})

    def open_to_others(path):
        path.chmod(0o666)

    def a_link(path):
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))

    return locals()[name]


@pytest.mark.parametrize(
    "name", ["cut", "flip", "empty", "of_another_version", "not_together", "open_to_others", "a_link"]
)
def test_files_that_are_not_believed_are_written_anew(lists, images, looked, caplog, name):
    first = look(images)[0]
    (file,) = lists.iterdir()
    damage(name)(file)
    with caplog.at_level(logging.INFO):
        found, _, seen = look(images, looked)
    assert found == first and len(seen) == 4 and "is not used (" in caplog.text
    assert look(images, looked)[2] == []


def test_a_list_of_another_user_is_not_believed(lists, images, looked, monkeypatch, caplog):
    look(images)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with caplog.at_level(logging.INFO):
        assert len(look(images, looked)[2]) == 4
    assert "others may have written it" in caplog.text


def test_where_no_list_can_be_written(lists, images, looked, caplog):
    lists.write_text("a file in the place of the folder")
    with caplog.at_level(logging.INFO):
        assert look(images)[0] == plain(images)
    assert "is not kept" in caplog.text


@pytest.mark.parametrize("value", ["", "off"])
def test_lists_can_be_turned_off(lists, images, looked, monkeypatch, value):
    monkeypatch.setenv("BARLOW_JAX_LISTS", value)
    look(images)
    assert len(look(images, looked)[2]) == 4 and not lists.exists()


def test_where_the_lists_are(monkeypatch, tmp_path):
    monkeypatch.delenv("BARLOW_JAX_LISTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept.place() == f"{tmp_path}/barlow-jax/lists"
    monkeypatch.setenv("XDG_CACHE_HOME", "not absolute")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert kept.place() == "/home/somebody/.cache/barlow-jax/lists"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a container whose user has no home
    assert kept.place() is None


def test_lists_beyond_some_number_go(lists, images, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 2)
    lists.mkdir()
    for age, name in enumerate(("old.npz", "older.npz", ".dead.unfinished", ".at work.unfinished")):
        (lists / name).write_bytes(b"")
        os.utime(lists / name, (time.time() - 100 * age,) * 2)
    os.utime(lists / ".dead.unfinished", (0, 0))
    look(images)
    left = {path.name for path in lists.iterdir()}
    assert len(left) == 3 and {"old.npz", ".at work.unfinished"} < left


def test_small_folders_have_no_list(lists, images, monkeypatch):
    monkeypatch.setattr(kept, "WORTH", 6)
    look(images)
    assert not lists.exists()
    folder(images, "a/6.jpg")
    look(images)
    assert lists.exists()


def test_names_that_are_not_utf_8_are_kept(lists, tmp_path, looked):
    root = tmp_path / "images"
    for name in (b"\xe9t\xe9/\xe0.png", b"chien/b\\x.png", "日/é.png".encode()):
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(path, "PNG")
    first = data.ImageFolder(root)
    looked.clear()
    again = data.ImageFolder(root)
    assert looked == [] and again.paths == first.paths and again.class_names == first.class_names
    assert again.listing() == first.listing() and np.array_equal(again.labels, first.labels)


def test_progress_is_told(images, caplog, monkeypatch):
    monkeypatch.setattr(walk, "SECONDS", -1)
    with caplog.at_level(logging.INFO):
        walk.look(images)
    assert f"looking through {images}: 5 images so far" in caplog.text
