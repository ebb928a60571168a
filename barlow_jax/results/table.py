"""The table of all results below some folders, beside the paper's numbers where they are of the same kind."""

import pathlib

from barlow_jax.errors import UserError
from barlow_jax.results import lines as results
from barlow_jax.results import published
from barlow_jax.results.plain import printable

NUMBERS = ("value", "paper", "README")
HEAD = ("evaluation", "test images", "metric", "judged", *NUMBERS)


def collect(folders):
    """The lines of every results.jsonl below the folders; UserError names a folder that is missing."""
    found = {}
    for folder in map(pathlib.Path, folders):
        if not folder.expanduser().is_dir():
            raise UserError(f"{folder} is no folder; give those of runs or evaluations, or one above them.")
        for file in sorted(folder.expanduser().rglob(results.FILE)):
            found[file.resolve()] = results.read(file)
    return [line for lines in found.values() for line in lines]


def table(lines):
    """(rows as in HEAD, notes): in the paper's order, what is not the paper's last.

    A number of several seeds stands for those of each. Rows with a number in brackets depart from their protocol; the
    notes say in what.
    """
    rows, noted = [], {}
    lines = sorted(results.newest(lines), key=lambda line: (line["protocol"], line["metric"], line["dataset"]))
    for beside in (*published.RESULTS, None):
        for line in lines:
            if stands_beside(line) is not beside:
                continue
            departures = tuple(line["settings"].get("departures", ()))
            mark = noted.setdefault((line["protocol"], departures), f" [{len(noted) + 1}]") if departures else ""
            rows.append((*map(printable, ours(line, mark)), *theirs(beside, line["metric"])))
    notes = [
        printable(f"{mark.strip()} not as {protocol} has it: {', '.join(departures)}")
        for (protocol, departures), mark in noted.items()
    ]
    return rows, notes


def not_run(lines):
    """[text] of the paper's results that none of the lines stands beside, such as "voc07 svm, map_voc10 (86.2)"."""
    there = {id(stands_beside(line)) for line in lines}
    missing = [result for result in published.RESULTS if id(result) not in there]
    return [f"{one.protocols[0]}, {one.metric} ({theirs(one, one.metric)[0]})" for one in missing]


def stands_beside(line):
    """The `published.Result` that a line is to be held against, or None."""
    for result in published.RESULTS:
        same = all(line[name] == getattr(result, name) for name in ("metric", "n", "classes"))
        trained_alike = result.train_images in (None, line["settings"].get("train_images"))
        if same and trained_alike and line["protocol"] in result.protocols and not line["baseline"]:
            return result
    return None


def ours(line, mark):
    """The cells of a line, but for those of the paper."""
    evaluation, images, metric, value = results.cells(line, mark)
    judged = f"{line['checkpoint']}, {line['baseline'] or 'step ' + str(line['checkpoint_step'])}"
    return evaluation, images, metric, judged, value


def theirs(result, metric):
    """The cells of the paper and of the README."""
    values = (result.paper, result.code) if result else (None, None)
    return tuple("" if value is None else results.number(value, metric, digits=1) for value in values)


def text_of(rows):
    """The table as lines of text; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]

    def line(row):
        cells = zip(HEAD, row, widths, strict=True)
        return "  ".join(cell.rjust(w) if name in NUMBERS else cell.ljust(w) for name, cell, w in cells).rstrip()

    return "\n".join(map(line, (HEAD, *rows)))
