"""Features of your images: one row an image, with its path.

    python -m barlow_jax.embed runs/r50 /my/photos --out=features.npz
    python -m barlow_jax.embed resnet50.pth list.txt --out=features.parquet --neighbours=neighbours.png --map=map.png
    python -m barlow_jax.embed runs/r50 imagenette:validation --out=features.npz

The first argument is a run of train.py, one of its checkpoints, or a file of weights. The second is a folder of images
at any depth, a text file that names image files, an .npz as train.py takes (`set.npz:test` names the split), or
a data set of TFDS and its split. Images are seen as evaluations see them: short side resized, the centre cropped.

Stopped or killed and started again with the same line, it goes on from the last minute. Several processes, started as
those of train.py, share the images; process 0 writes. It may go on with another number of them.

    import numpy as np
    found = np.load("features.npz")         # features [n, F], paths [n], and labels, class_names where there are some

docs/use.md has what can be done with it: near-duplicates, clusters, outliers, what to label next, search by an image.
"""

import logging
import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from barlow_jax import augment, experiment, fields, sharding
from barlow_jax.data import eval_steps, pixels
from barlow_jax.errors import UserError
from barlow_jax.evaluation import duplicates, embedded, embedding_files, features, maps, subject
from barlow_jax.evaluation.image_sets import open_images, value_range
from barlow_jax.run import cluster, launch, pictures, writing
from barlow_jax.run.checkpoint import WEIGHTS
from barlow_jax.run.progress import Progress
from barlow_jax.run.signals import StopSignals
from barlow_jax.training import feed

WRITERS = {".npz": embedding_files.write_npz, ".parquet": embedding_files.write_parquet}
PART, SECONDS = 8192, 60  # a part is at most so many images, and so much time: what a kill can cost

log = logging.getLogger(__name__)


def define_flags(flag):
    flag.arguments("RUN IMAGES")
    flag.text("out", "The file to write, .npz or .parquet.")
    flag.choice("ema", WEIGHTS, "Of a run with config.ema, which of its weights.", default="average")
    flag.text("neighbours", "A picture to draw: some images and those nearest to them.")
    flag.text("pairs", "A .csv of near-duplicates to write, and a picture of some beside it; see barlow-jax explore.")
    flag.number("threshold", "Of --pairs: the least cosine similarity.", default=duplicates.THRESHOLD)
    flag.text("map", "A picture to draw: all images along the two principal components of their features.")
    flag.number("batch_size", "Images at a time, over all devices.", default=256)
    flag.choice("precision", ("float32", "bfloat16"), "Of the network's arithmetic.", default="float32")
    flag.number("threads", "For decoding; 0 is one per core.")
    flag.number("max_bad_fraction", "More unreadable images than this end the run.", default=0.01)
    flag.number(
        "canvas", "Side in pixels of what travels to the device, larger JPEGs are read at 1/2 or less; 0: the run's."
    )
    flag.number("max_pixels", "An image of more is unreadable; 0: the run's.")
    flag.names("value_range", "LOW,HIGH: black and white in images of more than 8 bits, if not the run's.")
    flag.text("data_dir", "Where TFDS keeps its sets, if not at home.")


def main(wanted):
    given = wanted.arguments
    if len(given) != 2:
        raise UserError(
            f"There are two arguments besides flags, a run or file of weights and the images, and here are "
            f"{len(given)}."
        )
    fields.check_flags(wanted, fields.EMBED)
    out, *_ = map(writing.named, (wanted.out, wanted.neighbours, wanted.map, wanted.pairs))
    cluster.on_process_0(lambda: check_out(out, wanted))
    judged = subject.load(given[0], ema=wanted.ema)
    config = settings(judged, wanted)
    source = open_images(given[1], judged.channels, wanted.data_dir, **experiment.reading(config.data))
    with StopSignals() as stop:
        parts = embed(judged, config, source, f"{out}.parts", stop)
    if parts is not None:
        cluster.long_on_process_0(lambda: write(parts, out, judged, config, source, wanted))
    return 0


def check_out(out, wanted):
    """Raises UserError where --out cannot be written or is there, or a library for it or for --pairs is missing."""
    if out.suffix not in WRITERS or not out.parent.is_dir():
        raise UserError(f"--out is {wanted.out!r}; give a file in a folder that exists, ending in .npz or .parquet.")
    if out.exists():
        raise UserError(f"--out {out} exists; remove it, or give another.")
    if out.suffix == ".parquet":
        embedding_files.parquet_library()
    if wanted.pairs:
        duplicates.check_name(wanted.pairs)


def write(parts, out, judged, config, source, wanted):
    """All that was asked for, of complete parts, which are removed then."""
    if wanted.neighbours:  # before --out, which is not written twice
        draw_neighbours(config, source, parts, wanted.neighbours)
    if wanted.map:
        draw_map(config, source, parts, wanted.map)
    about = parts.about | made_by(judged, config, wanted)
    WRITERS[out.suffix](out, parts, source.where, source.class_names, about)
    rows = len(parts.index())
    if rows < len(source):
        log.warning("%d images could not be read and have no row", len(source) - rows)
    parts.remove()
    print(f"{out}: {rows} images of {source.name}, by {judged}")
    if wanted.pairs:
        print(duplicates.write(wanted.pairs, embedded.read(out), wanted.threshold))


def settings(judged, wanted):
    """The config of the run with the flags in it."""
    config = ConfigDict(judged.config).copy_and_resolve_references().unlock()
    config.precision = wanted.precision
    config.eval.batch_size = wanted.batch_size
    config.data.threads, config.data.max_bad_fraction = wanted.threads, wanted.max_bad_fraction
    config.data.canvas = wanted.canvas or config.data.canvas
    config.data.max_pixels = wanted.max_pixels or experiment.reading(config.data)["max_pixels"]
    if wanted.value_range:
        config.data.value_range = value_range(wanted.value_range)
    pixels.check(**experiment.reading(config.data))
    return config


def embed(judged, config, source, folder, stop):
    """The features of all images, as embedding_files.Parts in a folder of process 0; None if a signal came before.

    Of several processes each reads and embeds its rows of every batch; process 0 keeps them all. On the others what is
    returned has no rows.
    """
    mesh = sharding.make_mesh()
    cluster.check_agreement({"images": {"count": len(source), "listing": source.listing()}})
    parts, first = open_parts(folder, dependencies(judged, config, source))
    if first:
        log.info("going on after %d of %d images", first, len(source))
    if first >= len(source):
        return parts
    size = sharding.round_up(config.eval.batch_size, mesh)
    feature_step, weights = encoder(judged, config, mesh)
    batches = experiment.eval_batches(config, source.take(np.arange(first, len(source))), mesh)
    total = eval_steps(len(source) - first, size)
    progress = Progress(total, shown=jax.process_index() == 0)

    def computed():
        """The results of each batch while the devices are at work on the next."""
        ahead = None
        for batch in feed.prefetch(batches, mesh):
            now = feature_step(*weights, batch)
            if ahead is not None:
                yield ahead
            ahead = now
        yield ahead

    waiting, saved = [], time.monotonic()
    try:
        for step, found in enumerate(computed(), 1):
            mask = np.asarray(found["mask"])
            progress.step(int(mask.sum()))
            done = min(first + step * size, len(source))
            stopping = asked_to_stop(stop, step) and done < len(source)
            if parts:
                rows = (np.asarray(found["index"])[mask] + first, np.asarray(found["label"])[mask])
                waiting.append((*rows, np.asarray(found["features"])[mask]))
            due = len(waiting) * size >= PART or time.monotonic() > saved + SECONDS
            if parts and (stopping or due or done == len(source)):
                parts.add(done, *map(np.concatenate, zip(*waiting, strict=True)))
                waiting, saved = [], time.monotonic()
            if stopping:
                log.info("stopped after %d of %d images; the same command goes on from there", done, len(source))
                return None
    finally:
        launch.close(batches, progress)
    reduced = int(multihost_utils.process_allgather(np.int32(batches.reduced)).sum())
    if reduced and parts:
        log.warning(
            "%d of %d images are larger than the canvas of %d pixels and were read at 1/2 or less, which moves their "
            "features a little; --canvas=2048 reads photographs whole, for 16 times the memory",
            reduced,
            len(source) - first,
            experiment.canvas(config, source),
        )
    return parts


def open_parts(folder, about):
    """The Parts in a folder, on process 0, () on others; and how many images are done, on all."""
    opened = []
    cluster.on_process_0(lambda: opened.append(embedding_files.Parts(folder, about)))
    done = np.int64(opened[0].done if opened else 0)
    if jax.process_count() > 1:
        done = multihost_utils.broadcast_one_to_all(done)
    return (opened[0] if opened else ()), int(done)


def asked_to_stop(stop, step):
    """Whether a signal came, on any process; all ask after the same step, and are told at the same one."""
    if jax.process_count() == 1:
        return stop.received is not None
    return multihost_utils.reached_preemption_sync_point(step)


def made_by(judged, config, wanted):
    """Who made the features of what, for `explore` to find both again, a plain dict."""
    return {
        "checkpoint": str(pathlib.Path(judged.path).absolute()),
        "step": judged.step,
        "ema": judged.ema or "average",
        "images as given": wanted.arguments[1],
        "working folder": str(pathlib.Path.cwd()),  # where relative paths begin
        "data_dir": wanted.data_dir,
        "channels": judged.channels,
        "reading": experiment.reading(config.data),
    }


def dependencies(judged, config, source):
    """All that the features depend on, a plain dict."""
    return {
        "backbone": judged.sha256,
        "images": source.name,
        "count": len(source),
        "precision": config.precision,
        "resize": config.eval.resize,
        "crop": config.eval.crop,
        "mean": config.views.mean,
        "std": config.views.std,
        "content of images": source.fingerprint(),
        "canvas": experiment.canvas(config, source),
    }


def encoder(judged, config, mesh):
    """The jitted feature step, and the weights that it takes, on the devices."""
    graphdef, weights = subject.on_devices(judged, config, mesh)
    step = features.make_feature_step(
        graphdef, size=config.eval.crop, mean=tuple(config.views.mean), std=tuple(config.views.std), mesh=mesh
    )
    return step, weights


def draw_neighbours(config, source, parts, path, queries=8, columns=8):
    """Some images, evenly spaced over the set, each with those nearest to it by cosine."""
    index = parts.index()
    columns = min(columns, len(index) - 1)
    if columns < 1:
        raise UserError("There are too few images for --neighbours; it takes two or more.")
    chosen = np.unique(np.linspace(0, len(index) - 1, queries).astype(int))
    nearest, cosines = embedding_files.nearest_and_cosines(parts, chosen, columns)
    labels = np.concatenate([found for _, found, _ in parts])
    known = np.all(labels[chosen] >= 0) and np.all(labels[nearest] >= 0)
    correct = labels[nearest] == labels[chosen][:, None] if known else None
    shown = np.concatenate([chosen[:, None], nearest], 1)
    tiles = as_seen(config, source, index[shown.ravel()])
    tiles = tiles.reshape(*shown.shape, *tiles.shape[1:])
    names = [[pathlib.PurePath(source.where(place)).name for place in row] for row in index[shown]]
    path, told = pathlib.Path(path).expanduser(), {"names": names, "similarities": cosines}
    pictures.neighbours_grid(tiles[:, 0], tiles[:, 1:], correct, path=path, **told)


def draw_map(config, source, parts, path):
    """All images along the first two principal components of their features, coloured by label."""
    points, shares = maps.principal(lambda: (rows for _, _, rows in parts))
    rows, _ = pictures.spread(points)
    labels = np.concatenate([found for _, found, _ in parts])
    pictures.features_map(
        points,
        shares,
        as_seen(config, source, parts.index()[rows]),
        labels=labels,
        class_names=source.class_names,
        width=next(iter(parts))[2].shape[1],
        path=pathlib.Path(path).expanduser(),
    )


def as_seen(config, source, rows):
    """These images as the network sees them, uint8 [m, S, S, C]."""
    tiles = []
    for batch in experiment.eval_batches(config, source.take(rows), sharding.make_mesh(jax.local_devices())):
        views = augment.eval_views(
            batch["canvas"],
            batch["boxes"],
            batch["extent"],
            size=config.eval.crop,
            mean=(0.0,) * source.channels,
            std=(1 / 255,) * source.channels,
        )
        tiles.append(np.asarray(views)[batch["mask"]].astype(np.uint8))
    return np.concatenate(tiles)


if __name__ == "__main__":
    launch.run(main, define_flags)
