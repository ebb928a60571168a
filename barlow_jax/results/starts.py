"""starts.jsonl: a line each time a run is started, with what it ran on and the line that started it.

    {"time": "2026-01-31 12:00:00 UTC", "step": 0, "command": "python train.py ...", "code": "0.2.0 (1f2e...)",
     "revision": "265e7a1", "versions": {"jax": "0.10.2", ...}, "devices": {"kind": "cpu", "count": 1, "processes": 1}}

It is what a page says of the environment, and how a run that went on on other devices is known.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

import jax

from barlow_jax.results import lines
from barlow_jax.run import config_files, json_lines, writing

FILE = "starts.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-cpu", "pillow")
_TEXTS = ("time", "command", "code", "revision")


def record(folder, step):
    """Adds the line of this start to the folder; on process 0."""
    writing.append(pathlib.Path(folder) / FILE, [json.dumps(here(step))])


def here(step):
    """What is to be known of this process, which starts at a step."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "step": step,
        "command": lines.typed(),
        "code": config_files.code(),
        "revision": _revision(),
        "versions": {"python": platform.python_version()} | {n: v for n in PACKAGES if (v := _version(n))},
        "devices": {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()},
    }


def read(folder):
    """The lines of a folder's starts.jsonl that are ours; [] where there are none."""
    return [line for _, line in json_lines.read(pathlib.Path(folder) / FILE) if _is_ours(line)]


def _is_ours(line):
    return (
        isinstance(line, dict)
        and type(line.get("step")) is int
        and all(type(line.get(name)) is str for name in _TEXTS)
        and all(type(line.get(name)) is dict for name in ("versions", "devices"))
    )


def devices(line):
    """In words: "8 x NVIDIA H100, 2 processes"."""
    found = line["devices"]
    processes = f", {found['processes']} processes" if found.get("processes", 1) != 1 else ""
    return f"{found.get('count', '?')} x {found.get('kind', '?')}{processes}"


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _revision():
    """The commit of the checkout, with a "+" where files differ from it; "" where there is no checkout or no git."""
    root = config_files.PROGRAMS
    if not os.path.lexists(root / ".git"):
        return ""

    def said(*words):
        return subprocess.run(
            ["git", "-C", root, *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout

    try:
        changed = said("status", "-s", "-uno")
        return said("rev-parse", "HEAD").strip()[:12] + ("+" if changed.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return ""
