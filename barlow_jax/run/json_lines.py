"""Files of JSON lines, read so that no line of theirs can stop it: half a line is what a kill or a full disk leaves."""

import json
import os
import pathlib
from typing import Any

from barlow_jax.errors import UserError


def read(path: str | os.PathLike[str]) -> list[tuple[str, Any]]:
    """[(line, what it says, or None where it is no JSON)] of a file; [] where there is none.

    Raises:
      UserError: what is there is no file, or cannot be read.
    """
    path = pathlib.Path(path)
    if not os.path.lexists(path):
        return []
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is no file; remove it, or give another folder.")
    try:
        lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); see to it, or give another folder.") from error
    return [(line, _parsed(line)) for line in (lines if lines[-1] else lines[:-1])]


def _parsed(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
