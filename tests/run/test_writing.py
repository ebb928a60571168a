"""Files are there whole or not at all: on a full disk, after an error, and through links and devices."""

import os
import pathlib
import re
import resource
import sys

import commands
import numpy as np
import pytest
from saved_runs import a_config, save_run

from barlow_jax import export, results
from barlow_jax.errors import UserError
from barlow_jax.evaluation import embedding_files, heads, sheets
from barlow_jax.run import lock, metric_writers, pictures, workdir, writing

# Larger than the 64 kB of `full_disk`, and nothing that could be packed.
FEATURES = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
NOISE = FEATURES.view(np.uint8)[:, :192].reshape(500, 64, 3)
LINE = {name: types[0]() for name, types in results.lines.KEYS.items()}


def parts(folder):
    """Features in four parts, each of which fits."""
    found = embedding_files.Parts(folder / "parts", {})
    for done in (125, 250, 375, 500):
        rows = np.arange(done - 125, done)
        found.add(done, rows, np.full(125, -1, np.int32), FEATURES[rows])
    return found


def one_part(file):
    embedding_files.Parts(file.parent, {}).add(int(file.stem), np.arange(500), np.zeros(500, np.int32), FEATURES)


def head(file):
    heads.save(file, heads.Head(FEATURES, np.zeros(64), np.ones(500), np.ones(500)), step=7)


def written(folder):
    """{name: bytes} of all files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.txt", lambda file, _: writing.text(file, "a" * 100_000)),
        ("x.npz", lambda file, found: embedding_files.write_npz(file, found, str, None)),
        ("x.parquet", lambda file, found: embedding_files.write_parquet(file, found, str, None)),
        ("000000000500.npz", lambda file, _: one_part(file)),
        ("fast_probe.npz", lambda file, _: head(file)),
        ("features.npz", lambda file, _: writing.arrays(file, {"told": np.asarray("x"), "features": FEATURES})),
        ("results.jsonl", lambda file, _: results.append(file.parent, [LINE | {"n": n} for n in range(500)])),
        ("config_changes.jsonl", lambda file, _: writing.append(file, ["x" * 1000] * 100)),
        ("views.png", lambda file, _: pictures.save(NOISE, file)),
        ("pairs.csv", lambda file, _: sheets.table(file, ("path",), [["x" * 1000]] * 100)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_full_disk_leaves_what_was_there(tmp_path, full_disk, name, write):
    """One sentence with the file and the remedy, nothing half-written; and the file where there is space again."""
    found, folder = parts(tmp_path), tmp_path / "out"
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    folder.mkdir()
    write_about = {"about.json": b"{}"} if name.startswith("0") else {}
    for before in ({}, {name: b""}):
        for other, content in (before | write_about).items():
            (folder / other).write_bytes(content)
        with pytest.raises(UserError) as error:
            write(folder / name, found)
        assert str(error.value) == (
            f"{folder / name} cannot be written (File too large); free some space there and start again with the same "
            "line."
        )
        assert written(folder) == before | write_about
    full_disk()
    write(folder / name, found)
    assert (folder / name).stat().st_size > 65536 and written(folder).keys() == {name, *write_about}


def test_the_lines_of_a_run_that_goes_on_stay(tmp_path, full_disk):
    full_disk()
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {step}, "loss": 0.123456789}}\n' for step in range(3000)))
    before = written(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
    with pytest.raises(UserError, match="metrics.jsonl cannot be written"):
        metric_writers.keep_until(file, 2500)
    assert written(tmp_path) == before


@pytest.mark.parametrize("layout", ["torchvision", "detectron2", "safetensors"])
def test_an_export_to_a_full_disk(run, tmp_path, full_disk, layout):
    (tmp_path / "x").write_text("what was there")
    with pytest.raises(UserError, match=r"/x cannot be written \(File too large\); free some space there"):
        export.export(export.read(run), layout, tmp_path / "x")
    assert written(tmp_path) == {"x": b"what was there"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, a_config("resnet18", stem="cifar"))
    return folder


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "x").write_text("before")
    for error in (KeyError, KeyboardInterrupt):
        with pytest.raises(error), writing.whole(tmp_path / "x") as unfinished:
            unfinished.write_text("half")
            raise error
        assert written(tmp_path) == {"x": b"before"}


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder, half = tmp_path / "x", tmp_path / ".x.unfinished"
    half.mkdir()
    (half / "old").write_text("of a command that was killed")
    with pytest.raises(KeyboardInterrupt), writing.whole_folder(folder) as unfinished:
        (unfinished / "a").write_text("half")
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]
    folder.mkdir()
    with writing.whole_folder(folder) as unfinished:
        (unfinished / "a").write_text("all")
        assert not [*folder.iterdir()]
    assert written(tmp_path) == {"x/a": b"all"}
    for there in (folder, folder / "a"):
        with pytest.raises(UserError, match=rf"^{there} is there already; remove it"), writing.whole_folder(there):
            raise AssertionError("nobody writes")
    with (
        pytest.raises(UserError, match=r"gone/x cannot be written \(No such file or directory\); see to it"),
        writing.whole_folder(tmp_path / "gone" / "x"),
    ):
        raise AssertionError("nobody writes")
    assert written(tmp_path) == {"x/a": b"all"}


def test_links_are_followed_and_devices_written_to(tmp_path):
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    writing.text(tmp_path / "link", "now")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "now"
    writing.text("/dev/null", "now")
    for name, reason in (("/dev/full", "No space left on device"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"^{re.escape(str(name))} cannot be written \({reason}\); "):
            writing.text(name, "now")
    with pytest.raises(UserError, match=r"gone/x cannot be written \(No such file or directory\); see to it"):
        writing.text(tmp_path / "gone" / "x", "now")


def test_lines_behind_half_a_line(tmp_path):
    (tmp_path / "x").write_text("one\nha")
    writing.append(tmp_path / "x", ["two"])
    assert (tmp_path / "x").read_text() == "one\nha\ntwo\n"


APPENDS = """
import pathlib, sys, time
from barlow_jax import results
folder, first, line = pathlib.Path(sys.argv[1]), int(sys.argv[2]), {line}
(folder / f"ready{{first}}").touch()
while len([*folder.glob("ready*")]) < 2:
    time.sleep(0.001)
for n in range(first, first + 200, 4):
    results.append(folder, [line | {{"n": k}} for k in range(n, n + 4)])
"""


def test_two_processes_append_to_one_file(tmp_path):
    """200 results each, at once: all are there, each once and whole."""
    (tmp_path / "append.py").write_text(APPENDS.format(line=LINE))
    both = [commands.start(str(tmp_path / "append.py"), str(tmp_path), first) for first in ("0", "1000")]
    outputs = [commands.finish(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    found = [line["n"] for line in results.read(tmp_path / results.FILE)]
    assert sorted(found) == [*range(200), *range(1000, 1200)]
    assert found not in (sorted(found), sorted(found, key=lambda n: (n < 1000, n)))  # else one came after the other
    assert not [*tmp_path.glob(".*")]


def test_what_the_next_process_writes_is_left_alone(tmp_path, monkeypatch):
    """Once a file has its name another process may begin to write it anew, under the same name beside it."""
    real = os.replace

    def replaced(source, target):
        real(source, target)
        source.write_text("of the next")

    monkeypatch.setattr(writing.os, "replace", replaced)
    writing.append(tmp_path / "x", ["one"])
    assert (tmp_path / "x").read_text() == "one\n"
    assert (tmp_path / ".x.unfinished").read_text() == "of the next"


def test_a_file_that_may_not_be_written_is_replaced_as_before(tmp_path, monkeypatch):
    """Of another user, in a folder that is everybody's: there no lock can be had."""
    (tmp_path / "x").write_text("one\n")
    real = os.open

    def refused(path, flags, *rest, **more):
        if str(path).endswith("/x") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(lock.os, "open", refused)
    writing.append(tmp_path / "x", ["two"])
    assert (tmp_path / "x").read_text() == "one\ntwo\n"


def test_a_log_that_cannot_be_written_does_not_end_a_run(tmp_path, full_disk, caplog, capfd):
    with workdir.opened(str(tmp_path), {}) as folder:
        for _ in range(100):
            workdir.log.warning("x" * 1000)
    assert f"{folder / 'log.txt'} cannot be written (File too large); log lines do not go there" in caplog.text
    assert caplog.text.count("cannot be written") == 1 and "Traceback" not in capfd.readouterr().err


# Where the package writes a file by itself: in `writing`, and where the name is one that `writing.whole` gave.
ELSEWHERE = {
    "run/manifest.py": 1,  # into the folder that Orbax gives its name
    "run/last_words.py": 1,  # the standard error
    "run/stages.py": 1,  # what a command prints, as it comes
    "run/checkup_host.py": 2,  # what the doctor writes to see how fast it goes
    "run/metric_writers.py": 1,  # line by line, as they come
    "run/pictures/paper.py": 1,  # a PNG that Pillow would make larger
    "evaluation/embedding_files.py": 1,  # a part of an archive
    "weights/files.py": 1,
    "weights/pickle_writer.py": 1,
    "weights/onnx_graph.py": 1,
    "export.py": 1,
    "run/buckets/reading.py": 1,  # an object brought down
    # data/ stands beside run/ and imports nothing of it; what it keeps may as well not be there, and pack says what is
    "data/kept.py": 2,
    "data/tars.py": 2,
    "data/remote/cache.py": 2,
    "data/remote/objects.py": 1,  # an object brought down, whole or not at all
    "data/remote/prepared.py": 1,
    "data/pack.py": 2,
    "data/pack_forms.py": 1,
    "data/tfds_files.py": 1,
    "fields/page.py": 1,  # a page of docs/, by hand
}


def test_an_address_is_no_place_to_write_to():
    assert writing.named("~/x.npz") == pathlib.Path.home() / "x.npz" and writing.named("") == pathlib.Path()
    for address in ("s3://b/x.npz", "gs://b", "https://h/x"):
        with pytest.raises(UserError, match=f"^{address} is an address, and this command works on a disk"):
            writing.named(address)


def test_files_are_written_in_one_place():
    package, found = commands.ROOT / "barlow_jax", {}
    ways = re.compile(r"\.write_(?:text|bytes)\(|open\([^)]*[\"'][wax]b?\+?[\"']|np\.savez?\(\S*path|os\.replace\(")
    for file in package.rglob("*.py"):
        if file.name != "writing.py" and (count := len(ways.findall(file.read_text()))):
            found[str(file.relative_to(package))] = count
    assert found == ELSEWHERE


def test_a_command_that_prints_to_a_full_disk():
    """One sentence, and none of what Python says when it tries again at the end."""
    code = "from barlow_jax.run import launch; launch.run(lambda _: print('x'), lambda _: None)"
    line = f'"{sys.executable}" -c "{code}" > /dev/full'
    process = commands.Command("sh", "-c", line, env=commands.environment())
    output = commands.finish(process)
    assert process.returncode == 1 and output.count("\n") == 1, output
    assert output.startswith("error: There is no space for what this command prints (No space left on device); free")
