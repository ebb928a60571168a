"""Folders and arrays: what is found, how it is labelled, and the sentence where something is missing."""

import pathlib
import subprocess
import sys

import commands
import numpy as np
import pytest
from PIL import Image
from source_kinds import PIXELS, folder, one_sentence

from barlow_jax import data
from barlow_jax.data import sources
from barlow_jax.errors import UserError


def test_class_folders_are_numbered_in_sorted_order(tmp_path):
    names = "dog/b.JPEG", "dog/deep/a.png", "cat/z.webp", "cat/notes.txt", "cat/.hidden.jpg", ".trash/x.jpg"
    source = data.ImageFolder(folder(tmp_path, *names))
    assert source.class_names == ("cat", "dog")
    assert [pathlib.Path(p).relative_to(tmp_path).as_posix() for p in source.paths] == [
        "cat/z.webp",
        "dog/b.JPEG",
        "dog/deep/a.png",
    ]
    assert source.labels.dtype == np.int32 and source.labels.tolist() == [0, 1, 1]
    assert len(source) == 3 and source.channels == 3 and source.name == str(tmp_path)


@pytest.mark.parametrize("names", [("b.jpg", "a.jpg"), ("only/b.jpg", "only/a.jpg"), ("x/a.jpg", "y/b.jpg", "c.jpg")])
def test_other_folders_are_unlabelled(tmp_path, names):
    source = data.ImageFolder(folder(tmp_path, *names))
    assert source.labels is None and source.class_names is None
    assert source.paths == sorted(str(tmp_path / name) for name in names)


def test_labels_can_be_chosen(tmp_path):
    folder(tmp_path, "only/a.jpg")
    assert data.ImageFolder(tmp_path, labels="folders").labels.tolist() == [0]
    folder(tmp_path, "two/b.jpg")
    assert data.ImageFolder(tmp_path, labels="none").labels is None


def test_another_split_is_numbered_alike(tmp_path):
    folder(tmp_path, "b/1.jpg", "d/2.jpg")
    assert data.ImageFolder(tmp_path, class_names=("a", "b", "c", "d")).labels.tolist() == [1, 3]
    with pytest.raises(UserError, match="'?d is none of the 2 classes") as caught:
        data.ImageFolder(tmp_path, class_names=("a", "b"))
    one_sentence(caught)


def test_files_are_told_by_content(tmp_path):
    """A name of another kind, or none, counts if the file begins as an image; a name of an image always counts."""
    for name, form in {"photo": "JPEG", "0042.bin": "PNG", "x.dat": "WEBP", "y.raw": "BMP", "z": "TIFF"}.items():
        Image.fromarray(PIXELS[0]).save(tmp_path / name, form)
    (tmp_path / "BMore.txt").write_text("BMore text than image")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "broken.jpg").write_bytes(b"")
    found = [pathlib.Path(path).name for path in data.ImageFolder(tmp_path).paths]
    assert found == ["0042.bin", "broken.jpg", "photo", "x.dat", "y.raw", "z"]


def test_a_file_list_chooses_images(tmp_path, caplog):
    folder(tmp_path / "train", "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "c/1.png")
    chosen = tmp_path / "list.txt"
    chosen.write_text("4.jpg\na/1.jpg\n\n4.jpg\n")
    source = data.open_source("folder", str(tmp_path), "train", listed=str(chosen))
    assert [path[-7:] for path in source.paths] == ["a/1.jpg", "b/4.jpg"]
    assert source.labels.tolist() == [0, 1] and source.class_names == ("a", "b", "c")  # numbered as without it
    chosen.write_text("4.jpg\nabsent.jpg\n")
    assert len(data.ImageFolder(tmp_path / "train", listed=chosen)) == 1
    assert "1 of the 2 files" in caplog.text and "absent.jpg" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00", "it is no text"),
        (None, "No such file"),
        (b"absent.jpg", "names no file below"),
        (b"1.jpg", "several files below"),
    ],
)
def test_unusable_file_lists(tmp_path, content, words):
    folder(tmp_path / "images", "a/1.jpg", "b/1.jpg")
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        data.ImageFolder(tmp_path / "images", listed=tmp_path / "list.txt")
    assert words in one_sentence(caught) and "list.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (("a/1.jpg", "empty/", "b/2.jpg"), {}, "empty holds no image"),
        (("notes.txt",), {}, "holds no image"),
        (("a/1.jpg", "b/1.jpg", "2.jpg"), {"labels": "folders"}, "2.jpg lies beside"),
        (("a.jpg",), {"labels": "class"}, "'auto', 'folders' or 'none'"),
    ],
)
def test_unusable_folders(tmp_path, names, options, words):
    with pytest.raises(UserError) as caught:
        data.ImageFolder(folder(tmp_path, *names), **options)
    assert words in one_sentence(caught)


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        data.ImageFolder(tmp_path / "nowhere")


def test_arrays():
    source = data.Arrays(PIXELS, np.asarray([[0], [1], [2], [0], [1], [-1]]))
    assert len(source) == 6 and source.channels == 3 and source.labels.dtype == np.int32
    assert source.labels.tolist() == [0, 1, 2, 0, 1, -1] and source.images is PIXELS
    assert data.Arrays(PIXELS[..., :1]).channels == 1 and data.Arrays(PIXELS).labels is None


@pytest.mark.parametrize(
    ("images", "labels", "names", "words"),
    [
        (PIXELS / 255, None, None, "float64"),
        (PIXELS.transpose(0, 3, 1, 2), None, None, "channels last"),
        (PIXELS[0], None, None, "shape (5, 4, 3)"),
        (PIXELS[:0], None, None, "n >= 1"),
        (PIXELS, np.zeros(5, int), None, "integers [6]"),
        (PIXELS, np.zeros(6), None, "float64"),
        (PIXELS, np.full(6, -2), None, "label -2"),
        (PIXELS, np.full(6, 2**40), None, "label 1099511627776 is no number of a class"),
        (PIXELS, np.full(6, 2**64 - 1, np.uint64), None, "label 18446744073709551615 is no number"),
        (PIXELS, np.full(6, 2**31 - 1), None, "there may be 1,000,000: number them from 0"),
        (PIXELS, np.full(6, -(2**40)), None, "label -1099511627776 is negative"),
        (PIXELS, np.arange(6), "ab", "label 5 has no name"),
    ],
)
def test_unusable_arrays(images, labels, names, words):
    with pytest.raises(UserError) as caught:
        data.Arrays(images, labels, class_names=names)
    assert words in one_sentence(caught)


@pytest.mark.parametrize("count", [1, 4, 6, 0, 99])
def test_evenly_spaced(tmp_path, count):
    arrays = data.Arrays(PIXELS, np.arange(6))
    files = data.ImageFolder(folder(tmp_path, *(f"{k}/x.jpg" for k in range(6))))
    for source in (arrays, files):
        part = sources.evenly_spaced(source, count)
        n = count if 0 < count < 6 else 6
        assert len(part) == len(part.labels) == n and len(source) == 6
        assert part.labels[0] == 0 and (n == 1 or part.labels[-1] == 5) and np.all(np.diff(part.labels) > 0)
        some = sources.evenly_spaced(source, count, among=np.asarray([1, 2, 4, 5]))
        n = count if 0 < count < 4 else 4
        assert len(some) == n and set(some.labels) <= {1, 2, 4, 5} and np.all(np.diff(some.labels) > 0)


def test_labelled():
    for labels, expected in ((None, []), ([-1] * 6, []), ([2, -1, 0, -1, -1, 1], [0, 2, 5])):
        assert sources.labelled(data.Arrays(PIXELS, labels)).tolist() == expected
    assert data.Arrays(PIXELS, [0, -1, -1, -1, -1, 0]).num_classes == 1 and data.Arrays(PIXELS).num_classes is None


def test_arrays_and_digits_do_not_load_tensorflow():
    code = """if True:
        import sys
        import numpy as np
        from barlow_jax import data
        source = data.open_source("digits", split="val", renderings=1)
        train = data.train_batches(source, batch_size=8, seed=0, canvas=24)
        next(train)
        list(data.eval_batches(source, batch_size=64, canvas=24, resize_short=24, crop=24))
        print("tensorflow" in sys.modules)
        """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=commands.ROOT, capture_output=True, text=True
    )
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def test_tensorflow_starts_silently_and_sees_no_accelerator(tmp_path):
    for k in range(4):
        Image.fromarray(PIXELS[k]).save(tmp_path / f"{k}.png")
    code = f"""if True:
        from barlow_jax import data
        batches = data.train_batches(data.ImageFolder({str(tmp_path)!r}), batch_size=4, seed=0, canvas=8)
        next(batches)
        import tensorflow as tf
        print(tf.config.get_visible_devices("GPU"), tf.config.get_visible_devices("TPU"))
        """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=commands.ROOT, capture_output=True, text=True
    )
    assert (result.stdout.strip(), result.stderr) == ("[] []", "")
