"""All results below some folders in one table, beside those of the paper, and a page of the runs.

    python -m barlow_jax.report runs/r50
    python -m barlow_jax.report runs/a runs/b --html=results.html

Collects every results.jsonl. Where protocol, test images and training images are the paper's, its value stands in the
next column, and the official README's where it gives one too. With --html one file that needs no other and no network:
verdict, config, curves, pictures, results, events and environment of the runs (docs/report.md).
"""

from barlow_jax.errors import UserError
from barlow_jax.results import page, table
from barlow_jax.run import launch, writing
from barlow_jax.run.buckets import reading


def define_flags(flag):
    flag.arguments("FOLDER...")
    flag.text("html", "Also write a self-contained page to this file.")


def main(wanted):
    folders = wanted.arguments
    if not folders:
        raise UserError("No folder is given; say where the results are, as in `python -m barlow_jax.report runs`.")
    folders = [reading.files(reading.named(one)) if reading.is_address(one) else one for one in folders]
    lines = table.collect(folders)
    rows, notes = table.table(lines)
    if rows:
        print("\n" + table.text_of(rows))
    else:
        print("No evaluation has left a number here yet; `barlow-jax knn --checkpoint=RUN` is the quickest.")
    for note in notes:
        print(note)
    if missing := table.not_run(lines):
        print(f"Of the paper's results not run: {'; '.join(missing)}.")
    if wanted.html:
        text = page.page(folders)
        file = writing.named(wanted.html)
        with writing.told(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        writing.text(file, text)
        print(f"\n{file}: {len(text) / 1e6:.2f} MB")


if __name__ == "__main__":
    launch.run(main, define_flags)
