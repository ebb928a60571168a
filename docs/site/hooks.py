"""What MkDocs makes beside the pages of docs/: README as the front page, API pages, the code that pages link to.

Pages link as they do in the repository, where one reads them too; here these links are turned to where things lie in
the site. A file that is no page becomes one, under source/.
"""

import json
import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(\]\()((?!\w+:|#|/)[^)\s#]+)")
LANGUAGES = {".py": "python", ".toml": "toml"}


def on_files(files, config):
    """Adds the pages that do not lie in docs/."""
    from mkdocs.structure.files import File  # here, as tests read the rest of this without MkDocs

    for place, name in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text()))
    for place in leaves(config.nav):
        if place.startswith("api/"):
            module = place.removeprefix("api/").removesuffix(".md")
            files.append(File.generated(config, place, content=f"::: barlow_jax.{module}\n"))
    linked = {}
    for page in [*PAGES.values(), *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]:
        for _, target in LINK.findall((ROOT / page).read_text()):
            path = _in_root(page, target)
            if _place(path).startswith("source/") and (ROOT / path).exists():
                linked[_place(path)] = path
    for place, path in linked.items():
        files.append(File.generated(config, place, content=_shown(path)))
    return files


def on_page_markdown(markdown, page, **_):
    """Turns the links of a page to where things lie in the site; what is not there stays, for MkDocs to complain."""
    place = page.file.src_uri
    origin = PAGES.get(place, f"docs/{place}")
    if not (ROOT / origin).is_file():
        return markdown

    def turned(match):
        path = _in_root(origin, match[2])
        if not (ROOT / path).exists():
            return match[0]
        return match[1] + posixpath.relpath(_place(path), posixpath.dirname(place) or ".")

    return LINK.sub(turned, markdown)


def _in_root(page, target):
    """What a link on a page points to, as a path below the top folder."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _place(path):
    """Where the site has a file of the repository."""
    as_page = {name: place for place, name in PAGES.items()}
    if path in as_page:
        return as_page[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _shown(path):
    """A page that shows a file, or all files of Python in a folder."""
    files = sorted((ROOT / path).glob("*.py")) if (ROOT / path).is_dir() else [ROOT / path]
    if path.endswith(".ipynb"):
        return _notebook((ROOT / path).read_text())
    parts = [f"# {path}"]
    for file in files:
        parts += [f"## {file.name}"] * (len(files) > 1)
        parts.append(f"~~~~{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text()}\n~~~~")
    return "\n\n".join(parts) + "\n"


def _notebook(text):
    """The cells of a notebook, one below the other."""
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"~~~~python\n{cell}\n~~~~" if kind == "code" else cell for cell, kind in cells) + "\n"


def leaves(nav):
    """The pages of a navigation, in order."""
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from leaves(value)
        else:
            yield value
