"""What knn, probe and transfer share: flags, what is judged, its images, and how results are told.

with frozen.opened(wanted, fields.FROZEN, FIELDS) as judged:
    train, val = frozen.splits(judged)
    features, labels, index = feature_cache.features_of(judged, val)
    frozen.publish(judged, lines, table)
"""

import contextlib
import logging
import pathlib
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from barlow_jax import experiment, fields, results, sharding
from barlow_jax.errors import UserError
from barlow_jax.evaluation import linear_experiment, subject
from barlow_jax.run import workdir as workdirs
from barlow_jax.run.buckets import reading, staging
from barlow_jax.run.checkpoint import FOLDER as CHECKPOINTS
from barlow_jax.run.checkpoint import WEIGHTS
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
    flag.choice("ema", WEIGHTS, "Of a run with config.ema, which of its weights.", default="average")
    flag.text("workdir", f"Folder of features and results, if not {FOLDER}/ in the run.")


@contextlib.contextmanager
def opened(wanted, table, needed):
    """What a command has been given, as `Judged`; the work folder is made, and locked until the `with` ends.

    Args:
      wanted: config, checkpoint, baseline, ema and workdir, as `define_flags` defines them.
      table: of the fields that the config may have, a `fields.Table`.
      needed: names of those that it must have, besides those that all commands read.
    Raises:
      UserError: a value cannot work, or there is no such checkpoint.
    """
    config = wanted.config
    always = [name for name in table.fields if name == "precision" or name.startswith(("data.", "eval."))]
    fields.check(config, table, needed=[*always, *needed])
    found = subject.load(wanted.checkpoint, wanted.baseline, wanted.ema)
    run = run_folder(found.path)
    folder = reading.named(wanted.workdir or f"{run}{'.' if as_run.is_file(run) else '/'}{FOLDER}")
    if reading.is_in(run, folder):
        raise UserError(f"--workdir {folder} holds the run that is judged; take a folder for it alone, or none.")
    pretrained = ConfigDict(found.config)
    given, config = config, linear_experiment.filled_in(config, pretrained)
    linear_experiment.check_sizes(config, pretrained)
    with workdirs.opened(str(folder), given.to_dict()) as folder:
        yield Judged(config, found, folder, sharding.make_mesh())


def run_folder(checkpoint):
    """The work folder of the run that a path of --checkpoint belongs to."""
    if reading.is_address(checkpoint):
        return reading.run_of(checkpoint)[0]
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
    fields.check_together(judged.config, fields.DATA)
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


def publish(judged, lines, table):
    """Appends the lines to results.jsonl and prints the table, on process 0; the lines are returned."""
    if jax.process_index() == 0:
        results.append(judged.workdir, lines)
        print("\n".join(["", *table, "", f"Also in {staging.shown(judged.workdir / results.FILE)}."]), flush=True)
    return lines


def title(judged, text):
    """First line of a table: what was judged, and on what."""
    found = judged.subject
    whose = f", {found.ema} weights" if found.ema else ""
    return f"{found.baseline + ' in place of ' if found.baseline else ''}{found.path}, step {found.step}{whose}; {text}"
