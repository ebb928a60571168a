"""What the threads of Orbax print when a save fails, kept off the screen: `Checkpoints` says the same in a sentence."""

import functools
import logging
import sys
import traceback
import types


@functools.cache  # once is enough
def hide_tracebacks() -> None:
    """Keeps off the screen what the threads of Orbax and TensorStore print when a save fails.

    Each of them prints its traceback, a hundred lines in all, before the same comes to us as an exception, which
    `Checkpoints` makes a sentence of.
    """
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    # Where several of a save's writes fail, asyncio prints those that nobody asked about any more.
    logging.getLogger("asyncio").addFilter(lambda record: not (record.exc_info and _in_orbax(record.exc_info[2])))
    shown = sys.unraisablehook

    def hook(unraisable):
        # Of TensorStore's writes that end when Orbax has given up already, because another failed.
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = hook


def _in_orbax(trace: types.TracebackType | None) -> bool:
    """Whether an exception came through a function of Orbax."""
    return any("orbax" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
