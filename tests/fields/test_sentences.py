"""What sentences tell people to set is there."""

import ast
import re

import commands

from barlow_jax import cli, fields
from barlow_jax.run import launch


def texts(file):
    """The strings of a module, those of f-strings too, but for docstrings."""
    tree = ast.parse(file.read_text())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone)
    return [node.value for node in nodes if isinstance(node.value, str)]


def flags():
    """The names of the flags of all commands."""
    of_slurm = {"requeue", "signal", "array", "open", "kill", "ntasks"}  # sbatch's and srun's, up to a hyphen
    found = {"config", "help", "helpfull", "version"} | of_slurm
    for name in cli.COMMANDS.keys() - {"configs"}:
        flag = launch.Flags()
        cli.program(name)[1](flag)
        found |= {*flag._values}
    return found


def test_fields_and_flags_that_a_sentence_names_exist():
    names = {
        name for table in (fields.PRETRAINING, fields.LINEAR, fields.FROZEN, fields.VOC07) for name in table.fields
    }
    groups, known, looked_at = {name.rpartition(".")[0] for name in names}, flags(), 0
    for file in (*(commands.ROOT / "barlow_jax").rglob("*.py"), *commands.ROOT.glob("*.py")):
        for text in texts(file):
            for name in re.findall(r"\bconfig\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)", text):
                assert name in {*names, *groups, "json"}, (file, text)
                looked_at += 1
            for name in re.findall(r"(?<![\w-])--([a-z]\w+)", text):
                assert name in known or name.startswith("xla_"), (file, text)
            # A bare name that is to be set is no way to set it.
            assert not re.search(r"\b(?:set|take|raise|lower) [a-z_]+=", text), (file, text)
    assert looked_at > 50
