"""What a written file gives in the network of another library, where that is installed: a part of every export's check.

PyTorch, torchvision and timm are none of ours; they are imported here if they are there, and nowhere else.
"""

import importlib
import logging

from barlow_jax import model
from barlow_jax.weights import hub

log = logging.getLogger(__name__)

_CLASSIFIERS = ("fc.", "head.weight", "head.bias", "head.fc.")  # of a ResNet, a ViT, a ConvNeXt


def features(config, channels, layout, path, images):
    """{"timm 1.0.0": features of each batch [b, F]} of a file in torchvision's or timm's own network.

    Args:
      config: of the pre-training run, a plain nested dict; channels: of the images.
      layout: of `files.LAYOUTS`, or `hub.FORMAT`. Those that neither library reads, and a library that is not here or
        too old, give {}.
      images: normalised, arrays [b, H, W, C].
    """
    if layout not in ("torchvision", "timm", "official", hub.FORMAT):
        return {}
    library = "timm" if layout in ("timm", hub.FORMAT) else "torchvision"
    try:
        torch, theirs = importlib.import_module("torch"), importlib.import_module(library)
    except (ImportError, RuntimeError) as error:  # RuntimeError: one that was built for another torch
        log.info("not tried in %s, which cannot be imported here (%s)", library, error)
        return {}
    if layout == hub.FORMAT:
        network = _from_folder(path, theirs)
        if network is None:
            return {}
    else:
        make = _resnet if config["arch"] in model.RESNETS else _of_timm
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


def _from_folder(path, timm):
    """timm's, made of what stands in a folder alone, and without its classifier; None from a timm too old for it."""
    name = f"local-dir:{path}"
    try:
        timm.models.parse_model_name(name)
    except (AssertionError, ValueError):
        log.info("not tried in timm %s, which does not know local-dir:", timm.__version__)
        return None
    network = timm.create_model(name, pretrained=True)
    network.reset_classifier(0)
    return network


def _resnet(config, channels, torch, library):
    """Of torchvision or timm, without its classifier."""
    arch, stem, side = config["arch"], config["stem"], 7 if config["stem"] == "imagenet" else 3
    network = library.create_model(arch) if library.__name__ == "timm" else getattr(library.models, arch)()
    network.fc = torch.nn.Identity()
    network.conv1 = torch.nn.Conv2d(channels, 64, side, side // 3, side // 2, bias=False)
    network.maxpool = network.maxpool if stem == "imagenet" else torch.nn.Identity()
    return network


def _of_timm(config, channels, torch, timm):
    """timm's, without its classifier."""
    del torch
    return timm.create_model(hub.architecture(config), num_classes=0, **hub.arguments(config, channels))
