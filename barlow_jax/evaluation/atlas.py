"""A map of embeddings in a file that embedding-atlas shows in a browser: where each image lies, and the image."""

import contextlib
import io
import pathlib

import numpy as np

from barlow_jax.errors import UserError
from barlow_jax.evaluation import embedded, embedding_files, maps
from barlow_jax.evaluation.image_sets import Thumbnails
from barlow_jax.run import writing

PICTURED = 20_000  # rows; of a larger set the file holds no images, which would be gigabytes
SIDE, ROWS = 96, 4096  # pixels of an image, rows that are written at a time


def check_name(name):
    """The path of --atlas; UserError unless it is a .parquet in a folder that exists and can be written here."""
    path = pathlib.Path(name).expanduser()
    if path.suffix != ".parquet" or not path.parent.is_dir():
        raise UserError(f"--atlas is {name!r}; give a file in a folder that exists, ending in .parquet.")
    embedding_files.parquet_library("leave --atlas out")
    return path


def write(name, embeddings, by):
    """Writes the columns id, path, x, y, of labelled images class, and image; what to print.

    Args:
      name: a .parquet.
      embeddings: `embedded.Embeddings`.
      by: "pca" or "umap", of the rows at length 1.
    """
    path, (pyarrow, parquet) = check_name(name), embedding_files.parquet_library()
    rows = embedded.on_sphere(embeddings.features)
    xy = components(rows) if by == "pca" else maps.umap(rows)
    n, thumbnails = len(rows), Thumbnails(embeddings.about)
    with writing.whole(path) as unfinished, contextlib.ExitStack() as stack:
        writer = None
        for start in range(0, n, ROWS):
            part = np.arange(start, min(start + ROWS, n))
            names = embeddings.paths[part].tolist()
            columns = {"id": part, "path": names, "x": xy[part, 0], "y": xy[part, 1]}
            if embeddings.labels is not None:
                columns["class"] = pyarrow.array([_class(embeddings, k) for k in part], pyarrow.string())
            if n <= PICTURED:
                kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
                columns["image"] = pyarrow.array([_image(thumbnails, name) for name in names], kind)
            table = pyarrow.table(columns)
            writer = writer or stack.enter_context(parquet.ParquetWriter(unfinished, table.schema))
            writer.write_table(table)
    pictured = n <= PICTURED
    images = f"with images of {SIDE} pixels" if pictured else f"without images, as there are more than {PICTURED}"
    line = f"pip install embedding-atlas; embedding-atlas {path} --x x --y y"
    return "\n".join([*thumbnails.told(), f"{path}: {n} rows, {images}. {line}"])


def components(rows):
    """The first two principal components of rows [n, F], float32 [n, 2]."""
    points, _ = maps.principal(lambda: (block for _, block in embedded.blocks(rows)))
    return points.astype(np.float32)


def _class(embeddings, row):
    label = embeddings.labels[row]
    if label < 0:
        return None
    return embeddings.class_names[label] if label < len(embeddings.class_names) else str(label)


def _image(thumbnails, name):
    """As browsers read it; None where it cannot be read."""
    from PIL import Image

    tile = thumbnails.of(name, SIDE)
    if tile is None:
        return None
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, format="JPEG", quality=85)
    return {"bytes": stream.getvalue(), "path": name}
