"""Files of JSON lines, as kills, full disks and strangers leave them."""

import os

import pytest

from barlow_jax.errors import UserError
from barlow_jax.results import events, starts
from barlow_jax.run import json_lines


def test_what_is_written_has_no_nan():
    """As a parser takes it that knows none; numbers that are finite stay as they are."""
    value = {"a": (1.5, [float("nan"), -float("inf")]), "b": {"c": float("inf"), "d": "NaN", "e": None, "f": True}}
    text = json_lines.text(value)
    assert text == '{"a": [1.5, [null, null]], "b": {"c": null, "d": "NaN", "e": null, "f": true}}'


def test_no_line_stops_the_others(tmp_path):
    file = tmp_path / "lines.jsonl"
    assert json_lines.read(file) == []
    file.write_bytes(b'{"a": "\xe2\x80\xa8"}\n[1]\n\xff\n\n' + b"[" * 100_000 + b'\n{"cut": ')
    found = [told for _, told in json_lines.read(file)]
    assert found == [{"a": "\u2028"}, [1], None, None, None, None]


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path):
    for name in (starts.FILE, "config_changes.jsonl"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is no file; remove it"):
            starts.read(tmp_path)
            events.of_run(tmp_path, [], [])
        (tmp_path / name).unlink()
