"""Arrays on the disk: mapped where they are large, of any type of numbers, the same bits and texts as in memory."""

import numpy as np
import pytest

from barlow_jax import data
from barlow_jax.data import kinds, mapped, pipeline, stats
from barlow_jax.data.mapped import Levels
from barlow_jax.errors import UserError
from barlow_jax.evaluation import image_sets

RNG = np.random.RandomState(0)
EIGHT = RNG.randint(0, 256, (7, 6, 5, 3)).astype(np.uint8)
BANDS = RNG.randint(0, 4096, (7, 6, 5, 4)).astype(np.uint16)
LABELS = np.arange(7) % 2


@pytest.fixture
def small(monkeypatch):
    """Everything is large."""
    monkeypatch.setattr(mapped, "MAPPED_FROM", 1)
    monkeypatch.setattr(mapped, "PIECE", 200)


def batch_of(source, **options):
    options |= {"batch_size": len(source), "canvas": 8, "threads": 1, "resize_short": 6, "crop": 5}
    return next(pipeline.eval_batches(source, **options))


def test_bytes_are_the_same_where_they_lie_on_the_disk(tmp_path, small):
    """In an .npz, in a folder of .npy files and as one .npy: batches, parts, fingerprint and listing as in memory."""
    wanted = data.Arrays(EIGHT, LABELS, name="x")
    np.savez(tmp_path / "x.npz", train_images=EIGHT, train_labels=LABELS, other=np.zeros(3))
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x_train.npy", np.asfortranarray(EIGHT))
    np.save(tmp_path / "folder" / "y_train.npy", LABELS)
    for path in ("x.npz", "folder"):
        source = kinds.load_npz(tmp_path / path)
        assert isinstance(source.images, Levels) and isinstance(source.images.stored, np.memmap)
        assert source.fingerprint() == source.listing() == wanted.fingerprint()
        part, same = source.take(np.array([5, 2])).take(np.array([1])), wanted.take(np.array([2]))
        assert isinstance(part.images, Levels) and np.array_equal(part.images[0], EIGHT[2])
        assert part.fingerprint() == same.fingerprint() and part.where(0).endswith("[2]")
        for key, value in batch_of(wanted).items():
            assert np.array_equal(batch_of(source)[key], value), key
        held = pipeline.in_memory(source, max_bytes=10**6, canvas=8)
        assert type(held.images) is np.ndarray and np.array_equal(held.images, EIGHT)
        assert held.listing() == wanted.listing()
        assert pipeline.in_memory(source, max_bytes=EIGHT.nbytes - 1, canvas=8) is None
    np.save(tmp_path / "one.npy", EIGHT)
    assert np.array_equal(image_sets.open_any(str(tmp_path / "one.npy")).images[3], EIGHT[3])


@pytest.mark.parametrize("compressed", [False, True])
def test_other_numbers_become_levels(tmp_path, small, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", train_images=BANDS, val_images=BANDS - 2000.0)
    source = kinds.load_npz(tmp_path / "x.npz", bits=16)
    assert source.images.dtype == np.uint16 and np.array_equal(source.images[:], BANDS)
    assert np.array_equal(kinds.load_npz(tmp_path / "x.npz").images[2], BANDS[2] >> 8)
    ends = tuple(np.r_[[[0, 1000]] * 2, [[0, 4095]] * 2].ravel().tolist())
    scaled = np.rint(np.clip(BANDS / (ends[1::2]), 0, 1) * 65535)
    source = kinds.load_npz(tmp_path / "x.npz", bits=16, value_range=ends)
    assert np.array_equal(batch_of(source)["canvas"][:, :6, :5], scaled)
    told = {source.fingerprint(), kinds.load_npz(tmp_path / "x.npz", bits=16).fingerprint()}
    assert len(told | {kinds.load_npz(tmp_path / "x.npz").fingerprint()}) == 3
    with pytest.raises(UserError, match="its values are fractions.*value_range.*data stats") as caught:
        kinds.load_npz(tmp_path / "x.npz", "val", bits=16)
    assert str(caught.value).endswith(".")
    with pytest.raises(UserError, match="has 3 pairs and x.npz:train 4 channels"):
        kinds.load_npz(tmp_path / "x.npz", value_range=(0, 1) * 3)
    # `data stats` looks at them all the same, and its line is the one that helps.
    looked = image_sets.open_any(f"{tmp_path / 'x.npz'}:val", any_range=True)
    low_high = stats.value_range(stats.measure(looked, 0, 1))
    assert len(low_high) == 8 and all(
        -2000 <= low < -1900 and 2000 < high <= 2095 for low, high in zip(low_high[::2], low_high[1::2], strict=True)
    )
    assert kinds.load_npz(tmp_path / "x.npz", "val", bits=16, value_range=low_high).images[:].max() == 65535


@pytest.mark.parametrize("most, told", [(255, True), (4095, True), (60000, False)])
def test_dark_arrays_of_16_bits_are_told_of_as_files_are(tmp_path, caplog, most, told):
    np.savez(tmp_path / "x.npz", train_images=(EIGHT.astype(np.uint32) * most // 255).astype(np.uint16))
    kinds.load_npz(tmp_path / "x.npz")
    assert (f"hold no value above {most} of 65535" in caplog.text) == told == bool(caplog.records)
    caplog.clear()
    kinds.load_npz(tmp_path / "x.npz", value_range=(0, most))
    assert not caplog.records


def test_eight_bits_may_stand_in_sixteen(tmp_path):
    np.savez(tmp_path / "x.npz", train_images=EIGHT)
    assert np.array_equal(kinds.load_npz(tmp_path / "x.npz", bits=16).images[1], EIGHT[1] * np.uint16(257))
    assert type(kinds.load_npz(tmp_path / "x.npz").images) is np.ndarray


def test_what_memory_cannot_hold_and_damage_have_a_sentence(tmp_path, small, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", train_images=EIGHT)
    monkeypatch.setattr(mapped.os, "sysconf", lambda name: 1)
    with pytest.raises(UserError, match="train_images.npy in .* is compressed.* store it by numpy.savez"):
        kinds.load_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", train_images=EIGHT)
    content = (tmp_path / "y.npz").read_bytes()
    for cut in (40, len(content) // 2, len(content) - 30):
        (tmp_path / "y.npz").write_bytes(content[:cut])
        with pytest.raises(UserError, match="cannot be read as an .npz file"):
            kinds.load_npz(tmp_path / "y.npz")
    (tmp_path / "y.npz").write_bytes(content.replace(b"(7, 6, 5, 3)", b"(9, 6, 5, 3)"))
    with pytest.raises(UserError, match="describes an array of"):
        kinds.load_npz(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", train_images=np.array([{}] * 9))
    with pytest.raises(UserError, match="z.npz"):
        kinds.load_npz(tmp_path / "z.npz")


def test_very_large_arrays_are_told_by_some_of_their_images(tmp_path, small, monkeypatch):
    monkeypatch.setattr(mapped, "SAMPLED_FROM", 1)
    monkeypatch.setattr(mapped, "SAMPLED", 3)
    found = set()
    for change in (None, 0, 1, 6):  # of which 1 is not looked at
        images = EIGHT.copy()
        if change is not None:
            images[change, 0, 0, 0] ^= 1
        np.save(tmp_path / "images.npy", images)
        found.add(kinds.load_npz(tmp_path / "images.npy", "").fingerprint())
    assert len(found) == 3
