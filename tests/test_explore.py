"""`barlow-jax explore`: what it writes, from files of features, and what it says of those that will not do."""

import csv
import json
import os
import re
import struct
import zipfile

import commands
import numpy as np
import pytest
from PIL import Image

from barlow_jax import explore
from barlow_jax.data import walk
from barlow_jax.errors import UserError
from barlow_jax.evaluation import atlas, embedded, sheets
from barlow_jax.evaluation.image_sets import Thumbnails
from barlow_jax.run import launch


def wanted(*words):
    flag = launch.Flags()
    explore.define_flags(flag)
    return flag.parsed(["explore", *map(str, words)])


def read(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def features():
    """48 rows of three classes, 16 each, as the photographs are; the first two are nearly equal."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(3, 8), 16, axis=0) + 0.1 * rng.standard_normal((48, 8))
    rows[1] = 1.001 * rows[0]
    rows[47] = -rows[0]  # far from all
    return rows.astype(np.float32)


@pytest.fixture
def file(tmp_path, photographs, features):
    """With the photographs' paths, and no labels."""
    paths = sorted(str(path) for path in photographs.rglob("*.jpg"))
    np.savez(tmp_path / "features.npz", features=features, paths=paths)
    return tmp_path / "features.npz"


def test_each_search_writes_a_table_and_a_picture(file, features, photographs, capsys):
    folder, paths = file.parent, sorted(str(path) for path in photographs.rglob("*.jpg"))
    (folder / "labelled.txt").write_text(f"{paths[3]}\n{paths[20]}\n")
    line = ("--clusters=4", "--outliers=4", "--nearest=5", "--label_next=6", f"--labelled={folder / 'labelled.txt'}")
    assert explore.main(wanted(file, f"--pairs={folder / 'pairs.csv'}", "--threshold=0.9999", *line)) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "Pairs with a cosine similarity of 0.9999 or more: 1. In them are 2 of 48 images, and groups"
    )
    assert read(folder / "pairs.csv") == [{"similarity": "1.0", "first": paths[0], "second": paths[1], "group": "1"}]
    clusters = read(folder / "clusters.csv")
    assert [row["path"] for row in clusters] == paths
    numbers = [
        {row["cluster"] for row in clusters[start:stop]} for start, stop in ((0, 16), (16, 32), (32, 47), (47, 48))
    ]
    assert sorted(numbers, key=str) == [{"1"}, {"2"}, {"3"}, {"4"}] and numbers[3] == {"4"}
    assert read(folder / "outliers.csv")[0]["path"] == paths[47]
    chosen = read(folder / "label_next.csv")
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    assert chosen[0]["path"] == paths[(unit @ unit[[3, 20]].T).max(1).argmin()]
    assert [row["order"] for row in chosen] == [*"123456"]
    for name in ("pairs", "clusters", "outliers", "label_next"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 200 and len(picture.convert("RGB").getcolors(10**6)) > 500  # photographs are on it
        assert f"In {folder / name}.csv and {folder / name}.png." in told
    assert "unreadable" not in told and "could not be read" not in told
    assert "each the furthest from the 2 with labels and those before it" in told


def test_pairs_that_are_cut_are_told(file, capsys):
    line = (file, f"--pairs={file.parent / 'pairs.csv'}", "--threshold=0.5", "--most=7")
    assert explore.main(wanted(*line)) == 0
    kept = read(file.parent / "pairs.csv")
    assert len(kept) == 7
    assert (
        f"only the 7 most similar were kept, down to {float(kept[-1]['similarity']):.6f}, and"
        in capsys.readouterr().out
    )


def test_names_of_every_kind(tmp_path, photographs, features):
    """Commas, quotes, ends of lines, no UTF-8, no file: the table gives each back, the picture counts what it lacks."""
    names = [b"a,b.jpg", b'"c".jpg', b"d\re.jpg", b"f\ng.jpg", b"caf\xe9.jpg", b"\xe6\x97\xa5.jpg"]
    whole = (photographs / "class0" / "000.jpg").read_bytes()
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(whole)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff and no more")
    paths = [walk.readable(tmp_path / os.fsdecode(name)) for name in names] + [f"{tmp_path}/bad.jpg", "gone.jpg"]
    assert [os.fsencode(walk.named(path)) for path in paths[:6]] == [
        os.fsencode(tmp_path) + b"/" + name for name in names
    ]
    np.savez(tmp_path / "x.npz", features=features[:8], paths=paths)
    out = tmp_path / "out"
    out.mkdir()
    assert explore.main(wanted(tmp_path / "x.npz", "--clusters=1", f"--out={out}")) == 0
    assert [row["path"] for row in read(out / "clusters.csv")] == paths
    thumbnails = Thumbnails({})
    tiles = [thumbnails.of(path) for path in paths]
    assert [tile is None for tile in tiles] == [False] * 6 + [True] * 2
    assert np.array_equal(tiles[0], tiles[5]) and "no such file" in thumbnails.unreadable["gone.jpg"]
    assert thumbnails.told()[0].startswith(f"2 images for the picture could not be read, {tmp_path}/bad.jpg for one (")


def test_one_is_not_many(tmp_path, capsys):
    """Three images that lie nowhere, each a cluster by itself."""
    np.savez(tmp_path / "x.npz", features=np.eye(3, 4, dtype=np.float32), paths=["a", "b", "c"])
    assert explore.main(wanted(tmp_path / "x.npz", "--clusters=3", "--label_next=1")) == 0
    told = capsys.readouterr().out
    assert "3 clusters of 1 to 1 image, with" in told and "1 image to label next, each" in told
    assert "1 image for the picture could not be read, " in told and "1 images" not in told


def test_images_of_a_set_that_is_no_folder(tmp_path):
    """Those of an .npz are found by their names, each whole and enlarged by a whole factor."""
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 16, 1), np.uint8)
    np.savez(tmp_path / "set.npz", x_test=images)
    about = {"images as given": "set.npz:test", "working folder": str(tmp_path), "channels": 1, "data_dir": ""}
    thumbnails = Thumbnails(about)
    tile = thumbnails.of("set.npz:test[2]", side=50)
    assert np.array_equal(tile[13:37, 1:49, 1], images[2, ..., 0].repeat(3, 0).repeat(3, 1)) and tile[:13].min() == 255
    assert thumbnails.of("set.npz:test[3]") is None and thumbnails.unreadable


def test_labels_of_the_file_and_none(tmp_path, file, features, capsys):
    labels = np.full(48, -1)
    for label, said in ((1, "the 2 with labels and those before it"), (-1, "those before it")):
        labels[[3, 20]] = label
        np.savez(tmp_path / "x.npz", features=features, labels=labels)
        assert explore.main(wanted(tmp_path / "x.npz", "--label_next=3")) == 0
        assert f"each the furthest from {said}." in capsys.readouterr().out
        assert (read(tmp_path / "label_next.csv")[0]["distance"] == "") == (label == -1)
    np.savez(tmp_path / "x.npz", features=features, labels=np.zeros(48, int))
    assert explore.main(wanted(tmp_path / "x.npz", "--label_next=3")) == 0
    assert "all have labels here, so none was counted" in capsys.readouterr().out
    for lines, said in (
        ("class0/000.jpg\n", "names class0/000.jpg, which is none of the 48 images; its lines should be like /"),
        ("000.jpg\n", "names 000.jpg, which is several of the images; give its folder too; its lines"),
    ):
        (tmp_path / "list.txt").write_text(lines)
        with pytest.raises(UserError, match=f"list.txt {said}"):
            explore.main(wanted(file, "--label_next=3", f"--labelled={tmp_path / 'list.txt'}"))


def test_refusals(file, features, tmp_path):
    for words, sentence in (
        ((), "There is one argument besides flags, the file of features, and here are 0."),
        ((file,), "Nothing is asked for; give one or more of --pairs, --clusters"),
        ((tmp_path / "no.npz", "--clusters=2"), "no.npz does not exist; give a file that `barlow-jax embed` wrote."),
        ((tmp_path, "--clusters=2"), "is no regular file; give a file"),
        ((file, "--clusters=49"), "--clusters is 49, but there are 48 rows; take at most as many."),
        ((file, "--outliers=49"), "--outliers is 49, but there are 48 rows"),
        ((file, "--outliers=4", "--nearest=48"), "--nearest is 48, but there are 48 rows, so 47 others"),
        ((file, "--label_next=49"), "--label_next is 49, but 48 of 48 images have no label"),
        ((file, "--clusters=-1"), "--clusters is -1; it must be at least 1, or 0 (none)."),
        ((file, "--pairs=pairs.txt"), "--pairs is 'pairs.txt'; give a file in a folder that exists, ending in .csv."),
        ((file, "--atlas=x.csv"), "--atlas is 'x.csv'; give a file in a folder that exists, ending in .parquet."),
        ((file, "--clusters=2", "--out=nowhere"), "--out is 'nowhere', no folder; make it, or name another."),
        ((file, "--like=gone.jpg"), "--like names gone.jpg, which does not exist; give image files."),
        ((file, f"--like={next(tmp_path.iterdir())}"), "does not say which network made it, as `embed` notes it"),
    ):
        with pytest.raises(UserError) as refused:
            explore.main(wanted(*words))
        assert sentence in str(refused.value)


def test_files_that_will_not_do(file, features, tmp_path):
    def refused(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(UserError) as error:
            embedded.read(tmp_path / "x.npz")
        return str(error.value)

    assert "has no array features (it has images); give a file" in refused(images=features)
    assert "has features float32 [48, 8, 1], not rows of numbers" in refused(features=features[..., None])
    assert "has features float32 [0, 8], not rows of numbers" in refused(features=features[:0])
    assert "has features int64 [3, 3]" in refused(features=np.eye(3, dtype=int))
    assert "has 48 rows of features and 3 paths" in refused(features=features, paths=["a", "b", "c"])
    assert "has labels <U1, not whole numbers; give numbers" in refused(features=features, labels=["a"] * 48)
    assert "has labels float64, not whole numbers" in refused(features=features, labels=[np.nan] * 48)
    assert "cannot be read as embeddings" in refused(features=np.array([None]))
    bad = features.astype(np.float64)
    bad[5], bad[40] = np.nan, 1e300
    names = [f"{k}.jpg" for k in range(48)]
    assert "x.npz has 2 of 48 rows that are not finite, 5.jpg for one; make it anew" in refused(
        features=bad, paths=names
    )
    whole = file.read_bytes()
    for content in (b"", b"PK", whole[:-40], whole[: len(whole) // 2], whole.replace(features[7].tobytes(), bytes(32))):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(UserError, match="x.npz cannot be read as embeddings .*; give a file that"):
            embedded.read(tmp_path / "x.npz")
    file.rename(tmp_path / "x.csv")
    with pytest.raises(
        UserError, match="x.csv ends in .csv; give a file that `barlow-jax embed` wrote, .npz or .parquet"
    ):
        embedded.read(tmp_path / "x.csv")


def test_files_of_others_are_searched_whatever_their_names_and_notes_are(features, tmp_path, capsys):
    paths = [f"{k}\udce9\ud800.jpg" for k in range(48)]  # of a name that is no UTF-8, and half a character
    np.savez(tmp_path / "x.npz", features=features, paths=paths, about=json.dumps({"backbone": "x"}))
    explore.main(wanted(tmp_path / "x.npz", "--label_next=2"))
    assert "\\xe9\N{REPLACEMENT CHARACTER}.jpg" in (tmp_path / "label_next.csv").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="does not say which network made it, as `embed` notes it; make it anew"):
        explore.main(wanted(tmp_path / "x.npz", f"--like={tmp_path / 'label_next.png'}"))


def test_the_rows_stay_on_the_disk(file, features, tmp_path):
    """And packed ones, of other widths of numbers, and a row of zeros are read as well."""
    found = embedded.read(file)
    assert isinstance(found.features, np.memmap) and np.array_equal(found.features, features)
    wide = np.asfortranarray(features.astype(np.float64))
    wide[3] = 0
    for write in (np.savez, np.savez_compressed):
        write(
            tmp_path / "x.npz", features=wide, labels=np.arange(48) - 1, class_names=["a"], about=json.dumps({"a": 1})
        )
        found = embedded.read(tmp_path / "x.npz")
        assert np.array_equal(found.features, wide) and found.zeros.tolist() == [3] and found.labels[0] == -1
        assert found.paths[2] == "row 2" and found.class_names == ("a",) and found.about == {"a": 1}
    rows = embedded.on_sphere(found.features)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 0, *[1] * 44], rtol=1e-6)
    with zipfile.ZipFile(file) as archive, open(file, "rb") as stream:  # where _mapped looks is where zipfile has it
        stream.seek(archive.getinfo("features.npy").header_offset)
        assert struct.unpack("<I", stream.read(4))[0] == 0x04034B50


def test_an_atlas(file, features, tmp_path, monkeypatch, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(atlas, "ROWS", 20)
    assert explore.main(wanted(file, f"--atlas={tmp_path / 'atlas.parquet'}")) == 0
    rows = parquet.read_table(tmp_path / "atlas.parquet").to_pylist()
    assert [row["id"] for row in rows] == [*range(48)] and rows[3]["path"].endswith("class0/003.jpg")
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    spread = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
    xy = np.array([(row["x"], row["y"]) for row in rows])
    np.testing.assert_allclose(np.linalg.norm(xy, axis=0), spread[:2], rtol=1e-4)
    assert rows[0]["image"]["bytes"][:3] == b"\xff\xd8\xff" and "class" not in rows[0]
    monkeypatch.setattr(atlas, "PICTURED", 40)
    np.savez(tmp_path / "x.npz", features=features, labels=np.arange(48) % 3 - 1, class_names=["a", "b"])
    assert explore.main(wanted(tmp_path / "x.npz", f"--atlas={tmp_path / 'atlas.parquet'}")) == 0
    rows = parquet.read_table(tmp_path / "atlas.parquet").to_pylist()
    assert "image" not in rows[0] and [row["class"] for row in rows[:3]] == [None, "a", "b"]
    assert "48 rows, without images, as there are more than 40. pip install embedding-atlas" in capsys.readouterr().out


def test_a_sheet_holds_its_names(tmp_path, photographs):
    """Long names lose their beginning, which is what they share; a title of any length is whole."""
    font = sheets._font()
    assert sheets._fitting("a" * 80 + "/end.jpg", 112, font).endswith("aa/end.jpg")
    assert sheets._fitting("x\ny", 112, font) == "x\\ny"
    assert sheets._shared(["/a/b/c.jpg", "/a/b/cd.jpg"]) == "/a/b/" and sheets._shared(["a", "b"]) == ""
    block = sheets.Block("one", [sheets.Cell(str(photographs / "class0" / "000.jpg"), "0.5")] * 3)
    small = sheets.sheet(tmp_path / "x.png", "short", [block], Thumbnails({}))
    titled = sheets.sheet(tmp_path / "x.png", "a long title " * 20, [block], Thumbnails({}))
    assert titled.shape[0] == small.shape[0] and titled.shape[1] > small.shape[1] > 3 * 112
    folded = sheets.sheet(tmp_path / "x.png", "short", [block] * 4, Thumbnails({}), columns=1)
    assert folded.shape[0] > 3 * 112


PAGE = (commands.ROOT / "docs" / "use.md").read_text()


@pytest.mark.parametrize("library", ["numpy", "pandas", "scikit-learn", "faiss"])
def test_what_the_page_shows_runs(library, file, tmp_path, monkeypatch, capsys):
    """docs/use.md, word for word, where the library is there."""
    pytest.importorskip({"scikit-learn": "sklearn"}.get(library, library))
    code = re.search(rf"^{library}:\n\n```python\n(.*?)```", PAGE, re.M | re.S)[1]
    explore.main(wanted(file, f"--pairs={tmp_path / 'pairs.csv'}", "--threshold=0.9"))
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(code, scope)
    printed = capsys.readouterr().out
    assert ("pairs" if library == "pandas" else "000.jpg") in printed
