"""Which of the images below a folder are taken, and of which class they are; wherever the folder lies."""

import numpy as np

from barlow_jax.data import walk
from barlow_jax.errors import UserError


def _class_numbers(root, files, folders, class_names):
    """The class of each file below root: int32 [n]. UserError for a class folder that is empty or not asked for."""
    places = {folder: files.below(folder) for folder in folders}
    if empty := [folder for folder in folders if not places[folder]]:
        raise UserError(
            f"The class folder {walk.readable(f'{root}/{empty[0]}')} holds no image: add some, let it be read, or "
            "delete it."
        )
    number = {name: k for k, name in enumerate(class_names)}
    if unknown := sorted(set(map(walk.readable, folders)) - set(number)):
        raise UserError(
            f"The class folder {root}/{unknown[0]} is none of the {len(number)} classes asked for: rename or remove it."
        )
    numbers = np.empty(len(files), np.int32)
    for folder, rows in places.items():
        numbers[rows.start : rows.stop] = number[walk.readable(folder)]
    return numbers


def _first_beside(files, folders):
    """The first of the files that lies beside the folders and in none of them, or None."""
    if sum(len(files.below(folder)) for folder in folders) == len(files):
        return None
    return next(name for name in files if "/" not in name)


def arranged(root, files, folders, labels, class_names, listed):
    """Image files below `root`, and its sub-folders, by the rules of ImageFolder: (files, labels, class names, name).

    root: a path or an address, for messages. files: Paths below it, sorted; those that are taken come back.
    """
    if labels not in ("auto", "folders", "none"):
        raise UserError(f"labels is {labels!r}, but must be 'auto', 'folders' or 'none'.")
    beside = _first_beside(files, folders)
    if labels == "auto" and class_names is None:
        labels = "folders" if len(folders) >= 2 and beside is None else "none"
    numbers, name = None, str(root)
    if labels == "folders" or class_names is not None:
        if beside is not None:
            raise UserError(f"{walk.readable(f'{root}/{beside}')} lies beside the class folders: move it into one.")
        class_names = tuple(class_names or map(walk.readable, folders))
        numbers = _class_numbers(root, files, folders, class_names)
    if listed:
        rows, name = walk.listed(files, listed, root), f"{root} ({listed})"
        files = files.take(rows)
        numbers = None if numbers is None else numbers[rows]
    return files, numbers, class_names, name
