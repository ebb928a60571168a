"""What knn, probe and transfer share: flags, what is judged, its images, and their features, which are kept.

    with frozen.opened(wanted, "frozen", FIELDS, check) as judged:
        train, val = frozen.splits(judged)
        features, labels, index = frozen.features_of(judged, val)

Features are computed once and kept in the work folder, in a file named after all that they depend on: every bit of the
backbone, the images and their view. So all commands together look at an image once.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from barlow_jax import experiment, results, sharding, views
from barlow_jax.data import eval_steps, order
from barlow_jax.errors import UserError
from barlow_jax.evaluation import features, linear_experiment, subject
from barlow_jax.run import cluster, progress
from barlow_jax.run import workdir as workdirs
from barlow_jax.run.checkpoint import FOLDER as CHECKPOINTS
from barlow_jax.weights import as_run

FOLDER = "eval"  # of the pre-training run, where the work folder is if none is named

log = logging.getLogger(__name__)


class Judged(NamedTuple):
    """A backbone, and all that it takes to judge it."""

    config: ConfigDict  # of the evaluation, filled in from the pre-training run
    subject: subject.Subject
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh


def define_flags(flag, config):
    """The flags that the commands have in common; config: the one to take if none is named."""
    flag.config("File or name of the evaluation.", default=config)
    flag.text("checkpoint", "Work folder of the run to be judged, or one of its checkpoints.")
    flag.text("baseline", "Judge this in its place: random (not trained) or pixels (no network).")
    flag.text("workdir", f"Folder of features and results, if not {FOLDER}/ in the run.")


@contextlib.contextmanager
def opened(wanted, default, fields, check):
    """What a command has been given, as `Judged`; the work folder is made, and locked until the `with` ends.

    Args:
      wanted: config, checkpoint, baseline and workdir, as `define_flags` defines them.
      default: name of the config that is taken if none is named.
      fields: names that the config must have, besides those that all commands read.
      check: config -> None, raises UserError at the first value that cannot work.
    """
    config = wanted.config
    missing = [name for name in ("precision", "data", "eval", *fields) if name not in config]
    if missing:
        start = f"configs/{default}.py"
        raise UserError(f"The config has no field {missing[0]}; leave --config out, or start from {start}.")
    experiment.check_at_least(config, {"eval.batch_size": 1, "eval.resize": 0, "eval.crop": 0})
    experiment.check_one_of(config, {"precision": linear_experiment.PRECISIONS})
    check(config)
    found = subject.load(wanted.checkpoint, wanted.baseline)
    run = run_folder(found.path)
    beside = run.with_name(f"{run.name}.{FOLDER}") if as_run.is_file(run) else run / FOLDER
    folder = pathlib.Path(wanted.workdir or beside).expanduser()
    if folder.resolve() in (run.resolve(), *run.resolve().parents):
        raise UserError(f"--workdir {folder} holds the run that is judged; take a folder for it alone, or none.")
    given, config = config, linear_experiment.filled_in(config, ConfigDict(found.config))
    if not 0 < config.eval.crop <= config.eval.resize:
        raise UserError(
            f"config.eval.crop is {config.eval.crop} and config.eval.resize {config.eval.resize}; the crop is cut out "
            "of the resized image, so it must not be larger."
        )
    trained_on = found.config["image_size"]
    if found.config["arch"] == "convnet" and config.eval.crop != trained_on:
        raise UserError(
            f"config.eval.crop is {config.eval.crop}, and the convnet of {found.path} is for images of {trained_on} "
            f"pixels; take --config.eval.crop={trained_on}."
        )
    with workdirs.opened(str(folder), given.to_dict()) as folder:
        yield Judged(config, found, folder, sharding.make_mesh())


def run_folder(checkpoint):
    """The work folder of the run that a path of --checkpoint belongs to."""
    path = pathlib.Path(checkpoint)
    for folder in (path, path.parent):
        if folder.name == CHECKPOINTS:
            return folder.parent
    return path


def splits(judged):
    """The training source, and the one that is judged, or None; labelled or not.

    Raises:
      UserError: the images do not fit the backbone, or the classes of the two do not fit each other.
    """
    experiment.check_data(judged.config.data)
    train, val = experiment.sources(judged.config)
    for source in filter(None, (train, val)):
        if source.channels != judged.subject.channels:
            raise UserError(
                f"{source.name} has images of {source.channels} channels and the checkpoint is for "
                f"{judged.subject.channels}; give images like those of the pre-training run."
            )
    if val and train.class_names and val.class_names and train.class_names != val.class_names:
        raise UserError(f"{train.name} and {val.name} name their classes differently; give two splits of one data set.")
    if val and train.num_classes and (val.num_classes or 0) > train.num_classes:
        raise UserError(
            f"{val.name} has images of class {val.num_classes - 1}, but {train.name} has only the classes 0 to "
            f"{train.num_classes - 1}; give two splits of one data set."
        )
    return train, val


def require_labels(train, val):
    """Raises UserError unless there are two splits with labels, of two classes or more."""
    if val is None:
        raise UserError("config.data.val is empty; name the labelled images to judge, such as --config.data.val=val.")
    for source in (train, val):
        if not source.num_classes:
            raise UserError(
                f"{source.name} has no labels; point config.data.path, train and val to images with labels "
                "(a folder needs one sub-folder for each class)."
            )
    if train.num_classes < 2:
        raise UserError(f"{train.name} has one class only; a classifier needs two or more.")


def known(extracted):
    """Features and labels of those that have a label."""
    rows = extracted.labels >= 0
    if rows.all():  # nothing to copy: these are gigabytes
        return extracted[:2]
    return extracted.features[rows], extracted.labels[rows]


def features_of(judged, source, *, draw=0, fit="crop"):
    """The features of a source as `features.Extracted`: from the work folder, or computed and kept there.

    Args:
      draw: 0 for the view of config.eval; the number of an augmented pass otherwise.
      fit: how config.eval makes a square of an image, see `data.eval_batches`.
    Raises:
      UserError: a feature is not finite.
    """
    told = description(judged, source, draw, fit)
    file = judged.workdir / f"features_{hashlib.sha256(told.encode()).hexdigest()[:16]}.npz"
    kept = _read(file, told)
    if cluster.on_any_process(kept is None):
        kept = _augmented(judged, source, draw) if draw else _central(judged, source, fit)
        check_finite(kept, source, judged.subject)
        if jax.process_index() == 0:
            _write(file, told, kept)
    else:
        log.info("features of %s: read from %s", source.name, file)
    return kept


def description(judged, source, draw, fit):
    """All that the features depend on, as JSON."""
    config, network = judged.config, judged.subject.config
    view = {"resize": config.eval.resize, "crop": config.eval.crop, "fit": fit}
    if draw:
        fields = ("seed", "batch_size", "image_size", "crop_scale", "crop_ratio", "interpolation", "flip")
        view = {name: config[name] for name in fields} | {"draw": draw}
    told = {
        "backbone": judged.subject.sha256,
        "arch": network["arch"],
        "stem": network["stem"],
        "precision": config.precision,
        "mean": network["views"]["mean"],
        "std": network["views"]["std"],
        "view": view,
        "data": source.name,
        "n": len(source),
        "content": source.fingerprint(),
        "canvas": experiment.canvas(config, source),
    }
    return json.dumps(told)


def check_finite(extracted, source, judged):
    """Raises UserError if a feature is inf or nan."""
    # Of the rows' sums: nothing of the size of the features is allocated.
    bad = extracted.index[~np.isfinite(extracted.features.sum(1, dtype=np.float64))]
    if len(bad):
        raise UserError(
            f"The features of {len(bad)} of the {len(extracted.index)} images of {source.name} are not finite, first "
            f"those of image {bad[0]} ({source.where(bad[0])}); judge an earlier checkpoint than step {judged.step} of "
            f"{judged.path}, or set config.precision=float32."
        )


def tracked(items, total, what):
    """The items as they are, with `progress.watched` on process 0."""
    return progress.watched(items, total, what, shown=jax.process_index() == 0)


def publish(judged, lines, table):
    """Appends the lines to results.jsonl and prints the table, on process 0; the lines are returned."""
    if jax.process_index() == 0:
        results.append(judged.workdir, lines)
        print("\n".join(["", *table, "", f"Also in {judged.workdir / results.FILE}."]), flush=True)
    return lines


def title(judged, text):
    """First line of a table: what was judged, and on what."""
    found = judged.subject
    return f"{found.baseline + ' in place of ' if found.baseline else ''}{found.path}, step {found.step}; {text}"


def _backbone(judged, size):
    """The graphdef of the backbone for images of this size, and its parameters on the devices."""
    pretrained = ConfigDict(judged.subject.config).unlock()
    pretrained.image_size, pretrained.precision = size, judged.config.precision
    return subject.on_devices(judged.subject, pretrained, judged.mesh)


def _central(judged, source, fit):
    config, mesh, views = judged.config, judged.mesh, judged.subject.config["views"]
    graphdef, (params, batch_stats) = _backbone(judged, config.eval.crop)
    step = features.make_feature_step(
        graphdef, size=config.eval.crop, mean=tuple(views["mean"]), std=tuple(views["std"]), mesh=mesh
    )
    batches = experiment.eval_batches(config, source, mesh, fit=fit)
    total = eval_steps(len(source), sharding.round_up(config.eval.batch_size, mesh))
    try:
        shown = tracked(batches, total, f"features of {source.name}")
        return features.extract(step, params, batch_stats, shown, mesh)
    finally:
        batches.close()


def _augmented(judged, source, draw):
    """One random view of every image: a training epoch of which each image counts once."""
    config, mesh = judged.config, judged.mesh
    recipe = linear_experiment.recipe(config, ConfigDict(judged.subject.config))
    graphdef, (params, batch_stats) = _backbone(judged, config.image_size)
    images_of = views.make_one_view(recipe, config.seed, mesh)
    step = features.make_view_feature_step(graphdef, images_of, mesh=mesh)
    epoch = order.steps_per_epoch(len(source), config.batch_size, "wrap")
    batches = experiment.train_batches(
        config,
        source,
        draw * epoch,
        mesh,
        last="wrap",
        crop_scale=tuple(config.crop_scale),
        crop_ratio=tuple(config.crop_ratio),
        views=1,
    )
    try:
        numbers = tracked(range(draw * epoch, (draw + 1) * epoch), epoch, f"augmented features of {source.name}")
        return features.gather(step(np.int32(number), params, batch_stats, next(batches)) for number in numbers)
    finally:
        batches.close()


def _read(file, told):
    """The features in a file, or None if they are not there or those of something else."""
    try:
        with open(file, "rb") as stream, np.load(stream) as kept:
            if str(kept["told"]) == told:
                return features.Extracted(*(kept[name] for name in features.Extracted._fields))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s cannot be read (%s); its features are computed again", file, error)
    return None


def _write(file, told, extracted):
    # Renamed into place, so that a kill leaves the whole file or none.
    temporary = file.with_suffix(".tmp")
    with open(temporary, "wb") as stream:
        np.savez(stream, told=np.asarray(told), **extracted._asdict())
    os.replace(temporary, file)
