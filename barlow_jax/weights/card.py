"""The model card of a folder for the Hugging Face Hub: Markdown behind a header of YAML, of what the run itself tells.

text(weights, config, channels, meta, lines, report)
"""

import pathlib

import barlow_jax
from barlow_jax import fields, model, results
from barlow_jax.data import order
from barlow_jax.results import plain, published
from barlow_jax.run.checkpoint import FOLDER
from barlow_jax.weights import as_run, files, hub

# The Hub's names of sets, by those of tensorflow-datasets.
_ON_THE_HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet2012": "ILSVRC/imagenet-1k",
    "imagenette": "frgfm/imagenette",
}
# Fields that the card shows whether or not they depart from anything.
_MAIN = (
    *("objective", "lambd", "projector", "batch_size", "optimizer.name", "optimizer.learning_rate_weights"),
    *("optimizer.learning_rate_biases", "optimizer.weight_decay", "image_size", "views.number", "precision", "seed"),
)
_BASELINES = {"": "", "random": "a random network in its place: ", "pixels": "pixels in its place: "}
_CITATION = """\
## Citation

```bibtex
@inproceedings{zbontar2021barlow,
  title     = {Barlow Twins: Self-Supervised Learning via Redundancy Reduction},
  author    = {Zbontar, Jure and Jing, Li and Misra, Ishan and LeCun, Yann and Deny, St{\\'e}phane},
  booktitle = {International Conference on Machine Learning},
  year      = {2021},
  note      = {arXiv:2103.03230}
}
```"""


def text(weights, config, channels, meta, lines, report):
    """The card.

    Args:
      weights, config, channels, meta: as of `hub.save`.
      lines: results of this network, and of baselines, as `results.read` has them.
      report: of the export, with file, of, sha256 and differences.
    """
    name = pathlib.Path(report["file"]).name
    told = _told(weights, meta)
    shown = hub.public(config)
    parts = [
        _header(shown, meta, told),
        f"# {plain.printable(name)}",
        _what(weights, shown, channels, meta, told),
        *(_training(weights, shown, meta) if told else ()),
        *_measured(lines),
        _use(name, weights, config, channels, meta),
        _export(name, report),
        "## License\n\nNone is set. Whoever publishes this folder chooses one, which the training images may restrict, "
        "and writes it into the header of this file.",
        _CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def _told(weights, meta):
    """Whether the config is that of the training, and not what is taken for granted of the files of others."""
    judged = meta.get("origin", {}).get("path")
    return "config" in weights.about or bool(meta) and not (judged and as_run.is_file(judged))


def _header(config, meta, told):
    task = "image-classification" if "classifier" in meta else "image-feature-extraction"
    tags, known = ["timm", "barlow-jax"], None
    if told:
        data = config["data"]
        tags += ["self-supervised-learning", _objective(config).replace("_", "-")]
        known = _ON_THE_HUB.get(data["name"]) if data["kind"] == "tfds" else None
    return "\n".join(
        [
            "---",
            "# license: is not set; see below",
            "library_name: timm",
            f"pipeline_tag: {task}",
            "tags:",
            *(f"- {tag}" for tag in tags),
            *(["datasets:", f"- {known}"] if known else []),
            "---",
        ]
    )


def _objective(config):
    return config.get("objective", "barlow_twins")  # absent: of older runs, which had no other


def _what(weights, config, channels, meta, told):
    """What it is, in a paragraph."""
    network = f"A `{config['arch']}` that maps images of {channels} channels to {hub.width(weights)} features"
    objective, origin = _objective(config), meta.get("origin", {})
    if origin.get("baseline") == "random":
        sentences = [f"{network}, as it was initialised: nothing was trained but what follows."]
    elif not told:
        sentences = [
            f"{network}. The file of its weights did not say how they were trained; that its images are normalised and "
            f"sized as {hub.CONFIG} says is taken for granted."
        ]
    elif objective == "barlow_twins":
        sentences = [f"{network}, trained without labels by [Barlow Twins](https://arxiv.org/abs/2103.03230)."]
    else:
        sentences = [
            f"{network}, trained without labels by the objective `{objective}` of barlow-jax, whose docs/objectives.md "
            "has its formula and source."
        ]
    if meta.get("init"):
        sentences.append(f"Training began with the weights of `{pathlib.PurePath(meta['init']).name}`.")
    if "classifier" in meta:
        classes, how = meta["classifier"]["num_classes"], meta["classifier"]["config"]["weights"]
        sentences.append(
            f"On its frozen features a linear classifier of {classes} classes was trained, which is included."
            if how == "freeze"
            else f"It was then fine-tuned with a linear classifier of {classes} classes, which is included."
        )
    return " ".join(sentences)


def _training(weights, config, meta):
    """The section on how it was trained: the main numbers, and what departs from the published ones."""
    flat = fields.flat(config)
    data, shown = config["data"], [("architecture", _architecture(config))]
    images = data.get("name") or data["path"] or data["kind"]
    step, count = weights.step, None
    if "classifier" in meta:
        step = meta["origin"]["step"]
    elif "images" in meta:
        count = meta["images"]
    per_epoch = order.steps_per_epoch(count, config["batch_size"], data["last"]) if count else 0
    shown.append(("training images", f"{images}, {count}" if count else images))
    shown.append(("steps", f"{step}, epoch {step / per_epoch:.4g} of {config['epochs']}" if per_epoch else f"{step}"))
    shown += [(field, _shown(flat[field])) for field in _MAIN if field in flat and published.in_use(field, flat)]
    yield "## Training\n\n" + _table(("", "here"), shown)
    departs = [(field, *map(_shown, values)) for field, *values in published.deviations(config)]
    if departs:
        head = ("field", "here", "official code", "paper")
        yield "What departs from the published run:\n\n" + _table(head, departs)
    else:
        yield "No field departs from the official code or the paper."


def _architecture(config):
    if config["arch"] not in model.VITS:
        return f"{config['arch']}, {config['stem']} stem"
    vit = config["vit"]
    return f"{config['arch']}, patch {vit['patch']}, {vit['positions']} positions, {vit['pooling']} pooling"


def _shown(value):
    if value is None:
        return "not said"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _measured(lines):
    """The section of results, its table and notes."""
    if not lines:
        yield "## Results\n\nNothing was measured of it before it was exported."
        return
    rows, noted = [], {}
    for line in sorted(results.newest(lines), key=lambda line: (line["baseline"], line["protocol"], line["metric"])):
        departures = tuple(line["settings"].get("departures", ()))
        mark = noted.setdefault((line["protocol"], departures), f" ({len(noted) + 1})") if departures else ""
        evaluation, images, metric, value = results.cells(line | {"dataset": _set(line["dataset"])}, mark)
        unit = "" if metric in results.lines.NOT_SHARES else " %"
        rows.append((_BASELINES.get(line["baseline"], "") + evaluation, images, metric, value + unit))
    yield "## Results\n\n" + _table(("evaluation", "test images", "metric", "value"), rows)
    if any(line["spread"] is not None for line in lines):
        yield "Behind +- is the standard deviation over the seeds."
    for (protocol, departures), mark in noted.items():
        yield plain.printable(f"{mark.strip()} not as {protocol} has it: {', '.join(departures)}")


def _set(name):
    """The name of a set of images; of one that is a folder the last two parts of its path."""
    path = pathlib.PurePath(name)
    return str(pathlib.PurePath(*path.parts[-2:])) if path.is_absolute() else name


def _use(name, weights, config, channels, meta):
    resize, crop = hub.seen(config, meta)
    mean, std = (", ".join(f"{x:g}" for x in config["views"][field]) for field in ("mean", "std"))
    result = "logits" if "fc" in weights.params else "features"
    if channels not in (1, 3) or _range(config):
        opened = f"""images = ...  # float32 [n, {channels}, {crop}, {crop}], between 0 and 1{_range(config)}
mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (({mean},), ({std},)))
{result} = network((images - mean) / std)"""
    else:
        opened = f"""preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
{result} = network(preprocess(Image.open("photo.jpg").convert("{"L" if channels == 1 else "RGB"}")).unsqueeze(0))"""
    imported = "import torch" if channels not in (1, 3) or _range(config) else "from PIL import Image"
    wide = f"uint{config['data'].get('bits', 8)}"
    return f"""\
## Use

Images are resized to {resize} pixels on their short side (bilinear), the central {crop} x {crop} are taken, and values
between 0 and 1 are normalised by mean {mean} and standard deviation {std}; {hub.CONFIG} says the same to timm.

```python
import timm
{imported}

network = timm.create_model("local-dir:{name}", pretrained=True).eval()  # on the Hub "hf-hub:OWNER/{name}"
{opened}
```

```python
import barlow_jax

# {wide} [n, height, width, {channels}] -> float32 [n, {hub.width(weights)}]
features = barlow_jax.load("{name}").features(images)
```"""


def _range(config):
    """How the values of sensors become 0 to 1; "" where they are those of ordinary images."""
    ends = config["data"].get("value_range", ())
    told = "; ".join(f"{low:g} to {high:g}" for low, high in zip(ends[::2], ends[1::2], strict=True))
    return f", each band of its own values ({told})" if len(ends) > 2 else f", of values from {told}" if ends else ""


def _export(name, report):
    of = pathlib.PurePath(report["of"])
    run = pathlib.PurePath(*of.parts[-3:]) if of.parent.name == FOLDER else of.name
    found = ", ".join(f"{reader} {value:.1e}" for reader, value in report["differences"].items())
    line = f"python -m barlow_jax.export {run} --format={hub.FORMAT} --out={name}"
    return f"""\
## Export

By barlow-jax {barlow_jax.__version__}, `{plain.printable(line)}`.
Every array was read back and is the run's to the bit. The largest relative difference of the features of fixed images,
by who computed them: {found}. SHA-256 of {files.HUB_FILE}: `{report["sha256"]}`."""


def _table(head, rows):
    return plain.markdown(head, [[plain.printable(cell).replace("|", "\\|") for cell in row] for row in rows])
