"""notebooks/cifar10.ipynb: its cells, run from top to bottom on a small archive of the same form."""

import ast
import contextlib
import hashlib
import io
import json
import pathlib
import tarfile

import commands
import numpy as np
import pytest
from PIL import Image

import barlow_jax

FILE = commands.ROOT / "notebooks" / "cifar10.ipynb"
CLASSES = ("airplane", "automobile", "bird")
JUPYTER = "from IPython.display import Image, display"  # in its place a list of what was shown
PARAMETERS = {"MINUTES", "SOURCE", "ARCHIVE", "SHA256", "FOLDER", "FIELDS"}


def cells():
    held = json.loads(FILE.read_text())["cells"]
    return ["".join(cell["source"]) for cell in held if cell["cell_type"] == "code"]


def archive(file, each=40):
    """A .tar.gz as the authors of CIFAR-10 have it: five files to train on, one to test; the colour tells the class."""
    rng = np.random.default_rng(0)
    with tarfile.open(file, "w:gz") as held:

        def add(name, content):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            held.addfile(info, io.BytesIO(content))

        add("batches.meta.txt", ("\n".join(CLASSES) + "\n\n").encode())
        for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
            labels = rng.integers(0, 3, each)
            images = rng.integers(0, 150, (each, 3, 32, 32)) + 100 * np.eye(3, dtype=int)[labels][:, :, None, None]
            rows = np.concatenate([labels[:, None], images.reshape(each, -1)], axis=1)
            add(name, rows.astype(np.uint8).tobytes())
    return file


def size_of(filename):
    """(width, height) of a picture."""
    with Image.open(filename) as picture:
        return picture.size


def test_the_notebook_is_committed_without_outputs_and_asks_for_what_there_is():
    assert not any(cell.get("outputs") for cell in json.loads(FILE.read_text())["cells"])
    assigned = {node.targets[0].id for node in ast.parse(cells()[0]).body}
    assert assigned == PARAMETERS
    asked = {
        node.attr
        for cell in cells()
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "barlow_jax"
    }
    assert asked == {"train", "load", "evaluate"} and asked <= {*barlow_jax.__all__}


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    small = archive(tmp_path / "small.tar.gz")
    shown = []
    assert any(JUPYTER in cell for cell in cells())
    first, *others = [cell.replace(JUPYTER, "") for cell in cells()]
    scope, printed = {"display": shown.append, "Image": size_of}, io.StringIO()
    exec(first, scope)
    scope |= {
        "MINUTES": 0,
        "SOURCE": "",
        "FOLDER": str(tmp_path / "runs"),
        "ARCHIVE": small.as_uri(),
        "SHA256": "0" * 64,
    }
    scope["FIELDS"] = {"arch": "convnet", "projector": (16, 16), "batch_size": 16}
    with pytest.raises(ValueError, match="is not what it was"):
        for cell in others[:2]:
            exec(cell, scope)
    scope["SHA256"] = hashlib.sha256(small.read_bytes()).hexdigest()
    with contextlib.redirect_stdout(printed):
        for cell in others:
            exec(cell, scope)
    text = printed.getvalue()
    assert "200 images to learn from, 40 to judge by: airplane, automobile, bird" in text
    assert "2 epochs of 200 images" in text and "finished" in text and "step 0" in text and "step 24" in text
    assert len(shown) == 4  # views, two matrices, neighbours
    assert all(width > 100 and height > 100 for width, height in shown)
    scores = {
        name: [line["value"] for line in lines if line["metric"] == "top1"] for name, lines in scope["results"].items()
    }
    assert scores.keys() == {("knn", "random"), ("probe", "random"), ("knn", ""), ("probe", "")}
    assert all(values and 0 <= min(values) <= max(values) <= 1 for values in scores.values())
    # The images are those of the archive: channels apart in it, together here; red tells the first class.
    first_class = scope["x_train"][scope["y_train"] == 0].mean((0, 1, 2))
    assert scope["x_train"].shape == (200, 32, 32, 3) and first_class.argmax() == 0
    assert pathlib.Path(scope["run"], "checkpoints").is_dir()
