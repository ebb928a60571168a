"""What is said of a set, beside numpy on the pixels as they were made."""

import numpy as np
import pytest
from deep_files import tiff
from PIL import Image

from barlow_jax import data, dataset
from barlow_jax.data import stats
from barlow_jax.evaluation import image_sets
from barlow_jax.run import launch


def of(path, looked_at=0, **options):
    source = data.open_source("folder", str(path), "", **options)
    return source, stats.measure(source, looked_at, 2)


def moments(images):
    """Mean and deviation of each channel over images that all count the same, float64."""
    first = np.mean([image.reshape(-1, image.shape[-1]).mean(0) for image in images], 0)
    second = np.mean([(image.reshape(-1, image.shape[-1]) ** 2).mean(0) for image in images], 0)
    return first, np.sqrt(second - first**2)


def test_of_ordinary_images(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 200 + k, (20 + k, 30 + 2 * k, 3)).astype(np.uint8) for k in range(6)]
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "2.png").read_bytes())
    for name, content in (("x.jpg", b""), ("y.jpg", b""), ("z.jpg", b"text, no image at all")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "cut.png").write_bytes((tmp_path / "5.png").read_bytes()[:900])
    source, found = of(tmp_path)
    assert found.count == 11 and found.looked == 7 and dict(found.formats) == {"PNG": 7} == {"PNG": found.bits[8]}
    mean, std = stats.moments(found.levels)
    expected = moments([image / 255 for image in (*images, images[2])])
    assert np.allclose(mean, expected[0], atol=1e-12) and np.allclose(std, expected[1], atol=1e-12)
    sizes = np.asarray([image.shape[:2] for image in (*images[:6], images[2])])
    assert sorted(map(tuple, found.sizes)) == sorted(map(tuple, sizes))
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert [[source.where(int(row)).rpartition("/")[2] for row in group] for group in stats.copies(found)] == [
        ["2.png", "copy.png"]
    ]
    assert sorted(found.reasons.values()) == [1, 1, 2] and found.reasons["the file is empty"] == 2
    assert stats.value_range(found) is None
    flag = launch.Flags()
    dataset.define_flags(flag)
    dataset.main(flag.parsed(["x", "stats", str(tmp_path)]))
    said = capsys.readouterr().out
    told = ", ".join(str(round(float(value), 3)) for value in expected[0])
    assert f"--config.views.mean='({told})'" in said and "value_range" not in said
    assert "1 files are copies of others" in said and "2 x the file is empty: " in said and "11 images" in said


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_of_grey_images_of_more_than_8_bits(tmp_path, bits):
    rng = np.random.default_rng(bits)
    images = [rng.integers(0, 2**bits, (30, 40)).astype(np.uint16) for _ in range(3)]
    images[0][0, 0] = 2**bits - 1
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{k}.{'png' if k else 'tif'}")
    source, found = of(tmp_path, channels=1)
    wanted = stats.value_range(found)
    assert wanted == (None if bits == 16 else (0, 2**bits - 1)) and found.bits == {16: 3}
    # The suggested line, used: means are those of the pixels as training reads them.
    mean, std = stats.moments(stats.rendered(found, 1))
    _, read = of(tmp_path, channels=1, value_range=wanted or (0, 65535))
    if bits < 16:
        assert np.allclose((mean, std), stats.moments(read.levels), atol=1e-12)
        assert f"--config.data.value_range='(0, {2**bits - 1})'" in "\n".join(stats.lines(found, source))
    else:
        expected = moments([(image[..., None] >> 8) / 255 for image in images])
        assert np.allclose((mean, std), expected, atol=1e-12)
    values = np.sort(np.concatenate(images).ravel())
    for part, told in zip(stats.RANGE, stats.percentiles(found.deep[0], stats.RANGE), strict=True):
        assert values[max(0, int(np.ceil(part / 100 * len(values))) - 1)] == told


@pytest.mark.parametrize("maxval", [1000, 4095, 40000, 65535])
def test_of_a_pgm_in_the_unit_of_its_file(tmp_path, maxval):
    """Pillow makes 65535 of the largest value that the file says; a range is of what stands in it."""
    rng = np.random.default_rng(maxval)
    images = [rng.integers(0, maxval + 1, (30, 40)).astype(np.uint16) for _ in range(3)]
    images[0][0, 0] = maxval
    for k, image in enumerate(images):
        (tmp_path / f"{k}.pgm").write_bytes(b"P5 40 30 %d\n" % maxval + image.astype(">u2").tobytes())
    source, found = of(tmp_path, channels=1)
    assert found.bits == {16: 3} and np.array_equal(np.flatnonzero(found.deep[0]), np.unique(images))
    assert stats.value_range(found) == (None if maxval == 65535 else (0, maxval))
    mean, std = stats.moments(stats.rendered(found, 1))
    expected = moments([image[..., None] / maxval for image in images])
    assert np.allclose((mean, std), expected, atol=1 / 255)
    if maxval < 65535:  # the line that is suggested, used
        read = of(tmp_path, channels=1, value_range=(0, maxval))[1]
        assert np.allclose(stats.moments(read.levels), (mean, std), atol=1e-12)
    assert f"value_range='(0, {maxval})'" in "\n".join(stats.lines(found, source)) or maxval == 65535


@pytest.mark.parametrize("bands", [2, 3, 4])
@pytest.mark.parametrize("value_range", [(), (0, 4095)])
def test_of_pngs_of_16_bits_in_colour_or_with_alpha(tmp_path, bands, value_range):
    import tensorflow as tf

    image = np.random.default_rng(bands).integers(0, 4096, (20, 30, bands)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(image).numpy())
    source, found = of(tmp_path, value_range=value_range)
    assert not found.reasons and found.bits == {16: 1} and found.channels == {bands: 1} and found.looked == 1
    colours = image[..., :1] if bands == 2 else image[..., :3]
    if value_range:
        expected = moments([np.rint(colours / 4095 * 255).astype(int) / 255])
        assert np.allclose(stats.moments(found.levels), expected, atol=1e-12)
    else:
        counted = [np.bincount(band.ravel(), minlength=65536) / band.size for band in np.moveaxis(colours, -1, 0)]
        assert np.array_equal(found.deep, counted)
    assert "--config.views.mean=" in "\n".join(stats.lines(found, source))


@pytest.mark.parametrize("photometric", [0, 1])
def test_of_greys_whose_lowest_is_white(tmp_path, photometric):
    """The same for either order of bytes, of which Pillow reads one and says nothing of what is white."""
    pytest.importorskip("tifffile")
    image = np.full((48, 64), 1000, np.uint16)
    image[:10] = 60000
    for order in "<>":
        folder = tmp_path / {"<": "little", ">": "big"}[order]
        folder.mkdir()
        (folder / "a.tif").write_bytes(tiff(image, order, photometric))
        _, found = of(folder, channels=1)
        mean, _ = stats.moments(stats.rendered(found, 1))
        level = (image >> 8) / 255
        assert np.allclose(mean, level.mean() if photometric else 1 - level.mean(), atol=1e-12)


def test_of_fractions(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.normal(0, 100, (50, 50)).astype(np.float32) for _ in range(4)]
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{k}.tif")
    source, found = of(tmp_path, channels=1)
    low, high = stats.value_range(found)
    expected = np.percentile(np.concatenate(images), (0.1, 99.9))
    assert np.allclose((low, high), expected, rtol=0.15) and found.bits == {32: 4}
    data.open_source("folder", str(tmp_path), "", value_range=(low, high))
    assert f"--config.data.value_range='({low}, {high})'" in "\n".join(stats.lines(found, source))


@pytest.mark.parametrize("value_range", [(), (-128, 127)])
def test_of_arrays_with_a_sign_of_8_bits_or_of_many_rows(tmp_path, value_range):
    images = np.random.default_rng(0).integers(-128, 128, (3, 300, 5, 3)).astype(np.int8)
    np.savez(tmp_path / "a.npz", train_images=images)
    (tmp_path / "files").mkdir()
    for k, image in enumerate(images):
        np.save(tmp_path / "files" / f"{k}.npy", image)
    for named in (f"{tmp_path / 'a.npz'}:train", str(tmp_path / "files")):
        source = image_sets.open_any(named, 0, any_range=True, value_range=value_range)
        found = stats.measure(source, 0, 2)
        assert not found.reasons and found.bits == {8: 3} and {tuple(size) for size in found.sizes} == {(300, 5)}
        if value_range:
            expected = moments([(image.astype(int) + 128) / 255 for image in images])
            assert np.allclose(stats.moments(found.levels), expected, atol=1e-12)
        else:
            low, high = np.array(stats.value_range(found)).reshape(-1, 2).T
            assert (low <= -126).all() and (high >= 125).all()


def test_of_arrays_and_of_some_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 2)).astype(np.uint8)
    images[4] = images[1]
    source = data.Arrays(images)
    found = stats.measure(source, 3, 2)
    mean, _ = stats.moments(found.levels)
    assert found.looked == 3 and np.allclose(mean, moments(images[[0, 4, 8]] / 255)[0])
    assert [group.tolist() for group in stats.copies(found)] == [[1, 4]] and found.channels == {2: 9}
