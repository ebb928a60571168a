"""The command `barlow-jax`: everything that one types, from an installed package as from a checkout.

barlow-jax train --config=demo --workdir=runs/demo
barlow-jax knn --checkpoint=runs/demo
barlow-jax configs                      # the configs that come along
barlow-jax configs demo > mine.py       # one to start from
"""

import importlib
import sys

from barlow_jax import __version__
from barlow_jax.errors import UserError
from barlow_jax.run import config_files, launch

# Name: what it does. train and linear-eval are the files of these names, watch is in a room, the others are modules at
# the top of this package.
COMMANDS = {
    "train": "pre-training",
    "linear-eval": "linear evaluation and fine-tuning of a run",
    "knn": "nearest neighbours, few labels, effective rank: no training",
    "probe": "many linear heads at once on frozen features",
    "transfer": "linear SVMs on VOC2007",
    "embed": "features of your images, one row an image",
    "explore": "near-duplicates, clusters, outliers, what to label next, search by an image: of features",
    "export": "weights for torchvision, timm, detectron2, the official code; safetensors, StableHLO",
    "sweep": "several trainings and their evaluations, such as a table of the paper, and the table they make",
    "report": "all results below some folders, beside the paper's, and a page of the runs",
    "watch": "the page of runs, live in a browser of this machine",
    "plan": "what a config means, and what a machine would make of it",
    "pack": "tar shards of a folder of images, or of another set",
    "data": "`data stats`: sizes, formats, value ranges, means, duplicates and broken files of a set of images",
    "doctor": "whether a machine and images are fit to train on; replays a step that was not finite",
    "demo": "the small run on embedded digits, and the table of what it has learned",
    "configs": "the configs that come along; with a name, one to start from",
}
PROGRAMS = {"train": "train", "linear-eval": "linear_eval"}
ROOMS = {"watch": "results.serve", "pack": "dataset", "data": "dataset"}


def main():
    """Runs the command that sys.argv names, and ends the process with its status."""
    name, words = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if name in ("", "-h", "-help", "--help"):
        print(usage())
        sys.exit(0)
    if name == "--version":
        print(f"barlow-jax {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        sys.exit(f"error: There is no command {name!r}; the commands are {', '.join(COMMANDS)}.")
    if name == "configs":
        sys.exit(configs(words))
    first = ["pack"] if name == "pack" else []  # one module has both: barlow-jax pack, barlow-jax data stats
    launch.run(*program(name), [f"barlow-jax {name}", *first, *words])


def program(name):
    """(main, define_flags) of a command."""
    if name in PROGRAMS:
        module = config_files.program(PROGRAMS[name])
    else:
        module = importlib.import_module(f"barlow_jax.{ROOMS.get(name, name)}")
    return module.main, module.define_flags


def usage():
    """What `barlow-jax --help` prints."""
    lines = [f"  {name:13}{what}" for name, what in COMMANDS.items()]
    return "\n".join([__doc__.strip(), "", *lines, "", "barlow-jax COMMAND --help has the flags of each."])


def configs(words):
    """Lists the configs with their first lines, or prints the file of one; the exit status."""
    try:
        if words:
            print(config_files.find(words[0])[0].read_text(), end="")
            return 0
    except UserError as error:
        return f"error: {error}"
    for name in config_files.names():
        print(f"{name:22}{config_files.about(name)}")
        for group, members in _members(name).items():
            print(f"    {f'{name}:{group}':18}{', '.join(members)}")
    return 0


def _members(name):
    """{group: [members]} of a config that lists its own: {"table5": ["baseline", ...]} of table5:baseline, ..."""
    groups = {}
    for member in config_files.members(name) if config_files.has_members(name) else ():
        group, colon, rest = member.partition(":")
        groups.setdefault(group if colon else "", []).append(rest if colon else member)
    return groups


if __name__ == "__main__":
    main()
