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
from barlow_jax.run.pictures import features, matrix, paper

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
    title = min(y for p in places for ((y, _),) in p)
    assert (picture[title:] != 255).all(-1).sum() == covered  # nothing else is on the paper
    assert ink(picture[:title]).sum() > 500


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
        ((y, x),) = find(picture, row[0].repeat(3, 0).repeat(3, 1))
        found = [find(picture, image.repeat(3, 0).repeat(3, 1)) for image in behind]
        assert found == [[(y, x + 312 + 66 * k)] for k in range(3)]


def test_what_was_drawn_stands_below_each_view():
    """Lines no wider than the view, the same for every number of words but for the words; a mixed view says so."""
    large, small = np.zeros((2, 3, 100, 100, 3)), np.zeros((2, 1, 20, 20, 3))
    given = tuple(((one - MEAN) / STD).astype(np.float32) for one in (large, small))
    few = [[["crop 50 x 50 %"]] * 3] * 2  # two large views, one small: the third large one is the objective's
    many = [[["crop 50 x 50 %", "mirrored", "brightness ×1.21", "blur σ 1.3"]] * 3] * 2
    one, other = (pictures.views_grid(given, MEAN, STD, captions=captions) for captions in (few, many))
    assert one.shape[1] == other.shape[1] and len(one) < len(other)
    ((y, x), *_) = find(one, np.zeros((100, 100, 3), np.uint8))
    below = ink(one[y + 102 : y + 135])
    assert below[:, x : x + 100].any() and not below[:, x + 115 : x + 119].any()
    assert below[:, x + 248 : x + 350].sum() > 1.5 * below[:, x : x + 100].sum()


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
    enlarged = np.repeat(np.kron(images[0, 0, ..., 0], np.ones((5, 5), np.uint8))[..., None], 3, -1)
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


def test_names_and_cosines_stand_below_the_images():
    """Names of any kind take one line of the image's width; images that are too large are reduced, not cut."""
    names = [["a.jpg", "\udcff\udcfe.jpg", "x\n\t\x07\u202e", "very_long_" * 500 + "12.jpg", "$_$", "写真.jpg"]]
    queries, neighbours = photos(1, 300, 300, 3), photos(1, 5, 300, 300, 3)
    cosines = np.array([[0.99, 0.5, 0.25, 0.125, -0.1]])
    without = pictures.neighbours_grid(queries, neighbours)
    picture = pictures.neighbours_grid(queries, neighbours, names=names, similarities=cosines)
    assert picture.shape[1] == without.shape[1] < 6 * 200 and len(picture) > len(without) + 20
    short = paper.shortened("very_long_" * 500 + "12.jpg", lambda text: len(text) <= 15)
    assert short == "very_lo…_12.jpg"
    assert paper.shortened("a\udcff\n\u202e", lambda text: True) == r"a\udcff\n\u202e"
    assert paper.shortened("abc", lambda text: False) == "…"


def colours(values):
    return np.asarray(matplotlib.colormaps["RdBu_r"]((np.asarray(values) + 1) / 2, bytes=True))[..., :3]


@pytest.mark.parametrize("d", [4, 64, 512])
def test_every_entry_of_a_small_matrix_is_a_square_of_its_colour(tmp_path, d):
    c = np.random.default_rng(0).uniform(-1, 1, (d, d)).astype(np.float32)
    picture = pictures.cross_correlation_picture(c, 100, tmp_path / "c.png", step=7)
    np.testing.assert_array_equal(saved(tmp_path / "c.png"), picture)
    zoom = 512 // d
    y, x = len(picture) - matrix.BOTTOM - 512, matrix.LEFT
    drawn = picture[y : y + 512, x : x + 512][zoom // 2 :: zoom, zoom // 2 :: zoom]
    inside = slice(2, -2) if zoom == 1 else slice(None)  # the outermost pixels lie under the frame
    difference = np.abs(drawn.astype(int) - colours(c))[inside, inside]
    assert difference.max() <= 14  # half a step of 0.02


def test_scale_is_fixed():
    weak = pictures.cross_correlation_picture(np.full((8, 8), 0.05), 100)
    assert (np.abs(weak[300, 300].astype(int) - colours(0.05)) <= 14).all()


def related(d, images, seed=0):
    """c of columns of which some agree, some are dead, and two are the same, and one entry of the rest is strong."""
    rng = np.random.default_rng(seed)
    z1 = rng.standard_normal((images, d))
    z2 = z1 * np.linspace(1, 0, d) + 0.5 * rng.standard_normal((images, d))
    z2[:, 5] = z1[:, 400]
    z1, z2 = ((z - z.mean(0)) / z.std(0) for z in (z1, z2))
    return (z1.T @ z2 / images).astype(np.float32)


@pytest.mark.parametrize("d", [512, 601])
def test_what_is_drawn_of_a_matrix_is_as_numpy_counts_it(d):
    """In double precision, over the whole matrix at once; 601 is no multiple of its blocks of 3."""
    c = related(d, 80)
    found = matrix.summarised(c, 80)
    rest = c[~np.eye(d, dtype=bool)].astype(np.float64)
    np.testing.assert_array_equal(found.diagonal, np.diagonal(c))
    assert found.counts.sum() == d * (d - 1) and found.not_finite == 0
    np.testing.assert_allclose(found.within, np.mean(np.abs(rest) <= 2 / np.sqrt(79)), atol=1e-6)
    want, _ = np.histogram(rest, matrix.BINS, (-1, 1))
    assert np.abs(np.cumsum(found.counts) - np.cumsum(want)).max() <= 5  # entries on an edge
    if d == 512:
        assert found.block == 1
        return np.testing.assert_array_equal(found.cells, c)
    order = np.argsort(-np.diagonal(c), kind="stable")
    squares = c[order][:, order].astype(np.float64) ** 2
    assert found.block == 3 and found.cells.shape == (201, 201)
    for i, j in [(0, 1), (7, 150), (150, 7), (3, 3), (200, 0), (0, 200), (200, 200)]:
        part = squares[3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
        part = np.diagonal(part) if i == j else part
        np.testing.assert_allclose(found.cells[i, j], np.sqrt(part.mean()), rtol=1e-5)
    assert (np.diff(np.diagonal(found.cells)[:100]) <= 0).all()  # sorted
    strong = np.argwhere(order == 400)[0, 0] // 3, np.argwhere(order == 5)[0, 0] // 3
    assert found.cells[strong] > 0.3


def test_the_noise_is_that_of_unrelated_columns():
    rng = np.random.default_rng(0)
    c = np.corrcoef(rng.standard_normal((40, 50)), rng.exponential(size=(40, 50)), rowvar=False)[:50, 50:]
    np.testing.assert_allclose(c.std(), matrix.noise(40), rtol=0.03)
    assert 0.93 < matrix.summarised(c, 40).within < 0.97


def test_entries_that_are_not_finite_are_counted_and_drawn():
    c = np.zeros((600, 600), np.float32)
    c[3, 4], c[5, 5], c[9, 1], c[10, 1] = np.nan, np.inf, 1.0000001, -1.0000001
    found = matrix.summarised(c, 2)
    assert found.not_finite == 2 and found.counts.sum() == 600 * 599 - 1
    assert found.counts[0] == found.counts[-1] == 1
    assert pictures.cross_correlation_picture(c, 2, width=9000).shape[1] > 900
    assert pictures.cross_correlation_picture(np.full((3, 3), np.nan), 1).shape[1] > 900


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
    assert ink(picture[:-580]).sum() > 500  # the title
    assert pictures.curves(lines).shape == pictures.curves(lines, ["knn", "loss", "on_diag"]).shape
    panels = [ink(row).sum() for half in np.split(picture[-580:], 2) for row in np.split(half, 3, axis=1)]
    assert [bool(drawn > 300) for drawn in panels] == [True, True, True, True, False, False]


def test_curves_with_an_unknown_name():
    with pytest.raises(UserError, match='has "knn"; there are loss, on_diag'):
        pictures.curves([{"step": 1, "loss": 1.0, "on_diag": 2.0}], ["loss", "knn"])
    with pytest.raises(UserError, match="no metrics"):
        pictures.curves([{"step": 1}])


@pytest.mark.parametrize("kind", ["labelled", "many classes", "unlabelled"])
def test_a_map_shows_images_where_their_points_are(tmp_path, kind):
    points = np.random.default_rng(0).normal(size=(40, 2)) * (3, 1)
    rows, cells = pictures.spread(points)
    assert len(np.unique(cells, axis=0)) == len(cells) == len(rows)
    low, high = features._limits(points)
    places = (points - low) / (high - low) * 12
    for row, cell in zip(rows, cells, strict=True):
        assert (np.floor(places[row]) == cell).all()
        others = (np.floor(places) == cell).all(1)
        away = np.square(places - cell - 0.5).sum(1)
        assert away[row] == away[others].min()
    assert {tuple(cell) for cell in np.floor(places).astype(int)} == {tuple(cell) for cell in cells}
    labels = {"labelled": np.arange(40) % 3, "many classes": np.arange(40) - 1}.get(kind)
    names = ("$a$", "写真", "very_long_name" * 9) if kind == "labelled" else None
    images = photos(len(rows), 48, 48, 1)
    file = tmp_path / "map.png"
    picture = pictures.features_map(points, (0.5, 0.25), images, labels=labels, class_names=names, width=99, path=file)
    np.testing.assert_array_equal(saved(file), picture)
    left = picture.shape[1] - features.RIGHT - 12 * 52
    ((first, _),) = find(picture, images[0].repeat(3, -1))
    for image, row, (column, up) in zip(images, rows, cells, strict=True):
        ((y, x),) = find(picture, image.repeat(3, -1))
        assert x == left + 52 * column + 2 and y - first == 52 * (cells[0, 1] - up)
        frame = picture[y - 1, x].astype(int)
        if kind == "labelled":
            of = features.COLOURS[labels[row]]
            assert np.abs(frame - [int(of[k : k + 2], 16) for k in (1, 3, 5)]).max() <= 1
        assert (frame == 255).all() == (kind == "unlabelled")


def test_importing_it_loads_no_drawing_library():
    code = "import sys, barlow_jax.run.pictures; print({'matplotlib', 'PIL', 'tensorflow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
