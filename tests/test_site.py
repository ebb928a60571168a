"""The docs site's navigation; `make site` builds it, strictly, and so finds links to what is not there."""

import importlib.util
import pathlib

import commands
import yaml

ROOT = commands.ROOT


def test_every_page_of_docs_is_in_the_navigation_and_every_api_page_is_a_module():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "site" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    named = [*hooks.leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])]
    assert len(named) == len({*named})
    api = [name.removeprefix("api/").removesuffix(".md") for name in named if name.startswith("api/")]
    made = {"index.md", "contributing.md", "changelog.md"}  # of files at the top, by docs/site/hooks.py
    pages = {name for name in named if not name.startswith("api/")} - made
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")}, "put the page under nav in mkdocs.yml"
    for name in api:
        path = str(ROOT / "barlow_jax" / name.replace(".", "/"))
        assert pathlib.Path(f"{path}.py").is_file() or pathlib.Path(path, "__init__.py").is_file(), name
    assert len(api) > 15 and "loss" in api
