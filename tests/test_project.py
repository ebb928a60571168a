"""Properties of the whole: what an import loads, and that every config is sound."""

import ast
import importlib
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import types

import commands
import jax
import pytest

from barlow_jax import experiment, model
from barlow_jax.training import presets, viewing

CONFIGS = sorted(p.stem for p in (commands.ROOT / "configs").glob("*.py") if p.stem != "__init__")
FROZEN = {"frozen": "-m barlow_jax.knn", "voc07": "-m barlow_jax.transfer"}  # by the command that its page shows
PRETRAINING = commands.pretraining_configs()


@pytest.mark.parametrize(
    "module",
    [
        "loss",
        "model",
        "augment",
        "pretrain",
        "metrics",
        "optim",
        "evaluation.classify",
        "evaluation.heads",
        "evaluation.few_shot",
        "evaluation.svm",
    ],
)
def test_the_core_loads_neither_tensorflow_nor_torch(module):
    code = f"import sys, barlow_jax.{module}; print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_a_page_of_a_notebook(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert config.is_locked
    script = FROZEN.get(name, "train.py" if name in PRETRAINING else "linear_eval.py")
    named = "" if name == "frozen" else f" --config=configs/{name}.py"  # "frozen" is what is taken if none is named
    assert f"python {script}{named}" in module.__doc__

    def no_lists(node):
        for value in node.values():
            assert not isinstance(value, list)
            if hasattr(value, "values"):
                no_lists(value)

    no_lists(config)


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_config_builds(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    with config.unlocked():
        config.data.path = config.data.path or ("" if config.data.kind == "digits" else "somewhere")
    presets.fill(config, presets.by_images(presets.asked(config), presets.Images(10_000)))
    experiment.check(config)
    recipe = viewing.recipe(config, 3)
    assert recipe.size == config.image_size
    tx, rates = experiment.optimizer(config, 100)
    shapes = jax.eval_shape(lambda: model.split(experiment.network(config, 3))[1])
    jax.eval_shape(tx.init, shapes)
    peak = config.optimizer.learning_rate_weights * config.batch_size / 256
    assert abs(rates["learning_rate_weights"](config.warmup_epochs * 100) - peak) < 1e-6 * peak


def test_every_field_of_the_first_config_is_explained():
    """In barlow_twins.py every assignment says what it is, on its line or by the line above it."""
    text = (commands.ROOT / "configs" / "barlow_twins.py").read_text()
    body = text[text.index("def get_config") :]
    bare = []
    for block in body.split("\n\n"):
        commented = any(line.strip().startswith("#") for line in block.splitlines())
        bare += [] if commented else re.findall(r"config\.[\w.]+ = (?!ConfigDict)[^#\n]*$", block, re.M)
    assert not bare


LINT = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"


def import_linter(folder):
    """Exit status and report of import-linter on the package and the contracts (pyproject.toml) of a folder."""
    process = commands.Command(sys.executable, "-c", LINT, cwd=folder, env=commands.environment(PYTHONPATH=str(folder)))
    output = commands.finish(process, timeout=100)
    return process.returncode, output


def test_the_import_contracts_are_kept():
    status, output = import_linter(commands.ROOT)
    assert status == 0, output


# Module, what is written at its end, and what the report says of it.
PLANTED = [
    ("loss", "from barlow_jax import (\n    errors,\n    pretrain,\n)", "barlow_jax.loss -> barlow_jax.pretrain "),
    ("metrics.ranks", "from barlow_jax import loss", "barlow_jax.metrics.ranks -> barlow_jax.loss "),
    ("networks.convnet", "def f():\n    import barlow_jax.model", "barlow_jax.networks.convnet -> barlow_jax.model "),
    ("networks.resnet", "from . import convnet", "No cycles are allowed in barlow_jax.networks."),
    ("optim", "import tensorflow as tf", "barlow_jax.optim -> tensorflow "),
    ("run.pictures.paper", "from orbax import checkpoint", "barlow_jax.run.pictures.paper -> orbax "),
    ("model", "from absl import flags", "barlow_jax.model -> absl "),
    ("pretrain", "from ml_collections import ConfigDict", "barlow_jax.pretrain -> ml_collections "),
    ("embed", "import torch.nn", "barlow_jax.embed -> torch "),
    ("knn", "from configs import linear", "barlow_jax.knn -> configs "),
    ("attic", "", "- barlow_jax.attic\n"),
]


def test_planted_violations_of_the_import_contracts_are_caught(tmp_path):
    shutil.copytree(commands.ROOT / "barlow_jax", tmp_path / "barlow_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(commands.ROOT / "pyproject.toml", tmp_path)
    _, before = import_linter(tmp_path)
    for module, line, _ in PLANTED:
        with (tmp_path / "barlow_jax" / f"{module.replace('.', '/')}.py").open("a") as file:
            file.write(f"\n{line}\n")
    status, output = import_linter(tmp_path)
    assert status == 1, output
    for *_, said in PLANTED:
        assert said not in before and said in output, (said, output)


PACKAGE = sorted((commands.ROOT / "barlow_jax").rglob("*.py"))
SCRIPTS = [commands.ROOT / "train.py", commands.ROOT / "linear_eval.py"]
LOOPS = {("train.py", "train"), ("linear_eval.py", "evaluate")}  # one reads them from top to bottom


def test_a_folder_is_taken_in_at_a_glance():
    """runs/ is made by the commands, and py.typed a mark for type checkers."""
    crowded, left_out = {}, ("runs", "py.typed")
    for folder in {commands.ROOT, *(file.parent for file in PACKAGE)}:
        entries = [f for f in folder.iterdir() if not f.name.startswith((".", "__")) and f.name not in left_out]
        if len(entries) > 35:
            crowded[str(folder.relative_to(commands.ROOT))] = len(entries)
    assert not crowded


def test_no_module_is_longer_than_350_lines():
    files = [*PACKAGE, *SCRIPTS, *(commands.ROOT / "configs").glob("*.py")]
    lengths = {str(file.relative_to(commands.ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_no_function_is_longer_than_60_lines():
    """But the two loops; and a config is a page of fields, not a function to be followed."""
    long = {}
    for file in [*PACKAGE, *SCRIPTS]:
        name = str(file.relative_to(commands.ROOT))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and (name, node.name) not in LOOPS:
                long[name, node.name] = node.end_lineno - node.lineno + 1
    assert {where: length for where, length in long.items() if length > 60} == {}


def test_no_path_of_one_machine():
    files = subprocess.run(["git", "ls-files"], cwd=commands.ROOT, capture_output=True, text=True).stdout.split()
    for name in files:
        file = pathlib.Path(commands.ROOT / name)
        if file.suffix in (".py", ".md", ".toml", ".txt", ""):
            assert str(commands.ROOT.parent) + "/" not in file.read_text(errors="ignore"), name


def test_the_readme_example_runs():
    """The library example, with a small network in place of the ResNet."""
    text = (commands.ROOT / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "make_train_step" in block)
    scope = {}
    small = {'"resnet18"': '"convnet"', "image_size=64": "image_size=24", "Recipe(size=64)": "Recipe(size=24)"}
    for large, instead in small.items():
        assert large in code
        code = code.replace(large, instead)
    exec(code, scope)
    assert scope["metrics"]["loss"] > 0 and scope["state"].step == 1


def test_the_readme_names_what_exists():
    text = (commands.ROOT / "README.md").read_text()
    for name in re.findall(r"\]\(((?!http)[^)]+)\)|--config=(configs/\w+\.py)", text):
        assert (commands.ROOT / (name[0] or name[1])).exists(), name
    for target in re.findall(r"^make ([\w-]+)", text, re.M):
        assert f"\n{target}:" in (commands.ROOT / "Makefile").read_text(), target


def test_contributing_names_what_exists():
    """Its listing is that of the package; the files are there, and in them the names that a table puts there."""
    text = (commands.ROOT / "CONTRIBUTING.md").read_text()
    listing = text[text.index("    barlow_jax/\n") : text.index("    tests/ ")].splitlines()[1:]
    listed = {word for line in listing for word in re.split(r"  +", line.strip())[0].split()}
    folder = commands.ROOT / "barlow_jax"
    rooms = {
        f"{f.name}/" if f.is_dir() else f.name
        for f in folder.iterdir()
        if not f.name.startswith("__") and f.suffix != ".typed"
    }
    assert listed == rooms
    for name in re.findall(r"`([\w./-]+/[\w.-]*)`|\]\(([^)]+)\)", text):
        path = name[0] or name[1]
        assert (commands.ROOT / path).exists() or (folder / path).exists(), path
    named = re.findall(r"`(\w+)` in `(barlow_jax/[\w/]+\.py)`", text)
    assert len(named) >= 8
    for name, file in named:
        assert re.search(
            rf"^(def {name}\(|class {name}\b|{name} = |{name}: )", (commands.ROOT / file).read_text(), re.M
        )


def names_that_are_not_there(text):
    """Of what a script imports from barlow_jax, and then takes from these modules: what they do not have."""
    tree = ast.parse(text)
    modules, missing = {}, []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "barlow_jax"):
            continue
        for alias in node.names:
            found = getattr(importlib.import_module(node.module), alias.name, None)
            if found is None and importlib.util.find_spec(f"{node.module}.{alias.name}"):
                found = importlib.import_module(f"{node.module}.{alias.name}")
            if found is None:
                missing.append(f"{node.module}.{alias.name}")
            elif isinstance(found, types.ModuleType):
                modules[alias.asname or alias.name] = found
    hidden = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    hidden |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}  # a module's name, but not the module
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in hidden:
            module = modules.get(node.value.id)
            if module and not hasattr(module, node.attr):
                missing.append(f"{module.__name__}.{node.attr}")
    return missing


def test_what_is_taken_from_the_package_is_there():
    """Benchmarks are run by hand, seldom: what was renamed since would be found after hours of training.

    And so are branches of the package that few files take.
    """
    folders = ("benchmarks", "barlow_jax", "configs")
    files = [file for folder in folders for file in sorted((commands.ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    assert {file.name: gone for file in files if (gone := names_that_are_not_there(file.read_text()))} == {}
    text = "from barlow_jax import results\nfrom barlow_jax.results import page, pages\nresults.read, page.markdown"
    assert names_that_are_not_there(text) == ["barlow_jax.results.pages", "barlow_jax.results.page.markdown"]
