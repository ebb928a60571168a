"""Configs by name and by file, and sentences about those that fail."""

import subprocess
import sys

import commands
import pytest
from ml_collections import ConfigDict

import barlow_jax
from barlow_jax.errors import UserError
from barlow_jax.run import config_files


def test_a_name_is_the_file_that_comes_along():
    assert config_files.find("demo") == (commands.ROOT / "configs" / "demo.py", None)
    assert config_files.find("tfds:voc/2007:5.0.0") == (commands.ROOT / "configs" / "tfds.py", "voc/2007:5.0.0")
    by_name, by_file = config_files.load("demo"), config_files.load(commands.ROOT / "configs" / "demo.py")
    assert by_name.to_dict() == by_file.to_dict() and by_name.is_locked
    assert {"barlow_twins", "linear", "frozen", "voc07"} <= {*config_files.names()}
    assert config_files.about("demo").startswith("Scattered digits")


def test_each_load_is_fresh():
    config = barlow_jax.config("demo").unlock()
    config.epochs = 1
    assert barlow_jax.config("demo").epochs > 1


def test_a_file_of_ones_own_starts_from_a_name_anywhere(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import barlow_jax\n\ndef get_config(epochs='3'):\n    config = barlow_jax.config('demo').unlock()\n"
        "    config.epochs = int(epochs)\n    return config\n"
    )
    shown = "print(*(barlow_jax.config(name).epochs for name in ('mine.py', 'mine.py:7')))"
    code = f"import barlow_jax; {shown}"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=commands.environment(), capture_output=True)
    assert run.stdout.split() == [b"3", b"7"], run.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "def get_config():\n    x = 1\n    return y\n",
            r"NameError: name 'y' is not defined \(.*mine.py, line 3\); mend that",
        ),
        ("\n\ndef get_config(:\n", r"SyntaxError: invalid syntax \(.*mine.py, line 3\); --config wants a file of Py"),
        (
            "import nowhere_at_all\n",
            r"ModuleNotFoundError: No module named 'nowhere_at_all' \(.*mine.py, line 1\); mend",
        ),
        ("def get_config():\n    raise ValueError('take 1 or 2.')\n", r"^take 1 or 2 \(.*mine.py, line 2\)\."),
        ("def get_config():\n    return {'epochs': 1}\n", "mine.py gives a dict; let it return a ConfigDict"),
        ("", "AttributeError: module 'barlow_jax_config' has no attribute 'get_config'.*; --config wants"),
        (
            "import barlow_jax\ndef get_config():\n    config = barlow_jax.config('demo')\n    config.epoch = 1\n",
            r"epoch.*\(.*mine.py, line 4\)",
        ),
    ],
)
def test_a_file_that_fails_is_told_with_its_line(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=sentence) as failure:
        config_files.load(tmp_path / "mine.py")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("dmeo", "There is no config 'dmeo'; the names are adapt, barlow_twins, "),
        ("nowhere/x.py", "nowhere/x.py is not there"),
        ("elsewhere/demo.py", "--config=demo names the one that comes along"),
        ("/", "cannot be read"),
        ("image_folder:300", r"image_folder.py:300 is unknown; take one of .* \(.*image_folder.py, line \d+\)"),
        ("demo:1", r"get_config\(\) takes 0 positional arguments but 1 was given"),
    ],
)
def test_what_is_no_config_is_one_sentence(named, sentence):
    with pytest.raises(UserError, match=sentence):
        config_files.load(named)


def test_a_file_that_is_no_python(tmp_path):
    (tmp_path / "mine.py").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    with pytest.raises(UserError, match="mine.py.*--config wants a file of Python"):
        config_files.load(tmp_path / "mine.py")


def test_other_values_for_fields():
    config = config_files.load("demo")
    changed = config_files.with_fields(config, {"epochs": 7, "optimizer.eps": 1e-3, "views": {"flip": 0.25}})
    assert (changed.epochs, changed.optimizer.eps, changed.views.flip) == (7, 1e-3, 0.25)
    assert changed.is_locked and config.epochs == 100 and config.views.flip == 0.0
    assert isinstance(changed, ConfigDict)
    with pytest.raises(UserError, match="config has no field epoch"):
        config_files.with_fields(config, {"epoch": 7})
    with pytest.raises(UserError, match="config has no field views"):
        config_files.with_fields(config, {"views": {"flop": 1.0}})
    with pytest.raises(UserError, match="config.epochs cannot be 'many'"):
        config_files.with_fields(config, {"epochs": "many"})
    with pytest.raises(UserError, match="config has no field nothing.at"):
        config_files.with_fields(config, {"nothing.at": 1})
