"""Commands that never end fail their test in time, and leave nothing behind."""

import pathlib
import time

import commands
import pytest

# Prints its child's process id; both sleep for ever, and the child holds the output open.
FOR_EVER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9999)"])
print("child", child.pid, flush=True)
time.sleep(9999)
"""


def alive(process_id):
    try:
        stat = pathlib.Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"  # who is dead and was not asked for yet is listed too


def assert_gone(output):
    child = int(output.split("child ")[1].split()[0])
    deadline = time.monotonic() + 5  # the signal is sent, and the system needs a moment
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: commands.run("-c", FOR_EVER, timeout=2),
        lambda: commands.finish(commands.start("-c", FOR_EVER), timeout=2),
        lambda: commands.wait_for(commands.start("-c", FOR_EVER), lambda: False, timeout=2),
    ],
    ids=["run", "finish", "wait_for"],
)
def test_a_command_that_never_ends_fails_at_its_deadline_with_what_it_printed(ask):
    began, before = time.monotonic(), set(commands.RUNNING)
    with pytest.raises(AssertionError, match="after 2 s:\nchild ") as failure:
        ask()
    assert 2 <= time.monotonic() - began < 10
    assert_gone(str(failure.value))
    assert before == commands.RUNNING


def test_a_command_that_ends_leaves_no_child():
    status, output = commands.run("-c", FOR_EVER.replace("time.sleep(9999)\n", "sys.exit(3)\n"), timeout=60)
    assert status == 3
    assert_gone(output)


def test_a_command_that_ends_too_early_fails_with_its_status():
    process = commands.start("-c", "print('no more'); raise SystemExit(3)")
    with pytest.raises(AssertionError, match="ended too early, with status 3:\nno more"):
        commands.wait_for(process, lambda: False)


LEFT = """
import commands
from test_commands import FOR_EVER, assert_gone

outputs = []

def test_that_leaves_a_command():
    process = commands.start("-c", FOR_EVER)
    commands.wait_for(process, lambda: "\\n" in process.printed())
    outputs.append(process.printed())

def test_that_comes_after_it():
    assert_gone(outputs[0])
"""


def test_what_a_test_leaves_running_ends_with_it(tmp_path):
    (tmp_path / "test_left.py").write_text(LEFT)
    path = f"{commands.ROOT}:{commands.ROOT / 'tests'}"
    status, output = commands.run(
        "-m", "pytest", "--rootdir", tmp_path, "-p", "conftest", tmp_path / "test_left.py", PYTHONPATH=path
    )
    assert status == 0 and "2 passed" in output, output
