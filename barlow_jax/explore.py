"""What is in a folder of images, by the features that `embed` wrote: no labels, no training.

    barlow-jax embed runs/photos /my/photos --out=features.npz
    barlow-jax explore features.npz --pairs=pairs.csv --threshold=0.97     # near-duplicates
    barlow-jax explore features.npz --clusters=20                          # clusters with their most central images
    barlow-jax explore features.npz --outliers=50                          # images that resemble no other
    barlow-jax explore features.npz --label_next=100                       # images to label, that cover the set
    barlow-jax explore features.npz --like=cat.jpg                         # the images nearest to one
    barlow-jax explore features.npz --atlas=atlas.parquet                  # a map, for embedding-atlas

Similarity is the cosine of two rows, from -1 to 1, distance is 1 - similarity. Each search writes a .csv and beside it
a picture (.png), in the folder of the features or that of --out, in place of those of an earlier search. An .npz or
.parquet of others with an array `features` [n, F] will do; `paths` [n] name its images. docs/use.md says more.
"""

import logging
import pathlib

import jax
import numpy as np

from barlow_jax import fields, sharding
from barlow_jax.data import walk
from barlow_jax.errors import UserError
from barlow_jax.evaluation import atlas, clusters, duplicates, embedded, label_next, queries, sheets
from barlow_jax.evaluation.image_sets import Thumbnails, counted
from barlow_jax.evaluation.nearest import nearest_rows
from barlow_jax.run import launch, writing
from barlow_jax.run.progress import tracked

SEARCHES = ("pairs", "clusters", "outliers", "label_next", "like", "atlas")
EACH = 8  # images of a cluster on its picture
SHOWN = 60  # of a list on its picture, and clusters

log = logging.getLogger(__name__)


def define_flags(flag):
    flag.arguments("FEATURES")
    flag.text("out", "Folder of what is written, if not that of FEATURES; --pairs and --atlas are files of their own.")
    flag.text("pairs", "A .csv to write: all pairs of images that are nearly the same, the most similar first.")
    flag.number("threshold", "Of --pairs: the least cosine similarity.", default=duplicates.THRESHOLD)
    flag.number("most", "Of --pairs: no more are kept, the most similar.", default=duplicates.MOST)
    flag.number("clusters", "So many clusters: clusters.csv.")
    flag.number("outliers", "So many images that are far from their nearest: outliers.csv.")
    flag.number(
        "nearest", "Of --outliers: as many others, the mean distance to which counts; of --like: images.", default=10
    )
    flag.number(
        "label_next", "So many images to label next, each the furthest from those that have a label: label_next.csv."
    )
    flag.text(
        "labelled", "Of --label_next: a list of the images that have labels, a path or name a line, if not FEATURES."
    )
    flag.names("like", "Image files: like.csv has the images nearest to each.")
    flag.text("checkpoint", "Of --like: the run or file of weights that made FEATURES, if it is not where it was.")
    flag.text("atlas", "A .parquet to write for embedding-atlas: path, x, y and small images.")
    flag.choice("map", ("pca", "umap"), "Of --atlas: how the features become x and y.", default="pca")


def main(wanted):
    given = wanted.arguments
    if len(given) != 1:
        raise UserError(f"There is one argument besides flags, the file of features, and here are {len(given)}.")
    if not any(getattr(wanted, name) for name in SEARCHES):
        raise UserError(f"Nothing is asked for; give one or more of {', '.join(f'--{name}' for name in SEARCHES)}.")
    fields.check_flags(wanted, fields.EXPLORE)
    if jax.process_count() > 1:
        raise UserError("This runs in one process; start it on one machine.")
    file, folder, *_ = map(writing.named, (given[0], wanted.out, wanted.pairs, wanted.atlas))
    folder = folder if wanted.out else file.parent
    if not folder.is_dir():
        raise UserError(f"--out is {wanted.out!r}, no folder; make it, or name another.")
    if wanted.pairs:
        duplicates.check_name(wanted.pairs)
    if wanted.atlas:
        atlas.check_name(wanted.atlas)
    found = embedded.read(given[0])
    if len(found.zeros):
        log.warning(
            "%d rows are all zeros and resemble nothing, %s for one", len(found.zeros), found.paths[found.zeros[0]]
        )
    if wanted.pairs:
        print(duplicates.write(wanted.pairs, found, wanted.threshold, wanted.most), flush=True)
    for name, search in (("like", like), ("outliers", outliers), ("clusters", in_clusters), ("label_next", to_label)):
        if getattr(wanted, name):
            print(search(wanted, found, folder / f"{name}.csv"), flush=True)
    if wanted.atlas:
        print(atlas.write(wanted.atlas, found, wanted.map))
    return 0


def in_clusters(wanted, found, path):
    """Writes the cluster of each image, and the most central of each on a picture; what to print."""
    number, similarity = clusters.k_means(embedded.on_sphere(found.features), wanted.clusters)
    columns = found.paths.tolist(), (number + 1).tolist(), _decimals(similarity)
    sheets.table(path, ("path", "cluster", "similarity"), zip(*columns, strict=True))
    sizes = np.bincount(number)
    blocks = [
        sheets.Block(f"cluster {k + 1}: {counted(sizes[k])}", _cells(found, rows, similarity[rows]))
        for k, rows in enumerate(clusters.central(number, similarity, EACH)[:SHOWN])
    ]
    fewer = "" if len(sizes) == wanted.clusters else ", as no more rows differ"
    found_sizes = f"{counted(len(sizes), 'cluster')} of {sizes[-1]} to {counted(sizes[0])}"
    title = f"{found_sizes}{fewer}, with similarities to their middle{_first(len(sizes))}"
    return _shown(found, path, title, blocks)


def outliers(wanted, found, path):
    """Writes the images that are furthest from their nearest, the furthest first; what to print."""
    n = len(found.paths)
    if wanted.outliers > n:
        raise UserError(f"--outliers is {wanted.outliers}, but there are {n} rows; take at most as many.")

    def track(starts, total):
        return tracked(starts, total, "parts of the search")

    far = clusters.loneliness(found.features, wanted.nearest, mesh=sharding.make_mesh(), track=track)
    order = np.argsort(-far, kind="stable")[: wanted.outliers]
    sheets.table(path, ("path", "distance"), zip(found.paths[order].tolist(), _decimals(far[order]), strict=True))
    title = (
        f"{len(order)} of {counted(n)} by their mean distance to the {wanted.nearest} nearest others, "
        f"{far[order[-1]]:.4f} to {far[order[0]]:.4f}; of all the median is {np.median(far):.4f}{_first(len(order))}"
    )
    return _shown(found, path, title, [sheets.Block("", _cells(found, order[:SHOWN], far[order]))], columns=10)


def to_label(wanted, found, path):
    """Writes the images to label next, in order; what to print."""
    labelled, whose = _labelled(wanted, found)
    places, distances = label_next.k_centre(
        embedded.on_sphere(found.features), wanted.label_next, labelled, mesh=sharding.make_mesh()
    )
    told = ["" if np.isnan(distance) else distance for distance in _decimals(distances)]
    columns = range(1, len(places) + 1), found.paths[places].tolist(), told
    sheets.table(path, ("order", "path", "distance"), zip(*columns, strict=True))
    title = f"{counted(len(places))} to label next, each the furthest from {whose}{_first(len(places))}"
    return _shown(found, path, title, [sheets.Block("", _cells(found, places[:SHOWN], distances))], columns=10)


def _labelled(wanted, found):
    """Which images have a label, bool [n], and in words what an image to label next is far from."""
    n, those_before = len(found.paths), "those before it"
    if wanted.labelled:
        by_name = {}
        for place, path in enumerate(found.paths.tolist()):
            by_name.setdefault(path.rpartition("/")[2], []).append(place)
        by_name |= {path: [place] for place, path in enumerate(found.paths.tolist())}
        chosen = np.zeros(n, bool)
        for line in map(walk.readable, walk.read_list(wanted.labelled)):
            named = by_name.get(line, [])
            if len(named) != 1:
                wrong = "several of the images; give its folder too" if named else f"none of the {n} images"
                shown = f"{wanted.labelled} names {line}, which is {wrong}"
                raise UserError(f"{shown}; its lines should be like {found.paths[0]}.")
            chosen[named] = True
    else:
        chosen = np.zeros(n, bool) if found.labels is None else found.labels >= 0
        if chosen.all():  # the names of folders, say: they tell nothing apart here
            return np.zeros(n, bool), f"{those_before}; all have labels here, so none was counted"
    return chosen, f"the {chosen.sum()} with labels and {those_before}" if chosen.any() else those_before


def like(wanted, found, path):
    """Writes the images nearest to each of some image files; what to print."""
    files = [str(pathlib.Path(file).expanduser()) for file in wanted.like]
    count = min(wanted.nearest, len(found.paths))
    asked = queries.features_of_files(files, found.about, wanted.checkpoint)
    similarity, places = nearest_rows(found.features, asked, count, mesh=sharding.make_mesh())
    names = [walk.readable(pathlib.Path(file).absolute()) for file in files]
    rows = [
        (name, rank, str(found.paths[place]), value)
        for name, row, values in zip(names, places, similarity, strict=True)
        for rank, (place, value) in enumerate(zip(row, _decimals(values), strict=True), 1)
    ]
    sheets.table(path, ("like", "rank", "path", "similarity"), rows)
    blocks = [
        sheets.Block(f"like {name}", [sheets.Cell(name, "asked for"), *_cells(found, row, values)])
        for name, row, values in zip(names, places[:, :EACH], similarity, strict=True)
    ]
    return _shown(
        found, path, f"The images nearest to {len(files)}, with their similarities{_first(len(files))}", blocks[:SHOWN]
    )


def _first(count):
    """What a title says where a picture does not show all."""
    return f"; shown are the first {SHOWN}" if count > SHOWN else ""


def _cells(found, rows, numbers):
    """Of these rows, with as many of the numbers as there are rows; nan is no number."""
    shown = ["" if np.isnan(number) else f"{number:.4f}" for number in numbers[: len(rows)]]
    return [sheets.Cell(str(found.paths[row]), number) for row, number in zip(rows, shown, strict=True)]


def _decimals(numbers):
    """As Python's numbers with six decimals, as they are written."""
    return [round(float(number), 6) for number in numbers]


def _shown(found, path, title, blocks, columns=0):
    """Draws the picture beside a table; what to print."""
    thumbnails = Thumbnails(found.about)
    picture = path.with_suffix(".png")
    sheets.sheet(picture, title, blocks, thumbnails, columns)
    return "\n".join([f"{title}.", *thumbnails.told(), f"In {path} and {picture}."])


if __name__ == "__main__":
    launch.run(main, define_flags)
