"""The table of all results: what stands beside the paper's numbers, and what does not."""

import json
import os
import re
from types import SimpleNamespace

import commands
import foreign_json
import numpy as np
import pytest
from PIL import Image

from barlow_jax import report, results
from barlow_jax.errors import UserError
from barlow_jax.evaluation.subject import Subject
from barlow_jax.results import published, table

ORIGIN = Subject({}, {}, {}, 3, "runs/r50", 625_000, "")
IMAGENET = {"dataset": "imagenet2012:validation", "n": 50_000, "classes": 1000}


def linear(value=0.7, seeds=(0,), origin=ORIGIN, **changes):
    values = [value + 0.02 * k for k in range(len(seeds))]
    settings = {"protocol": "linear", **IMAGENET, "metric": "top1", "result": "last", "train_images": 1_281_167}
    return results.line(origin, values=values, seeds=seeds, **(settings | changes))


def cells(lines, metric="top1"):
    """{evaluation: (value, paper, README)} of the rows with a value."""
    rows, _ = table.table(lines)
    return {row[0]: row[4:] for row in rows if row[4] and row[2] == metric}


def test_the_papers_value_stands_beside_its_own_protocol_and_images_only():
    assert cells([linear()]) == {"linear, last": ("70.00", "73.2", "73.5")}
    assert cells([linear(protocol="semi-supervised 1 %, paper", train_images=12_811)]) == {
        "semi-supervised 1 %, paper, last": ("70.00", "55.0", "")
    }
    for change in (
        {"n": 49_999},
        {"classes": 100},
        {"train_images": 12_811},
        {"protocol": "fine-tuning"},
        {"origin": ORIGIN._replace(baseline="random", step=0)},
    ):
        ((value, *others),) = cells([linear(**change)]).values()
        assert (value, others) == ("70.00", ["", ""]), change


def test_what_was_not_run_is_named_and_no_row():
    rows, _ = table.table([linear()])
    assert [(row[0], row[2]) for row in rows] == [("linear, last", "top1")]
    missing = table.not_run([linear()])
    assert len(missing) == len(published.RESULTS) - 1 and "linear, top1 (73.2)" not in missing
    assert "linear Places205, top1 (54.1)" in missing and "voc07 svm, map_voc10 (86.2)" in missing
    assert "linear iNaturalist18, top1 (46.5)" in missing and "semi-supervised 10 %, top5 (89.3)" in missing
    assert len(table.not_run([])) == len(published.RESULTS)


def test_seeds_together_stand_for_those_alone():
    alone = [linear(0.7, (0,)), linear(0.72, (1,)), linear(0.1, (5,))]
    together = linear(0.7, (0, 1))
    assert together["spread"] == pytest.approx(np.std([0.7, 0.72], ddof=1))
    got = cells([*alone, together])
    assert got == {
        "linear, last": ("10.00", "73.2", "73.5"),
        "linear, last, 2 seeds": ("71.00 +- 1.41", "73.2", "73.5"),
    }


def test_of_the_same_number_twice_the_newer_counts():
    assert cells([linear(0.3), linear(0.4)]) == {"linear, last": ("40.00", "73.2", "73.5")}
    both = cells([linear(0.3), linear(0.4, result="best"), linear(0.5, epochs=5)])
    assert [value for value, *_ in both.values()] == ["30.00", "40.00", "50.00"]


def test_departures_are_noted_once():
    changed = [linear(departures=["epochs 5 instead of 100"], metric=metric) for metric in ("top1", "top5")]
    rows, notes = table.table(changed)
    assert [row[0] for row in rows if row[4]] == 2 * ["linear, last [1]"]
    assert notes == ["[1] not as linear has it: epochs 5 instead of 100"]


def test_what_is_no_share_is_no_percentage():
    line = linear(37.25, protocol="effective rank", metric="effective_rank", classes=None)
    assert cells([line], "effective_rank") == {"effective rank, last": ("37.25", "", "")}


def test_a_number_is_written_once_whatever_the_command(tmp_path):
    line = linear()
    results.append(tmp_path, [line])
    results.append(tmp_path, [line | {"command": "python linear_eval.py --config.wandb"}, linear(0.71)])
    assert [one["value"] for one in results.read(tmp_path / results.FILE)] == [0.7, 0.71]


def test_the_command_collects_all_folders_and_writes_a_page(tmp_path):
    for name, value in (("a", 0.7), ("b/linear", 0.6)):
        (tmp_path / name).mkdir(parents=True)
        results.append(tmp_path / name, [linear(value, origin=ORIGIN._replace(path=f"runs/{name}"))])
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"st')
    (tmp_path / "a" / "correlation").mkdir()
    for number, shade in (("00000000", 0), ("00000010", 200)):
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / "a" / "correlation" / f"{number}.png")
    page = tmp_path / "out" / "page.html"
    # Overlapping folders: each file counts once.
    status, output = commands.run("-m", "barlow_jax.report", tmp_path, tmp_path / "a", f"--html={page}")
    assert status == 0, output
    lines = [line for line in output.splitlines() if line.startswith("linear, last ")]
    assert [re.findall(r"runs/\S+(?=,)|[\d.]+", line)[-4:] for line in lines] == [
        ["625000", "70.00", "73.2", "73.5"],
        ["625000", "60.00", "73.2", "73.5"],
    ]
    text = page.read_text()
    assert text.count("<td>linear, last</td>") == 2 and text.count('<img alt="correlation at step') == 2


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="No folder is given"):
        report.main(SimpleNamespace(arguments=[], html=""))
    with pytest.raises(UserError, match="nowhere is no folder"):
        table.collect([tmp_path / "nowhere"])


def test_lines_of_others_are_named_or_shown(tmp_path):
    """Whatever stands in a results.jsonl: a table, or one sentence with the number of the line."""
    ours, refused = linear(departures=["epochs 5"]), 0
    changed = [*foreign_json.objects(ours, results.lines.KEYS)]
    settings = [json.dumps(ours | {"settings": {"departures": value}}).encode() for value in foreign_json.VALUES]
    seeds = [json.dumps(ours | {"seeds": [0, value]}).encode() for value in foreign_json.VALUES]
    for bad in (*foreign_json.NO_OBJECTS, *changed, *settings, *seeds):
        (tmp_path / results.FILE).write_bytes(json.dumps(ours).encode() + b"\n" + bad + b"\n")
        try:
            rows, notes = table.table(table.collect([tmp_path]))
            assert "\n" not in "".join([*map("".join, rows), *notes]).encode().decode()
            table.text_of(rows)
        except UserError as error:
            assert str(error) == f"Line 2 of {tmp_path / results.FILE} is no result; remove it."
            refused += 1
    assert refused > 150
    for name in KEEP_OUT:
        line = json.dumps(ours | {"dataset": name})
        (tmp_path / results.FILE).write_text(line + "\n")
        [row] = [row for row in table.table(table.collect([tmp_path]))[0] if row[4]]
        assert row[1].isprintable() and row[1].encode()


KEEP_OUT = ("half \ud800", "two\nlines", "\x1b[2J", "\u2028")  # in a table or on a terminal


def test_what_is_no_file_or_no_picture(tmp_path, caplog):
    """A folder or a pipe in the place of results is named; in the place of a picture it is left out, as is no PNG."""
    (tmp_path / "a" / results.FILE).mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / results.FILE)
    for name in ("a", "b"):
        with pytest.raises(UserError, match=f"{name}/{results.FILE} is no file; remove it"):
            table.collect([tmp_path / name])
    run = tmp_path / "run"
    (run / "views.png").mkdir(parents=True)
    (run / "neighbours.png").write_bytes(b"GIF89a")
    (run / "correlation").mkdir()
    os.mkfifo(run / "correlation" / "00000000.png")
    (run / "metrics.jsonl").write_bytes(b"\xff\n[]\n" + b'{"step": 1, "loss": 1}\n{"step": 1, "loss": null}\n')
    report.main(SimpleNamespace(arguments=[str(run)], html=str(tmp_path / "page.html")))
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text and '"title":"loss"' in text
    assert caplog.text.count("is no PNG, or cannot be read") == 3
    assert "2 of 4 lines of" in caplog.text
