"""What the steps of gpu.py have found: a JSON file each, all in one, and the table for people.

{"status": "done" | "failed" | "skipped" | "to be continued", "why": "", "seconds": 12.3,
 "rows": [{"what": "step", "figure": "123.4 ms", "beside": "120.1 to 130.2", "values": {"seconds": 0.1234, ...}}, ...]}
"""

import json
import os
import shutil
import time


class Skipped(Exception):
    """What is needed for a step is not there; the text says what."""


class Context:
    """What a step is given, and where it puts its rows.

    Attributes:
      options: of the command line.
      out: folder for what the step makes.
      small: whether it is to be small.
      deadline: time.monotonic() by which a step that has slices should have stopped.
    """

    def __init__(self, options, name, deadline):
        self.options, self.deadline, self._name, self._root = options, deadline, name, options.out.resolve()
        self.small, self.out = options.small, self._root / name
        self.out.mkdir(parents=True, exist_ok=True)

    def row(self, what, figure, beside="", **values):
        """Adds a row, or takes the place of the one that says `what`; it is on disk when this returns."""
        kept = load(self._root, self._name)
        rows = [row for row in kept.get("rows", []) if row["what"] != what]
        made = {"what": what, "figure": figure, "beside": beside, "values": values}
        _write(self._root, self._name, kept | {"rows": [*rows, made]})
        print(f"{what}: {figure} {beside}", flush=True)

    def late(self):
        """Whether a step that has slices should stop."""
        return time.monotonic() > self.deadline

    def why(self, text):
        """Why the step is skipped."""
        _write(self._root, self._name, load(self._root, self._name) | {"why": text})

    def values(self, name, what):
        """The values of a row of another step, or {} where there is none."""
        rows = load(self._root, name).get("rows", [])
        return next((row["values"] for row in rows if row["what"] == what), {})

    def machine(self):
        return machine(self._root)


def _file(out, name):
    return out / "steps" / f"{name}.json"


def load(out, name):
    file = _file(out, name)
    return json.loads(file.read_text()) if file.exists() else {}


def _write(out, name, kept):
    _replace(_file(out, name), kept)


def _replace(file, value):
    """In one piece, so that whoever is stopped meanwhile leaves the old one."""
    half = file.with_suffix(".half")
    half.write_text(json.dumps(value, indent=1))
    os.replace(half, file)


def begin(out, name, *, anew=False):
    """A record without rows; anew: without anything of the step that was left by an earlier start."""
    if anew:
        shutil.rmtree(out / name, ignore_errors=True)
    _write(out, name, {"status": "begun", "why": "", "seconds": 0.0, "rows": []})


def add_seconds(out, name, seconds):
    kept = load(out, name)
    _write(out, name, kept | {"seconds": kept.get("seconds", 0.0) + seconds})


def finish(out, name, status, why):
    """Notes how a step has ended; why: None leaves what the step itself has said. Returns the status."""
    kept = load(out, name)
    _write(out, name, kept | {"status": status} | ({} if why is None else {"why": why}))
    return status


def machine(out):
    """What the step `machine` has found."""
    [row] = load(out, "machine")["rows"]
    return row["values"]


def check_same(out, settings):
    """Ends the command where the folder holds what was measured with other settings."""
    file = out / "settings.json"
    before = json.loads(file.read_text()) if file.exists() else settings
    if before != settings:
        raise SystemExit(f"error: {out} was measured with {before}, now it is {settings}; take another --out.")
    _replace(file, settings)


def merge(out, names):
    """All steps in one file, OUT/gpu.json."""
    found = {name: load(out, name) for name in names}
    _replace(out / "gpu.json", {name: kept for name, kept in found.items() if kept})


def table(out, names):
    """All rows as one table in Markdown."""
    lines = ["| step | what | figure | beside it |", "|---|---|---|---|"]
    for name in names:
        kept = load(out, name)
        for row in kept.get("rows", []):
            lines.append(_line(name, row["what"], row["figure"], row["beside"]))
        if kept.get("status", "done") != "done":
            lines.append(_line(name, "", kept["status"], kept.get("why") or ""))
    return "\n".join(lines)


def _line(*cells):
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"
