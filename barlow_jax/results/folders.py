"""The folders of runs, read for the page: config, metrics, starts, events; what is damaged is named and left out."""

import json
import logging
import os
import pathlib
from typing import NamedTuple

from barlow_jax.results import events, starts
from barlow_jax.run import metric_writers
from barlow_jax.run.workdir import CONFIG_FILE

TRAINING, EVALUATION = "pre-training", "evaluation"
PICTURES = ("views.png", "neighbours.png")
# Folders of a run that hold neither runs nor results, some of them thousands of files.
PASSED_OVER = ("checkpoints", "tensorboard", "compiled", "profile", "correlation", "wandb")

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """A work folder.

    Attributes:
      name: for people, unlike those of the others on a page.
      folder: pathlib.Path.
      kind: TRAINING, or EVALUATION of a trained network.
      config: nested dict, {} where there is none; lines: of metrics.jsonl; begun: of starts.jsonl.
      events: list of `events.Event`; steps: (an epoch, in all), or None.
    """

    name: str
    folder: pathlib.Path
    kind: str
    config: dict
    lines: list
    begun: list
    events: list
    steps: tuple[int, int] | None


def runs(named):
    """The runs in and below some folders, each once, in order of their names.

    Raises:
      UserError: a metrics.jsonl cannot be read.
    """
    found = {}
    for folder in named:
        for path in _below(pathlib.Path(folder).expanduser()):
            found.setdefault(path.resolve(), path)
    folders = sorted(found.values())
    return [read(folder, name) for folder, name in zip(folders, names(folders), strict=True)]


def read(folder, name):
    """The Run of a folder."""
    config = _config(folder / CONFIG_FILE)
    lines = metric_writers.read(folder / metric_writers.FILE)
    judged = "projector" not in config and (config or any("top1" in line for line in lines))
    begun = starts.read(folder)
    return Run(
        name,
        folder,
        EVALUATION if judged else TRAINING,
        config,
        lines,
        begun,
        events.of_run(folder, lines, begun),
        events.steps(folder),
    )


def names(folders):
    """What tells folders from one another: their paths less the part that all of them share."""
    if len(folders) < 2:
        return [folder.resolve().name or str(folder) for folder in folders]
    shared = pathlib.Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
    told = [os.path.relpath(os.path.abspath(folder), shared) for folder in folders]
    return [shared.name or str(shared) if name == "." else name for name in told]


def stamp(named):
    """What changes when there is something new to be shown: names, sizes and times of the files that are read."""
    seen = []
    for folder in named:
        for path in _below(pathlib.Path(folder).expanduser()):
            for file in sorted([*path.glob("*.jsonl"), *path.glob("*.txt"), *path.glob("*.json"), *path.glob("*.png")]):
                seen.append((str(file), *_size_and_time(file)))
            seen += [(str(file), *_size_and_time(file)) for file in sorted(path.glob("*/*.png"))]
            seen += [(str(file), *_size_and_time(file)) for file in sorted(path.glob("*/results.jsonl"))]
    return tuple(seen)


def _size_and_time(file):
    try:
        found = file.stat()
    except OSError:  # it went in this moment
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _below(folder):
    """The folder and those below it that hold metrics or the pictures of a run, in order."""
    for path, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if name not in PASSED_OVER)
        if {metric_writers.FILE, *PICTURES} & {*files, *inside}:
            yield pathlib.Path(path)


def _config(file):
    """The nested dict of a config.json, {} where there is none; one that is damaged is named in a warning."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        log.warning("%s is damaged; the page does without it.", file)
        return {}
    return found
