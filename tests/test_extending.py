"""docs/extending.md does what it says: its text, applied to a copy of the tree, and what comes of it."""

import gzip
import re
import shutil
import struct
import subprocess

import commands
import numpy as np
import pytest

PAGE = (commands.ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(zip(*[iter(re.split(r"^## (.*)\n", PAGE, flags=re.M)[1:])] * 2, strict=True))
COPIED = ("barlow_jax", "configs", "train.py", "linear_eval.py", "pyproject.toml")


def copy_of_the_tree(folder):
    for name in COPIED:
        copy = shutil.copytree if (commands.ROOT / name).is_dir() else shutil.copy2
        copy(commands.ROOT / name, folder / name)
    return folder


def applied(folder, text):
    """The section's files and patches in a copy of the tree: ({path of each}, lines added)."""
    paths, added = set(), 0
    for path, code in re.findall(r"^`(\S+)`:\n\n```python\n(.*?)```", text, re.M | re.S):
        (folder / path).write_text(code)
        paths.add(path)
        added += code.count("\n")
    for patch in re.findall(r"^```diff\n(.*?)```", text, re.M | re.S):
        # No context: the neighbour of a line may be another section's.
        subprocess.run(["git", "apply", "-C0"], input=patch.encode(), cwd=folder, check=True, capture_output=True)
        paths |= set(re.findall(r"^\+\+\+ b/(\S+)", patch, re.M))
        added += len(re.findall(r"^\+(?!\+\+)", patch, re.M))
    return paths, added


def test_each_has_the_size_that_it_says(tmp_path):
    assert list(SECTIONS) == ["A loss", "A backbone", "An augmentation", "A data source", "An evaluation"]
    for name, text in SECTIONS.items():
        folder = copy_of_the_tree(tmp_path / name)
        paths, added = applied(folder, text)
        assert f"\n{len(paths)} files, {added} lines.\n" in text, (name, paths, added)
        for path in paths - {"pyproject.toml"}:
            compile((folder / path).read_text(), path, "exec")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """The tree with all five."""
    folder = copy_of_the_tree(tmp_path_factory.mktemp("extended"))
    for text in SECTIONS.values():
        applied(folder, text)
    return folder


def write_idx(folder):
    """Four classes of grey levels, as MNIST's four files, the images behind gzip."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, n in (("train", 64), ("t10k", 32)):
        labels = np.arange(n, dtype=np.uint8) % 4
        images = (60 * labels[:, None, None] + rng.integers(0, 40, (n, 28, 28))).astype(np.uint8)
        head = bytes((0, 0, 8, 3)) + struct.pack(">3i", *images.shape)
        with gzip.open(folder / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(head + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(
            bytes((0, 0, 8, 1)) + struct.pack(">i", n) + labels.tobytes()
        )
    return folder


@pytest.mark.slow
def test_all_of_them_train_and_are_judged(extended, tmp_path):
    """One run with the loss, the backbone, the augmentation and the source, and the evaluation of it."""
    data, run = write_idx(tmp_path / "digits"), tmp_path / "run"
    line = (
        str(extended / "train.py"),
        "--config=cifar10",
        *(word for word in commands.SMALL if "arch" not in word and "canvas" not in word),
        "--config.arch=convmixer",
        "--config.objective=uniformity",
        "--config.views.posterize=0.5",
        "--config.views.mean=(0.5,)",
        "--config.views.std=(0.25,)",
        "--config.data.kind=idx",
        f"--config.data.path={data}",
        "--config.data.val=test",
        "--config.data.canvas=32",
        "--config.eval.knn_k=5",
        "--config.epochs=2",
        f"--workdir={run}",
    )
    status, output = commands.run(*line, PYTHONPATH=str(extended))
    assert status == 0, output
    steps = [line for line in commands.lines(run) if "loss" in line]
    assert len(steps) == 8 and all({"alignment", "uniformity"} <= line.keys() for line in steps)
    status, output = commands.run(
        "-m", "barlow_jax.centroids", f"--checkpoint={run}", PYTHONPATH=str(extended), prefix=("env", "-C", extended)
    )
    assert status == 0 and re.search(r"nearest class mean +\d", output), output
    (data / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    status, output = commands.run(*line, f"--workdir={tmp_path / 'other'}", PYTHONPATH=str(extended))
    commands.assert_refused(status, output, "t10k-labels-idx1-ubyte is no whole IDX file of bytes with 1 axes")


@pytest.mark.slow
def test_the_loss_and_the_augmentation_are_what_they_say(extended):
    """The loss in numpy in float64; the operation as Pillow's; and the draws of the others stay."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from PIL import Image, ImageOps
from barlow_jax import augment
from barlow_jax.objectives.uniformity import uniformity
from barlow_jax.ops import color

rng = np.random.default_rng(0)
z = rng.normal(size=(2, 12, 5))
got, terms = jax.jit(lambda a, b: uniformity(a, b, weight=0.7))(*z)
unit = z / np.linalg.norm(z, axis=2, keepdims=True)
align = ((unit[0] - unit[1]) ** 2).sum(1).mean()
spread = 0
for v in unit:
    squares = ((v[:, None] - v[None]) ** 2).sum(2)
    spread += np.log(np.exp(-2 * squares)[~np.eye(12, dtype=bool)].mean()) / 2
found = [got, terms["alignment"], terms["uniformity"]]
np.testing.assert_allclose(found, [align + 0.7 * spread, align, spread], rtol=1e-5)

levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
image = np.stack([levels] * 3, 2)
theirs = ImageOps.posterize(Image.fromarray(image), 4)
np.testing.assert_array_equal(color.posterize(image.astype(np.float32), 4), theirs)

key = jax.random.key(3)
np.testing.assert_array_equal(jax.random.uniform(key, (17,))[:16], jax.random.uniform(key, (16,)))
"""
    status, output = commands.run("-c", code, PYTHONPATH=str(extended), prefix=("env", "-C", extended))
    assert status == 0, output
