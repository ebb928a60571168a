"""Damaged and hostile files, read by processes of their own: weights or one sentence, at once, and in little memory."""

import sys

import commands
import pytest

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
import hostile_weights
import weight_files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return weight_files.whole_files(tmp_path_factory.mktemp("weights") / "whole")


def read(folder, made):
    for name, data in made:
        (folder / name).write_bytes(data)
    answers = hostile_weights.read_all(sorted(folder.iterdir()))
    wrong = {answer["file"]: hostile_weights.faults(answer) for answer in answers if hostile_weights.faults(answer)}
    assert not wrong
    return answers


def test_whole_files_are_read(whole, tmp_path):
    answers = read(tmp_path, whole.items())
    assert all(answer["loaded"] for answer in answers), answers


def test_files_that_are_damaged_at_random(whole, tmp_path):
    """Every one is read, or refused in a sentence."""
    answers = read(tmp_path, weight_files.mutations(whole, 400, seed=1))
    assert len(answers) == 400 and 10 < sum(answer["loaded"] for answer in answers) < 100


def test_files_that_are_made_to_do_harm(whole, tmp_path):
    canary = tmp_path / hostile_weights.CANARY
    (tmp_path / "files").mkdir()
    answers = read(tmp_path / "files", weight_files.hostile(whole, canary))
    assert len(answers) > 200 and not canary.exists()
