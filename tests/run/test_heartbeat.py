"""The file that a supervisor looks at: anew while work gets on, old where it does not, gone at the end."""

import json
import logging
import shlex
import subprocess

import commands
import pytest
import yaml

from barlow_jax.run import heartbeat
from barlow_jax.run.progress import Progress, watched


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heartbeat._Heart.__init__, "__defaults__", (lambda: now[0],))
    return now


def test_steps_pauses_and_parts_are_beats(tmp_path, clock):
    file = tmp_path / "beat_0"
    progress = Progress(90, start=5, shown=False)
    with heartbeat.beating({heartbeat.VARIABLE: str(tmp_path / "beat_{process}")}):
        first = json.loads(file.read_text())
        assert first["process"] == 0 and first["pid"] and "step" not in first
        progress.step(32)
        assert json.loads(file.read_text()) == first  # within 10 s
        clock[0] += 10
        progress.step(32)
        told = json.loads(file.read_text())
        assert (told["step"], told["of"]) == (7, 90)
        clock[0] += 10
        with progress.paused():
            assert json.loads(file.read_text())["doing"] == "evaluation"
            for _ in watched(range(3), 3, "features of set", shown=False):
                clock[0] += 10
            told = json.loads(file.read_text())
            assert (told["doing"], told["done"], told["step"]) == ("features of set", 3, 7)
    assert not file.exists()
    progress.step(32)  # outside of it, nothing is written
    assert not file.exists()


def test_nothing_is_written_where_no_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with heartbeat.beating({}):
        heartbeat.beat(step=1)
    assert not [*tmp_path.iterdir()]


def test_a_disk_that_takes_no_sign_of_life_ends_no_run(tmp_path, clock, caplog):
    with caplog.at_level(logging.WARNING), heartbeat.beating({heartbeat.VARIABLE: str(tmp_path / "no" / "folder")}):
        for _ in range(3):
            clock[0] += 10
            heartbeat.beat(step=1)
    assert caplog.text.count("no sign of life for the supervisor") == 1 and "No such file" in caplog.text


@pytest.mark.parametrize("manifest", ["gpus.yaml", "tpus.yaml"])
def test_the_probes_of_the_manifests_tell_life_from_a_hang(tmp_path, manifest):
    """As the container runs them, on a file that is new, an hour old, and not there."""
    text = (
        (commands.ROOT / "deploy" / manifest).read_text().replace("/tmp/heartbeat", shlex.quote(str(tmp_path / "beat")))
    )
    found = {}

    def search(node):
        for name, value in (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        ):
            if str(name).endswith("Probe"):
                found[name] = value["exec"]["command"]
            search(value)

    for document in yaml.safe_load_all(text):
        search(document)

    def ask():
        return tuple(
            subprocess.run(found[f"{name}Probe"], stderr=-3).returncode == 0 for name in ("startup", "liveness")
        )

    assert ask() == (False, False)
    (tmp_path / "beat").write_text("{}")
    assert ask() == (True, True)
    subprocess.run(["touch", "-d", "1 hour ago", tmp_path / "beat"], check=True)
    assert ask() == (True, False)
