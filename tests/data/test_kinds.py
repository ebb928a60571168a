"""What a few fields of a config open: .npz files, and the sentence where kind, option or path is wrong."""

import io
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from source_kinds import PIXELS, folder, one_sentence

from barlow_jax import data
from barlow_jax.data import kinds
from barlow_jax.errors import UserError


@pytest.mark.parametrize(
    ("split", "keys"), [("train", "x_train y_train"), ("val", "val_images val_labels"), ("", "images labels")]
)
@pytest.mark.parametrize("names", ["names", "classes", None])
def test_npz(tmp_path, split, keys, names):
    images, labels = keys.split()
    extra = {names: np.asarray(["ant", "bee"])} if names else {}
    np.savez(tmp_path / "set.npz", **{images: PIXELS, labels: np.arange(6) % 2, "unread": np.asarray([None])}, **extra)
    source = data.open_source("npz", str(tmp_path / "set.npz"), split)
    assert np.array_equal(source.images, PIXELS) and source.labels.tolist() == [0, 1] * 3
    assert source.class_names == (("ant", "bee") if names else None)


def test_npz_of_grey_images_without_labels(tmp_path):
    np.savez(tmp_path / "grey.npz", x_test=PIXELS[..., 0])
    source = data.load_npz(tmp_path / "grey.npz", "test")
    assert source.images.shape == (6, 5, 4, 1) and source.labels is None and source.name == "grey.npz:test"


def test_unusable_npz(tmp_path):
    np.savez(tmp_path / "set.npz", x_train=PIXELS)
    np.savez(tmp_path / "pickled.npz", x_train=np.asarray([None]))
    np.save(tmp_path / "bare.npz.npy", PIXELS)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:200])
    for name, split, words in (
        ("set.npz", "test", "test_images or x_test (it has x_train)"),
        ("none.npz", "train", "does not exist"),
        ("pickled.npz", "train", "cannot be read"),
        ("bare.npz.npy", "train", "(it has images): name another split, as in config.data.train or FILE:SPLIT"),
        ("text.npz", "train", "cannot be read"),
        ("cut.npz", "train", "cannot be read"),
    ):
        with pytest.raises(UserError) as caught:
            data.load_npz(tmp_path / name, split)
        assert words in one_sentence(caught) and name in str(caught.value)


def test_channels_that_arrays_do_not_have(tmp_path):
    np.savez(tmp_path / "set.npz", x_train=PIXELS)
    held = PIXELS.shape[-1] if PIXELS.ndim == 4 else 1
    fields = dict(kind="npz", name="", path=str(tmp_path / "set.npz"), train="train", file_list="", channels=held)
    for channels in (0, held):
        fields["channels"] = channels
        assert kinds.open_fields(ConfigDict(fields), "train", {}).channels == held
    fields["channels"] = held + 1
    with pytest.raises(UserError, match=f"config.data.channels is {held + 1}, and the images of set.npz") as caught:
        kinds.open_fields(ConfigDict(fields), "train", {})
    one_sentence(caught)


def test_open_source(tmp_path):
    folder(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    assert data.open_source("folder", str(tmp_path), "train").class_names == ("a", "b")
    assert data.open_source("folder", str(tmp_path / "train"), "", labels="none").labels is None
    for arguments, options, words in (
        (("tfrecord", "x"), {}, "'folder', 'tfds', 'tar', 'parquet', 'npz', 'digits'"),
        (("folder", ""), {}, "needs config.data.path"),
        (("folder", str(tmp_path), "test"), {}, "no sub-folder 'test'"),
        (("npz", "x.npz"), {"labels": "none"}, "no option 'labels'"),
        (("digits", "somewhere"), {}, "built in"),
    ):
        with pytest.raises(UserError) as caught:
            data.open_source(*arguments, **options)
        assert words in one_sentence(caught)


def test_damaged_npz(tmp_path):
    """A sentence or the arrays, whatever bytes are changed: of 600 files, compressed and not."""
    rng = np.random.default_rng(0)
    whole = []
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "set.npz", x_train=PIXELS, y_train=np.arange(6), classes=np.asarray(list("abcdef")))
        whole.append((tmp_path / "set.npz").read_bytes())
    refused = 0
    for k in range(600):
        content = bytearray(whole[k % 2])
        for place in rng.integers(len(content), size=rng.integers(1, 5)):
            content[place] = rng.integers(256)
        if k % 5 == 0:
            del content[rng.integers(len(content)) :]
        (tmp_path / "set.npz").write_bytes(content)
        try:
            data.load_npz(tmp_path / "set.npz")
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 100 < refused < 600


def test_an_npz_that_says_it_is_endless(tmp_path):
    """A header of 10**15 images, and an encrypted member."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**15, 32, 32, 3)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
        file.writestr("x_train.npy", stream.getvalue())
    np.savez(tmp_path / "locked.npz", x_train=PIXELS)
    content = bytearray((tmp_path / "locked.npz").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.npz").write_bytes(content)
    for name in ("huge.npz", "locked.npz"):
        with pytest.raises(UserError, match=f"{name} cannot be read as an .npz file of plain arrays") as caught:
            data.load_npz(tmp_path / name)
        one_sentence(caught)
