"""Verdicts on metrics that are made here: what each failure looks like in them, and what is just this side of it."""

import math
import re

import numpy as np
import pytest

from barlow_jax import config as config_of
from barlow_jax.fields import PRETRAINING
from barlow_jax.results import measured, verdict

N, D = 256, 512
CONFIG = config_of("demo").to_dict()


def line(step, miss=0.8, noise=1.5, **more):
    """A line of a step: c_ii falls short of 1 by `miss`, off_diag is `noise` times its floor."""
    told = {"loss": 1.0, "grad_norm": 1.0, "skipped": 0, "dead_dims": 0.0, "z_mean": 0.2, "z_std": 0.4}
    told |= {"on_diag": miss**2 * D * N / (N - 1), "off_diag": noise * D * (D - 1) / (N - 1)}
    return {"step": step, "learning_rate_weights": 3e-3 * (1 - step / 200), **told} | more


def first(**more):
    """The evaluation before the first step."""
    told = {"images": 3591, "judged_images": 1200, "distinct_images": 1200, "features": 256, "dimensions": D}
    return {"step": 0, "effective_rank": 120.0, **told} | more


def run(*, start=(0.8, 1.5), now=(0.3, 2.0), before=(), after=(), steps=100, **more):
    """The lines of a run that goes from `start` to `now`; before, after: lines at its two ends; more: of its steps."""
    at_start = {name: value for name, value in more.items() if name == "z_std"}
    trained = [line(step, *now, **more) for step in range(4, steps + 1, 4)]
    return [*before, line(1, *start, **at_start), *trained, *after]


HEALTHY = run(before=[first(knn=0.29)], after=[{"step": 100, "effective_rank": 140.0, "knn": 0.6, "probe": 0.5}])
CASES = {
    "healthy": (HEALTHY, verdict.LEARNING, "right in 60.0% of 1200 images and were in 29.0%"),
    "without labels": (run(before=[first()]), verdict.LEARNING, "no labels to say what it is worth"),
    "of an older run": (
        run(),
        verdict.LEARNING,
        "is 0.09 of .* give, on [0-9]+ directions of 512 .* was 0.64, on [0-9]+[.]",
    ),
    "nothing yet": ([], verdict.EARLY, "no metrics"),
    "the first step": ([line(1)], verdict.EARLY, "nothing to compare the first step with yet"),
    "no first step": (run()[1:], verdict.EARLY, "no first step"),
    "in the warm-up": (
        [line(1, learning_rate_weights=0.0), line(14, 0.9, learning_rate_weights=1e-3)],
        verdict.EARLY,
        "still rises",
    ),
    "no better than chance": (run(now=(0.78, 1.5)), verdict.EARLY, "no better than at the start, beyond chance"),
    "soon after the warm-up": (
        [line(1, learning_rate_weights=0.0), *(line(step, 0.3, learning_rate_weights=3e-3) for step in range(20, 26))],
        verdict.EARLY,
        "6 lines of metrics were written since .* peak; 10 are waited for",
    ),
    "at the peak": (
        [line(1, learning_rate_weights=0.0), line(20, 0.3, learning_rate_weights=3e-3)],
        verdict.EARLY,
        "^1 line of metrics was written since .* peak; 10 are waited for",
    ),
    "directions of the features": (
        run(before=[first(effective_rank=90.0)], after=[{"step": 100, "effective_rank": 44.0}]),
        verdict.COLLAPSED,
        "use 44.0 directions .* less than half of the 90.0",
    ),
    "as many directions": (run(before=[first()], after=[{"step": 100, "effective_rank": 61.0}]), verdict.LEARNING, ""),
    "a start of noise": (run(start=(0.99, 1.0), now=(0.6, 300.0)), verdict.LEARNING, "on 1 directions of 512"),
    "a start of noise, agreed": (run(start=(0.99, 1.0), now=(0.1, 300.0)), verdict.COLLAPSED, "fewer than the 2.0"),
    "labels do not show it": (
        run(before=[first(knn=0.29)], after=[{"step": 100, "effective_rank": 140.0, "knn": 0.31}]),
        verdict.EARLY,
        "chance explains 3.7%",
    ),
    "dead": (run(dead_dims=256.0), verdict.COLLAPSED, "256 of 512 dimensions are dead .*more than 32"),
    "a few dead": (run(dead_dims=30.0), verdict.LEARNING, ""),
    "views apart": (run(now=(0.9, 1.0)), verdict.COLLAPSED, "on_diag is 0.81 of .* and was 0.64"),
    "one direction": (
        run(now=(0.05, 200.0)),
        verdict.COLLAPSED,
        "agree on 1.2 directions of 512 .* fewer than the 9.7",
    ),
    "no augmentation": (
        run(start=(0.01, 9.0), now=(0.001, 2.0)),
        verdict.OVERFITTED,
        "fell short of 1 by 0.01, .* 0.063",
    ),
    "labels against it": (
        run(before=[first(knn=0.5)], after=[{"step": 100, "effective_rank": 140.0, "knn": 0.4}]),
        verdict.OVERFITTED,
        "labels do not ask for",
    ),
    "black": (
        run(before=[first(distinct_images=1)], dead_dims=512.0),
        verdict.STARVED,
        "images that were evaluated are one",
    ),
    "one image": (
        run(start=(1.0, 1.0), now=(1.0, 1.0)),
        verdict.STARVED,
        "no more alike than views of different images",
    ),
    "fewer images than rows": (run(before=[first(images=100)]), verdict.STARVED, "100 images and a batch has 256"),
    "skipped": (run(after=[line(200, skipped=90)]), verdict.ILL, "90 of the last .* 16 at most"),
    "a loss that is null, before an evaluation": (
        run(after=[line(104, loss=None), {"step": 104, "effective_rank": 9.0}]),
        verdict.ILL,
        "step 104 is not finite",
    ),
    "a loss that is null": (run(after=[line(104, loss=None)]), verdict.ILL, "step 104 is not finite"),
    "bits used up": (run(z_mean=1e4, z_std=1e-4), verdict.ILL, "less than the spacing of float32"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_each_failure_looks_like(case):
    lines, name, words = CASES[case]
    found = verdict.judge(lines, CONFIG)
    assert found.name == name and name in verdict.NAMES, found
    assert re.search(words, " ".join(found.reasons)), found.reasons
    assert (found.name in verdict.FAILED) == bool(found.remedies), found
    for field in re.findall(r"config\.([\w.]*\w)", " ".join(found.remedies + found.reasons)):
        assert field in PRETRAINING.fields, field


@pytest.mark.parametrize(("precision", "bits"), [("bfloat16", 7), ("float16", 10), ("float32", 23)])
def test_bits_of_a_precision(precision, bits):
    for std, name in ((0.9 * 2**-bits, verdict.ILL), (1.1 * 2**-bits, verdict.LEARNING)):
        assert verdict.judge(run(z_mean=1.0, z_std=std), CONFIG | {"precision": precision}).name == name


def test_the_last_tenth_is_recent():
    lines = [{"step": step, "loss": step} for step in (2, 90, 91, 100)] + [{"step": 50, "z_mean": 3.0}]
    assert [line["step"] for line in measured.recent(lines, "z_mean")] == [91, 100, 50]


@pytest.mark.parametrize("case", ["healthy", "dead", "views apart", "labels do not show it", "bits used up"])
def test_a_long_run_is_judged_by_as_many_lines_as_a_short_one(case):
    """Each epoch of thousands asks for a verdict: what is looked at may not grow with the epochs."""
    lines, name, words = CASES[case]
    kept, step = [], 0
    for one in (lines[0], lines[1], *lines[2:-1] * 120, lines[-1]):
        step = one["step"] if one["step"] <= 1 else step + 4
        kept = measured.thinned([*kept, one | {"step": step}])
    assert step > 9000 and len(kept) <= 2 * measured.MOST_LINES
    assert [line["step"] for line in kept] == sorted({line["step"] for line in kept})
    found = verdict.judge(kept, CONFIG)
    assert found.name == name and re.search(words, " ".join(found.reasons)), found


def test_black_images_are_told_from_a_network_that_died():
    """By the first step: all dimensions dead before anything was learnt."""
    dark = [line(step, 1.0, 1e-9, dead_dims=512.0) for step in range(1, 20)]
    assert verdict.judge(dark, CONFIG).name == verdict.STARVED
    dark[0] = line(1)
    assert verdict.judge(dark, CONFIG).name == verdict.COLLAPSED


def test_another_objective_is_judged_by_the_c_of_its_evaluations():
    config = CONFIG | {"objective": "vicreg"}

    def seen(step, miss, noise, **more):
        one = line(step, miss, noise)
        return {"step": step, "c_on_diag": one["on_diag"], "c_off_diag": one["off_diag"], "effective_rank": 9.0} | more

    steps = [{name: value for name, value in line(step).items() if "diag" not in name} for step in range(1, 101, 4)]
    start = first() | seen(0, 0.8, 1.5)
    assert verdict.judge([start, *steps, seen(100, 0.3, 2.0)], config).name == verdict.LEARNING
    found = verdict.judge([start, *steps, seen(100, 0.05, 200.0)], config)
    assert found.name == verdict.COLLAPSED and "config.lambd" not in " ".join(found.remedies)  # which it does not read
    found = verdict.judge(steps, config)
    assert found.name == verdict.EARLY and "no first step, or no c" in found.reasons[0]


def test_directions_of_embeddings_that_share_a_number_of_them():
    """Against embeddings made of k signals, seen through noise by two views: k is found from the two terms alone."""
    rng, n, d, k = np.random.default_rng(0), 2000, 128, 8
    mixing = rng.normal(size=(k, d))
    signal = rng.normal(size=(n, k)) @ mixing
    signal /= signal.std(0)

    def terms(noise):
        z = [signal + noise * rng.normal(size=(n, d)) for _ in range(2)]
        c = np.corrcoef(*z, rowvar=False)[:d, d:]
        diagonal = np.diagonal(c)
        return {"step": 1, "on_diag": ((1 - diagonal) ** 2).sum(), "off_diag": (c**2).sum() - (diagonal**2).sum()}

    # Of normal vectors it is k / (1 + k / d), as the correlations of d of them scatter; noise takes nothing from it.
    config = CONFIG | {"batch_size": n, "projector": [d]}
    for noise in (0.0, 1.0):
        look = measured.measures([terms(noise)], config).start
        assert look.directions == pytest.approx(k / (1 + k / d), rel=0.15), noise
        assert look.alignment == pytest.approx(1 / (1 + noise**2), abs=0.02)
    unrelated = {"step": 1, "on_diag": d * n / (n - 1), "off_diag": d * (d - 1) / (n - 1)}
    look = measured.measures([unrelated], config).start
    assert (look.apart, look.noise, look.directions) == (pytest.approx(1), pytest.approx(1), None)


@pytest.mark.parametrize(("rows", "d", "told"), [(3, 2, True), (3, 1, False), (2, 2, False)])
def test_what_is_too_small_to_have_a_correlation_is_not_looked_at(rows, d, told):
    look = measured.measures(
        [{"step": 1, "on_diag": 0.5, "off_diag": 0.5}], CONFIG | {"batch_size": rows, "projector": [d]}
    )
    assert (look.start is not None) == told


def test_the_yardstick_is_the_noise_of_one_entry():
    rng = np.random.default_rng(0)
    entries = [np.corrcoef(*rng.normal(size=(2, 50)))[0, 1] for _ in range(4000)]
    assert np.std(entries) == pytest.approx(measured.entry(50), rel=0.05)
    assert measured.entry(N) == 1 / math.sqrt(N - 1)
