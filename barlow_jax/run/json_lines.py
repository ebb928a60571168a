"""JSON as it is written and read here: no NaN; and of files of lines none can stop the reading, such as half a one."""

import json
import math
import os
import pathlib
from typing import Any

from barlow_jax.errors import UserError


def text(value: Any, **options: Any) -> str:
    """The JSON of a value, null in the place of each number in it that is not finite: JSON has no NaN."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_finite, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
