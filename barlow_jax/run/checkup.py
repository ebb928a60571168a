"""Checks of a machine and of images: each a small function that returns lines, and each with a time limit.

    for line in examine({"disk": lambda: host.disk(folder)}, seconds=20):
        print(line)

A line says "ok", "warning" (it runs, but) or "problem" (it will not), what was looked at, and a sentence that ends in
the remedy where there is one to take.
"""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from barlow_jax.errors import UserError

VERDICTS = ("ok", "warning", "problem")
_PREFIX = "checkup "  # of threads


class Line(NamedTuple):
    verdict: str  # of VERDICTS
    about: str  # what was looked at, in a word or two
    said: str

    def __str__(self):
        return f"{self.verdict:8} {self.about:14} {self.said}"


def examine(checks: Mapping[str, Callable[[], Iterable[tuple]]], seconds: float) -> Iterator[Line]:
    """The lines of each check, one check after the other; one that takes longer than `seconds` is a problem itself.

    Such a check goes on in its thread, which nobody waits for: a file system or a device that does not answer cannot be
    called back. Whatever a check runs into is a line as well: a machine to be examined may be broken anywhere.

    Args:
      checks: {name: function that returns lines, as (verdict, about, said)}.
    """
    for name, check in checks.items():
        begun, answer = time.monotonic(), concurrent.futures.Future()
        threading.Thread(target=_answer, args=(check, answer), name=f"{_PREFIX}{name}", daemon=True).start()
        try:
            found = answer.result(seconds)
        except concurrent.futures.TimeoutError:
            waited = time.monotonic() - begun
            found = [("problem", name, f"no answer within {waited:.0f} s; what is asked there hangs, or is very slow.")]
        except UserError as error:
            found = [("problem", name, str(error))]
        except Exception as error:  # see above: told with its type, as nobody has foreseen it
            what = " ".join(str(error).split())[:300]
            found = [("problem", name, f"the check ended with {type(error).__name__}: {what}")]
        yield from (Line(*line) for line in found)


def hanging() -> list[str]:
    """The names of checks that have not come back."""
    return [thread.name.removeprefix(_PREFIX) for thread in threading.enumerate() if thread.name.startswith(_PREFIX)]


def _answer(check, answer):
    try:
        answer.set_result(list(check()))
    except BaseException as error:  # handed to the thread that waits
        answer.set_exception(error)


def table(lines: Iterable[Line]) -> str:
    """How many there were of each verdict, for the last line."""
    verdicts = [line.verdict for line in lines]
    counts = {"problem": "problems", "warning": "warnings", "ok": "ok"}
    return ", ".join(f"{verdicts.count(verdict)} {word}" for verdict, word in counts.items())
