"""A sentence from one of several processes that JAX aborts because another one is gone.

When process 0 is killed, or another for longer than a heartbeat, JAX's client ends its process from a thread of C++: by
abort(), with a dump of the stack, and out of reach of Python. (It has a callback for that, which fails with bad_cast in
jaxlib 0.10.) So each process has a witness, a small process that reads what C++ writes to the standard error, passes it
on without the dump, and says in a sentence what happened if the end comes without `farewell`.
"""

import atexit
import ctypes
import logging
import os
import signal
import subprocess
import sys

# Lines of a stack dump begin so.
_DUMP = ("*** Check failure", "    @ ", "*** SIGABRT", "PC: @")

_WITNESS = f"""
import sys
words, orderly = sys.stdin.buffer, False
for line in iter(words.readline, b""):
    before, said, last = line.partition(b"\\0")
    text = b"" if orderly else before + (b"\\n" if before and last.strip() else b"") + last if said else line
    orderly |= bool(said)
    text = text.decode(errors="replace")
    if text.strip() and not text.startswith({_DUMP!r}):
        sys.stderr.write(text)
        sys.stderr.flush()
if not orderly:
    print("error: " + sys.argv[1], file=sys.stderr, flush=True)
"""

log = logging.getLogger(__name__)
_heard = False


def witness(sentence):
    """From now on the end of this process, whatever ends it, is told by this sentence, unless `farewell` was called."""
    global _heard
    python = sys.stderr
    shown = os.dup(2)
    reading, writing = os.pipe()
    try:
        subprocess.Popen(
            [sys.executable, "-E", "-S", "-c", _WITNESS, sentence],
            stdin=reading,
            stderr=shown,
            start_new_session=True,  # Ctrl-C is for the run
        )
    except OSError as error:
        log.warning("no process could be started to tell of an abort (%s)", error)
        return
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    # What Python writes goes where it went, a terminal's bar to the terminal.
    sys.stderr = os.fdopen(shown, "w", buffering=1, encoding=python.encoding, errors="backslashreplace")
    for handler in logging.root.handlers:
        if getattr(handler, "stream", None) is python:
            handler.setStream(sys.stderr)
    _heard = True
    atexit.register(farewell)
    # abort() ends the process at once, with status 6 and no core: the handler is C's own _exit.
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc._exit, ctypes.c_void_p))


def farewell(sentence=""):
    """This end is an orderly one: `sentence` is the last that is said, and what C++ adds is not passed on.

    The witness is told both in one write, as C++ may abort this process at any moment.
    """
    if _heard:
        os.write(2, b"\0" + sentence.replace("\n", " ").encode(errors="backslashreplace") + b"\n")
    elif sentence:
        print(sentence, file=sys.stderr, flush=True)
