"""A look at images: planted faults are found and told."""

import batches
import numpy as np
import pytest
from PIL import Image

from barlow_jax.data import Arrays, ImageFolder, checkup


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """24 images in two classes, and beside them a grey one of 16 bits."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(24):
        place = folder / ("cats" if number < 18 else "dogs")
        place.mkdir(exist_ok=True)
        Image.fromarray(batches.photograph(40 + number, 64, number)).save(place / f"{number:02}.jpg")
    Image.fromarray(np.full((30, 50), 40000, np.uint16)).save(folder / "dogs" / "deep.png")
    return folder


def test_classes_formats_sizes_and_depth(photographs):
    source = ImageFolder(photographs)
    assert checkup.classes(source) == [("ok", "classes", "2, of 7 (dogs) to 18 (cats) images")]
    ((verdict, about, said),) = checkup.files(source, 32, 0.01)
    assert (verdict, about) == ("ok", "images")
    assert said.startswith("25; of 25 looked at: 24 JPEG, 1 PNG, 24 RGB, 1 I;16; median sides 51 and 64 pixels, ")
    assert said.endswith("shortest 30, longest 64")
    ((verdict, _, said),) = checkup.files(source, 224, 0.01)
    assert verdict == "warning" and "25 are smaller than config.image_size=224" in said
    assert checkup.duplicates(source.paths)[0][0] == "ok"


def test_broken_images_and_copies(photographs, tmp_path):
    for file in photographs.rglob("*.jpg"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "00.jpg").read_bytes()[:300])
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "01.jpg").read_bytes())
    source = ImageFolder(tmp_path)
    for allowed, wanted in ((0.01, "problem"), (0.5, "warning")):
        verdict, about, said = checkup.files(source, 32, allowed)[-1]
        assert (verdict, about) == (wanted, "unreadable") and "1 of 26 cannot be read" in said and "cut.jpg (" in said
    ((verdict, _, said),) = checkup.duplicates(source.paths)
    assert verdict == "warning" and said.startswith("1 of 26 files are copies") and "01.jpg and" in said


def test_arrays_and_what_has_no_labels():
    images = np.zeros((10, 8, 8, 3), np.uint8)
    assert checkup.files(Arrays(images), 8, 0.0) == [
        ("ok", "images", "10 of at most 8 x 8 pixels and 3 channels, in memory")
    ]
    assert "without labels" in checkup.classes(Arrays(images))[0][2]
    one = checkup.classes(Arrays(images, np.zeros(10, int), class_names=["all"]))
    assert one[0][0] == "warning" and "tells nothing apart" in one[0][2]
    empty = checkup.classes(Arrays(images, np.arange(10) % 2, class_names=["a", "b", "c"]))
    assert empty[0][0] == "warning" and "one without images" in empty[0][2]


def test_reading_is_timed_as_training_reads():
    ((verdict, about, said),) = checkup.speed(Arrays(np.zeros((10, 8, 8, 3), np.uint8)), 40, 8, seconds=0.1)
    assert (verdict, about) == ("ok", "reading") and "a batch of 40 each" in said
