"""A work folder belongs to one run as long as its process lives."""

import json
import os
import socket
import time

import commands
import pytest

from barlow_jax.errors import UserError
from barlow_jax.run import lock

HOLDER = """
import sys, time
from barlow_jax.run import lock
lock.hold(sys.argv[1])
print("held", flush=True)
time.sleep(99)
"""


def test_a_lock_ends_with_its_process_and_not_with_its_file(tmp_path, monkeypatch):
    holder = commands.start("-c", HOLDER, tmp_path)
    commands.wait_for(holder, lambda: holder.printed() == "held\n")
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"process {holder.pid} on .*; stop it first, or take"):
        lock.hold(tmp_path, patience=0.5)
    assert 0.5 < time.monotonic() - began < 3
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(UserError, match=f"remove {tmp_path}/run.lock if that host is gone"):
        lock.hold(tmp_path, patience=0)
    (tmp_path / lock.FILE).write_text("")  # between its opening and its writing
    with pytest.raises(UserError, match="is in use by another run; stop it first"):
        lock.hold(tmp_path, patience=0)
    holder.kill()
    os.close(lock.hold(tmp_path))
    assert json.loads((tmp_path / lock.FILE).read_text())["process"] == os.getpid()


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    assert lock.hold(tmp_path) is None
    assert "without locks (No locks available)" in caplog.text
