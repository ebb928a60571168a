"""`python -m barlow_jax.embed`: a row for each image, with its path, whatever happens on the way."""

import json
import os
import types

import commands
import foreign_json
import frozen_runs
import jax
import numpy as np
import pytest
import tfds_sets
from PIL import Image
from saved_runs import a_config, save_run

from barlow_jax import embed, explore, export
from barlow_jax.errors import UserError
from barlow_jax.evaluation import embedded, embedding_files, subject
from barlow_jax.run import launch

UNDISTURBED = types.SimpleNamespace(received=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work folder of a run of a small network on images of 24 pixels."""
    folder = tmp_path_factory.mktemp("run")
    config = a_config("convnet", image_size=24)
    # The photographs are of 40 x 48 pixels: nothing is resampled, so no grey level is rounded one way or the other.
    config.eval.resize, config.eval.crop, config.data.canvas = 40, 24, 64
    save_run(folder, config)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return commands.photographs(tmp_path_factory.mktemp("images") / "set", each=9)


@pytest.fixture(scope="module")
def judged(run):
    return subject.load(run)


def config_of(judged, batch_size=8):
    config = embed.ConfigDict(judged.config)
    config.precision, config.eval.batch_size = "float32", batch_size
    return config


def by_hand(judged, paths):
    """The features of image files, decoded by Pillow, one by one."""
    source = export.Source("", None, judged.config, judged.channels)
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB"))[None])
    views = [export.evaluation_views(judged.config, image) for image in images]
    return np.concatenate([export.features_of(source)(judged.params, judged.batch_stats, view) for view in views])


def test_a_row_for_each_image_with_its_path(judged, photographs, tmp_path):
    source = embed.open_images(str(photographs), 3)
    parts = embed.embed(judged, config_of(judged), source, tmp_path / "parts", UNDISTURBED)
    embedding_files.write_npz(tmp_path / "x.npz", parts, source.where, source.class_names, parts.about)
    with np.load(tmp_path / "x.npz") as found:
        assert [*found["paths"]] == sorted(str(path) for path in photographs.rglob("*.jpg"))
        assert [*found["labels"]] == [0] * 9 + [1] * 9 + [2] * 9 and found["class_names"][2] == "class2"
        np.testing.assert_allclose(found["features"], by_hand(judged, found["paths"]), rtol=1e-4, atol=1e-5)
        kept = found["features"]
    embedding_files.write_parquet(tmp_path / "x.parquet", parts, source.where, source.class_names, parts.about)
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "x.parquet").to_pydict()
    np.testing.assert_array_equal(np.array(table["features"], np.float32), kept)
    assert table["class"][-1] == "class2" and table["path"][0].endswith("class0/000.jpg") and table["label"][9] == 1
    for name in ("x.npz", "x.parquet"):  # as explore has them
        found = embedded.read(tmp_path / name)
        np.testing.assert_array_equal(found.features, kept)
        assert [*found.paths] == table["path"] and [*found.labels] == table["label"] and found.about == parts.about
        assert found.class_names == ("class0", "class1", "class2") and not len(found.zeros)


def test_stopped_and_started_again(judged, photographs, tmp_path):
    """The file is the one that an undisturbed run writes, to the bit; what belongs to other features is refused."""
    source, config = embed.open_images(str(photographs), 3), config_of(judged)
    for name in ("whole", "parts"):
        stop = types.SimpleNamespace(received=None if name == "whole" else "SIGTERM")
        stops = 0
        while (parts := embed.embed(judged, config, source, tmp_path / name, stop)) is None:
            stops += 1
        embedding_files.write_npz(tmp_path / f"{name}.npz", parts, source.where, source.class_names)
        assert stops == (0 if name == "whole" else 3)  # after 8, 16 and 24 of 27
    whole, after_stops = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("whole", "parts"))
    assert whole.keys() == after_stops.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], after_stops[name])
    with pytest.raises(
        UserError, match=r"holds a part of other features \(images, count, content of images\); remove it"
    ):
        embed.embed(judged, config, embed.open_images(str(photographs / "class1"), 3), tmp_path / "parts", UNDISTURBED)
    about = tmp_path / "parts" / embedding_files.ABOUT
    told = json.loads(about.read_bytes())
    for content in foreign_json.NO_OBJECTS:
        about.write_bytes(content)
        with pytest.raises(UserError, match=r"holds a part of other features \(about.json\)"):
            embedding_files.Parts(tmp_path / "parts", told)
    about.write_text(json.dumps(told))
    (tmp_path / "parts" / "0x.npz").write_bytes(b"of others")
    part = tmp_path / "parts" / "000000000016.npz"
    whole = part.read_bytes()
    for content in (b"", b"PK", whole[:-40], whole[: len(whole) // 2], b"\x80\x04N.", bytes(len(whole))):
        part.write_bytes(content)
        with pytest.raises(UserError, match="000000000016.npz is damaged .*; remove .*parts, and start again"):
            embedding_files.Parts(tmp_path / "parts", told).index()


def test_a_part_of_replaced_images_is_refused(judged, tmp_path):
    """Other pixels under the same names, in a file of the same size: nothing of the two is mixed."""

    def draw(name, seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / name)

    (tmp_path / "set").mkdir()
    for k in range(12):
        draw(f"{k:02}.bmp", k)
    source, config = embed.open_images(str(tmp_path / "set"), 3), config_of(judged)
    stop = types.SimpleNamespace(received="SIGTERM")
    assert embed.embed(judged, config, source, tmp_path / "x.npz.parts", stop) is None
    draw("09.bmp", 99)
    for images in (source, embed.open_images(str(tmp_path / "set"), 3)):
        with pytest.raises(UserError) as caught:
            embed.embed(judged, config, images, tmp_path / "x.npz.parts", UNDISTURBED)
        assert str(caught.value) == (
            f"{tmp_path / 'x.npz.parts'} holds a part of other features (content of images); remove it, or give "
            "another --out."
        )


def test_a_list_is_read_in_its_order_and_an_unreadable_image_has_no_row(judged, photographs, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff and no more")
    named = [photographs / "class2" / "003.jpg", "bad.jpg", photographs / "class0" / "001.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(map(str, named)) + "\n\n")
    source, config = embed.open_images(str(tmp_path / "list.txt"), 3), config_of(judged)
    assert source.paths == [str(tmp_path / name) for name in named]
    parts = embed.embed(judged, config, source, tmp_path / "parts", UNDISTURBED)
    assert [*parts.index()] == [0, 2] and next(iter(parts))[2].shape == (2, 256)
    (tmp_path / "list.txt").write_text(f"{named[0]}\nnot_there.jpg\n")
    with pytest.raises(UserError, match="not_there.jpg, which .*list.txt names, does not exist"):
        embed.open_images(str(tmp_path / "list.txt"), 3)


def test_names_that_are_not_utf_8(judged, photographs, tmp_path):
    """Paths are written in characters that any reader takes, see walk.readable."""
    (tmp_path / "set").mkdir()
    for name in (b"caf\xe9.jpg", b"plain.jpg"):
        (tmp_path / "set" / os.fsdecode(name)).write_bytes((photographs / "class0" / "001.jpg").read_bytes())
    source = embed.open_images(str(tmp_path / "set"), 3)
    parts = embed.embed(judged, config_of(judged), source, tmp_path / "parts", UNDISTURBED)
    expected = [rf"{tmp_path}/set/caf\xe9.jpg", f"{tmp_path}/set/plain.jpg"]
    embedding_files.write_npz(tmp_path / "x.npz", parts, source.where, source.class_names)
    with np.load(tmp_path / "x.npz") as found:
        assert [*found["paths"]] == expected
    pytest.importorskip("pyarrow")
    embedding_files.write_parquet(tmp_path / "x.parquet", parts, source.where, source.class_names)


def test_images_larger_than_the_canvas_are_told(judged, tmp_path, caplog):
    """A photograph of which the view does not fit: with a larger canvas it is read whole, and its features move."""
    (tmp_path / "set").mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    for k, side in enumerate((240, 60)):
        noise.resize((side, side)).save(tmp_path / "set" / f"{k}.jpg")
    source, config, found = embed.open_images(str(tmp_path / "set"), 3), config_of(judged), []
    for canvas in (64, 256):
        config.data.canvas = canvas
        parts = embed.embed(judged, config, source, tmp_path / f"parts{canvas}", UNDISTURBED)
        found.append(next(iter(parts))[2])
        told = "1 of 2 images are larger than the canvas of 64 pixels"
        assert (told in caplog.text) == (canvas == 64)
        caplog.clear()
    assert np.array_equal(found[0][1], found[1][1]) and not np.array_equal(found[0][0], found[1][0])
    with pytest.raises(UserError, match=r"holds a part of other features \(canvas\)"):
        embed.embed(judged, config, source, tmp_path / "parts64", UNDISTURBED)


def test_flags_stand_for_the_fields_of_the_run(judged):
    def settings(**flags):
        given = {"precision": "float32", "batch_size": 8, "threads": 0, "max_bad_fraction": 0.0, "canvas": 0}
        wanted = types.SimpleNamespace(**given | {"max_pixels": 0, "value_range": []} | flags)
        return embed.settings(judged, wanted).data

    assert (settings().canvas, settings().max_pixels, tuple(settings().value_range)) == (64, 2**26, ())
    found = settings(canvas=2048, max_pixels=7, value_range=["0", "4095"])
    assert (found.canvas, found.max_pixels, tuple(found.value_range)) == (2048, 7, (0.0, 4095.0))
    for values in (["a", "1"], ["1"], ["2", "1"]):
        with pytest.raises(UserError, match="value_range"):
            settings(value_range=values)


def test_nearest_rows_over_parts(tmp_path):
    rng = np.random.default_rng(0)
    features, sizes = rng.normal(size=(40, 6)).astype(np.float32), (13, 1, 26)
    parts, start = embedding_files.Parts(tmp_path / "parts", {}), 0
    for size in sizes:
        rows = np.arange(start, start + size)
        parts.add(start + size, rows, np.full(size, -1, np.int32), features[rows])
        start += size
    chosen = np.array([0, 12, 13, 39])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    alike = unit[chosen] @ unit.T
    alike[np.arange(4), chosen] = -2
    np.testing.assert_array_equal(embedding_files.nearest(parts, chosen, 5), np.argsort(-alike, 1)[:, :5])


def test_arrays_and_channels(tmp_path):
    images = np.zeros((3, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "set.npz", x_test=images, y_test=[0, 1, 1], images=images)
    for named, labelled in ((f"{tmp_path}/set.npz:test", True), (f"{tmp_path}/set.npz", False)):
        source = embed.open_images(named, 1)
        assert source.images.shape == (3, 8, 8, 1) and (source.labels is not None) == labelled
        assert source.where(2).endswith("[2]")
    with pytest.raises(UserError, match="has images of 1 channels and the network is for 3"):
        embed.open_images(f"{tmp_path}/set.npz", 3)
    with pytest.raises(UserError, match="is no folder, no file and no NAME:SPLIT of TFDS"):
        embed.open_images(f"{tmp_path}/nothing", 3)


def test_the_command(run, photographs, tmp_path):
    """A picture beside the rows; a second try does not overwrite them."""
    line = (
        "-m",
        "barlow_jax.embed",
        run,
        photographs,
        f"--out={tmp_path / 'x.npz'}",
        "--batch_size=8",
        f"--neighbours={tmp_path / 'near.png'}",
        f"--map={tmp_path / 'map.png'}",
    )
    status, output = commands.run(*line)
    assert status == 0 and "x.npz: 27 images of" in output, output
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["map.png", "near.png", "x.npz"]
    for name in ("near", "map"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 8 * 24
    status, output = commands.run(*line)
    assert status == 1 and "exists; remove it, or give another." in output and "Traceback" not in output


@pytest.mark.slow
def test_two_processes_share_the_images_and_go_on_where_one_stopped(run, judged, photographs, tmp_path):
    """The rows and pictures of one process, and those of one that was stopped after 8 of 27 images and then of two."""
    stopped = types.SimpleNamespace(received="SIGTERM")
    source = embed.open_images(str(photographs), 3)
    assert embed.embed(judged, config_of(judged), source, f"{tmp_path / 'two.npz'}.parts", stopped) is None
    for name in ("one", "two"):
        line = [run, photographs, f"--out={tmp_path / name}.npz", "--batch_size=8", f"--map={tmp_path / name}.png"]
        line += [f"--neighbours={tmp_path / name}_near.png"]
        if name == "one":
            started = [commands.start("-m", "barlow_jax.embed", *line)]
        else:
            started = frozen_runs.two_processes("barlow_jax.embed", *line)
        outputs = [commands.finish(process) for process in started]
        assert [process.returncode for process in started] == [0] * len(started), outputs
    assert "[0] going on after 8 of 27 images" in outputs[0] and "27 images of" in outputs[0]
    assert "27 images of" not in outputs[1]
    one, two = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "two"))
    np.testing.assert_allclose(two.pop("features"), one.pop("features"), rtol=1e-5, atol=1e-6)
    assert [*two["paths"]] == [*one["paths"]] and [*two["labels"]] == [*one["labels"]]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}{end}" for name in ("one", "two") for end in (".npz", ".png", "_near.png")
    }


def test_its_file_is_searched_by_an_image(run, photographs, tmp_path, capsys):
    """With --pairs in one go; by the network that made it, and by no other."""

    def said_by(command, *words):
        flag = launch.Flags()
        command.define_flags(flag)
        assert command.main(flag.parsed(["x", *map(str, words)])) == 0
        return capsys.readouterr().out

    out = tmp_path / "x.npz"
    pairs = (f"--pairs={tmp_path / 'pairs.csv'}", "--threshold=0.7")
    said = said_by(embed, run, photographs, f"--out={out}", "--batch_size=8", *pairs)
    assert "Pairs with a cosine similarity of 0.7 or more: " in said and (tmp_path / "pairs.png").exists()
    asked = [photographs / "class1" / "003.jpg", photographs / "class2" / "000.jpg"]
    said = said_by(explore, out, f"--like={asked[0]},{asked[1]}", "--nearest=5")
    assert said.startswith("The images nearest to 2, with their similarities.")
    rows = np.genfromtxt(tmp_path / "like.csv", delimiter=",", dtype=str, skip_header=1)
    for name, nearest in ((asked[0], rows[0]), (asked[1], rows[5])):
        assert nearest[0] == nearest[2] == f'"{name}"' and nearest[1] == "1" and float(nearest[3]) > 0.99999
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff and no more")
    with np.load(out) as held:
        arrays = dict(held)
    arrays["about"] = np.array(str(arrays["about"]).replace(subject.load(run).sha256, "another's"))
    np.savez(tmp_path / "other.npz", **arrays)
    for words, sentence in (
        ((out, f"--like={tmp_path / 'bad.jpg'}"), "bad.jpg, which cannot be read"),
        ((tmp_path / "other.npz", f"--like={asked[0]}"), "has not the weights that made these embeddings"),
    ):
        with pytest.raises(UserError, match=sentence):
            said_by(explore, *words)


def test_a_split_of_tfds(run, tmp_path):
    prepared = tmp_path / "tfds"
    tfds_sets.prepare("cifar10", prepared, "array_record", {"test": 5})
    line = ("-m", "barlow_jax.embed", run, "cifar10:test", f"--out={tmp_path / 'x.parquet'}", f"--data_dir={prepared}")
    status, output = commands.run(*line)
    assert status == 0, output
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "x.parquet").to_pydict()
    assert table["path"][4] == "cifar10:test, record 4" and sorted(table["label"]) == [0, 1, 2, 3, 4]


def test_refusals(run, photographs, tmp_path):
    for line, sentence in (
        ((run,), "There are two arguments besides flags"),
        ((run, photographs, f"--out={tmp_path / 'x.csv'}"), "ending in .npz or .parquet"),
    ):
        status, output = commands.run("-m", "barlow_jax.embed", *line)
        assert status == 1 and sentence in output and "Traceback" not in output, output
    assert jax.process_count() == 1
