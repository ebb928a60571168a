"""What a run says of itself."""

import contextlib
import json
import logging
import shlex

import jax.numpy as jnp
import pytest

from barlow_jax import config as config_of
from barlow_jax.errors import UserError
from barlow_jax.results import measured, verdict, watching
from barlow_jax.run import metric_writers


@pytest.fixture
def watched(tmp_path):
    """(resume_step=None, **fields) -> a Teller of a run of these fields, on a metrics.jsonl alone."""
    with contextlib.ExitStack() as opened:

        def made(resume_step=None, **fields):
            config = config_of("demo").unlock()
            config.update(fields)
            lines = metric_writers.JsonLines(tmp_path / metric_writers.FILE, resume_step)
            opened.callback(lines.close)
            return watching.Teller(metric_writers.MetricWriter([lines], tmp_path), config, tmp_path)

        yield made


def a_step(watch, step, on_diag, **more):
    metrics = {"loss": 0.03 * 2000 + on_diag, "on_diag": on_diag, "off_diag": 2000.0, "dead_dims": 0.0, "skipped": 0}
    watch.scalars(step, {name: jnp.float32(value) for name, value in (metrics | more).items()})


SCORES = {"effective_rank": 120.5, "lidar": 30.4, "knn": 0.288, "probe": 0.1, "alignment": 0.15}
FIRST = {"images": 3591, "judged_images": 1200, "distinct_images": 1200, "features": 256, "dimensions": 512}


def test_an_epoch_is_a_sentence_with_what_its_numbers_mean(watched, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    watch = watched()
    watch.scalars(0, SCORES | FIRST)
    a_step(watch, 1, 370.0)
    for step in range(5, 15):
        a_step(watch, step, 50.0)
    watch.scalars(14, SCORES | {"effective_rank": 140.2, "lidar": 61.0, "knn": 0.55, "probe": 0.5, "alignment": 0.7})
    assert watch.epoch(1) is False
    said, judged = (record.getMessage() for record in caplog.records)
    assert said == (
        "epoch 1 of 100: loss 110 (on_diag 50, off_diag 2000); the two views of an image correlate by 0.70 (0 would be "
        "unrelated), and one dimension with another 1.9 times as much as by chance (off_diag); 0 of 512 dimensions are "
        "dead; the features use 140 of 256 directions (120 before training), and 61 tell images apart (LiDAR; 30 "
        "before training); the nearest neighbours are right in 55.0% (28.8% before training), the linear probe in 50.0%"
    )
    assert judged.startswith("learning. The two views of an image agree better than before the first step:")
    found = metric_writers.read(tmp_path / metric_writers.FILE)
    assert verdict.NAMES[found[-1]["verdict"]] == verdict.LEARNING
    a_step(watch, 28, 45.0)
    assert watch.epoch(2) is False and len(caplog.records) == 3  # the verdict is not said again where it is the same
    assert "correlate by at least 0.70 (" in caplog.messages[-1] and "directions" not in caplog.messages[-1]
    watch.scalars(28, SCORES | {"alignment": -0.001})
    assert watch.epoch(3) is False and any("correlate by 0.00 (" in message for message in caplog.messages)


@pytest.mark.parametrize("what", ["warn", "stop"])
def test_a_collapse_is_told_with_its_remedy_and_ends_the_run_where_it_is_to(watched, caplog, what):
    watch = watched(on_collapse=what)
    a_step(watch, 1, 370.0)
    for step in range(5, 15):
        a_step(watch, step, 50.0, dead_dims=300.0)
    assert watch.epoch(1) is (what == "stop")
    assert "collapsed. 300 of 512 dimensions are dead" in caplog.text
    assert "What to do: Lower config.optimizer.learning_rate_weights" in caplog.text
    with pytest.raises(UserError, match="at step 14, which is saved, the run is collapsed. 300 of .*on_collapse=warn"):
        watch.give_up(14)


def test_a_run_that_goes_on_remembers_what_it_has_written(watched):
    watch = watched()
    watch.scalars(0, SCORES | FIRST)
    a_step(watch, 1, 370.0)
    a_step(watch, 14, float("nan"))
    again = watched(resume_step=14)
    assert again._lines == watch._lines and again._lines[-1]["on_diag"] is None


def test_what_is_remembered_does_not_grow_with_the_epochs(watched, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "MOST_LINES", 60)
    lines = [json.dumps({"step": step, "loss": 1.0, "on_diag": 50.0, "off_diag": 2000.0}) for step in range(1, 301)]
    (tmp_path / metric_writers.FILE).write_text("\n".join(lines) + "\n")
    watch = watched(resume_step=300)
    assert len(watch._lines) <= 120 and watch._lines[-1]["step"] == 300
    for step in range(301, 341):
        a_step(watch, step, 50.0)
    assert len(watch._lines) <= 120 and watch._lines[0]["step"] == 1


def test_what_to_do_next_depends_on_labels():
    config = config_of("demo")
    assert "--config=configs/linear_demo.py --checkpoint=run --workdir=run/linear" in watching.next_steps(
        "run", config, 10
    )
    assert "barlow_jax.embed run IMAGES --out=features.npz" in watching.next_steps("run", config, None)
    spaced = watching.next_steps("my runs/it's", config, 10)
    assert shlex.split(spaced.partition("protocol: ")[2])[-2:] == [
        "--checkpoint=my runs/it's",
        "--workdir=my runs/it's/linear",
    ]
    small, published = config_of("imagenette32"), config_of("barlow_twins")
    assert watching.next_steps("run", small, 10).endswith(
        "--config=configs/linear.py --checkpoint=run --workdir=run/linear --config.image_size=0 --config.eval.resize=0 "
        "--config.eval.crop=0"
    )
    with published.unlocked():
        published.data.kind = "tfds"
    assert watching.next_steps("run", published, 10).endswith("configs/linear.py --checkpoint=run --workdir=run/linear")
