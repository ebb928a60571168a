"""Packs beside tarfile and Pillow: what is in them, kills, other sets in the same place, and what is refused."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from deep_files import tiff
from PIL import Image
from source_kinds import one_sentence

from barlow_jax import cli, data, dataset
from barlow_jax.data import pack, pack_forms, pixels
from barlow_jax.data.pixels import Reading
from barlow_jax.errors import UserError
from barlow_jax.run import launch


@pytest.fixture
def photos(tmp_path):
    """Seven files of two classes, one of them damaged, one grey of 16 bits, one that says how it is turned."""
    rng = np.random.default_rng(0)
    for k in range(7):
        path = tmp_path / "photos" / "ab"[k % 2] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 30 + 6 * k, 3)).astype(np.uint8)).save(
            path, "PNG" if k % 3 else "JPEG"
        )
    (tmp_path / "photos" / "a" / "2.jpg").write_bytes(b"no image")
    Image.fromarray(np.full((40, 40), 4000, np.uint16)).save(tmp_path / "photos" / "b" / "3.jpg", "PNG")
    turned = Image.Exif()
    turned[274] = 6
    Image.new("L", (60, 50), 100).save(tmp_path / "photos" / "a" / "4.jpg", "JPEG", exif=turned)
    return tmp_path / "photos"


def packed(*words, **flags):
    flag = launch.Flags()
    dataset.define_flags(flag)
    return dataset.main(flag.parsed(["x", "pack", *map(str, words), *(f"--{k}={v}" for k, v in flags.items())]))


def records(out, split):
    """(image file, class) of each record of a split, in order, by array_record's reader as grain takes it."""
    import tensorflow as tf
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    files = sorted((out / "1.0.0").glob(f"*-{split}.array_record-*"))
    source = ArrayRecordDataSource([str(file) for file in files])
    found = [tf.train.Example.FromString(source[k]).features.feature for k in range(len(source))]
    return [(one["image"].bytes_list.value[0], one["label"].int64_list.value[0]) for one in found], files


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_a_pack_holds_the_files_to_the_byte(photos, tmp_path, capsys):
    packed(photos, tmp_path / "out", shard=3)
    source = data.ImageFolder(photos)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        *("classes.json", "train-00000.tar", "train-00001.tar", "train-00002.tar", "train.index.npz", "train.pack.json")
    ]
    found = {}
    for k in range(3):
        found |= members(tmp_path / "out" / f"train-0000{k}.tar")
    images = [name for name in sorted(found) if not name.endswith(".cls")]
    assert [found[name] for name in images] == [source.encoded(k) for k in range(7)]
    assert [int(found[f"{k:09}.cls"]) for k in range(7)] == source.labels.tolist()
    assert {name.partition(".")[2] for name in images} == {"jpg", "png"}
    again = data.open_source("tar", str(tmp_path / "out"))
    assert again.class_names == ("a", "b") and np.array_equal(again.labels, source.labels)
    said = capsys.readouterr().out
    assert "7 images; " in said and "1 cannot be opened" in said and "compared: the same" in said


def test_a_pack_in_an_order_of_chance(photos, tmp_path):
    """The same images and labels, in the same order at every start: it goes on after a kill."""
    for _ in range(2):
        packed(photos, tmp_path / "out", shard=3, shuffle=True)
    before, after = data.ImageFolder(photos), data.open_source("tar", str(tmp_path / "out"))
    stored = [after.encoded(k) for k in range(7)]
    place = [stored.index(before.encoded(k)) for k in range(7)]
    assert sorted(place) == list(range(7)) != place
    assert [after.labels[k] for k in place] == before.labels.tolist()


def test_images_are_made_smaller_once(photos, tmp_path):
    packed(photos, tmp_path / "out", short_side=20, quality=80)
    before, after = data.ImageFolder(photos), data.open_source("tar", str(tmp_path / "out"))
    for k in range(7):
        if before.where(k).endswith(("2.jpg", "3.jpg")):
            assert after.encoded(k) == before.encoded(k)
            continue
        with Image.open(before.paths[k]) as image, Image.open(io.BytesIO(after.encoded(k))) as small:
            scale = 20 / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            assert small.size == size and small.format == "JPEG" and small.mode == image.mode
            assert small.getexif().get(274) == image.getexif().get(274)
            stream = io.BytesIO()
            image.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
            assert np.array_equal(np.asarray(small), np.asarray(Image.open(stream)))


def test_what_has_more_than_8_bits_stays_as_it_is(tmp_path):
    import tensorflow as tf

    values = np.random.default_rng(0).integers(0, 65536, (40, 30, 4)).astype(np.uint16)
    cases = {f"png {bands}": tf.io.encode_png(values[..., :bands]).numpy() for bands in (1, 2, 3, 4)}
    cases["ppm"] = b"P6 30 40 65535\n" + values[..., :3].astype(">u2").tobytes()
    cases["pgm"] = b"P5 30 40 4095\n" + (values[..., 0] >> 4).astype(">u2").tobytes()
    for order in "<>":
        cases[f"tiff {order}"] = tiff(values[..., :3], order)
    for name, file in cases.items():
        assert pack.stored(file, pack.Size(20))[::2] == (file, ""), name
    assert pack.stored(b"P6 30 40 255\n" + bytes(3600), pack.Size(20))[1:] == ("jpg", "resized")


def test_what_is_turned_is_turned_once(tmp_path):
    """Pillow turns TIFFs itself, so what they say must not go on into the JPEG."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    reading = Reading(exif=True)
    for place in range(1, 9):
        about = Image.Exif()
        about[274] = place
        for form in ("TIFF", "JPEG", "PNG"):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, form, exif=about)
            small = pack.stored(stream.getvalue(), pack.Size(20))[0]
            wanted = pixels.pillow_pixels(stream.getvalue(), reading).shape
            assert pixels.pillow_pixels(small, reading).shape == (wanted[0] // 2, wanted[1] // 2, 3), (form, place)


def test_a_pack_goes_on_after_a_kill(photos, tmp_path, monkeypatch):
    packed(photos, tmp_path / "whole", shard=2)
    real, written = pack._shard, []

    def killed(path, *rest):
        if len(written) == 2:
            (tmp_path / "out" / ".train-00002.tar.unfinished").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        return real(path, *rest)

    monkeypatch.setattr(pack, "_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        packed(photos, tmp_path / "out", shard=2)
    assert sorted(f.name for f in (tmp_path / "out").glob("*.tar")) == ["train-00000.tar", "train-00001.tar"]
    times = [f.stat().st_mtime_ns for f in sorted((tmp_path / "out").glob("*.tar"))]
    (tmp_path / "out" / "train-00001.tar").write_bytes(b"cut off")
    monkeypatch.setattr(pack, "_shard", real)
    packed(photos, tmp_path / "out", shard=2)
    assert (tmp_path / "out" / "train-00000.tar").stat().st_mtime_ns == times[0]
    for k in range(4):
        name = f"train-0000{k}.tar"
        assert members(tmp_path / "out" / name) == members(tmp_path / "whole" / name)
    assert not list((tmp_path / "out").glob(".*"))


def test_what_is_not_packed(photos, tmp_path, monkeypatch):
    packed(photos, tmp_path / "out", shard=3)
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    other = shutil.copytree(photos, tmp_path / "other")
    (other / "b").rename(other / "c")
    for words, flags, said in (
        ((photos, tmp_path / "out"), {"shard": 2}, "differs in: images a shard"),
        ((photos, tmp_path / "out"), {"short_side": 9}, "differs in: short_side, quality"),
        ((photos / "a", tmp_path / "out"), {}, "differs in: images"),
        ((other, tmp_path / "out"), {"split": "val"}, "none of the 2 classes asked for"),
        ((tmp_path / "set.npz", tmp_path / "n"), {}, "takes image files"),
        ((photos, tmp_path / "n"), {"split": "a/b"}, "take letters only"),
        ((photos, tmp_path / "n"), {"quality": 0}, "1 to 95"),
        ((photos,), {}, "barlow-jax pack SET OUT"),
        ((photos, photos), {}, "is the set itself"),
        ((photos, tmp_path / "set.npz"), {}, "cannot be written"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            packed(*words, **flags)
        one_sentence(caught)
    # A byte of a shard that is not what was packed.
    shard = tmp_path / "out" / "train-00001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="train-00001.tar does not hold what was packed"):
        packed(photos, tmp_path / "out", shard=3)
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="1.0 MB free, and about [1-9]+.[0-9] kB are to be written beside 67.1 MB that"):
        packed(photos, tmp_path / "n")


def test_splits_in_one_folder_share_their_classes(photos, tmp_path):
    packed(photos, tmp_path / "out")
    val = tmp_path / "val"
    shutil.copytree(photos / "b", val / "b")
    packed(val, tmp_path / "out", split="val")
    source = data.open_source("tar", str(tmp_path / "out"), "val")
    assert source.class_names == ("a", "b") and source.labels.tolist() == [1, 1, 1]
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["a", "b"]


def test_array_records_are_a_set_of_tfds(photos, tmp_path, capsys):
    """To the byte by array_record's own reader, by TFDS, and by ours; the second split joins the first."""
    import tensorflow_datasets as tfds

    out, folder = tmp_path / "sets" / "photos", data.ImageFolder(photos)
    packed(photos, out, format="array_record", shard=3)
    found, files = records(out, "train")
    assert found == [(folder.encoded(k), folder.labels[k]) for k in range(7)]
    assert [file.name for file in files] == [f"photos-train.array_record-0000{k}-of-00003" for k in range(3)]
    said = capsys.readouterr().out
    assert "compared: the same" in said and " now (from the cache)" in said
    assert f"--config.data.kind=tfds --config.data.path={tmp_path / 'sets'} --config.data.name=photos" in said
    shutil.copytree(photos / "b", tmp_path / "val" / "b")
    packed(tmp_path / "val", out, format="array_record", split="val", short_side=20, quality=80)
    ours = data.open_source("tfds", str(tmp_path / "sets"), "train", name="photos")
    assert ours.class_names == ("a", "b") and [ours.encoded(k) for k in range(7)] == [one for one, _ in found]
    builder = tfds.builder("photos", data_dir=tmp_path / "sets")
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 7, "val": 3}
    theirs = builder.as_data_source("val")
    assert [theirs[k]["label"] for k in range(3)] == [1, 1, 1]
    small = np.asarray(Image.open(io.BytesIO(records(out, "val")[0][0][0])).convert("RGB"))
    assert min(small.shape[:2]) == 20 and np.abs(theirs[0]["image"].astype(int) - small).max() <= 2


def test_a_pack_of_array_records_goes_on_after_a_kill(photos, tmp_path, monkeypatch):
    """Killed at its second shard: no set yet; a shard that was cut off is made again; a byte that is other is found."""
    out, real = tmp_path / "photos2", pack_forms.ArrayRecord.write

    def killed(self, path, images):
        real(self, path, images)
        if "-00001-of-" in str(path):
            raise KeyboardInterrupt

    monkeypatch.setattr(pack_forms.ArrayRecord, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        packed(photos, out, format="array_record", shard=2)
    assert [file.name for file in (out / "1.0.0").iterdir()] == ["photos2-train.array_record-00000-of-00004"]
    (first,) = (out / "1.0.0").iterdir()
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(pack_forms.ArrayRecord, "write", real)
    packed(photos, out, format="array_record", shard=2)
    assert first.stat().st_mtime_ns == before
    expected, folder = records(out, "train")[0], data.ImageFolder(photos)
    assert expected == [(folder.encoded(k), folder.labels[k]) for k in range(7)]
    for k, said in ((0, "00000-of-00004 cannot be read"), (1, "00001-of-00004 does not hold what was packed")):
        shard = first.with_name(f"photos2-train.array_record-0000{k}-of-00004")
        content = shard.read_bytes()
        place = content.index(expected[2 * k][0][-8:])
        shard.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match=said) as caught:
            packed(photos, out, format="array_record", shard=2)
        one_sentence(caught)
        shard.write_bytes(content)
    content = first.read_bytes()
    first.write_bytes(content[:-100])
    packed(photos, out, format="array_record", shard=2)
    assert records(out, "train")[0] == expected


def test_what_is_not_packed_as_array_records(photos, tmp_path, monkeypatch):
    packed(photos, tmp_path / "tar")
    for words, said in (
        ((photos, tmp_path / "My Photos"), "'My Photos', which has to be small letters"),
        ((photos, tmp_path / "tar"), "differs in: --format"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            packed(*words, format="array_record")
        one_sentence(caught)
    folder = data.ImageFolder(photos)
    folder.labels = np.asarray([-1, *folder.labels[1:]])
    with pytest.raises(UserError, match="has no class and others have"):
        pack_forms.ArrayRecord(str(tmp_path / "n"), "train").check(folder)
    with pytest.raises(OSError, match="No space left") as full:
        pack_forms.ArrayRecord(str(tmp_path / "n"), "train").write("/dev/full", [(0, b"x" * 10**5, "jpg", 1)])
    assert full.value.errno == 28
    monkeypatch.setattr(pack_forms.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs array_record, which there is for Linux: pip install") as caught:
        packed(photos, tmp_path / "n", format="array_record")
    one_sentence(caught)


def test_one_module_has_both_commands():
    assert cli.program("pack") == cli.program("data") == (dataset.main, dataset.define_flags)
