"""Some images, each with those nearest to it."""

import numpy as np

from barlow_jax.run.pictures import paper

# Okabe and Ito's bluish green and vermillion, which colour-blind readers tell apart, and a grey for "not known".
RIGHT, WRONG, UNKNOWN = (0, 158, 115), (213, 94, 0), (187, 187, 187)
LARGEST = 160  # pixels of a side; larger images are reduced, so that nine of them fit on a screen


def neighbours_grid(queries, neighbours, correct=None, path=None, *, names=None, similarities=None):
    """Each query, then its nearest neighbours, framed in green where they are of its class and in orange where not.

    Args:
      queries: uint8 [n, S, S, C].
      neighbours: uint8 [n, k, S, S, C], the nearest first.
      correct: bool [n, k]; None (no labels) makes every frame grey.
      path: where to save it.
      names: [n][1 + k], of the query and its neighbours, shortened in the middle where they are too long.
      similarities: float [n, k], cosines, printed below the neighbours.
    """
    images = np.concatenate([np.asarray(queries)[:, None], np.asarray(neighbours)], axis=1)
    shown = paper.tiles(images, most=LARGEST)
    n, k, side = shown.shape[0], shown.shape[1] - 1, shown.shape[2]
    frame = max(3, side // 24)
    gap, cell, letters = 2 * frame, side + 2 * frame, paper.font(paper.TEXT)
    colours = np.full((n, k, 3), UNKNOWN, np.uint8)
    if correct is not None:
        colours = np.where(np.asarray(correct)[..., None], np.uint8(RIGHT), np.uint8(WRONG))
    lines = (names is not None) + (similarities is not None)
    # The query stands apart: twice the gap, and a rule in the middle of it.
    lefts = [gap // 2] + [gap // 2 + cell + 3 * gap + j * (cell + gap) for j in range(k)]
    row_height = cell + gap + paper.height_of(lines)
    sheet = np.full((paper.height_of(1) + n * row_height, lefts[-1] + cell + gap // 2, 3), paper.PAPER, np.uint8)
    rule = lefts[0] + cell + 3 * gap // 2
    sheet[:, rule : rule + 1] = UNKNOWN
    heads = ["query", *(f"nearest {j + 1}" if j == 0 else str(j + 1) for j in range(k))]
    texts = [(x + frame, 0, head, letters, paper.FAINT) for x, head in zip(lefts, heads, strict=True)]
    for i in range(n):
        top = paper.height_of(1) + i * row_height + gap // 2
        for j, x in enumerate(lefts):
            if j:
                sheet[top : top + cell, x : x + cell] = colours[i, j - 1]
            sheet[top + frame : top + frame + side, x + frame : x + frame + side] = shown[i, j]
            below = [] if names is None else [paper.shortened_to(names[i][j], side, letters)]
            below += [f"{similarities[i][j - 1]:.3f}"] if similarities is not None and j else []
            left = x if j else x + frame  # the query has no frame
            texts += [(left, top + cell + 1 + paper.height_of(at), t, letters, paper.INK) for at, t in enumerate(below)]
    return paper.save(paper.titled(paper.write(sheet, texts), *_titles(n, k, images, correct, similarities)), path)


def _titles(n, k, images, correct, similarities):
    title = f"{n} {'image' if n == 1 else 'images'}, and the {k} nearest to each by the cosine of the features"
    frames = "Grey frames: no labels." if correct is None else "Frames: green is the query's class, orange another."
    cosines = "" if similarities is None else " Numbers: the cosine, 1 of the same direction."
    return title, frames + cosines, paper.of_channels(images.shape[-1])
