"""Search by an image: its features as those of a file of embeddings were made, and the rows nearest to them."""

import pathlib

from ml_collections import ConfigDict

from barlow_jax import experiment, sharding
from barlow_jax.data import pixels
from barlow_jax.data.sources import Files
from barlow_jax.errors import UserError
from barlow_jax.evaluation import features, subject

# What `embed.made_by` notes and is asked for here.
_ASKED = {"backbone", "checkpoint", "ema", "step", "precision", "resize", "crop", "canvas", "reading"}


def features_of_files(files, about, checkpoint=""):
    """Features of image files by the network that made embeddings: float32 [len(files), F].

    Args:
      files: names of files.
      about: of the embeddings, see `embed.made_by`.
      checkpoint: where the network is now, if not where it was.
    Raises:
      UserError: a file is missing or unreadable, or the network is not there or another one.
    """
    missing = [file for file in files if not pathlib.Path(file).is_file()]
    if missing:
        raise UserError(f"--like names {missing[0]}, which does not exist; give image files.")
    if not about.keys() >= _ASKED:
        raise UserError("The file does not say which network made it, as `embed` notes it; make it anew for --like.")
    judged = subject.load(checkpoint or about["checkpoint"], ema=about["ema"])
    if judged.sha256 != about["backbone"]:
        raise UserError(
            f"{judged} has not the weights that made these embeddings (step {about['step']} of {about['checkpoint']}); "
            "name what has them by --checkpoint, or embed the images anew."
        )
    config = _config(judged, about, len(files))
    source = Files(files, name="--like", channels=judged.channels, **experiment.reading(config.data))
    for place in range(len(source)):
        try:
            pixels.pillow_pixels(source.encoded(place), source.reading)
        except Exception as error:  # whatever Pillow's parsers run into
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            name = source.where(place)
            raise UserError(f"--like names {name}, which cannot be read ({reason}); give another image.") from None
    mesh = sharding.make_mesh()
    graphdef, weights = subject.on_devices(judged, config, mesh)
    view = {name: tuple(config.views[name]) for name in ("mean", "std")}
    step = features.make_feature_step(graphdef, size=config.eval.crop, mesh=mesh, **view)
    batches = experiment.eval_batches(config, source, mesh)
    try:
        return features.extract(step, *weights, batches, mesh, n=len(source)).features
    finally:
        batches.close()


def _config(judged, about, count):
    """The config of the run with what `embed` was told instead."""
    config = ConfigDict(judged.config).copy_and_resolve_references().unlock()
    config.precision, config.eval.batch_size = about["precision"], count
    config.eval.resize, config.eval.crop = about["resize"], about["crop"]
    config.data.canvas, config.data.max_bad_fraction = about["canvas"], 0.0
    for name, value in about["reading"].items():
        config.data[name] = tuple(value) if isinstance(value, list) else value
    return config
