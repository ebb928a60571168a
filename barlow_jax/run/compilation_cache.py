"""Compiled programs kept on disk: a run that goes on starts at once, and a GPU computes with the algorithms it had.

    with compilation_cache.used(config.compilation_cache, workdir):
        ...                             # JAX reads and writes it by itself

What lies there is JAX's persistent compilation cache and, of GPUs, XLA's choice of algorithms beside it. An entry is
found under everything that made it (the program, the devices, the options, jaxlib), so one that no longer fits is
never read. Of several processes all read and process 0 writes.
"""

import contextlib
import logging
import pathlib
import zlib

import jax
import jaxlib
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from barlow_jax.errors import UserError
from barlow_jax.run import cluster

FOLDER = "compiled"  # in the work folder
NONE = "none"
ENTRIES = "*-cache"  # how JAX names them

log = logging.getLogger(__name__)


@contextlib.contextmanager
def used(where, workdir):
    """Has JAX keep what it compiles in the `with`, and find what is kept there; then all is as before.

    Args:
      where: config.compilation_cache: a folder; "" for `workdir`/compiled, or for what JAX was told already
        (JAX_COMPILATION_CACHE_DIR); "none" for no cache.
      workdir: pathlib.Path of the run.
    Raises:
      UserError: the folder cannot be used.
    """
    before = jax.config.jax_compilation_cache_dir
    folder = before if where == "" and before else _folder(where, workdir)
    if folder is not None and folder != before:
        cluster.on_process_0(lambda: _prepare(folder))
    _set(folder, before)
    try:
        yield
    finally:
        _set(before, folder)


def _set(folder, before):
    if folder != before:
        jax.config.update("jax_compilation_cache_dir", folder)
        reset_cache()  # JAX looks for the folder once a process


def _folder(where, workdir):
    """The folder as text, or None. Absolute: in jax 0.10 it is part of what entries are found under."""
    if where == NONE:
        return None
    if "://" in where:
        raise UserError(
            f"config.compilation_cache={where} is not on a file system; give a folder, or 'none' to do without."
        )
    base = pathlib.Path(where).expanduser() if where else workdir / FOLDER
    # Choices of algorithms do not say which XLA made them: a folder for each, as its documentation asks.
    return str(base.resolve() / f"jaxlib-{jaxlib.__version__}")


def _prepare(folder):
    """Makes the folder, and removes entries that were cut off.

    JAX does not write an entry in one piece. One whose process was killed meanwhile it would complain of at each start,
    compile, and not write anew, as there is a file of that name.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for entry in path.glob(ENTRIES):
            if not _is_whole(entry.read_bytes()):
                log.warning("%s was not written to its end; removed, its program is compiled again", entry)
                entry.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"The compilation cache {folder} cannot be used ({error.strerror}); set config.compilation_cache to "
            "another folder, or to 'none' to do without."
        ) from error


def _is_whole(entry):
    """Whether what JAX has compressed can be read to its end; True of what this Python has no reader for."""
    if entry.startswith(b"\x28\xb5\x2f\xfd"):
        return _is_whole_zstd(entry)
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True


def _is_whole_zstd(entry):
    """The same of Zstandard, which JAX takes where one of its two packages is there; without them it never looks."""
    try:
        from compression import zstd  # Python 3.14

        reader, fault = zstd.decompress, zstd.ZstdError
    except ImportError:
        try:
            import zstandard
        except ImportError:
            return True
        reader, fault = zstandard.ZstdDecompressor().decompress, zstandard.ZstdError
    try:
        reader(entry)
    except fault:
        return False
    return True
