"""Flags of commands, their sentences and their --help."""

import subprocess
import sys

import commands
import pytest

from barlow_jax.errors import UserError
from barlow_jax.run import launch

NAMES = ("knn", "probe", "transfer", "embed", "explore", "export", "report", "sweep", "plan", "demo", "doctor")
ON_FROZEN = ("knn", "probe", "transfer")


def defined(flag):
    flag.config("File of the experiment.")
    flag.text("workdir", "Folder.")
    flag.number("status", "A number.", default=3)
    flag.number("share", "Another.", default=0.5)
    flag.choice("format", ("a", "b"), "One of two.")
    flag.names("allow", "Several.")


def parsed(*words, define=defined):
    flag = launch.Flags()
    define(flag)
    return flag.parsed(["train.py", *words])


def test_values_and_defaults():
    wanted = parsed("--config=demo", "--config.epochs=3", "--workdir", "here", "--allow=a,b", "--format=b")
    assert (wanted.config.epochs, wanted.workdir, wanted.status, wanted.share) == (3, "here", 3, 0.5)
    assert (wanted.allow, wanted.format, wanted.arguments) == (["a", "b"], "b", [])
    assert wanted.config.is_locked


def test_given_is_the_same_without_a_command_line():
    flag = launch.Flags()
    defined(flag)
    wanted = flag.given("a config", workdir="there")
    assert (wanted.config, wanted.workdir, wanted.status, wanted.allow) == ("a config", "there", 3, [])


def test_fields_may_stand_before_the_config_and_without_an_equals_sign():
    wanted = parsed("--config.epochs", "4", "--config", "demo", "--config.data.last", "wrap", "--config.wandb")
    assert (wanted.config.epochs, wanted.config.data.last, wanted.config.wandb) == (4, "wrap", True)
    assert not parsed("--config=demo", "--noconfig.wandb").config.wandb


def test_the_last_of_several_values_holds():
    """Of scalars, files and tuples alike; ml_collections joins tuples."""
    wanted = parsed(
        "--config=demo",
        "--config.projector=(512,512)",
        "--config.epochs=1",
        "--config.epochs=2",
        "--config.projector",
        "(64,64,64)",
        "--config=image_folder",
        "--status=1",
        "--status=2",
    )
    assert wanted.config.projector == (64, 64, 64) and wanted.config.epochs == 2 and wanted.status == 2
    assert wanted.config.arch == "resnet50"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--config is missing; give the name or the file"),
        (["--config"], "--config is missing"),
        (["--config=demo", "--workdr=x"], "Unknown command line flag 'workdr'. Did you mean: workdir ?"),
        (["--config=demo", "train"], "'train' is no flag; a config field is set with"),
        (["--config=demo", "--config.batchsize=16"], "^config.batchsize is no field; did you mean config.batch_size.$"),
        (
            ["--config=demo", "--config.lejepa.lamb=0.1"],
            "^config.lejepa.lamb is no field; did you mean config.lejepa.lambd.$",
        ),
        (["--config=demo", "--config.eta=0.1"], "^config.eta is no field; did you mean config.optimizer.eta.$"),
        (
            ["--config=demo", "--config.qqqqqq=0.1"],
            "^config.qqqqqq is no field; docs/fields.md has all",
        ),
        (["--config=demo", "--config.epochs.x=1"], "^config.epochs.x is no field; did you mean config"),
        (["--config=demo", "--config.batch_size=many"], "^config.batch_size is 'many'; it must be a whole number.$"),
        (
            ["--config=demo", "--config.lejepa.slices=10.5"],
            "^config.lejepa.slices is .10.5.; it must be a whole",
        ),
        (["--config=demo", "--config.ema=x"], "^config.ema is 'x'; it must be a number.$"),
        (["--config=demo", "--status=x"], "^--status is 'x'; it must be a whole number.$"),
        (["--config=demo", "--status=2.5"], "^--status is '2.5'; it must be a whole number.$"),
        (["--config=demo", "--share=many"], "^--share is 'many'; it must be a number.$"),
        (["--config=demo", "--format=c"], "^--format is 'c'; it must be one of a, b.$"),
        (["--config=/etc/passwd"], "/etc/passwd, line 1.; --config wants a file of Python"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        parsed(*words)
    assert "\n" not in str(error.value)


def test_words_beside_flags():
    def define(flag):
        flag.arguments("RUN IMAGES")
        flag.text("out", "File.")

    wanted = parsed("run", "--out=x", "photos", define=define)
    assert wanted.arguments == ["run", "photos"] and wanted.out == "x" and wanted.config is None


def test_all_modules_can_be_imported_side_by_side():
    """In one interpreter, as in a notebook; flags belong to the command that runs."""
    code = f"import sys; sys.argv = ['notebook', '--strange']; import {', '.join(f'barlow_jax.{n}' for n in NAMES)}"
    run = subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


@pytest.mark.parametrize("command", ["train.py", "linear_eval.py", *(f"-m barlow_jax.{name}" for name in NAMES)])
def test_help_ends_with_0(command):
    status, output = commands.run(*command.split(), "--help")
    assert status == 0 and f"usage: python {command}" in output and "\n  --" in output, output
    if command.rpartition(".")[2] in ("py", *ON_FROZEN):
        assert "\n  --config" in output and "\n  --workdir" in output, output


def test_a_reader_who_has_enough(tmp_path):
    """`... | head` ends the command without a traceback."""
    code = "from barlow_jax.run import launch; launch.run(lambda _: print('x' * 10**6), lambda _: None)"
    line = f'"{sys.executable}" -c "{code}" | head -c 1'
    run = subprocess.run(line, shell=True, cwd=commands.ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("x", "")
