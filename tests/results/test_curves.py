"""Curves as data: few points, no peak lost, and what belongs together in one chart."""

import itertools
import json

import numpy as np
import pytest
import shown_runs

from barlow_jax.results import curves, folders


def decoded(series):
    return [*itertools.accumulate(series["x"])], series["y"]


@pytest.mark.parametrize("n,most", [(5, 1000), (1001, 1000), (13_000, 1000), (13_000, 60)])
def test_no_peak_is_lost_and_nothing_is_made_up(n, most):
    rng = np.random.default_rng(n)
    values = [*rng.normal(size=n).cumsum()]
    steps = [*range(10, 10 + 3 * n, 3)]
    x, y = curves.reduced(steps, values, most)
    assert len(x) == len(y) <= most and {*zip(x, y, strict=True)} <= {*zip(steps, values, strict=True)}
    assert x == sorted(x) and (x[0], x[-1]) == (steps[0], steps[-1])
    # In each part of the run its least and its greatest value are there.
    parts = (most - 2) // 2
    for part in range(parts if n > most else 1):
        inside = values[part * n // parts : (part + 1) * n // parts] if n > most else values
        assert {min(inside), max(inside)} <= {*y}


def test_what_was_not_finite_stays_a_gap():
    values = [float(k % 7) for k in range(5000)]
    values[1234] = values[4000] = None
    x, y = curves.reduced([*range(5000)], values, 300)
    assert len(x) <= 300 and [step for step, value in zip(x, y, strict=True) if value is None] == [1234, 4000]


def test_a_line_that_does_not_move_is_two_points():
    assert curves.reduced([*range(5000)], [0.5] * 5000) == ([0, 4999], [0.5, 0.5])
    assert curves.reduced([1, 2, 3, 4, 5], [1, 1, 1, 2, 2]) == ([1, 3, 4, 5], [1, 1, 2, 2])


def test_numbers_have_five_digits():
    assert [curves.rounded(value) for value in (0.123456789, 123456.7, 2.0, 1.23456e-7, None)] == [
        *(0.12346, 123460, 2, 1.2346e-7, None)
    ]
    assert curves.coded([5, 7, 12], [1.0, None, 2.5]) == {"x": [5, 2, 5], "y": [1, None, 2.5]}


def test_what_is_of_one_kind_shares_a_chart_and_the_unknown_has_its_own(tmp_path):
    run = shown_runs.made(tmp_path / "run")
    more = {"step": 280, "alpha": 12.5, "epoch": 20, "knn": 0.9}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(more) + "\n")
    charts = curves.charts(folders.runs([run]))
    by_names = {tuple(chart["names"]): chart for chart in charts}
    assert ("knn", "probe") in by_names and ("learning_rate_weights", "learning_rate_biases") in by_names
    assert by_names["alpha",]["section"] == curves.OTHERS and ("epoch",) not in by_names
    # Of a step that is there twice the later; what unrelated views give, by the formula: D N / (N - 1).
    knn = next(one for one in by_names["knn", "probe"]["series"] if one["name"] == "knn")
    assert decoded(knn)[1][-1] == 0.9
    assert by_names["on_diag",]["lines"] == [("unrelated views", pytest.approx(512 * 256 / 255, rel=1e-4))]
    config = {"batch_size": 256, "projector": [512], "lambd": 0.1}  # of a run before there were other objectives
    assert dict(curves.unrelated(config))["on_diag"] == pytest.approx(512 * 256 / 255)
    assert curves.unrelated(config | {"objective": "vicreg"}) == []
    assert {chart["names"][0] for chart in charts if curves.is_flat(chart)} == {"dead_dims", "skipped"}


def test_runs_share_charts_but_not_with_evaluations(tmp_path):
    shown_runs.made(tmp_path / "a")
    shown_runs.made(tmp_path / "b", seed=1, batch_size=64)
    (tmp_path / "b" / "linear").mkdir()
    (tmp_path / "b" / "linear" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.3, "top1": 0.1}\n')
    runs = folders.runs([tmp_path])
    assert [run.name for run in runs] == ["a", "b", "b/linear"]
    charts = curves.charts(runs)
    losses = [[one["run"] for one in chart["series"]] for chart in charts if chart["names"] == ["loss"]]
    assert losses == [[0, 1], [2]]
    # Batches of different sizes: no one line is right for both.
    assert all(chart["lines"] == [] for chart in charts)


def test_many_runs_share_the_points(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "TOTAL", 2000)
    for name in "abc":
        shown_runs.made(tmp_path / name, epochs=100, every=2, pictures=0)
    lengths = [len(one["x"]) for chart in curves.charts(folders.runs([tmp_path])) for one in chart["series"]]
    assert sum(lengths) <= 2000 and max(lengths) > 20
