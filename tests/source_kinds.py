"""A small source of every kind, for tests: written, opened, and written anew with other pixels under the same names."""

import pathlib
import shutil

import numpy as np
import tfds_sets
from PIL import Image

from barlow_jax import data
from barlow_jax.data.listed import ListedFiles
from barlow_jax.data.voc import VOC

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 5, 4, 3)).astype(np.uint8)


def folder(root, *names):
    for name in names:
        path = pathlib.Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"")
        else:
            path.mkdir()
    return root


def one_sentence(caught):
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400
    return text


FILES = ("folder", "listed", "voc")
KINDS = (*FILES, "npz", "digits", "array_record", "tfrecord")
COUNT = 6  # images of each, but for the digits


def write(kind, root, seed=0):
    """A set below root; another seed gives other pixels under the same names, in files of the same size."""
    images = np.random.RandomState(seed).randint(0, 256, (COUNT, 20, 24, 3)).astype(np.uint8)
    if kind in FILES:
        for k in range(COUNT):
            path = root / ("JPEGImages" if kind == "voc" else "ab"[k % 2]) / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[k]).save(path, "BMP")
        if kind == "listed":
            (root / "list.txt").write_text("".join(f"{'ab'[k % 2]}/{k}.jpg\n" for k in reversed(range(COUNT))))
        if kind == "voc":
            (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / "Main" / "cow_test.txt").write_text("".join(f"{k} {k % 2}\n" for k in range(COUNT)))
    elif kind == "npz":
        root.mkdir(exist_ok=True)
        np.savez(root / "set.npz", x_train=images, y_train=np.arange(COUNT) % 2)
    elif kind != "digits":
        shutil.rmtree(root, ignore_errors=True)
        prepared = {"train": COUNT}
        tfds_sets.prepare(
            "imagenette", root, kind, prepared, image=lambda k: tfds_sets.photo(k + COUNT * seed, (40, 48))
        )


def opened(kind, root, seed=0):
    """The source that `write` has written; seed: of the digits, which are drawn when they are opened."""
    root = pathlib.Path(root)
    return {
        "folder": lambda: data.ImageFolder(root, class_names=("a", "b")),
        "listed": lambda: ListedFiles(root / "list.txt"),
        "voc": lambda: VOC(root, "test"),
        "npz": lambda: data.open_source("npz", str(root / "set.npz")),
        "digits": lambda: data.open_source("digits", split="val", renderings=1, seed=seed),
        "array_record": lambda: data.open_source("tfds", str(root), name="imagenette"),
        "tfrecord": lambda: data.open_source("tfds", str(root), name="imagenette"),
    }[kind]()
