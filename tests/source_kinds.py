"""A small source of every kind, for tests: written, opened, and written anew with other pixels under the same names."""

import io
import json
import pathlib
import shutil
import tarfile

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
KINDS = (*FILES, "npz", "digits", "array_record", "tfrecord", "tar", "parquet")
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
    elif kind in ("tar", "parquet"):
        root.mkdir(exist_ok=True)
        files = [bmp(image) for image in images]
        (write_tars if kind == "tar" else write_parquet)(root, files, [k % 2 for k in range(COUNT)])
    elif kind != "digits":
        shutil.rmtree(root, ignore_errors=True)
        prepared = {"train": COUNT}
        tfds_sets.prepare(
            "imagenette", root, kind, prepared, image=lambda k: tfds_sets.photo(k + COUNT * seed, (40, 48))
        )


def bmp(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "BMP")
    return stream.getvalue()


def write_tars(root, files, labels, names=("a", "b"), shards=2, format=tarfile.USTAR_FORMAT):
    """train-0.tar, ... as WebDataset has them, by tarfile."""
    (root / "classes.json").write_text(json.dumps(names))
    for shard in range(shards):
        with tarfile.open(root / f"train-{shard}.tar", "w", format=format) as tar:
            for k in range(shard * len(files) // shards, (shard + 1) * len(files) // shards):
                for ending, content in (("jpg", files[k]), ("cls", str(labels[k]).encode())):
                    member = tarfile.TarInfo(f"{k:05}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_parquet(root, files, labels, names=("a", "b"), shards=2, rows=2):
    """train-0.parquet, ... as datasets writes them, by pyarrow, with `rows` of a row group."""
    import pyarrow
    from pyarrow import parquet

    about = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": about}})}
    for shard in range(shards):
        span = slice(shard * len(files) // shards, (shard + 1) * len(files) // shards)
        images = pyarrow.array([{"bytes": file, "path": None} for file in files[span]])
        table = pyarrow.table({"image": images, "label": pyarrow.array(labels[span], pyarrow.int64())})
        parquet.write_table(table.replace_schema_metadata(about), root / f"train-{shard}.parquet", row_group_size=rows)


def opened(kind, root, seed=0):
    """The source that `write` has written; seed: of the digits, which are drawn when they are opened."""
    root = pathlib.Path(root)
    return {
        "folder": lambda: data.ImageFolder(root, class_names=("a", "b")),
        "listed": lambda: ListedFiles(root / "list.txt"),
        "voc": lambda: VOC(root, "test"),
        "npz": lambda: data.open_source("npz", str(root / "set.npz")),
        "digits": lambda: data.open_source("digits", split="val", renderings=1, seed=seed),
        "tar": lambda: data.open_source("tar", str(root)),
        "parquet": lambda: data.open_source("parquet", str(root)),
        "array_record": lambda: data.open_source("tfds", str(root), name="imagenette"),
        "tfrecord": lambda: data.open_source("tfds", str(root), name="imagenette"),
    }[kind]()
