"""Tar shards and Parquet files beside tarfile, pyarrow and Pillow: what is found, its labels, and what is refused."""

import contextlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
import source_kinds
from source_kinds import one_sentence

from barlow_jax import data
from barlow_jax.data import blocks, parquet, shards, tar
from barlow_jax.errors import UserError
from barlow_jax.evaluation import image_sets

FILES = [source_kinds.bmp(image) for image in np.random.RandomState(0).randint(0, 256, (6, 8, 9, 3)).astype(np.uint8)]


def add(archive, name, content, **about):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in about.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path, format):
    """Long names, names that are no ASCII or no UTF-8, folders, links, times with fractions, empty files."""
    names = ["a/0.jpg", "./b.png", "ümläut.jpg", f"{'d' * 90}/{'n' * 90}.jpg", "empty.jpg", "last.cls"]
    names += [] if format == tarfile.USTAR_FORMAT else [f"{'e' * 300}.jpg", os.fsdecode(b"\xff.jpg")]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as archive:
        for k, name in enumerate(names):
            add(archive, name, b"" if name == "empty.jpg" else bytes([k]) * (500 * k + 1), mtime=k + 0.5)
            add(archive, f"folder{k}", b"", type=tarfile.DIRTYPE)
            add(
                archive,
                f"link{k}",
                b"",
                type=tarfile.SYMTYPE,
                linkname="x" * (5 if format == tarfile.USTAR_FORMAT else 150),
            )
    with tarfile.open(path, errors="surrogateescape") as archive:
        expected = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in archive if m.isreg()]
    with open(path, "rb") as file:
        found = list(tar.members(file, path.stat().st_size))
    assert [member[:3] for member in found if not member[3]] == expected and len(expected) == len(names)
    to = "x" * (5 if format == tarfile.USTAR_FORMAT else 150)
    assert [member for member in found if member[3]] == [(f"link{k}", None, 0, to) for k in range(len(names))]


def test_a_size_beyond_octal(tmp_path):
    """10 GB, in base 256 and in a pax header, in files with a hole."""
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = tarfile.TarInfo("big.jpg")
        member.size = 10 * 2**30
        header = member.tobuf(format)
        with open(tmp_path / "big.tar", "wb") as file:
            file.write(header)
            file.truncate(len(header) + member.size + 1024)
        with open(tmp_path / "big.tar", "rb") as file:
            size = os.path.getsize(tmp_path / "big.tar")
            assert list(tar.members(file, size)) == [("big.jpg", len(header), member.size, "")]


def test_samples_and_their_labels(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, content in (
            *(("0.seg.png", FILES[3]), ("0.cls", b"2\n"), ("0.jpg", FILES[0]), ("0.txt", b"a dog")),
            *(("1.json", b'{"label": 1, "caption": "x"}'), ("1.PNG", FILES[1])),
            *(("2.txt", b"no image"), ("._3.jpg", b"of a Mac"), ("3", b"nothing")),
            *(("x/0.v2.png", FILES[2]),),
        ):
            add(archive, name, content)
    source = data.open_source("tar", str(tmp_path))
    assert [source.encoded(k) for k in range(len(source))] == FILES[:3]
    assert source.labels.tolist() == [2, 1, -1] and source.num_classes == 3 and source.class_names is None
    assert [source.where(k).partition(": ")[2] for k in range(3)] == ["0.jpg", "1.PNG", "x/0.v2.png"]


def test_a_name_that_comes_again_begins_another_sample(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for k in range(3):
            for name, content in (("a.jpg", FILES[k]), ("a.cls", b"%d" % k)):
                add(archive, name, content)
    source = data.open_source("tar", str(tmp_path))
    assert [source.encoded(k) for k in range(len(source))] == FILES[:3] and source.labels.tolist() == [0, 1, 2]


def test_an_index_of_a_version_that_found_other_things_is_made_again(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, "a.jpg", FILES[0])
    data.open_source("tar", str(tmp_path))
    looked, look = [], tar.look
    monkeypatch.setattr(tar, "look", lambda shard: looked.append(shard) or look(shard))
    data.open_source("tar", str(tmp_path))
    assert not looked
    with np.load(tmp_path / "train.index.npz") as held:
        fields = dict(held)
    for other in ({}, {"look": np.int64(1)}):
        np.savez(tmp_path / "train.index.npz", **({n: v for n, v in fields.items() if n != "look"} | other))
        data.open_source("tar", str(tmp_path))
        assert len(looked) == 1
        looked.clear()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_are_what_they_name(tmp_path, format, caplog):
    """As GNU tar writes files that have several names; tarfile follows them the same way."""
    caplog.set_level("INFO")
    long = f"{'d' * 90}/{'n' * 90}.jpg"
    with tarfile.open(tmp_path / "train-0.tar", "w", format=format) as archive:
        add(archive, long, FILES[0])
        add(archive, "x/0.cls", b"1")
        add(archive, "x/1.jpg", b"", type=tarfile.SYMTYPE, linkname="../y/9.jpg")  # which comes later
        add(archive, "x/1.cls", b"", type=tarfile.LNKTYPE, linkname="x/0.cls")
        add(archive, "x/2.jpg", b"", type=tarfile.SYMTYPE, linkname="1.jpg")  # a link itself
        if format != tarfile.USTAR_FORMAT:  # whose links have 100 bytes
            add(archive, "x/3.jpg", b"", type=tarfile.LNKTYPE, linkname=f"./{long}")
        for name, to in (("loop.jpg", "loop.jpg"), ("gone.jpg", "/etc/none.jpg")):
            add(archive, f"x/{name}", b"", type=tarfile.SYMTYPE, linkname=to)
        add(archive, "y/9.jpg", FILES[1])
    source = data.open_source("tar", str(tmp_path))
    names = [source.where(k).partition(": ")[2] for k in range(len(source))]
    more = [] if format == tarfile.USTAR_FORMAT else ["x/3.jpg"]
    assert names == [long, "x/1.jpg", "x/2.jpg", *more, "y/9.jpg"]
    with tarfile.open(tmp_path / "train-0.tar") as archive:
        assert [source.encoded(k) for k in range(len(source))] == [archive.extractfile(name).read() for name in names]
    assert source.labels.tolist() == [-1, 1, -1, *[-1 for _ in more], -1]
    assert "2 links left out, as what they name is not in the tar" in caplog.text


def test_labels_of_json(tmp_path, caplog):
    caplog.set_level("INFO")
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for k, label in enumerate((2, 1.0, "0", True, None, [1, 2])):
            add(archive, f"{k}.jpg", FILES[k])
            add(archive, f"{k}.json", json.dumps({"label": label}).encode())
    assert data.open_source("tar", str(tmp_path)).labels.tolist() == [2, 1, 0, 1, -1, -1]
    assert "1 labels left out, as they are neither whole numbers nor text" in caplog.text


def test_names_of_classes_as_labels(tmp_path):
    """Of several shards in sorted order; of another split as it is told."""
    for shard, labels in enumerate((["dog", "cat"], ["cat", "ant"])):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as archive:
            for k, label in enumerate(labels):
                add(archive, f"{k}.jpg", FILES[k])
                add(archive, f"{k}.cls", label.encode())
    source = data.open_source("tar", str(tmp_path))
    assert source.class_names == ("ant", "cat", "dog") and source.labels.tolist() == [2, 1, 1, 0]
    told = data.open_source("tar", str(tmp_path), "train-1.tar", class_names=("cat", "bee", "ant"))
    assert told.labels.tolist() == [0, 2] and told.num_classes == 3
    with pytest.raises(UserError, match="the class 'ant', which is none of the 2 that are known") as caught:
        data.open_source("tar", str(tmp_path), class_names=("cat", "dog"))
    one_sentence(caught)


def test_which_shards_are_a_split(tmp_path):
    for name in ("data/train-00000-of-00002.tar", "data/val-0.tar", "imagenet_train_0.tar", "pretrain/0.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "note.txt").write_text("")

    def of(split):
        return [shard.name for shard in shards.find(str(tmp_path), split, ".tar")[1]]

    assert of("train") == ["data/train-00000-of-00002.tar", "imagenet_train_0.tar"]
    assert of("val") == of("val-*") == of("data/v*") == ["data/val-0.tar"] and len(of(".")) == len(of("")) == 4
    for path, split, words in (
        (tmp_path, "test", "None of the 4 .tar files"),
        (tmp_path / "nowhere", "", "is neither a folder nor a file"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            shards.find(str(path), split, ".tar")
        one_sentence(caught)


def test_what_a_folder_is_taken_for(tmp_path):
    """By embed, pack and data stats, which are given a folder and no kind."""
    for name in (
        "one/0.tar",
        "two/data/x.parquet",
        "three/0.tar",
        "three/a.jpg",
        "four/0.tar",
        "four/a/0.jpg",
        "five/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = ("one", "one/0.tar", "two", "three", "four", "five", "nowhere")
    assert [shards.kind_of(tmp_path / name) for name in names] == ["tar", "tar", "parquet", "", "", "", ""]
    source_kinds.write_tars(tmp_path / "one", FILES, [0, 1] * 3)
    (tmp_path / "one" / "0.tar").unlink()
    for named in (tmp_path / "one", f"{tmp_path / 'one'}:train", tmp_path / "one" / "train-1.tar"):
        source = image_sets.open_images(str(named), 3)
        assert source.encoded(len(source) - 1) == FILES[-1]


def test_the_index_is_kept_and_made_again_where_a_shard_has_changed(tmp_path, monkeypatch):
    source_kinds.write_tars(tmp_path, FILES, [0, 1] * 3, shards=3)
    looked = []
    real = tar.look
    monkeypatch.setattr(tar, "look", lambda shard: looked.append(shard.name) or real(shard))

    def found():
        looked.clear()
        source = data.open_source("tar", str(tmp_path))
        return [source.where(k) for k in range(len(source))], [source.encoded(k) for k in range(len(source))]

    first = found()
    assert sorted(looked) == ["train-0.tar", "train-1.tar", "train-2.tar"] and first[1] == FILES
    assert found() == first and not looked
    with tarfile.open(tmp_path / "train-1.tar", "a") as archive:
        add(archive, "99.jpg", FILES[0])
    names, images = found()
    assert looked == ["train-1.tar"] and images == [*FILES[:4], FILES[0], *FILES[4:]] and len(names) == 7
    index = tmp_path / "train.index.npz"
    whole = index.read_bytes()
    for damaged in (whole[:300], b"", whole.replace(b"train-1", b"train-7"), b"text"):
        index.write_bytes(damaged)
        assert found()[1] == images and looked
    # One that does not fit: told when the image is read, instead of other bytes.
    source = data.open_source("tar", str(tmp_path))
    source_kinds.write_tars(tmp_path, FILES[::-1] + FILES, [0] * 12, shards=3)
    source._index.sizes[0] -= 7
    with pytest.raises(OSError, match="has changed since"):
        source.encoded(0)


@pytest.mark.parametrize("header", [b"x" * 12, b"\xff" * 12, b"9" * 12, b""])
def test_a_header_that_is_damaged_after_the_start_is_one_image(header, tmp_path):
    source_kinds.write_tars(tmp_path, FILES, [0, 1] * 3, shards=1)
    source = data.open_source("tar", str(tmp_path))
    (path,) = tmp_path.glob("*.tar")
    content, start = bytearray(path.read_bytes()), int(source._index.starts[2])
    content[start - 512 + 124 : start - 512 + 136] = header.ljust(12, b"\0")
    path.write_bytes(content)
    found = source.read_together(np.arange(6))
    assert [one for k, one in enumerate(found) if k != 2] == [FILES[k] for k in (0, 1, 3, 4, 5)]
    assert isinstance(found[2], OSError) and "has changed since" in str(found[2])


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    source_kinds.write_tars(tmp_path, FILES, [0, 1] * 3)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    assert len(data.open_source("tar", str(tmp_path))) == 6 and not (tmp_path / "train.index.npz").exists()


def test_damaged_tars(tmp_path):
    source_kinds.write_tars(tmp_path, FILES, [0] * 6, shards=1)
    path = tmp_path / "train-0.tar"
    whole = path.read_bytes()
    used = whole.rindex(b"00005.cls") + 1024
    header = bytearray(whole)
    header[1024 + 3] ^= 1
    sparse = tarfile.TarInfo("s.jpg")
    sparse.type = b"S"
    for content, words in (
        (b"", "is empty: it was cut off"),
        (whole[:700], "ends within a member that begins at byte 0"),
        (whole[:used], "without the zeros that end a tar"),
        (b"\x1f\x8b" + whole[2:], "is compressed by gzip"),
        (b"<html>" * 200, "is no tar"),
        (bytes(header), "has no header at byte"),
        (sparse.tobuf() + bytes(1024), "has a sparse member"),
        (bytes(10240), "holds no image"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            data.open_source("tar", str(tmp_path))
        assert ":train holds" in one_sentence(caught) or "train-0.tar" in str(caught.value)


def test_tars_with_any_bytes_changed(tmp_path):
    """A sentence or what is in it, of 120 files."""
    rng, path = np.random.default_rng(0), tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for k in range(4):
            add(archive, f"{'n' * 120}{k}.jpg", b"x" * 700, mtime=0.5)
            add(archive, f"{'n' * 120}{k}.json", b'{"label": 3}')
    whole, refused = path.read_bytes(), 0
    for _ in range(120):
        content = bytearray(whole)
        for place in rng.integers(len(content) - 8192, size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            tar.look(shards.Shard("a.tar", str(path)))
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
            refused += 1
    assert 40 < refused < 120


def test_a_listing_is_the_same_wherever_the_shards_lie(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    for kind, write in (("tar", source_kinds.write_tars), ("parquet", source_kinds.write_parquet)):
        sources = []
        for name, labels in (("one", [0, 1] * 3), ("moved", [0, 1] * 3), ("other", [1, 0] * 3)):
            (tmp_path / kind / name).mkdir(parents=True)
            write(tmp_path / kind / name, FILES, labels)
            sources.append(data.open_source(kind, str(tmp_path / kind / name)))
        one, moved, other = sources
        assert one.listing() == moved.listing() != other.listing() and one.fingerprint() != moved.fingerprint()
        assert one.take(np.arange(6)).listing() == one.listing() != one.take([1, 0, 2, 3, 4, 5]).listing()
        assert data.open_source(kind, str(tmp_path / kind / "one"), channels=1).fingerprint() != one.fingerprint()


def write_table(path, columns, about=None, **options):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table(columns)
    if about:
        table = table.replace_schema_metadata({"huggingface": about})
    pyarrow.parquet.write_table(table, path, **options)


def test_columns_of_parquet(tmp_path):
    """A struct or bytes, labels as integers, as text, null or absent; names of the Hub's or of classes.json."""
    pytest.importorskip("pyarrow.parquet")
    about = json.dumps(
        {"info": {"features": {"pic": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    )
    struct = [{"bytes": file, "path": "x"} for file in FILES]
    cases = [
        ({"pic": struct, "thumb": FILES[::-1], "kind": [0, 1] * 3}, about, ("cat", "dog"), 2, [0, 1] * 3),
        ({"image": FILES, "label": [2, None, 0, 1, 1, 1]}, None, None, 3, [2, -1, 0, 1, 1, 1]),
        ({"blob": FILES, "label": ["b", "a", None, "b", "b", "a"]}, "{", ("a", "b"), 2, [1, 0, -1, 1, 1, 0]),
        ({"img": FILES, "fine_label": [0, 1] * 3, "coarse_label": [5] * 6}, None, None, 2, [0, 1] * 3),
        ({"img": FILES}, None, None, None, None),
        ({"img": FILES, "label": [-1] * 6}, None, None, None, None),
    ]
    for columns, told, names, classes, labels in cases:
        write_table(tmp_path / "test-0.parquet", columns, told, row_group_size=4)
        source = data.open_source("parquet", str(tmp_path), "test")
        assert [source.encoded(k) for k in range(6)] == FILES
        assert (source.labels is None and labels is None) or source.labels.tolist() == labels
        assert source.num_classes == classes and source.class_names == names
    assert source.where(5).endswith("test-0.parquet, row 5")


def test_labels_of_parquet_as_pandas_writes_them(tmp_path, caplog):
    """Whole numbers with one missing are fractions, categories are dictionaries with indices of 8 bits."""
    arrow = pytest.importorskip("pyarrow")

    images = arrow.array(FILES, arrow.binary())
    cases = [
        (arrow.array([0.0, 1.0, None, float("nan"), 2.0, 1.0]), [0, 1, -1, -1, 2, 1]),
        (arrow.array([True, False, None, True, True, False]), [1, 0, -1, 1, 1, 0]),
        (arrow.array(["b", "a", None, "b", "b", "a"]).cast(arrow.dictionary(arrow.int8(), arrow.string())), None),
        (arrow.array([3, 1, None, 0, 1, 1], arrow.uint8()).dictionary_encode(), [3, 1, -1, 0, 1, 1]),
    ]
    for labels, expected in cases:
        arrow.parquet.write_table(arrow.table({"image": images, "label": labels}), tmp_path / "train-0.parquet")
        source = data.open_source("parquet", str(tmp_path))
        assert source.labels.tolist() == (expected or [1, 0, -1, 1, 1, 0])
        assert source.class_names == (None if expected else ("a", "b"))
    assert not caplog.records
    table = arrow.table({"image": images, "label": arrow.array([[0], [1], [2], [0], [1], [2]])})
    arrow.parquet.write_table(table, tmp_path / "train-0.parquet")
    assert data.open_source("parquet", str(tmp_path)).labels is None
    assert "the column 'label' is of the type list<" in caplog.text and "taken as unlabelled" in caplog.text
    table = arrow.table({"image": images, "label": arrow.array([0.5, 1, 1, 1, 1, 1])})
    arrow.parquet.write_table(table, tmp_path / "train-0.parquet")
    with pytest.raises(UserError, match="the column 'label' holds 0.5, which is no number of a class") as error:
        data.open_source("parquet", str(tmp_path))
    one_sentence(error)


def test_a_set_that_is_slow_to_read_is_told_of(tmp_path, monkeypatch, caplog):
    pytest.importorskip("pyarrow.parquet")
    source_kinds.write_parquet(tmp_path, FILES, [0, 1] * 3)
    data.open_source("parquet", str(tmp_path))
    assert not caplog.records
    monkeypatch.setattr(parquet, "HELD_BYTES", 1000)
    data.open_source("parquet", str(tmp_path))
    assert "in 4 row groups" in caplog.text and "barlow-jax pack" in caplog.text


def test_class_names_of_the_hub(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    source_kinds.write_parquet(tmp_path, FILES, [0, 1] * 3, names=["cat", "dog"])
    assert data.open_source("parquet", str(tmp_path)).class_names == ("cat", "dog")
    assert data.open_source("parquet", str(tmp_path), class_names=("x", "y")).class_names == ("x", "y")


def test_unusable_parquet(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "train-0.parquet"
    write_table(path, {"image": FILES})
    whole = path.read_bytes()
    for columns, words in (
        ({"url": ["x"] * 6}, "has no column that may hold encoded images"),
        ({"one": FILES, "two": FILES}, "has several columns"),
        ({"image": FILES, "label": [-2] * 5 + [1]}, "has the label -2"),
        ({"image": FILES, "label": [2**40] * 6}, "has the label"),
        ({"image": FILES[:0], "label": [0][:0]}, "no column"),
    ):
        write_table(path, columns)
        with pytest.raises(UserError, match=words) as caught:
            data.open_source("parquet", str(tmp_path))
        one_sentence(caught)
    for content in (whole[: len(whole) // 2], b"", b"PAR1" + bytes(100) + b"PAR1", whole[:-300] + bytes(300)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="train-0.parquet cannot be read as Parquet") as caught:
            data.open_source("parquet", str(tmp_path))
        one_sentence(caught)
    write_table(path, {"image": [FILES[0], None]})
    source = data.open_source("parquet", str(tmp_path))
    with pytest.raises(ValueError, match="the row holds no bytes of an image"):
        source.encoded(1)
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UserError, match="pip install pyarrow"):
        data.open_source("parquet", str(tmp_path))


def test_row_groups_are_held_up_to_a_limit_and_read_once():
    read, held = [], blocks.Held(250)

    def get(key):
        return held.get(key, lambda: read.append(key) or np.full(100, key, np.uint8))

    assert [int(get(key)[0]) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert read == [1, 2, 3, 2]
    with pytest.raises(ValueError):
        held.get(9, lambda: int("x"))
    assert int(held.get(9, lambda: np.full(1000, 9))[0]) == 9 and get(9)[0] == 9


@pytest.mark.slow  # each graph of TensorFlow costs a second
def test_batches_are_those_of_a_folder_at_every_step(tmp_path):
    """The same images in a folder, in tars and in Parquet: the same rows, boxes and pixels at whatever step."""
    pytest.importorskip("pyarrow.parquet")
    for k, file in enumerate(FILES):
        (tmp_path / "folder" / "ab"[k // 3]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / "ab"[k // 3] / f"{k}.bmp").write_bytes(file)
    for kind, write in (("tar", source_kinds.write_tars), ("parquet", source_kinds.write_parquet)):
        (tmp_path / kind).mkdir()
        write(tmp_path / kind, FILES, [0, 0, 0, 1, 1, 1])

    def batches(kind, start, count):
        source = data.open_source(kind, str(tmp_path / kind), "" if kind == "folder" else "train")
        read = data.train_batches(source, batch_size=4, seed=3, canvas=16, last="wrap", start_step=start, threads=2)
        with contextlib.closing(read):
            return [next(read) for _ in range(count)]

    expected = batches("folder", 0, 8)
    for kind, start in (("tar", 5), ("parquet", 6)):
        for one, other in zip(batches(kind, start, 2), expected[start:], strict=False):
            assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
