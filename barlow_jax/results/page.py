"""The page of `barlow_jax.report`: a table, and the curves and pictures of runs, in one file of HTML."""

import base64
import html
import io
import logging
import os
import pathlib

from barlow_jax.objectives import OBJECTIVES
from barlow_jax.run import metric_writers, pictures

# Of the curves, those that say how a run went; of the pictures, those that runs leave.
TERMS = tuple(dict.fromkeys(term for objective in OBJECTIVES.values() for term in objective.terms))
CURVES = ("loss", *TERMS, "knn", "probe_accuracy", "effective_rank", "val_loss", "top1", "top5")
PICTURES = ("views.png", "neighbours.png")

log = logging.getLogger(__name__)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } th, td { padding: .3em .8em; text-align: left; border-bottom: 1px solid #ddd; }
td:nth-child(n+5), th:nth-child(n+5) { text-align: right; white-space: nowrap; } img { max-width: 100%; }
figure { margin: 1em 0; } figcaption { color: #666; }
"""


def markdown(head, rows):
    """A table in Markdown, of texts that are one line each and have no "|"."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("|" + "".join(f" {text} |" if text else " |" for text in line) for line in lines)


def page(rows, notes, folders):
    """The page as text.

    Args:
      rows: of the table, tuples of texts, the first one the head.
      notes: lines below it.
      folders: whose metrics.jsonl and pictures are shown, at any depth.
    """
    head, *body = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    table = f"<tr>{head.replace('td>', 'th>')}</tr>" + "".join(f"<tr>{cells}</tr>" for cells in body)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    runs = "".join(_run(folder) for folder in _runs(folders))
    return (
        f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Results</title><style>{STYLE}</style>"
        f"<h1>Results</h1><table>{table}</table>{below}{runs}</html>\n"
    )


def printable(text):
    """The text with escapes for what cannot be printed or written, such as half a character, and for new lines."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _runs(folders):
    """The folders that hold curves or pictures, each once, in order."""
    found = {}
    for folder in folders:
        for name in (metric_writers.FILE, *PICTURES):
            for file in sorted(pathlib.Path(folder).expanduser().rglob(name)):
                found[file.parent.resolve()] = file.parent
    return sorted(found.values())


def _run(folder):
    """One section: a run's curves, views, neighbours and last correlation matrix, of those that it has."""
    shown = []
    lines = metric_writers.read(folder / metric_writers.FILE)
    names = [name for name in CURVES if any(name in line for line in lines)]
    if names:
        shown.append(("curves", _png(pictures.curves(lines, names))))
    files = [folder / name for name in PICTURES] + sorted(folder.glob("correlation/*.png"))[-1:]
    shown += [(str(file.relative_to(folder)), png) for file in files if (png := _picture(file))]
    return f"<h2>{html.escape(printable(str(folder)))}</h2>" + "".join(_figure(*picture) for picture in shown)


def _picture(file):
    """The bytes of a PNG, or None where there is none; one that is something else is named in a warning."""
    if not os.path.lexists(file):
        return None
    try:
        found = file.read_bytes() if file.is_file() else b""
    except OSError:
        found = b""
    if not found.startswith(b"\x89PNG\r\n\x1a\n"):
        log.warning("%s is no PNG, or cannot be read; it is left out.", file)
        return None
    return found


def _figure(caption, png):
    data = base64.b64encode(png).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _png(picture):
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
