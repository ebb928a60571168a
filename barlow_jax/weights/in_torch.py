"""What a written file gives in the network of another library, where that is installed: a part of every export's check.

PyTorch, torchvision and timm are none of ours; they are imported here if they are there, and nowhere else.
"""

import importlib
import logging

from barlow_jax import model

log = logging.getLogger(__name__)

_CLASSIFIERS = ("fc.", "head.weight", "head.bias", "head.fc.")  # of a ResNet, a ViT, a ConvNeXt


def features(config, channels, layout, path, images):
    """{"timm 1.0.0": features of each batch [b, F]} of a file in torchvision's or timm's own network.

    Args:
      config: of the pre-training run, a plain nested dict; channels: of the images.
      layout: of `files.LAYOUTS`. Those that neither library reads, and a library that is not here, give {}.
      images: normalised, arrays [b, H, W, C].
    """
    if layout not in ("torchvision", "timm", "official"):
        return {}
    library = "timm" if layout == "timm" else "torchvision"
    try:
        torch, theirs = importlib.import_module("torch"), importlib.import_module(library)
    except (ImportError, RuntimeError) as error:  # RuntimeError: one that was built for another torch
        log.info("not tried in %s, which cannot be imported here (%s)", library, error)
        return {}
    make = _vit if config["arch"] in model.VITS else _convnext if config["arch"] in model.CONVNEXTS else _resnet
    network = make(config, channels, torch, theirs)
    arrays = torch.load(path, weights_only=True)
    if layout == "official":
        prefix = "module.backbone."
        arrays = {name.removeprefix(prefix): v for name, v in arrays["model"].items() if name.startswith(prefix)}
    arrays = {name: value for name, value in arrays.items() if not name.startswith(_CLASSIFIERS)}
    network.load_state_dict(arrays, strict=True)
    network.eval()
    with torch.no_grad():
        found = [network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy() for x in images]
    return {f"{library} {theirs.__version__}": found}


def _resnet(config, channels, torch, library):
    """Of torchvision or timm, without its classifier."""
    arch, stem, side = config["arch"], config["stem"], 7 if config["stem"] == "imagenet" else 3
    network = library.create_model(arch) if library.__name__ == "timm" else getattr(library.models, arch)()
    network.fc = torch.nn.Identity()
    network.conv1 = torch.nn.Conv2d(channels, 64, side, side // 3, side // 2, bias=False)
    network.maxpool = network.maxpool if stem == "imagenet" else torch.nn.Identity()
    return network


def _vit(config, channels, torch, timm):
    """timm's, without its classifier."""
    del torch
    return timm.create_model(
        f"{config['arch']}_patch16_224",
        num_classes=0,
        in_chans=channels,
        img_size=config["image_size"],
        patch_size=config["vit"]["patch"],
        global_pool={"token": "token", "mean": "avg"}[config["vit"]["pooling"]],
    )


def _convnext(config, channels, torch, timm):
    """timm's, without its classifier."""
    del torch
    return timm.create_model(config["arch"], num_classes=0, in_chans=channels)
