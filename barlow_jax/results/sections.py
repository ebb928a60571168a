"""The sections of the page as HTML, one function each; all text of others goes through `markup.text`."""

from barlow_jax.results import curves, folders, settings, starts, thumbnails, verdict
from barlow_jax.results import table as tables
from barlow_jax.results.markup import DASH, table, text

TONES = {verdict.LEARNING: "good", verdict.EARLY: "quiet"}  # of a verdict; any other is "bad"


def all_of(runs, lines):
    """{name of a section: HTML}, in their order; "" where there is nothing to say.

    Args:
      runs: list of `folders.Run`; lines: of all results.jsonl.
    """
    return {
        "verdict": verdicts(runs),
        "config": settings.compared(runs),
        "pictures": pictures(runs),
        "results": measured(*tables.table(lines)),
        "events": happened(runs),
        "environment": environment(runs, lines),
    }


def nothing(named):
    """The only section of a page of folders in which there is nothing, under the name of the first."""
    folders_named = ", ".join(text(folder) for folder in named)
    return {"verdict": f"<p>No run and no result is in {folders_named} yet; give the folder of a run, or wait.</p>"}


def verdicts(runs):
    """Of one run a verdict with its reasons and its main numbers; of several a table before the verdicts."""
    trained = [run for run in runs if run.kind == folders.TRAINING and run.lines]
    if len(trained) < 2:
        return "".join(_verdict(run, judged(run)) + _cards(numbers(run)) for run in trained)
    found = {run.name: judged(run) for run in trained}
    listed = {run.name: numbers(run) for run in trained}
    titles = list(dict.fromkeys(title for of_one in listed.values() for title, *_ in of_one))
    rows = []
    for run in trained:
        values = {title: value for title, value, _ in listed[run.name]}
        rows.append(
            [
                f'<span class="swatch" data-run="{runs.index(run)}"></span>{text(run.name)}',
                f'<span class="tone {_tone(found[run.name])}">{text(found[run.name].name)}</span>',
                *(text(values.get(title, DASH)) for title in titles),
            ]
        )
    told = "".join(_verdict(run, found[run.name], named=True) for run in trained)
    return f'{table(["run", "verdict", *map(text, titles)], rows, "numbers")}<div class="told">{told}</div>'


def judged(run):
    """The verdict on a run; without its config there is none."""
    try:
        return verdict.judge(run.lines, run.config)
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        ArithmeticError,
    ):  # of a config.json that is none of a training
        return verdict.Verdict(verdict.EARLY, ("config.json is not there, or is not that of a training.",), ())


def _tone(found):
    return TONES.get(found.name, "bad")


def _verdict(run, found, named=False):
    """The name of a verdict large, why, and what to do."""

    def listed(title, sentences):
        items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
        return f"<div><h3>{title}</h3><ul>{items}</ul></div>" if items else ""

    of = f'<span class="of">{text(run.name)}</span>' if named else ""
    what = listed("Why", found.reasons) + listed("What to do", found.remedies)
    return (
        f'<article class="verdict {_tone(found)}"><h2>{of}{text(found.name[:1].upper() + found.name[1:])}</h2>'
        f'<div class="why">{what}</div></article>'
    )


def _cards(found):
    cards = "".join(
        f"<div><dt>{text(title)}</dt><dd><b>{text(value)}</b><span>{text(beside)}</span></dd></div>"
        for title, value, beside in found
    )
    return f'<dl class="cards">{cards}</dl>' if cards else ""


def numbers(run):
    """[(title, value, what stands beside it)] of what is asked first."""
    last = {name: value for line in run.lines for name, value in line.items() if value is not None}
    found = [_progress(run, last["step"])]
    beside = dict(curves.unrelated(run.config))
    if "loss" in last:
        told = f"unrelated views: {_short(beside['loss'])}" if "loss" in beside else ""
        found.append(("loss", _short(last["loss"]), told))
    for name, title in (("knn", "nearest neighbours"), ("probe", "online probe")):
        values = [line[name] for line in run.lines if line.get(name) is not None]
        if values:
            found.append(
                (title, _percent(values[-1]), f"best {_percent(max(values))}" if max(values) > values[-1] else "")
            )
    if "effective_rank" in last:
        found.append(("effective rank", f"{last['effective_rank']:.0f}", ""))
    if last.get("dead_dims"):
        found.append(("dead dimensions", f"{last['dead_dims']:.0f}", ""))
    if last.get("skipped"):
        found.append(("steps skipped", f"{last['skipped']:g}", ""))
    if "images_per_second" in last:
        wait = last.get("data_wait")
        found.append(("images a second", f"{last['images_per_second']:,.0f}", _waiting(wait)))
    return found


def _waiting(share):
    return "" if share is None else f"{100 * share:.0f} % waiting for data"


def _progress(run, step):
    """(title, value, beside) of how far a run is."""
    if run.steps is None or not run.steps[0]:
        return "step", f"{step}", ""
    epoch, whole = run.steps
    done = step / epoch
    return "epoch", f"{done:.0f}" if step % epoch == 0 else f"{done:.1f}", f"of {whole / epoch:.0f}, step {step}"


def _percent(share):
    return f"{100 * share:.1f} %"


def _short(value):
    return f"{value:.4g}"


def pictures(runs):
    """The pictures over time, each with a slider, and those that stand alone."""
    there = [run for run in runs if run.folder.is_dir()]
    frames = max(2, thumbnails.FRAMES // max(len(there), 1))
    return "".join(_album(run, frames, named=len(there) > 1) for run in there)


def _album(run, frames, named):
    shown = [_over_time(run, name, those) for name, those in thumbnails.series(run.folder, frames).items()]
    for name, uri in thumbnails.alone(run.folder, max(1, frames // 2)):
        caption = text(name.removesuffix(".png"))
        shown.append(f'<figure><img alt="{caption}" src="{uri}"><figcaption>{caption}</figcaption></figure>')
    title = f"<h3>{text(run.name)}</h3>" if named and shown else ""
    return title + f'<div class="album">{"".join(shown)}</div>' if shown else ""


def _over_time(run, name, those):
    """A figure with all pictures of a series in it, the last one shown, and a slider."""
    last = len(those) - 1
    images = "".join(
        f'<img alt="{text(name)} at step {step}" data-step="{step}" src="{uri}"{"" if k == last else " hidden"}>'
        for k, (step, uri) in enumerate(those)
    )
    slider = (
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" aria-label="step of {text(name)}">'
        if last
        else ""
    )
    return (
        f'<figure class="frames" data-key="{text(run.name)} {text(name)}">{images}{slider}<figcaption>{text(name)}, '
        f"<output>step {those[-1][0]}</output></figcaption></figure>"
    )


def measured(rows, notes):
    """The numbers of evaluations, as `table.table` gives them; columns of the paper where something stands in them."""
    if not rows:
        return ""
    kept = [k for k in range(len(tables.HEAD)) if any(row[k] for row in rows)]
    below = "".join(f"<p class=note>{text(note)}</p>" for note in notes)
    shown = [[text(row[k]) for k in kept] for row in rows]
    return table([tables.HEAD[k] for k in kept], shown, "numbers results") + below


def happened(runs):
    """The events of all runs."""
    rows = [
        [
            f"<time>{text(event.time)}</time>",
            *([text(run.name)] if len(runs) > 1 else []),
            f'<span class="kind {event.kind.replace(" ", "-")}">{text(event.kind)}</span>',
            text(event.text),
        ]
        for run in runs
        for event in run.events
    ]
    return table(["when", *(["run"] if len(runs) > 1 else []), "", "what"], rows, "events") if rows else ""


def environment(runs, lines):
    """What each run ran on, and the lines that make it and the results again."""
    shown = ""
    for run in runs:
        title = f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else ""
        rows = [_start(line) for line in run.begun]
        known = table(["started", "from", "on", "versions", "code"], rows, "starts") if rows else ""
        typed = [line["command"] for line in run.begun] or settings.reproduced(run)
        shown += title + known + _commands(typed) if typed else ""
    judged_by = _commands([line["command"] for line in lines])
    return shown + (f"<h3>Evaluations</h3>{judged_by}" if judged_by else "")


def _start(line):
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    code = line["code"] + (f", commit {line['revision']}" if line["revision"] else "")
    return [text(line["time"]), f"step {line['step']}", text(starts.devices(line)), text(versions), text(code)]


def _commands(typed):
    """Lines to be copied, which break before a flag and not inside one."""
    lines = [" ".join(f"<span>{text(word)}</span>" for word in line.split(" ")) for line in dict.fromkeys(typed)]
    shown = "\n".join(lines)
    return f'<pre class="commands">{shown}</pre>' if shown else ""


def of_curves(charts):
    """What the charts are drawn into, and in a sentence those in which nothing moved."""
    flat = [chart for chart in charts if curves.is_flat(chart)]
    drawn = (
        '<div id="charts"></div><noscript><p>The curves need JavaScript.</p></noscript>'
        if len(charts) > len(flat)
        else ""
    )
    still = ", ".join(f"{text(chart['title'])} {text(_short(chart['series'][0]['y'][0]))}" for chart in flat)
    return drawn + (f'<p class="note">All the time the same: {still}.</p>' if still else "")
