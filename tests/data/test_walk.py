"""What is found below a folder: regular files, once on a path; and what is left out is counted and named."""

import logging
import os
import pathlib
import re
import signal
import socket

import numpy as np
import pytest
from PIL import Image
from source_kinds import PIXELS, folder, one_sentence

from barlow_jax import data
from barlow_jax.data import walk
from barlow_jax.data.listed import ListedFiles
from barlow_jax.data.voc import VOC
from barlow_jax.errors import UserError


@pytest.fixture(autouse=True)
def no_hang():
    """A pipe that is opened waits for ever: 60 seconds are enough for any of these."""

    def give_up(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def names(source, root):
    return [pathlib.Path(path).relative_to(root).as_posix() for path in source.paths]


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.bin"])
def test_pipes_and_sockets_are_left_out(tmp_path, caplog, name):
    folder(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / name)
    os.symlink(tmp_path / name, tmp_path / "link.png")
    with socket.socket(socket.AF_UNIX) as end, caplog.at_level(logging.INFO):
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path must be short
        end.bind("s.jpg")
        os.chdir(here)
        os.symlink("/dev/zero", tmp_path / "zero.jpg")
        assert names(data.ImageFolder(tmp_path), tmp_path) == ["a.jpg"]
    assert "1 images; left out: 4 pipes, sockets or devices" in caplog.text


def test_a_link_to_a_folder_above_is_not_followed(tmp_path, caplog):
    """One image stays one; two such links come to an end."""
    folder(tmp_path, "a/b/x.jpg")
    os.symlink(tmp_path, tmp_path / "a" / "b" / "up")
    os.symlink(tmp_path / "a", tmp_path / "a" / "again")
    os.symlink("itself", tmp_path / "itself")
    with caplog.at_level(logging.INFO):
        assert names(data.ImageFolder(tmp_path), tmp_path) == ["a/b/x.jpg"]
    assert "2 links to a folder above them" in caplog.text and "1 broken links" in caplog.text


def test_a_folder_may_be_reached_by_two_paths(tmp_path):
    """Links to folders elsewhere are followed, and so are two links to one folder, as in a set made of others."""
    folder(tmp_path, "store/x.jpg", "set/cat/")
    for name in ("dog", "cow", "cat/more"):
        os.symlink(tmp_path / "store", tmp_path / "set" / name)
    source = data.ImageFolder(tmp_path / "set")
    assert names(source, tmp_path / "set") == ["cat/more/x.jpg", "cow/x.jpg", "dog/x.jpg"]
    assert source.class_names == ("cat", "cow", "dog")


def test_an_image_that_is_missing_is_told_of_when_it_is_its_turn(tmp_path):
    folder(tmp_path, "a.jpg")
    os.symlink(tmp_path / "gone.jpg", tmp_path / "b.jpg")
    assert names(data.ImageFolder(tmp_path), tmp_path) == ["a.jpg", "b.jpg"]


def test_what_is_left_out_is_counted_and_named_once(tmp_path, caplog):
    folder(tmp_path, "a/1.jpg", "b/2.jpg", "b/x.heic", "b/y.HEIC", "a/z.avif", "a/t.tga", "a/j.jp2", "a/notes.txt")
    folder(tmp_path, ".DS_Store", "a/._1.jpg", ".trash/3.jpg", "a/README", "__MACOSX/a/._1.jpg", "__MACOSX/b/4.jpg")
    with caplog.at_level(logging.INFO):
        source = data.ImageFolder(tmp_path)
    assert names(source, tmp_path) == ["a/1.jpg", "b/2.jpg"] and source.class_names == ("a", "b")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    told = dict(reversed(part.split(" ", 1)) for part in record.getMessage().split("left out: ")[1].split(", "))
    expected = {".heic": "2", ".avif": "1", ".tga": "1", ".jp2": "1", ".txt": "1"}
    assert told == expected | {"hidden": "3", "without an ending": "1", "__MACOSX": "1"}


def test_other_files_are_no_warning(tmp_path, caplog):
    folder(tmp_path, "1.jpg", "labels.csv", *(f"x.{k}" for k in range(12)))
    with caplog.at_level(logging.INFO):
        data.ImageFolder(tmp_path)
    (record,) = caplog.records
    assert record.levelno == logging.INFO and "and 3 other kinds" in record.getMessage()
    for k in range(3):
        (tmp_path / f"x.{k}").unlink()
    with caplog.at_level(logging.INFO):
        data.ImageFolder(tmp_path)
    assert "other kinds" not in caplog.records[-1].getMessage()  # the ten are all named


def test_folders_that_may_not_be_looked_into_are_told(tmp_path, caplog, monkeypatch):
    folder(tmp_path, "a/1.jpg", "b/deep/2.jpg", "b/3.jpg")
    scan = os.scandir

    def refused(path):  # to root, who runs some tests, nothing is forbidden
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert names(data.ImageFolder(tmp_path), tmp_path) == ["a/1.jpg", "b/3.jpg"]
    assert "1 folders below" in caplog.text and "deep for one" in caplog.text


NAMES = {
    b"caf\xc3\xa9 \xe6\x97\xa5.jpg": "café 日.jpg",
    b"caf\xe9.jpg": r"caf\xe9.jpg",
    b"caf\xe9\\2.jpg": r"caf\xe9\\2.jpg",
    rb"caf\xe9.jpg": r"caf\\xe9.jpg",
    rb"a\b.jpg": r"a\b.jpg",
    b"\xff\xc3\xa9.jpg": r"\xffé.jpg",
}


def bytes_of(text):
    """The name that `readable` tells."""
    if "\\x" not in text:
        return text.encode()
    found = re.sub(r"\\(\\|x[0-9a-f]{2})", lambda m: "\\" if m[1] == "\\" else chr(0xDC00 + int(m[1][1:], 16)), text)
    return os.fsencode(found)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_not_utf_8(name):
    text = walk.readable(os.fsdecode(name))
    assert text == NAMES[name] and text.encode() and bytes_of(text) == os.fsencode(walk.named(text)) == name


def test_images_and_classes_of_such_names_are_read(tmp_path):
    for k, name in enumerate((b"b\xe9te", b"chien", b"\xe9t\xe9")):
        (tmp_path / os.fsdecode(name)).mkdir()
        Image.fromarray(PIXELS[k]).save(tmp_path / os.fsdecode(name + b"/\xe0.png"), "PNG")
    source = data.ImageFolder(tmp_path)
    assert source.class_names == (r"b\xe9te", "chien", r"\xe9t\xe9") and source.labels.tolist() == [0, 1, 2]
    assert source.where(0) == rf"{tmp_path}/b\xe9te/\xe0.png"
    (batch,) = data.eval_batches(source, batch_size=3, canvas=8, resize_short=4, crop=4, threads=1)
    assert batch["mask"].all()
    assert np.array_equal(data.ImageFolder(tmp_path, class_names=source.class_names).labels, source.labels)
    assert len(source.fingerprint()) == 64


def test_pipes_among_lists(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "list.txt").write_text("pipe.jpg\n")
    os.mkfifo(tmp_path / "pipe.txt")
    folder(tmp_path, "voc/ImageSets/Main/", "voc/JPEGImages/")
    (tmp_path / "voc/ImageSets/Main/cow_test.txt").write_text("1 1\n")
    os.mkfifo(tmp_path / "voc/ImageSets/Main/dog_test.txt")
    os.mkfifo(tmp_path / "voc/JPEGImages/1.jpg")
    os.mkfifo(tmp_path / "x.npz")
    for call, words in (
        (lambda: ListedFiles(tmp_path / "list.txt"), "pipe.jpg, which .* does not exist, nor do 0 other"),
        (lambda: ListedFiles(tmp_path / "pipe.txt"), "it is no regular file"),
        (lambda: VOC(tmp_path / "voc", "test"), "1 of the 1 images of voc:test are missing"),
        (lambda: data.load_npz(tmp_path / "x.npz"), "is no regular file"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            call()
        one_sentence(caught)


@pytest.mark.parametrize("kind", ["listed", "voc"])
def test_buckets_are_to_be_mounted(kind):
    """For what is not read from afar (test_remote.py has what is)."""
    address = "gs://bucket/images"
    opened = {"listed": ListedFiles, "voc": lambda path: VOC(path, "test")}[kind]
    with pytest.raises(UserError, match="gs://bucket/images is not on a file system: mount the bucket"):
        opened(address)
