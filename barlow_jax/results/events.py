"""What happened to a run: started, stopped, gone on, steps skipped, images unreadable; from its log and its metrics."""

import contextlib
import datetime
import itertools
import re
from typing import NamedTuple

from barlow_jax.results import starts, verdict
from barlow_jax.run import json_lines

MOST_BYTES = 2**22  # of a log file that are read, the last ones
RUN_OF_A_KIND = 4  # events of one kind in a row that are shown, before they are counted

# Lines that every run writes, and that say nothing of what happened to it.
ROUTINE = re.compile(
    r"epoch \d+|.* lives on the devices: |.*: \d+ images, \d+ steps an epoch|compiling the |loss of unrelated views|"
    r"views of \d+ pixels from step|judging |features of "
)
KINDS = (  # of a log line, by what it says; the first that fits
    ("verdict", rf"^(?:{'|'.join(verdict.NAMES)})\. "),
    ("faults", r"skipped|not finite"),
    ("images", r"unreadable image|images could not be read"),
    ("stopped", r"preempted at|SIG[A-Z0-9]+: |stopped after"),
    ("went on", r"going on from"),
    ("started", r"starting at step"),
    ("finished", r"finished at step"),
    ("config", r"changed since this run began"),
    ("damage", r"damaged|cannot be|could not be|is no "),
)
_LOGGED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:\[(\d+)\] )?(.*)")


class Event(NamedTuple):
    """What happened: when (text, may be ""), of which kind, and the sentence."""

    time: str
    kind: str
    text: str


def of_run(folder, lines, begun):
    """The events of a run in their order; those of its metrics, which have no time, last.

    Args:
      folder: of the run; lines: of its metrics.jsonl; begun: of its starts.jsonl.
    """
    logged = [event for file in sorted(folder.glob("log*.txt")) for event in _of_log(file)]
    timed = sorted([*logged, *_changes(folder), *_moves(begun)], key=lambda event: event.time)
    return _shortened([*timed, *_of_metrics(lines)])


def steps(folder):
    """(steps an epoch, steps in all) as the log has them, or None."""
    for text in reversed(_texts(folder / "log.txt")):
        if found := re.search(r": \d+ images, (\d+) steps an epoch, (\d+) in all", text):
            return int(found[1]), int(found[2])
    return None


def _texts(file):
    if not file.is_file():
        return []
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - MOST_BYTES))
        return opened.read().decode("utf-8", "replace").splitlines()


def _of_log(file):
    for text in _texts(file):
        found = _LOGGED.fullmatch(text)
        if found and not ROUTINE.match(found[3]):
            kind = next((kind for kind, sign in KINDS if re.search(sign, found[3])), "said")
            who = f"process {found[2]}: " if found[2] not in (None, "0") else ""
            yield Event(found[1], kind, who + found[3][:500])


def _changes(folder):
    """Of config_changes.jsonl."""
    for _, found in json_lines.read(folder / "config_changes.jsonl"):
        try:
            told = [
                f"{name} was {change['was']!r} and is {change['is']!r}" for name, change in found["changes"].items()
            ]
            yield Event(_local(found["time"]), "config", f"from step {found['step']} on: {', '.join(told)}"[:500])
        except (KeyError, TypeError, AttributeError):
            yield Event("", "damage", "a line of config_changes.jsonl is none of ours")


def _moves(begun):
    """Where a run went on on other devices, or with other versions."""
    for before, after in itertools.pairwise(begun):
        was, now = starts.devices(before), starts.devices(after)
        if was != now:
            yield Event(_local(after["time"]), "devices", f"from step {after['step']} on {now}; before on {was}")
        told = [
            f"{name} {before['versions'].get(name, 'none')} -> {version}"
            for name, version in after["versions"].items()
            if before["versions"].get(name) != version
        ]
        told += [f"code {before['code']} -> {after['code']}"] if before["code"] != after["code"] else []
        if told:
            yield Event(_local(after["time"]), "versions", f"from step {after['step']} on: {', '.join(told)}"[:500])


def _local(time):
    """A time in UTC as log lines have theirs, by the clock of this machine."""
    with contextlib.suppress(ValueError):
        read = datetime.datetime.strptime(time, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=datetime.UTC)
        time = read.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return time


def _of_metrics(lines):
    """Steps that were skipped, as their number grows, and measures that were not finite."""
    skipped = 0
    for line in lines:
        now = line.get("skipped") or 0
        if now > skipped:
            yield Event("", "faults", f"{now - skipped:g} more steps skipped until step {line['step']}, {now:g} in all")
        skipped = max(skipped, now)
        lost = sorted(name for name, value in line.items() if value is None)
        if lost:
            yield Event("", "faults", f"at step {line['step']} not finite: {', '.join(lost)}"[:500])


def _shortened(events):
    """The events, and of many of one kind in a row the first ones and how many follow."""
    found = []
    for kind, group in itertools.groupby(events, key=lambda event: event.kind):
        group = list(group)
        found += group[:RUN_OF_A_KIND]
        if len(group) > RUN_OF_A_KIND:
            found.append(Event(group[-1].time, kind, f"and {len(group) - RUN_OF_A_KIND} more of the kind"))
    return found
