"""Features of frozen backbones, computed once and kept in the work folder.

    features, labels, index = feature_cache.features_of(judged, source)

A file of features is named after all that they depend on: every bit of the backbone, the images and their view. So all
commands together look at an image once.
"""

import hashlib
import json
import logging

import jax
import numpy as np
from ml_collections import ConfigDict

from barlow_jax import experiment, sharding, views
from barlow_jax.data import eval_steps, order
from barlow_jax.errors import UserError
from barlow_jax.evaluation import embedding_files, features, linear_experiment, subject
from barlow_jax.run import cluster, writing
from barlow_jax.run.progress import tracked

log = logging.getLogger(__name__)


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
            writing.arrays(file, {"told": np.asarray(told), **kept._asdict()})
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
        return features.extract(step, params, batch_stats, shown, mesh, n=len(source))
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
        outputs = (step(np.int32(number), params, batch_stats, next(batches)) for number in numbers)
        return features.gather(outputs, len(source))
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
    except embedding_files.DAMAGE as error:
        log.warning("%s cannot be read (%s); its features are computed again", file, error)
    return None
