"""Near-duplicates among embeddings, as `embed --pairs` and `explore --pairs` tell them: a table and a picture."""

import pathlib

import numpy as np

from barlow_jax import sharding
from barlow_jax.errors import UserError
from barlow_jax.evaluation import pairs, sheets
from barlow_jax.evaluation.image_sets import Thumbnails
from barlow_jax.run.progress import tracked

THRESHOLD, MOST = 0.97, 100_000  # if nothing else is asked for
SHOWN = 24  # pairs on the picture


def check_name(name):
    """The path of a --pairs; UserError unless it is a .csv in a folder that exists."""
    path = pathlib.Path(name).expanduser()
    if path.suffix != ".csv" or not path.parent.is_dir():
        raise UserError(f"--pairs is {name!r}; give a file in a folder that exists, ending in .csv.")
    return path


def write(name, embeddings, threshold, most=MOST):
    """Writes the pairs, and beside them a picture of some; what to print, in lines.

    Args:
      name: a .csv; the picture has its name with .png.
      embeddings: `embedded.Embeddings`.
      threshold, most: see `pairs.above`.
    Raises:
      UserError: there is one row only, or a file cannot be written.
    """
    path, (features, paths) = check_name(name), embeddings[:2]
    if len(features) < 2:
        raise UserError("There is 1 row of features, which has nothing to resemble; give two or more.")

    def track(tiles, total):
        return tracked(tiles, total, "blocks of pairs")

    found = pairs.above(features, threshold, most=most, mesh=sharding.make_mesh(), track=track)
    groups = pairs.groups(found, len(features))
    columns = found.similarity.tolist(), paths[found.first].tolist(), paths[found.second].tolist(), groups.tolist()
    sheets.table(path, ("similarity", "first", "second", "group"), zip(*columns, strict=True))
    told = [_summary(found, groups, threshold, features)]
    if found.found > len(groups):
        told.append(
            f"Of the pairs only the {len(groups)} most similar were kept, down to {found.similarity[-1]:.6f}, and the "
            "images and groups are theirs; --most keeps more, a higher --threshold finds fewer."
        )
    if len(groups):
        thumbnails = Thumbnails(embeddings.about)
        chosen = np.unique(np.linspace(0, len(groups) - 1, SHOWN).astype(int))
        blocks = [
            sheets.Block(
                f"{found.similarity[k]:.4f}   group {groups[k]}",
                [sheets.Cell(str(paths[found.first[k]])), sheets.Cell(str(paths[found.second[k]]))],
            )
            for k in chosen
        ]
        title = f"{len(chosen)} of {len(groups)} pairs, evenly spaced from the most similar to the least"
        sheets.sheet(path.with_suffix(".png"), title, blocks, thumbnails)
        told += thumbnails.told()
    return "\n".join([*told, f"In {path}" + (f" and {path.with_suffix('.png')}." if len(groups) else ".")])


def _summary(found, groups, threshold, features):
    median, high = np.quantile(pairs.usual(features), (0.5, 0.999))
    images = len(np.unique(np.concatenate([found.first, found.second])))
    count = len(np.unique(groups))
    return (
        f"Pairs with a cosine similarity of {threshold:g} or more: {found.found}. In them are {images} of "
        f"{len(features)} images, and groups of them: {count}; so {images - count} can go if one of each stays. Of "
        f"pairs drawn at random the median is {median:.3f}, and 1 in 1000 is above {high:.3f}."
    )
