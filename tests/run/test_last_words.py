"""What a process says that JAX ends from C++."""

import time

import commands
import pytest

PROGRAM = """
import os, sys
from barlow_jax.run import last_words
last_words.witness("another process has ended.")
os.write(2, b"W1 a warning of C++\\n*** Check failure stack trace: ***\\n    @ 0x7f a frame\\n")
if sys.argv[1] == "said":
    os.write(2, b"W2 half a line")
    last_words.farewell("error: the disk\\nis full.")
    last_words.farewell()
os.write(2, b"F1 Terminating process because another task died\\n")
os.abort()
"""


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        ("unsaid", ["F1 Terminating process because another task died", "error: another process has ended."]),
        ("said", ["W2 half a line", "error: the disk is full."]),
    ],
)
def test_an_abort_is_told_in_one_sentence(word, lines):
    """By the witness, unless a sentence was said: then nothing that C++ adds follows it."""
    process = commands.start("-c", PROGRAM, word)
    lines = sorted([*lines, "W1 a warning of C++"])
    assert process.wait(60) == 6
    deadline = time.monotonic() + 10  # the witness outlives it by a moment
    while sorted(process.printed().splitlines()) != lines and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    assert sorted(process.end().splitlines()) == lines
