"""The command `barlow-jax`, and the wheel that brings it: another folder, no checkout."""

import email
import os
import pathlib
import subprocess
import sys
import tomllib
import zipfile

import commands
import pytest

import barlow_jax
from barlow_jax import cli


def typed(*words, cwd=commands.ROOT, **more):
    code = "import sys; from barlow_jax import cli; sys.argv[0] = 'barlow-jax'; cli.main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        env=commands.environment(**more),
        text=True,
        capture_output=True,
    )


def test_usage_names_every_command():
    run = typed("--help")
    assert run.returncode == 0 and all(f"\n  {name} " in run.stdout for name in cli.COMMANDS)
    assert typed("--version").stdout == f"barlow-jax {barlow_jax.__version__}\n"
    assert typed("nothing").stderr == (
        f"error: There is no command 'nothing'; the commands are {', '.join(cli.COMMANDS)}.\n"
    )


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "configs"])
def test_every_command_has_help(name):
    main, define_flags = cli.program(name)
    assert callable(main) and callable(define_flags)


@pytest.mark.parametrize("name", ["pack", "data"])
def test_a_module_of_two_commands_shows_both_as_they_are_typed(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["barlow-jax", name, "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    usage = "usage: barlow-jax pack SET OUT [flags]\n       barlow-jax data stats SET [flags]\n"
    assert usage in capsys.readouterr().out


def test_configs_are_listed_and_printed(tmp_path):
    listed = typed("configs", cwd=tmp_path).stdout.splitlines()
    assert len([line for line in listed if line[0] != " "]) == len([*(commands.ROOT / "configs").glob("[a-z]*.py")])
    assert "    paper:table6      baseline, stop_gradient, predictor, both" in listed
    assert any(line.startswith("demo ") and "Scattered digits" in line for line in listed)
    shown = typed("configs", "demo", cwd=tmp_path).stdout
    assert shown == (commands.ROOT / "configs" / "demo.py").read_text()
    # And the printed one is one to start from, wherever one is.
    (tmp_path / "mine.py").write_text(shown.replace("config.epochs = 100", "config.epochs = 0"))
    run = typed("train", "--config=mine.py", "--workdir=run", cwd=tmp_path)
    assert run.stderr.splitlines()[-1] == "error: config.epochs is 0; it must be at least 1."
    assert "There is no config 'nothing'" in typed("configs", "nothing").stderr


def test_versions_and_requirements_are_said_once(tmp_path):
    """The development packages stand in a file for pip and as an extra of the package."""
    project = tomllib.loads((commands.ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == barlow_jax.__version__
    listed = (commands.ROOT / "requirements-dev.txt").read_text().splitlines()
    listed = [line for line in listed if line and line[0] not in "#-"]
    assert sorted(listed) == sorted(project["optional-dependencies"]["dev"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked, as pip would unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))"
    run = subprocess.run([sys.executable, "-c", build, str(folder)], cwd=commands.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    file = folder / run.stdout.split()[-1]
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_all_and_nothing_at_the_top(wheel):
    assert sorted(path.name for path in wheel.iterdir() if path.suffix != ".dist-info") == ["barlow_jax"]
    here = {path.relative_to(commands.ROOT) for path in (commands.ROOT / "barlow_jax").rglob("*.py")}
    web = commands.ROOT / "barlow_jax" / "results" / "web"
    for path in (path for path in web.rglob("*") if path.is_file()):
        assert (wheel / path.relative_to(commands.ROOT)).read_bytes() == path.read_bytes()
    there = {path.relative_to(wheel) for path in wheel.rglob("*.py")}
    programs = pathlib.Path("barlow_jax/programs")
    assert {path for path in there if programs not in path.parents} == here
    for name in ("train.py", "linear_eval.py", "configs/demo.py"):
        assert (wheel / programs / name).read_bytes() == (commands.ROOT / name).read_bytes()
    metadata = email.message_from_string(next(wheel.glob("*.dist-info/METADATA")).read_text())
    assert "jax<0.12,>=0.10" in metadata.get_all("Requires-Dist")
    assert {"cuda12", "cuda13", "tpu", "torch", "dev"} <= {*metadata.get_all("Provides-Extra")}
    assert "barlow-jax = barlow_jax.cli:main" in next(wheel.glob("*.dist-info/entry_points.txt")).read_text()


def test_from_another_folder_without_a_checkout(wheel, tmp_path):
    """Configs by name, the programs, and no module called train or configs."""
    run = typed("train", "--config=demo", "--config.epochs=0", "--workdir=x", cwd=tmp_path, PYTHONPATH=str(wheel))
    assert run.stderr.splitlines()[-1] == "error: config.epochs is 0; it must be at least 1.", run.stderr
    run = typed("linear-eval", "--config=linear_demo", "--workdir=x", cwd=tmp_path, PYTHONPATH=str(wheel))
    assert "error: --checkpoint is missing" in run.stderr
    run = typed("knn", "--workdir=x", cwd=tmp_path, PYTHONPATH=str(wheel))  # its config is found by name
    assert run.stderr.splitlines()[-1].startswith("error: --checkpoint is missing"), run.stderr
    run = typed("plan", "--config=barlow_twins", cwd=tmp_path, PYTHONPATH=str(wheel))
    assert run.returncode == 0 and "626 an epoch" in run.stdout, run.stderr
    code = "import importlib.util as u; print([n for n in ('train', 'linear_eval', 'configs') if u.find_spec(n)])"
    environment = commands.environment(PYTHONPATH=str(wheel))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("words", [["configs"], ["configs", "demo"]])
def test_a_list_that_nobody_reads_to_the_end(words, monkeypatch):
    """`barlow-jax configs | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "argv", ["barlow-jax", *words])
        with pytest.raises(SystemExit, match="1"):
            cli.main()
