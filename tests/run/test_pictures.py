"""Pictures: the right pixels in the right places, for any number of channels, and files that can be opened."""

import json
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from barlow_jax.errors import UserError
from barlow_jax.run import pictures

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photos(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 200, shape, np.uint8)  # never white: that is the paper


def find(picture, image):
    """Top left corners where the image stands in the picture, pixel for pixel."""
    height, width = image.shape[:2]
    candidates = np.argwhere((picture == image[0, 0]).all(-1))
    fits = [(y, x) for y, x in candidates if np.array_equal(picture[y : y + height, x : x + width], image)]
    return [(int(y), int(x)) for y, x in fits]


def saved(path):
    with Image.open(path) as file:
        assert file.format == "PNG"
        return np.asarray(file)


def test_views_stand_side_by_side_as_they_were_before_normalisation(tmp_path):
    images = photos(5, 2, 100, 100, 3)
    views = ((images / 255 - MEAN) / STD).astype(np.float32)
    picture = pictures.views_grid(views, MEAN, STD, tmp_path / "new" / "views.png")
    np.testing.assert_array_equal(saved(tmp_path / "new" / "views.png"), picture)
    assert picture.dtype == np.uint8
    places = [[find(picture, image) for image in pair] for pair in images]
    assert all(len(place) == 1 for pair in places for place in pair)
    for ((y1, x1),), ((y2, x2),) in places:
        assert y1 == y2 and x2 - x1 == 104  # view 2 right of view 1, closer than the next pair
    (first,), (second,) = places[0][1], places[1][0]
    assert second[1] - first[1] > 115
    covered = sum((picture[y : y + 100, x : x + 100] != 255).all(-1).sum() for p in places for ((y, x),) in p)
    assert (picture != 255).all(-1).sum() == covered  # nothing else is on the paper


def test_all_views_of_an_image_stand_in_one_row():
    images = photos(3, 4, 100, 100, 3)
    picture = pictures.views_grid(((images / 255 - MEAN) / STD).astype(np.float32), MEAN, STD)
    for row in images:
        ((y, x),) = find(picture, row[0])
        assert [find(picture, image) for image in row] == [[(y, x + 104 * k)] for k in range(4)]


def test_small_views_stand_behind_the_large_ones_enlarged_alike():
    large, small = photos(2, 2, 50, 50, 3), photos(2, 3, 20, 20, 3, seed=1)
    given = tuple(((one / 255 - MEAN) / STD).astype(np.float32) for one in (large, small))
    picture = pictures.views_grid(given, MEAN, STD)
    for row, behind in zip(large, small, strict=True):
        ((y, x),) = find(picture, row[0].repeat(2, 0).repeat(2, 1))
        found = [find(picture, image.repeat(2, 0).repeat(2, 1)) for image in behind]
        assert found == [[(y, x + 208 + 44 * k)] for k in range(3)]


def test_views_out_of_range_are_clipped():
    views = np.stack([np.full((1, 100, 100, 3), -9.0), np.full((1, 100, 100, 3), 9.0)], axis=1)
    picture = pictures.views_grid(views, MEAN, STD)
    assert len(find(picture, np.zeros((100, 100, 3), np.uint8))) == 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_number_of_channels(channels):
    images = photos(1, 2, 100, 100, channels)
    views = images.astype(np.float32) / 255
    picture = pictures.views_grid(views, [0.0] * channels, [1.0] * channels)
    if channels == 1:
        expected = np.repeat(images[0, 0], 3, -1)
    elif channels == 2:
        expected = np.concatenate([images[0, 0], np.zeros((100, 100, 1), np.uint8)], -1)
    else:
        expected = images[0, 0, ..., :3]
    assert len(find(picture, expected)) == 1


def test_small_images_are_enlarged_without_smoothing():
    images = photos(1, 1, 28, 28, 1)
    picture = pictures.neighbours_grid(images[:, 0], images)
    enlarged = np.repeat(np.kron(images[0, 0, ..., 0], np.ones((4, 4), np.uint8))[..., None], 3, -1)
    assert len(find(picture, enlarged)) == 2  # the query and its neighbour


def test_neighbours_are_framed_by_whether_they_are_right(tmp_path):
    queries, neighbours = photos(2, 100, 100, 3), photos(2, 3, 100, 100, 3, seed=1)
    correct = np.array([[True, False, True], [False, False, True]])
    picture = pictures.neighbours_grid(queries, neighbours, correct, tmp_path / "neighbours.png")
    np.testing.assert_array_equal(saved(tmp_path / "neighbours.png"), picture)
    for row in range(2):
        ((y, x),) = find(picture, queries[row])
        assert (picture[y - 2, x : x + 100] == 255).all()  # the query has no frame
        for column in range(3):
            ((below, right),) = find(picture, neighbours[row, column])
            assert below == y and right > x + 100
            colour = pictures.RIGHT if correct[row, column] else pictures.WRONG
            frame = picture[below - 2 : below + 102, right - 2 : right + 102].copy()
            frame[2:-2, 2:-2] = colour
            assert (frame == colour).all()
            x = right
    unknown = pictures.neighbours_grid(queries, neighbours)
    ((y, x),) = find(unknown, neighbours[0, 0])
    assert (unknown[y - 1, x] == pictures.UNKNOWN).all()


def colours(values):
    return np.asarray(matplotlib.colormaps["RdBu_r"]((np.asarray(values) + 1) / 2, bytes=True))[..., :3]


@pytest.mark.parametrize("d", [4, 64, 512])
def test_every_entry_of_a_small_matrix_is_a_square_of_its_colour(tmp_path, d):
    c = np.random.default_rng(0).uniform(-1, 1, (d, d)).astype(np.float32)
    picture = pictures.cross_correlation_picture(c, tmp_path / "c.png")
    np.testing.assert_array_equal(saved(tmp_path / "c.png"), picture)
    zoom = 512 // d
    y, x = 44, 76  # the margins above and left
    drawn = picture[y : y + 512, x : x + 512][zoom // 2 :: zoom, zoom // 2 :: zoom]
    inside = slice(2, -2) if zoom == 1 else slice(None)  # the outermost pixels lie under the frame
    difference = np.abs(drawn.astype(int) - colours(c))[inside, inside]
    assert difference.max() <= 8  # a step of the colour map's 256


def test_scale_is_fixed():
    weak = pictures.cross_correlation_picture(np.full((8, 8), 0.05))
    assert (np.abs(weak[300, 300].astype(int) - colours(0.05)) <= 8).all()


def test_large_matrix_keeps_its_diagonal_and_its_single_outliers():
    d = 1500
    c = 0.02 * np.random.default_rng(0).standard_normal((d, d)).astype(np.float32)
    np.fill_diagonal(c, 1)
    c[100, 1400], c[1401, 99] = -0.9, 0.8
    cells, block = pictures._strongest(c)
    assert block == 3 and cells.shape == (500, 500)
    assert (np.diagonal(cells) == 1).all()
    assert cells[100 // 3, 1400 // 3] == np.float32(-0.9) and cells[1401 // 3, 99 // 3] == np.float32(0.8)
    for i, j in [(0, 1), (7, 300), (499, 2)]:
        part = c[3 * i : 3 * i + 3, 3 * j : 3 * j + 3].ravel()
        assert cells[i, j] == part[np.abs(part).argmax()]
    cells, block = pictures._strongest(np.full((1025, 1025), -0.5))  # 1025 is no multiple of 3
    assert block == 3 and cells.shape == (342, 342) and (cells == -0.5).all()


def ink(picture):
    return (picture < 200).any(-1)


def test_curves_from_a_file_and_from_its_lines(tmp_path):
    lines = [{"step": 10 * i, "loss": None if i == 20 else 100.0 / (i + 1), "on_diag": i} for i in range(40)]
    lines += [{"step": 100 * i, "knn": 0.1 * i} for i in range(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    keys = ["loss", ("on_diag", "loss"), "knn", "on_diag"]
    picture = pictures.curves(tmp_path / "metrics.jsonl", keys, tmp_path / "curves.png")
    np.testing.assert_array_equal(saved(tmp_path / "curves.png"), picture)
    np.testing.assert_array_equal(pictures.curves(lines, keys), picture)
    assert pictures.curves(lines).shape == pictures.curves(lines, ["knn", "loss", "on_diag"]).shape
    height = len(picture)
    panels = [ink(row).sum() for half in np.split(picture[: height // 2 * 2], 2) for row in np.split(half, 3, axis=1)]
    assert [bool(drawn > 300) for drawn in panels] == [True, True, True, True, False, False]


def test_curves_with_an_unknown_name():
    with pytest.raises(UserError, match='has "knn"; there are loss, on_diag'):
        pictures.curves([{"step": 1, "loss": 1.0, "on_diag": 2.0}], ["loss", "knn"])
    with pytest.raises(UserError, match="no metrics"):
        pictures.curves([{"step": 1}])


def test_importing_it_loads_no_drawing_library():
    code = "import sys, barlow_jax.run.pictures; print({'matplotlib', 'PIL', 'tensorflow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
