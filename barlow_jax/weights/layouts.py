"""Which network can be written in which layout: check(source, "timm") before anything is written.

A source is an `export.Source`.
"""

from barlow_jax import model
from barlow_jax.errors import UserError
from barlow_jax.weights import architecture, files, finite, hub, naming, onnx_graph

ANY = ("safetensors", "stablehlo", onnx_graph.FORMAT)  # which hold every network of ours
FORMATS = (*files.LAYOUTS, hub.FORMAT, "stablehlo", onnx_graph.FORMAT)


def check(source, layout):
    """Raises UserError if the source cannot be written in this layout."""
    arch = source.config["arch"]
    if layout == hub.FORMAT:
        hub.check(source.name, source.config)
    elif layout == onnx_graph.FORMAT and arch not in onnx_graph.GRAPHS:
        raise UserError(f"{source.name} is a {arch}, of which there is no ONNX graph; take --format=stablehlo.")
    elif arch in {**model.VITS, **model.CONVNEXTS} and layout not in ("timm", *ANY):
        raise UserError(
            f"{source.name} is a {arch} under timm's names, which {layout} does not have; take timm, {hub.FORMAT}, "
            f"{_any()}."
        )
    elif arch not in {**model.RESNETS, **model.VITS, **model.CONVNEXTS} and layout not in ANY:
        raise UserError(f"{source.name} is a {arch}, which {layout} does not have; take {_any()}.")
    _check_resnet(source, layout)
    if layout == "official" and "projector" not in source.weights.params:
        raise UserError(
            f"{source.name} has no projector, so no full checkpoint can be made of it; take "
            "--format=torchvision, which is what the official resnet50.pth is."
        )
    bare = not source.config.get("projector_batch_norm", True)
    if layout == "official" and (bare or "predictor" in source.weights.params):
        raise UserError(f"{source.name} has a predictor or no BatchNorm in its projector; take --format=torchvision.")
    if layout == "official" and source.config["stem"] != "imagenet":
        raise UserError(
            f"{source.name} has the {source.config['stem']} stem, which the official code has not; take "
            "--format=torchvision."
        )
    if layout == "official" and (arch, source.channels) != ("resnet50", 3):
        raise UserError(
            f"{source.name} is a {arch} for images of {source.channels} channels, and the official code has a resnet50 "
            "for 3; take --format=torchvision."
        )
    if layout == "official" and "bn" not in source.weights.batch_stats:
        raise UserError(
            f"{source.name} has no norm behind its projector, which the official code has; take --format=torchvision."
        )
    whats = {"stablehlo": "program", onnx_graph.FORMAT: "graph", hub.FORMAT: "folder for the Hub"}
    if layout in whats and bad(source):
        raise UserError(
            f"{source.name} holds values that are not finite, of which no {whats[layout]} is made; take another."
        )


def _check_resnet(source, layout):
    """Raises UserError for a ResNet other than that of its name in a layout for networks of others."""
    arch = source.config["arch"]
    if layout in ANY or arch not in model.RESNETS:
        return
    for field, usual in architecture.OF_NAMED.items():
        group, name = field.split(".")
        value = source.config.get(group, {}).get(name, usual)  # absent: of older runs
        value = tuple(value) if isinstance(value, list) else value
        if value != usual:
            raise UserError(
                f"{source.name} is a {arch} with config.{field}={value}, of which {layout} has no network; take "
                f"--format={_any()}."
            )


def _any():
    return f"{', '.join(ANY[:-1])} or {ANY[-1]}"


def bad(source):
    """Which of its arrays hold values that are not finite."""
    weights = source.weights
    return finite.found_bad(naming.state_dict(weights.params, weights.batch_stats))
