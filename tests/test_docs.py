"""Every command that a page or a docstring shows is one: the program is there, its flags and fields are known."""

import ast
import importlib
import re
import shlex

import commands
import pytest

import barlow_jax
from barlow_jax import cli, fields, plan
from barlow_jax.run import launch

PAGES = [
    *(commands.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "train.py", "linear_eval.py")),
    # extending.md shows commands of what it adds: test_extending.py runs them.
    *sorted(page for page in (commands.ROOT / "docs").glob("*.*") if page.name != "extending.md"),
    *sorted((commands.ROOT / "deploy").glob("*.*")),
    *sorted((commands.ROOT / "configs").glob("*.py")),
    *sorted((commands.ROOT / "barlow_jax").glob("*.py")),
    *sorted((commands.ROOT / "benchmarks").glob("*.py")),
]
PROGRAM = (
    r"python train\.py|python linear_eval\.py|python -m barlow_jax\.\w+|python benchmarks/\w+\.py|barlow-jax [a-z]"
)
TABLES = {
    "train": fields.PRETRAINING,
    "linear-eval": fields.LINEAR,
    "knn": fields.FROZEN,
    "probe": fields.FROZEN,
    "transfer": fields.VOC07,
}


def shown(text):
    """The command lines of a page, its blocks' and those inside sentences, as lists of words."""
    text = re.sub(r" *\\+\n\s*", " ", text)  # a line that goes on in the next
    blocks = re.findall(rf"^(?:    |\$ |    \$ )?((?:{PROGRAM})[^\n`]*)$", text, re.M)
    for line in [*blocks, *re.findall(rf"`((?:{PROGRAM})[^`]*)`", text.replace("``", "`"))]:
        line = re.split(r"  +\(| > |[;&|]", " ".join(line.replace("[", "").replace("]", "").split("\n")))[0]
        words = shlex.split(line, comments=True)
        if len(words) > 2 and not re.search(r"\.\.\.|--help|NAME", line):
            yield words


def lines():
    found = {}
    for page in PAGES:
        for words in shown(page.read_text()):
            found.setdefault(" ".join(words), (page.name, words))
    return [pytest.param(words, id=f"{page}: {line}") for line, (page, words) in found.items()]


@pytest.mark.parametrize("words", lines())
def test_a_command_that_is_shown_is_one(words, monkeypatch):
    monkeypatch.chdir(commands.ROOT)
    if words[1].startswith("benchmarks/"):
        source = (commands.ROOT / words[1]).read_text()
        shared = [commands.ROOT / f"benchmarks/{name}.py" for name in re.findall(r"^import (\w+)$", source, re.M)]
        source += "".join(file.read_text() for file in shared if file.exists())  # options may be defined in another
        for word in words[2:]:
            name = word.removeprefix("--").partition("=")[0]
            assert any(form in source for form in (f'"--{name}"', f'"{name}"', f"def {name}(")), word
        return
    name = words[1] if words[0] == "barlow-jax" else words[2] if words[1] == "-m" else words[1]
    name = name.removeprefix("barlow_jax.").removesuffix(".py").replace("_", "-")
    assert name in cli.COMMANDS
    if name == "configs":
        return
    define_flags = cli.program(name)[1]
    flag = launch.Flags()
    define_flags(flag)
    wanted = flag.parsed(words[1:] if words[0] == "barlow-jax" else words[2 if words[1] == "-m" else 1 :])
    if name == "plan":  # the images need not be here
        plan.check(wanted.config)
    elif name in TABLES:
        fields.check(wanted.config, TABLES[name])


def test_what_a_shown_program_imports_is_there():
    """And what it takes from `barlow_jax` itself."""
    seen = 0
    for page in [commands.ROOT / "README.md", *(commands.ROOT / "docs").glob("*.md")]:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("barlow_jax"):
                    # The place of a module itself, not the one that it had once and is still found at.
                    module = importlib.import_module(node.module)
                    for name in [alias.name for alias in node.names]:
                        assert name in vars(module) or importlib.import_module(f"{node.module}.{name}"), (
                            page.name,
                            name,
                        )
                        seen += 1
                elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "barlow_jax":
                    assert node.attr in barlow_jax.__all__, (page.name, node.attr)
                    seen += 1
    assert seen > 10


def test_modules_that_the_pages_name_are_there():
    """But extending.md's, which it makes."""
    pages = [commands.ROOT / "README.md", commands.ROOT / "CONTRIBUTING.md", *(commands.ROOT / "docs").glob("*.md")]
    named = {
        (page.name, path)
        for page in pages
        if page.name != "extending.md"
        for path in re.findall(r"\b((?:barlow_jax|tests|benchmarks|deploy)/[\w/]+\.\w+)", page.read_text())
    }
    assert len(named) > 20
    assert [where for where in sorted(named) if not (commands.ROOT / where[1]).exists()] == []
