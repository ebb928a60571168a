"""What is said of images of sensors, beside numpy on the values as they were made; its lines, used."""

import re

import numpy as np
import pytest
from sensor_files import dicom_file, tiff

from barlow_jax import data
from barlow_jax.data import stats
from barlow_jax.data.pixels import Reading, pillow_pixels

RNG = np.random.RandomState(1)


def told(root, **options):
    source = data.ImageFolder(root, **options)
    found = stats.measure(source, 0, 1)
    assert not found.reasons, found.reasons
    return source, found, "\n".join(stats.lines(found, source))


def used(said):
    """The fields of the lines for a command."""
    return {name: eval(value.strip("'")) for name, value in re.findall(r"--config\.(?:data|views)\.(\w+)=(.*)", said)}


def check_lines(source, said):
    """Means and deviations are those of the pixels as training reads them by the other lines."""
    fields = used(said)
    reading = Reading.of({name: fields[name] for name in ("channels", "value_range", "bits") if name in fields})
    shares = [pillow_pixels(source.encoded(row), reading) / 65535 for row in range(len(source))]
    assert np.allclose(fields["mean"], np.mean(shares, (0, 1, 2)), atol=2e-3)
    deviation = np.sqrt(np.mean(np.square(shares), (0, 1, 2)) - np.mean(shares, (0, 1, 2)) ** 2)
    assert np.allclose(fields["std"], deviation, atol=2e-3)
    return fields


def test_of_arrays_of_many_bands(tmp_path):
    images = RNG.randint(0, 5000, (4, 30, 20, 3)) * [1, 2, 0] + [7, 0, 9]
    images = np.concatenate([images, images[..., :2] // 2], -1).astype(np.uint16)
    for k, image in enumerate(images):
        np.save(tmp_path / f"{k}.npy", image)
    source, found, said = told(tmp_path)
    fields = check_lines(source, said)
    assert fields["channels"] == 5 and fields["bits"] == 16 and found.channels == {5: 4} and found.bits == {16: 4}
    for band, (low, high) in enumerate(zip(fields["value_range"][::2], fields["value_range"][1::2], strict=True)):
        values = np.sort(images[..., band].ravel())
        assert low == values[int(np.ceil(0.001 * values.size)) - 1]
        assert high == max(values[int(np.ceil(0.999 * values.size)) - 1], low + 1)
        assert f"band {band + 1}        smallest {values[0]}, " in said and f"largest {values[-1]}" in said
    data.open_source("folder", str(tmp_path), "", channels=5, value_range=fields["value_range"])


def test_of_fractions_of_two_bands(tmp_path):
    images = RNG.normal(0, (1, 100), (3, 30, 40, 2)).astype(np.float32)
    images[0, 0, 0] = np.nan, np.inf
    for k, image in enumerate(images):
        np.save(tmp_path / f"{k}.npy", image)
    _, _, said = told(tmp_path)
    low, high = np.nanpercentile(np.where(np.isfinite(images), images, np.nan).reshape(-1, 2), (0.1, 99.9), axis=0)
    found = used(said)["value_range"]
    assert np.allclose(found, np.stack([low, high], -1).ravel(), rtol=0.2) and used(said)["channels"] == 2


def test_of_dicom_files_that_begin_with_white_and_with_black(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    for k in range(4):
        values = RNG.randint(0, 1000, (30, 20)).astype(np.uint16)
        kind = ("MONOCHROME1", "MONOCHROME2")[k % 2]
        values[0, 0] = 4095
        (tmp_path / f"{k}").write_bytes(dicom_file(pydicom, values, PhotometricInterpretation=kind))
    source, found, said = told(tmp_path)
    fields = check_lines(source, said)
    assert fields["channels"] == 1 and fields["value_range"] == (0, 4095) and found.formats == {"DICOM": 4}
    assert abs(fields["mean"][0] - 0.5) < 0.01  # dark ones and light ones
    assert "16 bits       smallest " in said and "largest 4095" in said


def test_of_tiffs_of_bands_and_pages(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image = RNG.randint(0, 3000, (6, 9, 8)).astype(np.uint16)
    (tmp_path / "pages.tif").write_bytes(tiff(tifffile, image, photometric="minisblack"))
    assert used(told(tmp_path, channels=6)[2])["mean"] and told(tmp_path, channels=6)[1].channels == {6: 1}
    assert told(tmp_path)[1].channels == {1: 1}  # of which the first is one image
    (tmp_path / "pages.tif").write_bytes(tiff(tifffile, image.transpose(1, 2, 0), photometric="minisblack"))
    assert told(tmp_path)[1].channels == {6: 1}
