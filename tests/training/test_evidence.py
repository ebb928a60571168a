"""What is kept of a step that was not finite, when its folder is damaged or another's: a sentence."""

import json
import shlex

import numpy as np
import pytest

from barlow_jax.errors import UserError
from barlow_jax.training import evidence

CASE = {"config": {}, "channels": 3, "num_classes": None, "steps_per_epoch": 2, "step": 5, "state_of_step": 4}
ROWS = {"index": np.array([7, 3]), "place": np.array([1, 0]), "name": np.array(["b.jpg", "a.jpg"])}


def test_a_damaged_folder_is_a_sentence(tmp_path):
    case, batch = tmp_path / evidence.CASE, tmp_path / "batch_0.npz"
    case.write_text(json.dumps(CASE))
    np.savez(batch, **ROWS)
    assert evidence.read(tmp_path)[2] == ["a.jpg", "b.jpg"]
    whole = batch.read_bytes()
    for content in (b"", whole[:-40], whole[:60], b"no archive"):
        batch.write_bytes(content)
        with pytest.raises(UserError, match=r"holds no step that can be replayed \(.+\); give a folder nonfinite/STEP"):
            evidence.read(tmp_path)
    batch.write_bytes(whole)
    for text in ("[]", "{}", "null", json.dumps(CASE)[:-4]):
        case.write_text(text)
        with pytest.raises(UserError, match="holds no step that can be replayed"):
            evidence.read(tmp_path)


def test_the_line_that_replays_it_can_be_copied(tmp_path):
    folder = tmp_path / "my runs" / "nonfinite" / "5"
    assert shlex.split(evidence.command(folder)) == ["barlow-jax", "doctor", f"--replay={folder}"]
