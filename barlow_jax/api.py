"""What the commands do, from a notebook or a program; no other code stands behind these functions.

    barlow_jax.train("image_folder", data="photos", workdir="runs/photos", epochs=50)
    barlow_jax.evaluate("runs/photos", by="knn", data={"path": "labelled", "train": "train", "val": "val"})
    barlow_jax.load("runs/photos").features(images)

They end as the commands do: results and checkpoints lie in the work folder, the same call goes on after a stop, and
what the caller can put right is a `barlow_jax.errors.UserError`. Training stopped by Ctrl-C, or by the stop button of a
notebook, saves first.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from barlow_jax import results
from barlow_jax.errors import UserError
from barlow_jax.evaluation import encoder
from barlow_jax.run import cluster, config_files, launch
from barlow_jax.run.signals import StopSignals

Config = str | os.PathLike[str] | ConfigDict
Data = str | os.PathLike[str] | Mapping[str, Any] | None

# How a run may be judged, and the config that is taken if none is named.
EVALUATIONS = {"knn": "frozen", "probe": "frozen", "transfer": "voc07", "linear": "linear"}


def config(named: str | os.PathLike[str]) -> ConfigDict:
    """The config of a name or a file, as --config takes it, locked: "demo", "tfds:imagenette", "my_config.py".

    Returns:
      ml_collections.ConfigDict, fresh at each call; `.unlock()` it to start a config of your own from it.
    Raises:
      UserError: there is none.
    """
    return config_files.load(named)


def train(
    config: Config,
    *,
    workdir: str | os.PathLike[str],
    data: Data = None,
    init: str | os.PathLike[str] = "",
    allow_changes: Sequence[str] = (),
    **fields: Any,
) -> bool:
    """Pre-trains as train.py does, and goes on where a run in this folder was stopped.

    Args:
      config: name or file of a config, or a ConfigDict.
      workdir: folder of the run.
      data: path of the images, config.data.path; or a dict of fields of config.data.
      init: file of weights to begin with.
      allow_changes: names of fields that may differ from those the run began with.
      fields: other values for fields of the config, such as epochs=50, views={"flip": 0.0}.
    Returns:
      Whether the run came to its end; False if it was stopped, and saved, before.
    Raises:
      UserError: what the command would print.
    """
    program = config_files.program("train")
    given = {"workdir": str(workdir or ""), "init": str(init)}
    wanted = _wanted(program.define_flags, config, data, fields, **given)
    wanted.allow_changes = [allow_changes] if isinstance(allow_changes, str) else list(allow_changes)
    wanted.stopped_status = 1
    told = given | {"data": data, "allow_changes": wanted.allow_changes}
    with launch.errors_for_people(), results.commanded(f"barlow_jax.train({_call(config, told, fields)})"):
        cluster.join()
        return program.main(wanted) == 0


def evaluate(
    checkpoint: str | os.PathLike[str],
    by: str = "knn",
    *,
    config: Config | None = None,
    workdir: str | os.PathLike[str] = "",
    data: Data = None,
    baseline: str = "",
    ema: str = "average",
    **fields: Any,
) -> list[dict[str, Any]] | None:
    """Judges a run as `barlow-jax knn`, `probe`, `transfer` or `linear-eval` do.

    Args:
      checkpoint: work folder of a run, one of its checkpoints, or a file of weights.
      by: one of EVALUATIONS.
      config: name or file of a config, or a ConfigDict; None is the one that EVALUATIONS names.
      workdir: where features and results go; may be left out but for "linear".
      data, fields: as of `train`.
      baseline: "random" or "pixels": judge this in its place.
      ema: of a run with config.ema, whether its "average" is judged or its "last" weights.
    Returns:
      The numbers as the lines of results.jsonl, dicts with protocol, dataset, metric, value, spread and so on; None if
      the evaluation was stopped, and saved, before its end.
    Raises:
      UserError: what the command would print.
    """
    if by not in EVALUATIONS:
        raise UserError(f"by is {by!r}; it is one of {', '.join(EVALUATIONS)}.")
    program = config_files.program("linear_eval") if by == "linear" else importlib.import_module(f"barlow_jax.{by}")
    named = EVALUATIONS[by] if config is None else config
    given = {"workdir": str(workdir or ""), "baseline": baseline, "ema": ema}
    wanted = _wanted(program.define_flags, named, data, fields, checkpoint=str(checkpoint), **given)
    told = {"by": by, "config": config, "data": data, **given, "ema": ema if ema != "average" else ""}
    with launch.errors_for_people(), results.commanded(f"barlow_jax.evaluate({_call(checkpoint, told, fields)})"):
        cluster.join()
        if by != "linear":
            return program.judge(wanted)
        with StopSignals() as stop:
            return program.judge(wanted, stop)


def load(path: str | os.PathLike[str], *, step: int | None = None, ema: str = "average") -> encoder.Network:
    """A trained network, ready to use: see `evaluation.encoder.load`, which this is."""
    return encoder.load(path, step=step, ema=ema)


def _call(first, told, fields):
    """The arguments of a call as they were written: one by place, then those by name that were given."""
    given = {name: value for name, value in told.items() if value is not None and value not in ("", [])} | fields
    return ", ".join([_written(first), *(f"{name}={_written(value)}" for name, value in given.items())])


def _written(value):
    if isinstance(value, ConfigDict):
        return "config"  # what it holds is in the run's config.json
    return repr(os.fspath(value) if isinstance(value, os.PathLike) else value)


def _wanted(define_flags, config, data, fields, **values):
    """What a command's main takes."""
    flag = launch.Flags()
    define_flags(flag)
    config = config if isinstance(config, ConfigDict) else config_files.load(config)
    if data is not None:
        fields = {"data": dict(data) if isinstance(data, Mapping) else {"path": str(data)}} | fields
    return flag.given(config_files.with_fields(config, fields), **values)
