"""Files that are there whole or not at all, and what is said where one cannot be written.

    with writing.whole("features.npz") as unfinished:     # the name of a file beside it
        np.save(unfinished, features)                     # which takes its name at the end

A kill leaves what was there before, and so does a full disk, which leaves no half-written file either. Folders the
same way: `whole_folder`.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import zipfile

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.run import lock

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says of a full disk


def named(path):
    """A path that a flag gives as pathlib.Path, the home folder in place of "~". UserError for an address."""
    if "://" in str(path):
        raise UserError(f"{path} is an address, and this command works on a disk: name a path there.")
    return pathlib.Path(path).expanduser()


@contextlib.contextmanager
def whole(path):
    """The name of a file to write, which becomes `path` when the `with` ends without an error; removed otherwise.

    A link is followed, and what is no file, such as /dev/stdout, is written to as it is.

    Raises:
      UserError: it cannot be written.
    """
    path = pathlib.Path(path)
    real = pathlib.Path(os.path.realpath(path))
    unfinished = real if real.exists() and not real.is_file() else real.with_name(f".{real.name}.unfinished")
    with told(path):
        try:
            yield unfinished
            if unfinished != real:
                os.replace(unfinished, real)
        except BaseException:  # and not at the end: from then on a file of this name is that of the next to write
            if unfinished != real:
                unfinished.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def whole_folder(path):
    """As `whole`, the name of a folder to fill. What is there already may have been worked on, and is never replaced.

    Raises:
      UserError: there is something of this name, other than an empty folder, or it cannot be written.
    """
    path = pathlib.Path(path)
    real = pathlib.Path(os.path.realpath(path))
    unfinished = real.with_name(f".{real.name}.unfinished")
    with told(path):
        if os.path.lexists(real) and (not real.is_dir() or any(real.iterdir())):
            raise UserError(f"{path} is there already; remove it, or take another name.")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a command that was killed
        try:
            unfinished.mkdir()
            yield unfinished
            os.replace(unfinished, real)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


@contextlib.contextmanager
def told(path):
    """What the operating system says against writing to a file or folder is a UserError that names it."""
    try:
        yield
    except OSError as error:
        full = error.errno in NO_SPACE
        remedy = "free some space there and start again with the same line" if full else "see to it, or take another"
        reason = os.strerror(error.errno) if error.errno else error  # pyarrow says it at greater length
        raise UserError(f"{path} cannot be written ({reason}); {remedy}.") from error


def text(path, content):
    """Writes a text, in UTF-8."""
    with whole(path) as unfinished:
        unfinished.write_text(content, encoding="utf-8")


def append(path, lines):
    """Adds lines of text, all or none, behind those that are there, of several processes one after the other.

    By writing the file anew: half a line that a full disk left would be there for ever.

    Args:
      lines: each without its end; or a function that gives them, called while nobody else appends there.
    """
    path = pathlib.Path(path)
    there = path.exists()
    with told(path), lock.one_at_a_time(path):
        try:
            lines = lines() if callable(lines) else lines
            with whole(path) as unfinished:
                before = path.read_bytes() if path.exists() else b""
                ended = b"" if before.endswith(b"\n") or not before else b"\n"
                unfinished.write_bytes(before + ended + "".join(f"{line}\n" for line in lines).encode())
        finally:
            if not there and path.exists() and not path.stat().st_size:  # made to be locked
                path.unlink()


def arrays(path, named):
    """Writes {name: array} as np.savez does, which leaves an open archive behind where the disk is full."""
    with whole(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        for name, array in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
