"""All results below some folders in one table, beside those of the paper.

    python -m barlow_jax.report runs/r50
    python -m barlow_jax.report runs/a runs/b --html=results.html

Collects every results.jsonl. Where protocol, test images and training images are the paper's, its value stands in the
next column, and the official README's where it gives one too; what the paper has and nobody ran is a row without a
value. With --html the same goes to one page that needs no other file, with the curves and pictures of the runs.
"""

import pathlib

from barlow_jax import results
from barlow_jax.errors import UserError
from barlow_jax.results import page, published
from barlow_jax.run import launch, writing

NUMBERS = ("value", "paper", "README")
HEAD = ("evaluation", "test images", "metric", "judged", *NUMBERS)


def define_flags(flag):
    flag.arguments("FOLDER...")
    flag.text("html", "Also write a self-contained page to this file.")


def main(wanted):
    folders = wanted.arguments
    if not folders:
        raise UserError("No folder is given; say where the results are, as in `python -m barlow_jax.report runs`.")
    lines = collect(folders)
    rows, notes = table(lines)
    print("\n" + text_of(rows))
    for note in notes:
        print(note)
    if wanted.html:
        text = page.page([HEAD, *rows], notes, folders)
        file = pathlib.Path(wanted.html).expanduser()
        with writing.told(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        writing.text(file, text)
        print(f"\n{file}: {len(text) / 1e6:.1f} MB")


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
        mine = [line for line in lines if stands_beside(line) is beside]
        for line in mine:
            departures = tuple(line["settings"].get("departures", ()))
            mark = noted.setdefault((line["protocol"], departures), f" [{len(noted) + 1}]") if departures else ""
            rows.append((*map(page.printable, ours(line, mark)), *theirs(beside, line["metric"])))
        if beside and not mine:
            images = f"{beside.dataset}, {beside.n} images of {beside.classes} classes"
            rows.append((beside.protocols[0], images, beside.metric, "", "", *theirs(beside, beside.metric)))
    notes = [
        page.printable(f"{mark.strip()} not as {protocol} has it: {', '.join(departures)}")
        for (protocol, departures), mark in noted.items()
    ]
    return rows, notes


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


if __name__ == "__main__":
    launch.run(main, define_flags)
