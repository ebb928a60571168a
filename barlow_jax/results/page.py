"""The page of runs: one file of HTML that needs no other and no network, for any browser and any screen.

Text, tables and pictures are made here in Python; the curves are data, which uPlot draws (web/vendored). The page loads
nothing: its Content-Security-Policy lets run the scripts and styles that are in it, known by their hashes, and nothing
else, so that no name or value in a run's files could do anything even if it came through unescaped.
"""

import base64
import hashlib
import json
import pathlib

from barlow_jax import __version__
from barlow_jax.results import curves, folders, markup, sections
from barlow_jax.results import table as tables

WEB = pathlib.Path(__file__).parent / "web"
STYLES = ("vendored/uPlot.min.css", "page.css")
SCRIPTS = ("vendored/uPlot.iife.min.js", "curves.js", "page.js")
TITLES = {
    "verdict": "",
    "config": "Config",
    "curves": "Curves",
    "pictures": "Pictures",
    "results": "Results",
    "events": "Events",
    "environment": "Environment",
}


def page(named, live=False):
    """The page as text.

    Args:
      named: folders of runs, or above them, whose metrics, pictures and results are shown.
      live: whether it asks the address it came from for what is new (`watch`).
    Raises:
      UserError: a folder is missing, or a file in it is none of ours.
    """
    data = content(named)
    script = SCRIPTS + (("live.js",) if live else ())
    styles, scripts = ([(WEB / name).read_text(encoding="utf-8") for name in names] for names in (STYLES, script))
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {' '.join(map(_hash, styles))}",
            f"script-src {' '.join(map(_hash, scripts))}",
            *(["connect-src 'self'"] if live else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    title = markup.text(data["title"])
    body = "".join(section(name, data["sections"].get(name, "")) for name in TITLES)
    links = "".join(
        f'<a href="#{name}"{"" if data["sections"].get(name) else " hidden"}>{head}</a>'
        for name, head in TITLES.items()
        if head
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n{''.join(f'<style>{style}</style>' for style in styles)}\n</head>\n<body>\n"
        f'<header><h1>{title}</h1><nav>{links}</nav><button id="theme" type="button">Theme</button></header>\n'
        f'<main>{body}</main>\n<footer>barlow-jax {__version__}<span id="live"></span></footer>\n'
        f'<script type="application/json" id="data">{for_script(data["curves"])}</script>\n'
        f"{''.join(f'<script>{script}</script>' for script in scripts)}\n</body>\n</html>\n"
    )


def content(named):
    """What the page shows: {"title", "sections": {name: HTML}, "curves": for curves.js}."""
    lines = tables.collect(named)
    runs = folders.runs(named)
    trained = [run for run in runs if run.kind == folders.TRAINING]
    drawn = curves.charts(runs)
    shown = sections.all_of(runs, lines) if runs or lines else sections.nothing(named)
    return {
        "title": trained[0].name if len(trained) == 1 else f"{len(runs)} runs" if runs else "Results",
        "sections": shown | {"curves": sections.of_curves(drawn)},
        "curves": {"runs": [run.name for run in runs], "charts": [one for one in drawn if not curves.is_flat(one)]},
    }


def section(name, shown):
    """A section with its title; without content it is there, hidden, as `watch` may fill it."""
    title = f"<h2>{TITLES[name]}</h2>" if TITLES[name] else ""
    hidden = "" if shown else " hidden"
    return f'<section id="{name}"{hidden}>{title}<div class="content">{shown}</div></section>\n'


def for_script(data):
    """JSON that may stand inside <script>: nothing in it can end the element or begin a comment."""
    found = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return found.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
