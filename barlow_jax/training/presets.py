"""What a config leaves open, chosen by the number and the size of its images. docs/presets.md has the sources.

    values = by_images(asked(config), Images(count=619, side=375, features=512, platform="cpu"))
    fill(config, values)

A field is open where it is None, as configs/image_folder.py has those of RULES. What a person sets is not open, and the
rules of other fields go by it: with config.epochs=5 the warm-up is one epoch.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from barlow_jax import model
from barlow_jax.data import order
from barlow_jax.data.protocol import Source
from barlow_jax.run import cluster, workdir

log = logging.getLogger(__name__)

# batch size: learning rate of the weights, as the authors gave them for ResNet-50 and 300 epochs.
LEARNING_RATES = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}
SIZES = (32, 64, 96, 128, 160, 224)  # pixels
LOOKED_AT = 64  # images whose size is looked at, evenly spaced

Fields = Mapping[str, Any]  # by dotted name


class Images(NamedTuple):
    """What the rules go by: number of images, their usual short side in pixels, and what sees them.

    features: width of what the backbone gives. platform: "cpu", or another one of JAX.
    """

    count: int
    side: int = SIZES[-1]
    features: int = 2048
    platform: str = ""


def image_size(fields: Fields, images: Images) -> int:
    """The largest of SIZES that the images have; smaller ones are enlarged to the smallest."""
    return max((size for size in SIZES if size <= images.side), default=SIZES[0])


def eval_resize(fields: Fields, images: Images) -> int:
    """256 for a crop of 224, as published; small images are judged whole, as CIFAR is."""
    crop = fields["eval.crop"]
    return crop * 8 // 7 if crop >= 160 else crop


def projector(fields: Fields, images: Images) -> tuple[int, int, int]:
    """512 as the demo, 2048 as solo-learn for CIFAR and ImageNet-100, 8192 as published; at most 4 x features."""
    width = 512 if images.count < 5_000 else 2048 if images.count < 500_000 else 8192
    width = min(width, 4 * images.features)
    return width, width, width


def lambd(fields: Fields, images: Images) -> float:
    """As published; below 2048 dimensions so that lambd x D is what solo-learn has at 2048."""
    d = fields["projector"][-1] if fields["projector"] else images.features
    return round(0.0051 * max(1.0, 2048 / d), 4)


def batch_size(fields: Fields, images: Images) -> int:
    """256, the smallest that costs little accuracy (paper, figure 2); of few images no more than they fill."""
    if images.count >= 1024:
        return 256
    return min(128, 2 ** int(math.log2(max(images.count, 2))))


def learning_rate(fields: Fields, images: Images) -> float:
    """That of the authors for this batch size, or for the next smaller one they tried."""
    return LEARNING_RATES[max((size for size in LEARNING_RATES if size <= fields["batch_size"]), default=128)]


def epochs(fields: Fields, images: Images) -> int:
    """50 million images seen, in hundreds of epochs, 300 to 1000.

    So has solo-learn 1000 for CIFAR's 50,000 images and 400 for ImageNet-100's 126,689; 300 is the paper's ablations.
    """
    return min(1000, max(300, 100 * round(500_000 / images.count)))


def warmup_epochs(fields: Fields, images: Images) -> int:
    """10 as published, but of a short run a tenth, rounded up, and of a single epoch none."""
    return 0 if fields["epochs"] == 1 else min(10, -(-fields["epochs"] // 10))


def every_epochs(fields: Fields, images: Images) -> int:
    """20 times in the run, or after every epoch."""
    return max(1, fields["epochs"] // 20)


def checkpoint_every_steps(fields: Fields, images: Images) -> int:
    """20 times in the run, but at least 100 steps apart, and at most the published 1000."""
    steps = fields["epochs"] * order.steps_per_epoch(images.count, fields["batch_size"], fields["data.last"])
    return min(1000, max(100, steps // 20))


# Field: its rule, which may read the fields before it.
RULES: dict[str, Callable[[Fields, Images], Any]] = {
    "image_size": image_size,
    "stem": lambda fields, images: "cifar" if fields["image_size"] <= 32 else "imagenet",  # solo-learn
    "views.blur": lambda fields, images: (0.0, 0.0) if fields["image_size"] <= 32 else (1.0, 0.1),  # the same
    "eval.crop": lambda fields, images: fields["image_size"],
    "eval.resize": eval_resize,
    "precision": lambda fields, images: "float32" if images.platform == "cpu" else "bfloat16",
    "projector": projector,
    "lambd": lambd,
    "batch_size": batch_size,
    "optimizer.learning_rate_weights": learning_rate,
    "epochs": epochs,
    "warmup_epochs": warmup_epochs,
    "eval.every_epochs": every_epochs,
    "picture_every_epochs": every_epochs,
    "checkpoint_every_steps": checkpoint_every_steps,
}


def settle(config, folder: str, opened: Callable[[], Source]) -> bool:
    """Gives the open fields what the run in a work folder began with, or what suits the images; False: none is open.

    Args:
      config: ConfigDict.
      folder: the work folder, "" for none.
      opened: opens the training images.
    Raises:
      UserError: the images cannot be opened, or another process comes to other values.
    """
    if not left_open(config):
        return False
    values = workdir.began_with(folder, RULES)
    if values:
        log.info("going by the config.json of %s in %s", folder, ", ".join(left_open(config)))
    else:
        images = images_of(config, opened(), jax.default_backend())
        values = by_images(asked(config), images)
        log.info("%s", told(values, images))
    cluster.check_agreement({"the fields that are open": {name: str(value) for name, value in values.items()}})
    fill(config, values)
    return True


def images_of(config, source: Source, platform: str) -> Images:
    """What the rules go by of the images of a source and of config.arch."""
    return Images(len(source), short_side(source), features(config), platform)


def features(config) -> int:
    """The width of what config.arch gives; nothing is computed."""
    backbone = model.make_backbone(config.arch, image_size=SIZES[-1], **config.get("resnet", {}))
    return nnx.eval_shape(lambda: backbone(rngs=nnx.Rngs(0))).num_features


def by_images(asked: Fields, images: Images) -> dict[str, Any]:
    """{name: value} of the fields of RULES that are None in `asked`, in their order; see `asked`."""
    values = dict(asked)
    for name, rule in RULES.items():
        if values[name] is None:
            values[name] = rule(values, images)
    return {name: values[name] for name in RULES if asked[name] is None}


def asked(config) -> dict[str, Any]:
    """{name: value, or None where it is open} of the fields of RULES, and what they read beside them."""
    return {name: _get(config, name.split(".")) for name in (*RULES, "data.last")}


def left_open(config) -> list[str]:
    """The names of the fields of RULES that are None."""
    return [name for name in RULES if _get(config, name.split(".")) is None]


def fill(config, values: Fields) -> None:
    """Sets the fields of `values` that are open in the config, a ConfigDict; what is set already stays."""
    with config.unlocked():
        for name, value in values.items():
            *groups, last = name.split(".")
            group = _get(config, groups)
            if group[last] is None:
                group[last] = value


def short_side(source: Source) -> int:
    """The median of the short sides of up to LOOKED_AT images, in pixels; where none can be read, the usual 224."""
    rows = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int))
    sides = []
    for row in rows:
        try:
            sides.append(min(source.stored_size(int(row))))
        except Exception:  # whatever a reader runs into; what is unreadable is told of when it is its turn
            continue
    return int(np.median(sides)) if sides else SIZES[-1]


def told(values: Fields, images: Images) -> str:
    """The line on what was chosen, for people."""
    chosen = ", ".join(f"{name}={value}" for name, value in values.items())
    return f"chosen for {images.count:,} images of about {images.side} pixels: {chosen} (docs/presets.md)"


def _get(group, names):
    for name in names:
        group = group[name]
    return group
