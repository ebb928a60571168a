"""What a run says of itself while it trains: a sentence an epoch, a verdict, and at the end what to do next.

watch = Teller(writer, config, workdir)
watch.scalars(step, {"loss": loss})         # to the writer, and remembered
if teller.epoch(number):                     # says how it stands; whether config.on_collapse ends the run
    watch.give_up(number)
"""

import logging
import shlex

import jax

from barlow_jax.errors import UserError
from barlow_jax.objectives import OBJECTIVES
from barlow_jax.results import measured, verdict
from barlow_jax.run import cluster, metric_writers
from barlow_jax.run.buckets import staging

log = logging.getLogger("train")


class Teller:
    """Remembers the metrics of a run, and says what they mean.

    Args:
      writer: of the run; it has cut off already what a run that goes on writes again.
      config: of the run.
      workdir: its folder.
    Attributes:
      terms: names of the loss's terms.
    """

    def __init__(self, writer, config, workdir):
        self._writer, self._config, self.terms = writer, config.to_dict(), OBJECTIVES[config.objective].terms
        written = metric_writers.read(workdir / metric_writers.FILE) if jax.process_index() == 0 else []
        self._lines = measured.thinned(written)
        self._verdict = None

    def begins(self, expected):
        """Says what the loss would be if the two views had nothing to do with each other, where a formula tells it.

        expected: of `experiment.expected_loss`.
        """
        if expected:
            log.info("loss of unrelated views: %(loss).4g (on_diag %(on_diag).4g, off_diag %(off_diag).4g)", expected)

    def scalars(self, step, values):
        """Writes {name: number}; to the scores of an evaluation comes the verdict, as its place in `verdict.NAMES`."""
        if jax.process_index() == 0:
            values = {name: metric_writers.number(value) for name, value in jax.device_get(values).items()}
            self._lines = measured.thinned([*self._lines, {"step": step} | metric_writers.finite(values)])
            if "effective_rank" in values:
                place = verdict.NAMES.index(verdict.judge(self._lines, self._config).name)
                self._lines[-1]["verdict"] = values["verdict"] = place
        self._writer.scalars(step, values)

    def epoch(self, number):
        """Says how the run stands after so many epochs; whether it is to end, which all processes are told."""
        ends = False
        if jax.process_index() == 0:
            said = sentence(self._lines, self._config, self.terms)
            log.info("epoch %d of %d: %s", number, self._config["epochs"], said)
            before, self._verdict = self._verdict, verdict.judge(self._lines, self._config)
            if before is None or before.name != self._verdict.name or "verdict" in self._lines[-1]:
                log.log(logging.INFO if self._is_well() else logging.WARNING, "%s", spoken(self._verdict))
            ends = not self._is_well()
        return self._config["on_collapse"] == "stop" and cluster.on_any_process(ends)

    def _is_well(self):
        return self._verdict.name not in verdict.FAILED

    def give_up(self, step):
        """Raises UserError with the verdict, on all processes."""

        def refuse():
            raise UserError(
                f"config.on_collapse is 'stop', and at step {step}, which is saved, the run is "
                f"{spoken(self._verdict)} With --config.on_collapse=warn the same line goes on."
            )

        cluster.on_process_0(refuse)


def spoken(found):
    """A Verdict in one line."""
    remedies = f" What to do: {' '.join(found.remedies)}" if found.remedies else ""
    return f"{found.name}. {' '.join(found.reasons)}{remedies}"


def sentence(lines, config, terms=()):
    """How a run stands, in one sentence: its newest numbers beside what they mean."""
    trained = next((line for line in reversed(lines) if "loss" in line), {})
    found = measured.measures(lines, config)
    parts = [_loss(trained, terms)]
    now = found.now
    if now:
        least = "" if now.measured else "at least "
        parts.append(
            f"the two views of an image correlate by {least}{now.alignment:z.2f} (0 would be unrelated), and one "
            f"dimension with another {now.noise:.1f} times as much as by chance (off_diag)"
        )
    if found.dead is not None:
        parts.append(f"{found.dead:.0f} of {found.d or 'all'} dimensions are dead")
    if lines and "effective_rank" in lines[-1]:
        parts += scores(found)
    return "; ".join(parts)


def _loss(line, terms):
    if line.get("loss") is None:
        return "the loss is not finite"
    of = ", ".join(f"{name} {line[name]:.4g}" for name in terms if line.get(name) is not None)
    return f"loss {line['loss']:.4g}" + (f" ({of})" if of else "")


def scores(found):
    """What an evaluation found, beside what the network gave before the first step."""
    first, last = found.first, found.last
    of = f" of {first['features']}" if "features" in first else ""
    rank = _was(first, "effective_rank", ".0f")
    parts = [f"the features use {last['effective_rank']:.0f}{of} directions" + (rank and f" ({rank})")]
    if "lidar" in last:
        told = "; ".join(filter(None, ("LiDAR", _was(first, "lidar", ".0f"))))
        parts[0] += f", and {last['lidar']:.0f} tell images apart ({told})"
    if "knn" in last:
        knn = _was(first, "knn", ".1%")
        parts.append(f"the nearest neighbours are right in {last['knn']:.1%}" + (knn and f" ({knn})"))
        # Before the first step the probe is zeros.
        parts[-1] += f", the linear probe in {last['probe']:.1%}" if "probe" in last else ""
    return parts


def _was(first, name, how):
    return f"{format(first[name], how)} before training" if name in first else ""


def next_steps(workdir, config, classes):
    """What to do with a run that has ended.

    classes: how many its images have; None or 0 where they have no labels.
    """
    run = staging.shown(workdir)
    run, linear, checkpoint = (shlex.quote(text) for text in (run, f"--workdir={run}/linear", f"--checkpoint={run}"))
    if not classes:
        return (
            f"to see which of your images are alike: python -m barlow_jax.embed {run} IMAGES --out=features.npz "
            f"--neighbours=neighbours.png; once a few have labels: python -m barlow_jax.knn {checkpoint} "
            "--config.data.path=FOLDER"
        )
    named = {"digits": "linear_demo", "folder": "linear_image_folder"}.get(config.data.kind, "linear")
    if named == "linear" and config.image_size != 224:  # its size, and 0 is that of the run
        linear += " --config.image_size=0 --config.eval.resize=0 --config.eval.crop=0"
    return (
        f"to judge it, in minutes: python -m barlow_jax.knn {checkpoint}; by the usual protocol: python "
        f"linear_eval.py --config=configs/{named}.py {checkpoint} {linear}"
    )
