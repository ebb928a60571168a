"""A trained network for others: PyTorch, detectron2, and any program that can run StableHLO.

    python -m barlow_jax.export runs/r50 --format=torchvision --out=r50.pth

The first argument is the work folder of a run (of train.py or linear_eval.py), one of its checkpoints, or a file of
weights. The formats, and how each is loaded there, are in docs/pytorch.md:

    torchvision, timm    a state_dict of the backbone, with fc if the run has one
    detectron2           a pickle that its C4 models load
    official             the full checkpoint, with projector, momentum and epoch, that the official main.py goes on from
    safetensors          the backbone, with architecture, normalisation, step and config beside the arrays
    huggingface          a folder for the Hugging Face Hub: model.safetensors, config.json for timm, a model card
    stablehlo            the encoder as a program: uint8 images of any size in (uint16 of a run with config.data.bits
                         of 16), features out; for jax and flatbuffers
    onnx                 the network as a graph for onnxruntime and others: cropped images in, as numbers of 8 or 16
                         bits, features out, and logits if the run has a classifier

Every file is read back and run on fixed images before it gets its name; FILE.json beside it says how far its features
are from the network's own. A difference above BOUND is an error.
"""

import hashlib
import json
import logging
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from barlow_jax import augment, model, results
from barlow_jax.data import boxes, levels, order
from barlow_jax.errors import UserError
from barlow_jax.evaluation import encoder, frozen
from barlow_jax.ops import color
from barlow_jax.run import launch, writing
from barlow_jax.run.buckets import reading
from barlow_jax.run.checkpoint import WEIGHTS, restore_all, restore_params
from barlow_jax.weights import as_run, card, files, finite, hub, in_torch, naming, onnx_graph
from barlow_jax.weights.layouts import FORMATS, bad, check

BOUND = 1e-4  # largest |a - b| / |b| of the features of any image, in float32
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # that a StableHLO file runs on

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """What is exported."""

    name: str
    weights: files.Weights
    config: dict  # of the pre-training run
    channels: int
    meta: dict = {}  # what a checkpoint remembers besides; empty of a file
    ema: str = ""  # of a run that has an average of its weights, one of checkpoint.WEIGHTS


def define_flags(flag):
    flag.arguments("RUN")
    flag.choice("format", FORMATS, "What to write.")
    flag.text("out", "The file to write; of huggingface the folder.")
    flag.choice("ema", WEIGHTS, "Of a run with config.ema, which weights; official: the last.", default="average")
    flag.choice("nonfinite", ("refuse", "keep"), "Values that are nan or infinite, in files.", default="refuse")


def main(wanted):
    given, layout, out = wanted.arguments, wanted.format, writing.named(wanted.out)
    if len(given) != 1:
        raise UserError(f"There is one argument besides flags, a run or a file of weights, and here are {len(given)}.")
    if not layout or not wanted.out:
        raise UserError(f"--format and --out are needed; the formats are {', '.join(FORMATS)}.")
    source = read(given[0], whole=layout == "official", only_finite=wanted.nonfinite == "refuse", ema=wanted.ema)
    check(source, layout)
    if not out.parent.is_dir():
        raise UserError(f"--out {out} is in a folder that does not exist; make it, or give another.")
    report = export(source, layout, out)
    for name, value in report.items():
        text = (
            f"{len(value)} arrays"
            if name == "shapes"
            else ", ".join(f"{k} {v:.1e}" for k, v in value.items())
            if (name == "differences")
            else value
        )
        print(f"{name:14}{text}")


def read(given, *, whole=False, only_finite=True, ema="average"):
    """The Source that a folder or a file is.

    Args:
      whole: with momentum, which is that of the last weights.
      only_finite: False takes values that are nan or infinite too.
      ema: of a run with an average of its weights, and not whole: whether that is taken or the "last" ones.
    """
    path = reading.named(given)
    if as_run.is_file(path):
        weights, config, channels = as_run.restore(path, whole=whole, only_finite=only_finite)
        params, batch_stats = as_run.single((weights.params, weights.batch_stats))
        return Source(str(path), weights._replace(params=params, batch_stats=batch_stats), config, channels)
    momentum = None
    if whole:
        state, meta = restore_all(path)
        params, batch_stats, momentum = state["params"], state.get("batch_stats", {}), _trace(state["opt_state"])
    else:
        params, batch_stats, meta = restore_params(path, ema=ema)
    if "arch" not in meta.get("config", {}):
        raise UserError(f"{path} is no run of train.py or linear_eval.py; give the --workdir of one.")
    if only_finite:
        finite.check(path, params, batch_stats, momentum or {})
    kind, epoch, config = "classifier" if "classifier" in meta else "pretraining", 0, meta["config"]
    if kind == "pretraining":
        epoch, rest = divmod(meta["step"], steps_per_epoch(config, meta["images"]))
        if whole and rest:
            log.warning("step %d is inside epoch %d, which the official code begins again", meta["step"], epoch)
    weights = files.Weights(kind, params, batch_stats, momentum, epoch, meta["step"])
    taken = ("last" if whole else ema) if "averaged" in meta else ""
    return Source(str(path), weights, config, meta["channels"], meta, taken)


def steps_per_epoch(config, images):
    """Of a run with this config on so many images."""
    return order.steps_per_epoch(images, config["batch_size"], config["data"]["last"])


def _trace(opt_state):
    """The momentum in an optimiser state as it is restored: of LARS and SGD; None of others."""
    parts = opt_state.values() if isinstance(opt_state, dict) else opt_state if isinstance(opt_state, list) else ()
    if isinstance(opt_state, dict) and "trace" in opt_state:
        return opt_state["trace"]
    return next((found for found in map(_trace, parts) if found is not None), None)


def export(source, layout, out):
    """Writes the file or folder, verifies it, then gives it its name; the report is returned and stands in OUT.json.

    Raises:
      UserError: it gives other features than the source, or cannot be written; then there is none.
    """
    whole = writing.whole_folder if layout == hub.FORMAT else writing.whole
    with whole(out) as unverified:
        write(source, layout, unverified)
        report = {"file": str(out)} | _verified(source, layout, unverified)
        if layout == hub.FORMAT:
            about = source.weights, source.config, source.channels, source.meta
            told = card.text(*about, measured(source), report)
            writing.text(unverified / hub.CARD, told)
        writing.text(out.with_name(f"{out.name}.json"), json.dumps(report, indent=1) + "\n")
    return report


def _verified(source, layout, unverified):
    """The report, but for the file's name."""
    differences = verify(source, layout, unverified)
    config, weights = source.config, source.weights
    shapes = {name: value.shape for name, value in naming.state_dict(*files.backbone(weights)).items()}
    report = {
        "format": layout,
        "of": source.name,
        "arch": config["arch"],
        "stem": config["stem"],
        "channels": source.channels,
        "step": weights.step,
        **({"ema": source.ema} if source.ema else {}),
        "image_size": config["eval"]["crop"],
        "mean": list(config["views"]["mean"]),
        "std": list(config["views"]["std"]),
        "bytes": files.file_of(unverified).stat().st_size,
        "sha256": hashlib.sha256(files.file_of(unverified).read_bytes()).hexdigest(),
        "differences": differences,
        "bound": BOUND,
        "shapes": {name: " x ".join(map(str, shape)) for name, shape in shapes.items()},
    }
    worst = max(differences, key=differences.get)
    if not differences[worst] <= BOUND:
        raise UserError(
            f"The {layout} file gives features that are {differences[worst]:.1e} away ({worst}), above {BOUND}, and "
            "was removed; report this with the versions of your packages."
        )
    return report


def write(source, layout, path):
    """The file alone, as it has not been looked at."""
    config, weights = source.config, source.weights
    if layout == "stablehlo":
        exported = jax.export.export(encode_of(source), platforms=PLATFORMS)(image_shape(source))
        path.write_bytes(exported.serialize())
        return
    if layout in (hub.FORMAT, onnx_graph.FORMAT):
        save = hub.save if layout == hub.FORMAT else onnx_graph.save
        save(path, weights, config, source.channels, source.meta)
        return
    about = files.about_of(config, source.channels, weights.step, weights.epoch)
    files.save(path, layout, weights, groups=files.groups_of(config), about=about)


def measured(source):
    """The lines of results below the folder of a run, or in that of an evaluation, that judge what is exported."""
    if not source.meta:
        return []
    folder = frozen.run_folder(source.name)
    origin = source.meta.get("origin", {"path": source.name, "step": source.weights.step})
    run = frozen.run_folder(pathlib.Path(origin["path"]).resolve()).name
    lines = [line for file in sorted(folder.rglob(results.FILE)) for line in results.read(file)]
    return [
        line
        for line in lines
        if line["checkpoint_step"] in (origin["step"], 0 if line["baseline"] else None)
        and frozen.run_folder(line["checkpoint"]).name in (run, "")
        and (line["baseline"] or line["settings"].get("ema", "") == source.ema)
    ]


def features_of(source):
    """(params, batch_stats, normalised images [b, H, W, C]) -> features float32 [b, F], jitted."""
    return encoder.make_features(source.config, source.channels)


def encode_of(source):
    """uint8 or uint16 [b, h, w, C] -> features float32 [b, F], jitted, with the weights in it."""
    return encoder.make_encode(source.config, source.channels, *files.backbone(source.weights))


def image_shape(source):
    """Of what an exported encoder takes: any number of images, all of any one size."""
    return jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b, h, w"), source.channels), dtype(source))


def dtype(source):
    """Of the images that a program of its own takes: as they were on the canvas."""
    return levels.dtype_of(source.config["data"].get("bits", 8))


# Verification.


def verify(source, layout, path):
    """{reader: largest relative difference of features} of a written file, each reader on the same fixed images.

    Raises:
      UserError: an array is not what it was.
    """
    if bad(source):  # what is no number equals nothing: the arrays alone are compared
        check_equal(source.weights, files.load(path, only_finite=False))
        return {"arrays read back": 0.0}
    features, weights = features_of(source), files.backbone(source.weights)
    config, side = source.config, source.config["eval"]["crop"]
    if layout == "stablehlo":
        program = jax.export.deserialize(bytearray(path.read_bytes()))
        resize, encode = config["eval"]["resize"], encode_of(source)
        # Where the short side is `resize` already nothing is resampled, and the program must see what evaluations see;
        # elsewhere grey levels between two others may round either way, so there it is compared with itself.
        as_evaluated = pixels(2, resize, resize + 77, source.channels, dtype(source))
        resampled = pixels(3, resize + 33, 2 * resize + 8, source.channels, dtype(source))
        found = [
            difference(program.call(as_evaluated), features(*weights, evaluation_views(config, as_evaluated))),
            difference(program.call(resampled), encode(resampled)),
        ]
        return {f"jax {jax.__version__}": max(found)}
    if layout == onnx_graph.FORMAT:
        return _in_onnxruntime(source, path)
    sides = [(side, side)] if config["arch"] in model.OF_ONE_SIZE else [(side, side), (side + 13, side + 22)]
    images = [normal(n, *hw, source.channels) for n, hw in enumerate(sides, 2)]
    wanted = [features(*weights, x) for x in images]
    back = files.load(path)
    check_equal(source.weights, back)
    again = [features(*files.backbone(back), x) for x in images]
    found = {"read back": max(difference(x, y) for x, y in zip(again, wanted, strict=True))}
    elsewhere = in_torch.features(config, source.channels, layout, path, images)
    return found | {
        library: max(difference(x, y) for x, y in zip(theirs, wanted, strict=True))
        for library, theirs in elsewhere.items()
    }


def _in_onnxruntime(source, path):
    """`verify` of an ONNX file: features, and logits where it has them, of images as it takes them."""
    config, weights = source.config, source.weights
    crop = hub.seen(config, source.meta)[1]
    mean, std = (config["views"][name] for name in ("mean", "std"))
    found = []
    for n, shape in enumerate([(crop, crop)] if config["arch"] in model.OF_ONE_SIZE else [(crop, crop), (65, 97)], 2):
        images = pixels(n, *shape, source.channels, dtype(source))
        normalised = color.normalize(color.levels(jnp.asarray(images)), mean, std)
        wanted = {"features": features_of(source)(*files.backbone(weights), normalised)}
        if "fc" in weights.params:
            wanted["logits"] = wanted["features"] @ weights.params["fc"]["kernel"] + weights.params["fc"]["bias"]
        given = onnx_graph.run(path, images)
        found += [difference(given[name], wanted[name]) for name in wanted]
    return {f"onnxruntime {onnx_graph.libraries()[1].__version__}": max(found)}


def check_equal(wanted, found):
    """Raises UserError unless every array that was read back is what was written, to the bit."""
    for tree in ("params", "batch_stats", "momentum"):
        pairs = (getattr(wanted, tree), getattr(found, tree))
        wanted_arrays, arrays = (naming.state_dict(pair or {}, {}) for pair in pairs)
        for name in arrays:
            if not np.array_equal(arrays[name], wanted_arrays[name], equal_nan=True):
                raise UserError(f"What was written holds another {name} than the source; look at the disk.")


def evaluation_views(config, images):
    """Images [b, h, w, C] -> normalised [b, S, S, C], as evaluations see them, the boxes computed on the host."""
    height, width = (np.full((len(images), 1, 1), side, np.float64) for side in images.shape[1:3])
    box = boxes.center_crop(height, width, config["eval"]["resize"], config["eval"]["crop"])
    extent = np.full((len(images), 2), images.shape[1:3], np.int32)
    mean, std = (tuple(config["views"][field]) for field in ("mean", "std"))
    return augment.eval_views(images, box.astype(np.float32), extent, size=config["eval"]["crop"], mean=mean, std=std)


def pixels(n, height, width, channels, kind=np.uint8):
    """Fixed images, uint8 or of another kind."""
    return np.random.RandomState(0).randint(0, np.iinfo(kind).max + 1, (n, height, width, channels)).astype(kind)


def normal(n, height, width, channels):
    """Fixed images, normalised."""
    return np.random.RandomState(0).standard_normal((n, height, width, channels)).astype(np.float32)


def difference(found, wanted):
    """Largest |found - wanted| / |wanted| of any row; nan where something is not finite."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float((np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


if __name__ == "__main__":
    launch.run(main, define_flags)
