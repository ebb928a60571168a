"""The page of runs as text: whole, small, of itself alone, and safe whatever stands in a run's files."""

import base64
import hashlib
import html.parser
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import shown_runs
from PIL import Image

from barlow_jax import report, results
from barlow_jax.results import events, folders, kept, page, published, sections, settings, starts, thumbnails
from barlow_jax.results import table as tables

ORIGIN = SimpleNamespace(path="runs/a", step=280, baseline="", ema="")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class Parsed(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside, self._open = [], {"script": [], "style": []}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open = tag if tag in self.inside else None
        if self._open:
            self.inside[tag].append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.inside[self._open][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def linear(**changes):
    told = {"protocol": "linear", "dataset": "imagenet2012:validation", "n": 50_000, "classes": 1000, "metric": "top1"}
    settings = {"values": [0.7], "seeds": [0], "result": "last", "train_images": 1_281_167}
    return results.line(ORIGIN, **(told | settings | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shown_runs.made(tmp_path_factory.mktemp("runs") / "a", pictures=5)


@pytest.fixture(scope="module")
def shown(run):
    return page.page([run])


def test_nothing_is_loaded_and_only_its_own_scripts_run(shown):
    parsed = Parsed(shown)
    policy = next(one["content"] for one in parsed.of("meta") if "http-equiv" in one)
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert allowed["default-src"] == "'none'" and allowed["img-src"] == "data:" and "connect-src" not in allowed
    for kind in ("script", "style"):
        texts = [text for text in parsed.inside[kind] if not text.startswith("{")]
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert allowed[f"{kind}-src"].split() == [f"'sha256-{one}'" for one in hashes] and hashes
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
    assert not re.search(r"url\(|@import", "".join(parsed.inside["style"]))


def test_what_is_of_others_is_as_they_made_it():
    """The files of web/vendored are those whose sums its README has."""
    told = (page.WEB / "vendored" / "README.md").read_text()
    sums = dict(re.findall(r"\| `([\w.]+)`.*?\| `([0-9a-f]{64})` \|", told))
    there = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (page.WEB / "vendored").iterdir()}
    assert {**there, "README.md": ""} == {**sums, "README.md": ""} and len(sums) == 3


def test_the_order_of_what_is_shown(shown):
    places = [shown.index(f'<section id="{name}"') for name in page.TITLES]
    assert places == sorted(places)
    assert [*page.TITLES] == ["verdict", "config", "curves", "pictures", "results", "events", "environment"]
    assert '<section id="results" hidden>' in shown  # nothing was evaluated


def test_whatever_stands_in_a_runs_files_is_text(tmp_path):
    name = HOSTILE.replace("/", "|")
    run = shown_runs.made(tmp_path / name, pictures=1, arch=HOSTILE)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 280, HOSTILE: 1.5}) + "\n")
    with (run / "log.txt").open("a") as file:
        file.write(f"2026-01-31 10:01:00 unreadable image {HOSTILE}: \x1b[2J\n")
    starts.record(run, 0)
    text = (run / starts.FILE).read_text()
    (run / starts.FILE).write_text(text.replace('"cpu"', json.dumps(HOSTILE)))
    results.append(run, [linear(dataset=HOSTILE, departures=[HOSTILE])])
    os.rename(run / "correlation", run / HOSTILE.replace("/", "|"))
    shown = page.page([tmp_path])
    parsed, plain = Parsed(shown), Parsed(page.page([shown_runs.made(tmp_path / "plain", pictures=0)]))
    assert [one.get("type") for one in parsed.of("script")] == [one.get("type") for one in plain.of("script")]
    assert all(image["src"].startswith("data:image/webp;base64,") for image in parsed.of("img"))
    assert not [one for _, attributes in parsed.elements for one in attributes if one.startswith("on")]
    assert "\x1b" not in shown
    data = json.loads(next(text for text in parsed.inside["script"] if text.startswith("{")))
    assert name in data["runs"] and [HOSTILE] in [chart["names"] for chart in data["charts"]]


def test_a_run_of_a_thousand_epochs_is_small(tmp_path):
    pictures = 1
    run = shown_runs.made(tmp_path / "long", epochs=1000, steps=626, every=50, pictures=pictures, side=400)
    text = page.page([run])
    assert os.path.getsize(run / "metrics.jsonl") > 4_000_000
    # As many more pictures as there may be, each at its limit, in base 64.
    assert len(text) + (thumbnails.FRAMES - pictures) * thumbnails.LIMIT * 4 / 3 < 700_000
    (uri,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', text)
    assert len(base64.b64decode(uri)) <= thumbnails.LIMIT


def test_pictures_are_spaced_with_the_first_and_the_last(tmp_path):
    assert thumbnails.spaced([*range(5)], 12) == [*range(5)]
    assert thumbnails.spaced([*range(100)], 4) == [0, 33, 66, 99] and thumbnails.spaced([*range(9)], 1) == [8]
    run = shown_runs.made(tmp_path / "run", pictures=30, side=8)
    found = thumbnails.series(run, 12)["correlation"]
    assert len(found) == 12 and (found[0][0], found[-1][0]) == (0, 280)


def test_only_what_differs_is_on_top(shown, run):
    changed = settings.compared(folders.runs([run])).partition("<details>")
    assert "<code>arch</code>" in changed[0] and "<code>resnet50</code>" in changed[0].replace("&#x27;", "")
    assert "<code>views.hue</code>" not in changed[0] and "<code>keep_<wbr>checkpoints</code>" in changed[2]
    assert "<code>views.blur_<wbr>sigma</code></td><td><code>(" in "".join(changed)  # as one would type it


def test_several_runs_stand_side_by_side(tmp_path, run):
    other = shown_runs.made(tmp_path / "b", seed=3, lambd=0.1)
    shown = page.page([run, other])
    data = json.loads(next(text for text in Parsed(shown).inside["script"] if text.startswith("{")))
    assert len(data["runs"]) == 2 and len({*data["runs"]}) == 2
    assert all({one["run"] for one in chart["series"]} == {0, 1} for chart in data["charts"])
    assert re.search(r"<code>lambd</code></td><td><code>0.0051</code></td>(<td>.*?</td>){2}</tr>", shown)


def test_the_papers_column_is_there_where_something_stands_in_it(tmp_path):
    rows, notes = tables.table([linear()])
    assert len(rows) == 1 and "<th>paper</th>" in sections.measured(rows, notes)
    rows, notes = tables.table([linear(n=500, departures=["half the images"])])
    shown = sections.measured(rows, notes)
    assert "<th>paper</th>" not in shown and "<th>README</th>" not in shown and "half the images" in shown
    assert sections.measured([], []) == ""
    missing = tables.not_run([linear()])
    assert len(missing) == len(published.RESULTS) - 1 and "voc07 svm, map_voc10 (86.2)" in missing


def test_what_happened_is_told_in_order(tmp_path):
    run = shown_runs.made(tmp_path / "run")
    with (run / "log.txt").open("a") as file:
        file.write("2026-01-31 10:02:00 preempted at step 60; the same command goes on from there\n")
        file.write("2026-01-31 11:00:00 going on from step 60 of 280\n")
        file.write("2026-01-31 11:00:00 learning. The two views agree.\n")
        for number in range(9):
            file.write(f"2026-01-31 11:0{number}:01 unreadable image {number}.jpg: truncated\n")
        file.write("half a line")
    change = {"time": "2026-01-31 10:59:59 UTC", "step": 60, "changes": {"lambd": {"was": 0.03, "is": 0.04}}}
    (run / "config_changes.jsonl").write_text(json.dumps(change) + "\n[]\n")
    before = starts.here(0) | {"time": "2026-01-31 10:00:00 UTC"}
    after = before | {"time": "2026-01-31 11:00:00 UTC", "devices": {"kind": "TPU v4", "count": 4}, "step": 60}
    after |= {"versions": before["versions"] | {"jax": "0.11.0"}}
    (run / starts.FILE).write_text(f"{json.dumps(before)}\n{json.dumps(after)}\n" + '{"time": ')
    lines = [{"step": 10, "skipped": 0}, {"step": 20, "skipped": 2, "loss": None}, {"step": 30, "skipped": 2}]
    found = events.of_run(run, lines, starts.read(run))
    assert [(event.kind, event.text[:24]) for event in found] == [
        ("damage", "a line of config_changes"),
        ("started", "starting at step 0 of 28"),
        ("stopped", "preempted at step 60; th"),
        ("config", "from step 60 on: lambd w"),
        ("went on", "going on from step 60 of"),
        ("verdict", "learning. The two views "),
        ("devices", "from step 60 on 4 x TPU "),
        ("versions", "from step 60 on: jax 0.1"),
        *(("images", f"unreadable image {number}.jpg: ") for number in range(4)),
        ("images", "and 5 more of the kind"),
        ("faults", "2 more steps skipped unt"),
        ("faults", "at step 20 not finite: l"),
    ]
    assert events.steps(run) == (14, 280)


def test_the_lines_that_make_it_again_are_there(tmp_path):
    run = shown_runs.made(tmp_path / "run")
    results.append(run, [linear() | {"command": "python linear_eval.py --config=linear"}])
    shown = page.page([run])
    shown = re.sub("</?span>", "", shown)
    assert "--config.projector=(512, 512, 512)" in shown and "python linear_eval.py --config=linear" in shown
    with results.commanded("barlow_jax.train('demo')"):
        starts.record(run, 0)
    shown = page.page([run])
    assert "barlow_jax.train(&#x27;demo&#x27;)" in shown and "--config.projector" not in shown
    assert f"jax {starts.here(0)['versions']['jax']}" in shown


def test_a_folder_of_which_nothing_is_whole_is_a_page_all_the_same(tmp_path, caplog):
    run = tmp_path / "run"
    (run / "correlation").mkdir(parents=True)
    os.mkfifo(run / "correlation" / "00000000.png")
    (run / "views.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"st')
    (run / "config.json").write_text("[")
    (run / starts.FILE).write_text("[]\nnull\n{}\n")
    shown = page.page([tmp_path])
    assert "<img" not in shown and "config.json is not there" in shown
    assert caplog.text.count("is no PNG, or cannot be read") == 2 and "config.json is damaged" in caplog.text


def test_a_picture_of_too_many_pixels_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 49)
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / "views.png")
    assert thumbnails.alone(tmp_path) == [] and "cannot be read (DecompressionBombError)" in caplog.text


def test_a_folder_with_nothing_in_it_is_said(tmp_path):
    shown = page.page([tmp_path / "."])
    assert f"No run and no result is in {tmp_path} yet" in shown and '<a href="#config" hidden>' in shown


def test_the_page_in_the_work_folder_is_whole_or_as_it_was(run, full_disk, caplog):
    (run / kept.FILE).write_text("before")
    page_of_run = kept.Page(run, 0)
    page_of_run.write()  # larger than what may be written
    page_of_run.write()
    assert (run / kept.FILE).read_text() == "before"
    assert caplog.text.count("report.html is not kept up to date") == 1 and "cannot be written" in caplog.text
    assert not [*run.glob(".*")]
    full_disk()
    page_of_run.write()
    assert (run / kept.FILE).read_text() == page.page([run])


def test_process_0_writes_it(tmp_path, monkeypatch):
    run = shown_runs.made(tmp_path / "run")
    monkeypatch.setattr("jax.process_index", lambda: 1)
    kept.Page(run, 0).write()
    assert not (run / kept.FILE).exists() and not (run / starts.FILE).exists()


def test_the_command_writes_the_page(tmp_path, run, capsys):
    file = tmp_path / "deep" / "page.html"
    report.main(SimpleNamespace(arguments=[str(run)], html=str(file)))
    assert file.read_text() == page.page([run])
    said = capsys.readouterr().out
    assert "No evaluation has left a number here yet" in said and f"{file}: 0." in said
