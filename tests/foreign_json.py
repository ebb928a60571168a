"""Lines that are none of ours, as tampering, damage and other programs leave them in files of JSON lines."""

import json

NO_OBJECTS = [
    b"[]",
    b"7",
    b"null",
    b'"text"',
    b"true",
    b"NaN",
    b"{",
    b'{"step": 3, "lo',
    b"\x00\x93\xff\xfe\x00",
    b"\xff\xfe{\x00}\x00",
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b"<html>",
    b"",
]
VALUES = [None, True, "1", "", [], [1], {}, {"a": {"b": []}}, float("nan"), float("inf"), -1, 0.5, 10**30, 10**400]


def objects(line, names):
    """Objects like `line` with another value in one place, or without it."""
    for name in names:
        yield json.dumps({key: value for key, value in line.items() if key != name}).encode()
        for value in VALUES:
            yield json.dumps(line | {name: value}).encode()
