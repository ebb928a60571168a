"""The docs site's navigation; `make site` builds it, strictly, and so finds links to what is not there."""

import pathlib

import commands
import yaml

ROOT = commands.ROOT


def leaves(nav):
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from leaves(value)
        else:
            yield value


def test_every_page_of_docs_is_in_the_navigation_and_every_api_page_is_a_module():
    named = [*leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])]
    assert len(named) == len({*named})
    api = [name.removeprefix("api/").removesuffix(".md") for name in named if name.startswith("api/")]
    made = {"index.md", "contributing.md", "changelog.md"}  # of files at the top, by docs/site/hooks.py
    pages = {name for name in named if not name.startswith("api/")} - made
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")}, "put the page under nav in mkdocs.yml"
    for name in api:
        path = str(ROOT / "barlow_jax" / name.replace(".", "/"))
        assert pathlib.Path(f"{path}.py").is_file() or pathlib.Path(path, "__init__.py").is_file(), name
    assert len(api) > 15 and "loss" in api
