"""`barlow-jax sweep`: which commands, what is done again and what not, what fails, and the table in the end."""

import json
import os
import shlex
import signal
import statistics
import sys
import threading
from types import SimpleNamespace

import commands
import numpy as np
import pytest

import barlow_jax
from barlow_jax import results, sweep
from barlow_jax.errors import UserError
from barlow_jax.results import sweep as tables
from barlow_jax.run import config_files, launch, lock, pictures, stages

# Ends as its words say: `train` fails for the member "bad", and is stopped where it says "wait"; `knn` leaves a number.
FAKE = """
import json, os, signal, sys, time
words = sys.argv[1:]
given = dict(word[2:].split("=", 1) for word in words[1:])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join([words[0], given.get("workdir", given.get("checkpoint", ""))[-10:]]) + chr(10))
if given.get("config", "").endswith(":bad"):
    sys.exit("error: no luck.")
if given.get("config", "").endswith(":wait"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print("begun", flush=True)
    time.sleep(60)
if words[0] == "knn":
    folder = given["checkpoint"] + "/eval"
    os.makedirs(folder, exist_ok=True)
    line = json.loads(os.environ["LINE"])
    seed = int(given["checkpoint"][-1])
    with open(folder + "/results.jsonl", "a") as file:
        file.write(json.dumps(line | {"value": 0.5 + 0.1 * seed, "checkpoint": given["checkpoint"]}) + chr(10))
"""
OWN = """
import barlow_jax

def members(wanted=""):
    return [name for name in ("0.01", "0.03", "bad") if wanted in ("", name)]

def get_config(lambd):
    config = barlow_jax.config("demo").unlock()
    if lambd != "bad":
        config.lambd = float(lambd)
    return config.lock()
"""
ORIGIN = SimpleNamespace(path="runs/x", step=6, baseline="", ema="")
KNN = {"protocol": "knn", "dataset": "x:test", "n": 400, "classes": 10, "metric": "top1", "k": 20, "temperature": 0.07}


def wanted(*words):
    flag = launch.Flags()
    sweep.define_flags(flag)
    return flag.parsed(["sweep", *map(str, words)])


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Commands that take no time; what was called, as lines."""
    monkeypatch.setattr(stages, "COMMAND", (sys.executable, "-S", "-c", FAKE))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("LINE", json.dumps(results.line(ORIGIN, values=[0.5], seeds=[], **KNN)))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "calls").touch()
    return lambda: (tmp_path / "calls").read_text().splitlines()


def test_the_commands_of_a_table_of_the_paper():
    runs = sweep.plan(
        wanted(
            "--config=configs/paper.py:table6@demo",
            "--config.epochs=9",
            "--seeds=0,7",
            "--evaluate=knn,linear:linear_demo",
            "--baselines=random",
            "--workdir=runs/t",
        )
    )
    names = ("table6:baseline", "table6:stop_gradient", "table6:predictor", "table6:both")
    assert [(run.member, run.seed) for run in runs] == [(name, seed) for name in names for seed in (0, 7)]
    folder = "runs/t/table6_predictor/seed_7"
    assert [shlex.join(words) for words in runs[5].commands.values()] == [
        f"train --config=configs/paper.py:table6:predictor@demo --config.epochs=9 --config.seed=7 --workdir={folder} "
        "--stopped_status=1",
        f"knn --checkpoint={folder}",
        f"linear-eval --config=linear_demo --checkpoint={folder} --workdir={folder}/linear_demo --stopped_status=1",
    ]
    assert list(runs[1].commands)[3:] == ["knn random", "linear:linear_demo random"]  # of the first member alone
    assert "--workdir=runs/t/table6_baseline/seed_7/linear_demo_random" in runs[1].commands["linear:linear_demo random"]
    assert not sweep.refusals(runs)


def test_the_rows_follow_the_config_that_they_change():
    assert barlow_jax.config("paper:table6:both@demo").predictor == (512, 512)
    assert barlow_jax.config("paper:table6:both@demo").epochs == barlow_jax.config("demo").epochs
    assert barlow_jax.config("paper:figure4:64@demo").projector == (512, 512, 64)
    assert barlow_jax.config("paper:figure3:crop").views.blur == (0.0, 0.0)


def test_the_lines_that_are_printed_are_the_commands(capsys):
    line = ("--config=paper:figure5@demo", "--only=figure5:0.01,figure5:0.02", "--workdir=a b", "--evaluate=knn")
    assert sweep.main(wanted(*line, "--print")) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.count(" && ") == 1 and "--config=paper:figure5:0.02@demo" in second and "'--workdir=a b/" in second
    assert sweep.main(wanted(*line, "--slurm")) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-1" in script and "--table --only=figure5:0.01,figure5:0.02" in script
    status = commands.Command("bash", "-n", "-c", script)
    assert commands.finish(status) == "" and status.returncode == 0


def test_what_cannot_be_swept_is_refused(tmp_path):
    (tmp_path.parent / "twice.py").write_text("def members(wanted=''):\n    return ['a:b', 'a/b']\n")
    for line, pattern in (
        ((), "--config is missing"),
        (("--config=demo",), "demo.py has no function members"),
        (("--config=paper:table7",), "'table7' is none of the paper's: take some of table5, table6, figure2"),
        (("--config=paper:table6,tabl5@demo",), "'tabl5' is none of the paper's"),
        (("--config=paper:table6:predictr,table6:both@demo",), "'table6:predictr' is none of the paper's"),
        (("--config=paper:table6@linear",), "linear is no config of a pre-training"),
        (("--config=paper:figure5@demo", "--config.lambd=0.1"), "config.lambd is what the members of .* differ in"),
        (("--config=paper:figure4@demo", "--config.projector=(64,64)"), "config.projector is what the members"),
        (("--config=paper:table6@demo", "--evaluate=knn:nosuch.py"), "nosuch.py is not there"),
        (("--config=paper:table6@demo", "--evaluate=linear:nosuch"), "There is no config 'nosuch'"),
        (("--config=paper", "--only=table6:none"), "--only=table6:none is no member"),
        ((f"--config={tmp_path.parent / 'twice.py'}",), "would share a folder"),
        (("--config=paper", "--seeds=0,x"), "--seeds=0,x are no seeds"),
        (("--config=paper", "--config.seed=1"), "name seeds by --seeds"),
        (("--config=paper", "--evaluate=eye"), "--evaluate=eye is unknown"),
        (("--config=paper:table6@demo", "--config.epoch=1"), "config.epoch is no field; did you mean config.epochs"),
        (("--config=paper:table6@demo", "--config.epochs=0"), "config.epochs is 0"),
        (("--config=paper:table6@demo",), "config.image_size of linear is 224, and the convnet is for images of"),
    ):
        with pytest.raises(UserError, match=pattern):
            sweep.main(wanted(*line, f"--workdir={tmp_path}"))
    assert not any(tmp_path.iterdir())


def test_a_bad_member_does_not_stop_the_others_and_nothing_is_done_twice(fake, tmp_path, capsys, monkeypatch):
    def taken():
        raise AssertionError("the accelerator's memory is for the commands")

    monkeypatch.setattr("jax._src.xla_bridge.backends", taken)
    line = (f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'w'}", "--evaluate=knn", "--seeds=0,1")
    assert sweep.main(wanted(*line)) == 1
    output = capsys.readouterr()
    assert "bad, seed 1, train: error: no luck." in output.err
    # Mean and deviation of 0.5 and 0.6.
    assert "| 0.03 | 55.0 +- 7.1 |" in output.out and "| bad | |" in output.out
    assert (tmp_path / "w" / "table.md").read_text() in output.out
    assert (tmp_path / "w" / "sweep.png").stat().st_size > 1000
    assert [call.partition(" ")[0] for call in fake()] == 4 * ["train", "knn"] + 2 * ["train"]

    assert sweep.main(wanted(*line)) == 1 and len(fake()) == 12  # the bad one again, twice
    assert sweep.main(wanted(*line, "--only=0.03", "--evaluate=knn,probe")) == 0
    assert [call.partition(" ")[0] for call in fake()[12:]] == ["probe", "probe"]
    # Another config: trained again, as train.py would have it, and then judged again.
    assert sweep.main(wanted(*line, "--only=0.03", "--seeds=0", "--config.epochs=5")) == 0
    assert [call.partition(" ")[0] for call in fake()[14:]] == ["train", "knn"]
    written = results.read(tmp_path / "w" / results.FILE)
    assert [one["seeds"] for one in written if one["settings"]["member"] == "0.01"] == [[0, 1]]
    assert sweep.main(wanted(*line, "--table")) == 0 and len(fake()) == 16


def test_a_config_that_cannot_work_is_named_in_the_end_and_not_begun(fake, tmp_path, capsys):
    own = OWN.replace(
        "config.lambd = float(lambd)", "config.lambd = -float(lambd) if lambd == '0.01' else float(lambd)"
    )
    (tmp_path / "own.py").write_text(own)
    line = (f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'w'}", "--only=0.01,0.03", "--evaluate=knn")
    assert sweep.main(wanted(*line)) == 1
    assert "0.01, seed 0: error: config.lambd is -0.01; it must be" in capsys.readouterr().err
    assert fake() == ["train .03/seed_0", "knn .03/seed_0"]


def test_a_signal_goes_to_the_command_and_the_same_line_goes_on(fake, tmp_path):
    words = ["train", "--config=x:wait"]
    with stages.Stages() as running:
        printed = tmp_path / "w" / stages.LOG

        def send():
            while not (printed.exists() and b"begun" in printed.read_bytes()):
                threading.Event().wait(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        sender = threading.Thread(target=send)
        sender.start()
        assert running.run(tmp_path / "w", "train", words) is None
        sender.join()
        assert running.stopped == signal.SIGTERM and stages.read(tmp_path / "w") == {}
        assert running.run(tmp_path / "w", "knn", ["knn"]) is None and len(fake()) == 1  # no other is started
    with stages.Stages() as running:
        assert running.run(tmp_path / "w", "train", ["train"]) == "" and stages.read(tmp_path / "w") == {
            "train": ["train"]
        }


def test_a_run_that_another_has_in_hand_is_waited_for(fake, tmp_path):
    held = lock.hold(tmp_path)
    threading.Timer(0.3, lock.release, [held]).start()
    with stages.Stages() as running:
        assert running.run(tmp_path, "train", ["train"]) == "" and len(fake()) == 1


def test_a_command_is_waited_for_from_its_first_moment_on(fake, tmp_path, monkeypatch):
    """Also where it has no lock yet, or takes another's, and the sweep that began it is gone."""
    (tmp_path / "w").mkdir()
    program = "import subprocess, sys, time; print('begun', flush=True); time.sleep(2); open(sys.argv[1], 'w')"
    begin = f"""
import pathlib, sys
from barlow_jax.run import stages
stages.COMMAND = (sys.executable, "-S", "-c", {program!r})
with stages.Stages() as running:
    running.run({str(tmp_path / "w")!r}, "linear", [{str(tmp_path / "ended")!r}])
"""
    sweeping = commands.Command(sys.executable, "-c", begin)
    log = tmp_path / "w" / stages.LOG
    commands.wait_for(sweeping, lambda: log.exists() and b"begun" in log.read_bytes())
    os.kill(sweeping.pid, signal.SIGKILL)  # and not what it has begun
    with stages.Stages() as running:
        assert running.run(tmp_path / "w", "train", ["train"]) == "" and (tmp_path / "ended").exists()


def test_evaluations_of_one_kind_have_each_a_folder():
    kinds = "linear,linear:semi_supervised:1,linear:semi_supervised:10,linear:linear_demo"
    (run,) = sweep.plan(wanted("--config=paper:table6:both@demo", f"--evaluate={kinds}", "--workdir=w"))
    folders = [word for words in run.commands.values() for word in words if word.startswith("--workdir=")]
    below = ("", "/linear", "/linear_semi_supervised_1", "/linear_semi_supervised_10", "/linear_demo")
    assert folders == [f"--workdir=w/table6_both/seed_0{name}" for name in below]


def test_a_folder_that_cannot_be_locked_is_not_waited_for(tmp_path):
    (tmp_path / lock.FILE).mkdir()
    with stages.Stages() as running, pytest.raises(UserError, match="cannot be written .*; see to it"):
        running.run(tmp_path, "train", ["train"])


def test_what_is_printed_is_looked_at_as_what_is_run(fake, tmp_path, capsys, caplog):
    config = tmp_path / "own.py"
    config.write_text(OWN)
    line = (f"--config={config}", f"--workdir={tmp_path / 'runs'}", "--print", "--only=0.01,0.03", "--evaluate=knn")
    with pytest.raises(UserError, match="config.batch_size is 0"):
        sweep.main(wanted(*line, "--config.batch_size=0"))
    sweep.main(wanted(*line))
    assert capsys.readouterr().out.count("\n") == 2 and not caplog.records


def test_a_record_that_is_none_of_ours_is_a_sentence(tmp_path):
    for text in ("[1]", "{", '{"train": 3}'):
        (tmp_path / stages.DONE).write_text(text)
        with pytest.raises(UserError, match="stages.json cannot be read .*; remove it"):
            stages.read(tmp_path)


def lines_of(folder, value, *, baseline="", step=6, **more):
    subject = SimpleNamespace(path=str(folder), step=step, baseline=baseline, ema="")
    folder = folder / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    results.append(folder, [results.line(subject, values=[value], seeds=[], **(KNN | more))])


def test_the_table_has_mean_and_spread_over_seeds_beside_the_papers_numbers(tmp_path):
    values = {0: 0.512, 1: 0.498, 2: 0.551}
    folders = {
        name: {seed: tmp_path / name[-4:] / str(seed) for seed in values} for name in ("table6:both", "figure4:64")
    }
    for seed, value in values.items():
        folder = folders["table6:both"][seed]
        lines_of(folder, 0.9)  # before the run went on
        lines_of(folder, value)
        lines_of(folder, 0.1, k=200)
        lines_of(folder, 0.3, baseline="random")
        lines_of(folder, 17.25, protocol="effective rank", metric="effective_rank", classes=None)
    lines_of(folders["figure4:64"][1], 0.25, departures=["epochs 5 instead of 100"])
    lines_of(folders["figure4:64"][2], 0.75, step=5)  # has not come so far
    found = tables.collect(folders)
    mean, spread = statistics.mean(values.values()), statistics.stdev(values.values())
    assert tables.cell(found, "table6:both", "20-NN") == pytest.approx((mean, spread, 3))
    text = tables.markdown(found, ["table6:baseline", *folders])
    assert text.splitlines()[:6] == [
        "| | 20-NN | effective rank | paper, top-1 | paper, top-5 |",
        "| --- | --- | --- | --- | --- |",
        "| table6:baseline | | | 71.4 | 90.2 |",
        f"| table6:both | {100 * mean:.1f} +- {100 * spread:.1f} | 17.2 +- 0.0 | 61.3 | 83.5 |",
        "| figure4:64 | 25.0 (1 of 3 seeds) | | | |",
        "| not trained | 30.0 +- 0.0 | | | |",
    ]
    assert "x:test: 400 images; a share of them has a standard error of up to 2.5 points." in text
    assert "Not as knn has it: epochs 5 instead of 100." in text
    assert "10-NN" in tables.columns({"x": [results.line(ORIGIN, values=[0.5], seeds=[], **(KNN | {"k": 10}))]})
    (line,) = [one for one in found["table6:both"] if (one["protocol"], one["settings"]["k"]) == ("knn", 20)]
    assert line["seeds"] == [0, 1, 2] and line["checkpoint_step"] == 6 and line["spread"] == pytest.approx(spread)


def test_every_protocol_and_every_set_has_a_column():
    def one(value, **more):
        return results.line(ORIGIN, values=[value], seeds=[], **(KNN | more))

    semi = {"protocol": "semi-supervised 10 %", "k": None, "result": "last"}
    found = {
        "a": [one(0.5), one(0.25, dataset="y:test"), one(0.75, **semi), one(0.875, **semi, metric="top5")],
        "b": [one(0.125), one(0.3, protocol="few-shot", k=None)],
    }
    text = tables.markdown(found, ["a", "b"]).splitlines()
    columns = ["20-NN, x:test", "20-NN, y:test", "semi-supervised 10 %, top-1", "semi-supervised 10 %, top-5"]
    assert text[0] == f"| | {' | '.join(columns)} |"
    assert text[2:4] == ["| a | 50.0 | 25.0 | 75.0 | 87.5 |", "| b | 12.5 | | | |"]


def test_the_picture_of_a_sweep():
    """Against the first or the best, a constant added to a series changes nothing; numbers have their distances."""
    labels, values = ["16", "64", "1024"], [(50.0, 1.0), (55.0, 0.0), (60.0, 2.0)]
    shifted = [(mean - 20, spread) for mean, spread in values]
    for less in ("first", "best"):
        drawn = [pictures.sweep(labels, {"20-NN": one}, less=less) for one in (values, shifted)]
        np.testing.assert_array_equal(*drawn)
    plain = pictures.sweep(labels, {"20-NN": values})
    assert (plain != pictures.sweep(labels, {"20-NN": shifted})).any()
    assert (plain != pictures.sweep(["a", "b", "c"], {"20-NN": values})).any()
    assert pictures.charts._numbers(["0.002", "0.01"]) == [0.002, 0.01]
    assert (
        pictures.charts._numbers(["16", "x"])
        is pictures.charts._numbers(["2", "1"])
        is pictures.charts._numbers(["nan", "1"])
        is None
    )
    pictures.sweep(["a", "b"], {"20-NN": [None, None], "linear": [None, (3.0, 0.0)]}, less="first")


def test_members_are_those_of_the_file(tmp_path):
    assert list(config_files.members("paper:table6@demo").values())[0] == "paper:table6:baseline@demo"
    assert list(config_files.members("configs/paper.py:figure2:128")) == ["figure2:128"]
    assert len(config_files.members("paper:table5,table6@demo")) == 11
    (tmp_path / "own.py").write_text("def members(wanted=''):\n    return 1 / 0\n")
    with pytest.raises(UserError, match="own.py, line 2"):
        config_files.members(tmp_path / "own.py")
    for text, words in (
        ("def members(wanted=''):\n    return 3\n", "not int .* let it be a function"),
        ("def members(wanted=''):\n    yield 1\n    yield 1 / 0\n", "own.py, line 3"),
        ("def members(wanted=''):\n    return '0.01'\n", "gives '0.01'; let it be a function"),
        ("def members(wanted=''):\n    pass\n", "gives None; let it be a function"),
        ("def members():\n    return []\n", "let it be a function of what stands behind the colon"),
        ("members = [1]\n", "let it be a function of what stands behind the colon"),
        ("def members(wanted=''):\n    return []\n", "has no members"),
    ):
        (tmp_path / "own.py").write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            config_files.members(tmp_path / "own.py")
        assert "get_config, which is given" not in str(caught.value)
    (tmp_path / "own.py").write_text("def members(wanted=''):\n    yield from (1, 2)\n")
    assert list(config_files.members(tmp_path / "own.py")) == ["1", "2"]


def test_rows_of_the_paper_on_a_config_that_leaves_the_projector_open():
    assert barlow_jax.config("paper:table5:invariance_only@image_folder").objective == "invariance_only"
    for row in ("table6:both", "figure4:64"):
        with pytest.raises(UserError, match="changes the projector's width, which image_folder leaves open"):
            barlow_jax.config(f"paper:{row}@image_folder")


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(tmp_path):
    """Real commands, the sweep killed with -9 in the middle: the run that it leaves is waited for, not begun anew."""
    line = ("-m", "barlow_jax.sweep", "--config=paper:table6@demo", "--only=table6:both", "--config.epochs=4")
    line = (*line, "--evaluate=knn", "--baselines=random", f"--workdir={tmp_path}", "--config.log_every_steps=1")
    metrics = tmp_path / "table6_both" / "seed_0" / "metrics.jsonl"
    process = commands.start(*line)
    commands.wait_for(process, lambda: metrics.exists() and metrics.read_text().count("\n") > 5)
    process.end()
    status, output = commands.run(*line)
    assert status == 0 and "waiting: " in output and "| table6:both |" in output and "| not trained |" in output
    assert [line["step"] for line in commands.lines(metrics.parent) if "loss" in line] == list(range(1, 57))
    status, output = commands.run(*line)
    assert status == 0 and "1 of 1: table6:both, seed 0: done, 0 s" in output
