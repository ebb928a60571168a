"""A folder as the Hugging Face Hub has them: model.safetensors, config.json as timm writes it, README.md (`card`).

timm.create_model("local-dir:r50", pretrained=True)
"""

import json
import math
import pathlib

from barlow_jax import model
from barlow_jax.errors import UserError
from barlow_jax.run import writing
from barlow_jax.weights import files

FORMAT, CONFIG, CARD = "huggingface", "config.json", "README.md"
# What timm calls the first convolution and the classifier of each network that it has.
NAMES = {
    **dict.fromkeys(model.RESNETS, ("conv1", "fc")),
    **dict.fromkeys(model.VITS, ("patch_embed.proj", "head")),
    **dict.fromkeys(model.CONVNEXTS, ("stem.0", "head.fc")),
}
POOLINGS = {"token": "token", "mean": "avg"}  # ours -> timm's

# Fields that may hold a folder of the machine that trained, of which the last part is enough for others.
_PATHS = (("data", "path"), ("data", "file_list"), ("compilation_cache",))


def check(name, config):
    """Raises UserError if timm has no network of this config; name: of what is exported."""
    arch, stem = config["arch"], config["stem"]
    if arch not in NAMES:
        raise UserError(f"{name} is a {arch}, which timm does not have; take --format=safetensors or stablehlo.")
    if arch in model.RESNETS and stem != "imagenet":
        raise UserError(
            f"{name} has the {stem} stem, which no ResNet of timm has, so that local-dir: would not load it; take "
            "--format=timm and change the stem there (docs/pytorch.md), or --format=safetensors."
        )


def save(folder, weights, config, channels, meta):
    """Writes model.safetensors and config.json into a folder.

    Args:
      weights: `files.Weights`, with "fc" in its parameters where there is a classifier.
      config: of the pre-training run, a plain nested dict; channels: of its images.
      meta: what the checkpoint remembers besides; {} of a file.
    """
    about = files.about_of(public(config), channels, weights.step, weights.epoch)
    files.save(folder / files.HUB_FILE, "safetensors", weights, about=about)
    told = config_of(weights, config, channels, meta)
    writing.text(folder / CONFIG, json.dumps(told, indent=2) + "\n")


def public(config):
    """A config with the last part alone of paths, which are those of somebody's machine."""
    found = json.loads(json.dumps(config))
    for *groups, field in _PATHS:
        inner = found
        for group in groups:
            inner = inner.get(group, {})
        if isinstance(inner.get(field), str):
            inner[field] = pathlib.PurePath(inner[field]).name
    return found


def seen(config, meta):
    """(short side, side of the central crop) in pixels of the images, as they are where this network is judged.

    Args:
      config, meta: as of `save`; the sizes of a classifier are those of its evaluation.
    """
    own = meta.get("classifier", {}).get("config", {}).get("eval", {})
    resize, crop = (own.get(name) or config["eval"][name] for name in ("resize", "crop"))
    return resize, crop


def class_names(meta):
    """Of the classifier, a list; None where there is none or its training images had no names for their classes."""
    return meta.get("classifier", {}).get("class_names") or None


def width(weights):
    """Of the features."""
    params, _ = files.backbone(weights)
    if "cls_token" in params:
        return params["cls_token"].shape[-1]
    if "head" in params:
        return params["head"]["norm"]["scale"].shape[0]
    if "dense" in params:
        return params["dense"]["kernel"].shape[-1]
    block = params["layer4"]["0"]
    return block.get("bn3", block["bn2"])["bias"].shape[0]


def architecture(config):
    """timm's name of the network."""
    return f"{config['arch']}_patch16_224" if config["arch"] in model.VITS else config["arch"]


def arguments(config, channels):
    """What timm.create_model takes besides the name to build the backbone."""
    found = {} if channels == 3 else {"in_chans": channels}
    if config["arch"] in model.VITS:
        found |= {"img_size": config["image_size"], "patch_size": config["vit"]["patch"]}
        found |= {"global_pool": POOLINGS[config["vit"]["pooling"]]}
    return found


def config_of(weights, config, channels, meta):
    """What config.json says, in timm's order; arguments as of `save`."""
    is_vit, (first, classifier) = config["arch"] in model.VITS, NAMES[config["arch"]]
    resize, crop = seen(config, meta)
    classes = weights.params["fc"]["bias"].shape[0] if "fc" in weights.params else 0
    names, own = class_names(meta), arguments(config, channels)
    return {
        "architecture": architecture(config),
        "num_classes": classes,
        "num_features": width(weights),
        "global_pool": own.get("global_pool", "avg"),
        **({"label_names": list(names)} if names and classes else {}),
        **({"model_args": own} if own else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, crop, crop],
            "fixed_input_size": is_vit,
            "interpolation": "bilinear",
            "crop_pct": crop_share(crop, resize),
            "crop_mode": "center",
            "mean": list(config["views"]["mean"]),
            "std": list(config["views"]["std"]),
            "num_classes": classes,
            "pool_size": None if is_vit else [-(-crop // 32)] * 2,
            "first_conv": first,
            "classifier": classifier,
        },
    }


def crop_share(crop, resize):
    """timm's crop_pct, of which it makes the short side: floor(crop / crop_pct) is `resize`, to the pixel."""
    share = crop / resize
    return share if math.floor(crop / share) == resize else math.nextafter(share, 0)
