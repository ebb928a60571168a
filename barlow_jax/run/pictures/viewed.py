"""The views of some images, and what was drawn for each."""

import math

import numpy as np

from barlow_jax.run.pictures import paper

NARROWEST = 120  # pixels of a caption below a small view


def views_grid(views, mean, std, path=None, *, captions=None):
    """The views of n images, those of one side by side: a look at what the augmentation really does.

    Args:
      views: float [n, V, S, S, C], normalised with mean and std, as the network gets them; of several sizes a tuple of
        such, the largest first.
      mean, std: of each channel, on the scale 0 to 1.
      path: where to save it.
      captions: what was drawn, [n][views of all sizes] lists of a few words each, as `training.drawn.captions` gives
        them; a view without one is made by the objective out of others.
    """
    sizes, shown = views if isinstance(views, tuple) else (views,), []
    for of_one_size in sizes:
        scaled = np.asarray(of_one_size, np.float32) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
        levels = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
        shown.extend(paper.tiles(levels, like=sizes[0].shape[-2]).swapaxes(0, 1))
    n, side = shown[0].shape[:2]
    gap, letters = max(4, side // 24), paper.font(paper.TEXT)
    widths = [max(tile.shape[2], NARROWEST if captions else 0) for tile in shown]
    below = [[()] * len(shown)] * n
    if captions:
        made = len(sizes[0][0]) - (len(captions[0]) - sum(len(of_one_size[0]) for of_one_size in sizes[1:]))
        below = [_below(of_one, len(sizes[0][0]), made, widths, letters) for of_one in captions]
    ends = [tile.shape[1] + paper.height_of(len(of)) for texts in below for tile, of in zip(shown, texts, strict=True)]
    height = max(ends) + 2 * gap + (gap if captions else 0)
    blocks = []
    for k in range(n):
        block, left, texts = np.full((height, sum(widths) + (len(shown) + 1) * gap, 3), paper.PAPER, np.uint8), gap, []
        for tile, width, text in zip(shown, widths, below[k], strict=True):
            block[gap : gap + tile.shape[1], left : left + tile.shape[2]] = tile[k]
            # Below the view itself, also where larger ones stand beside it.
            top = gap + tile.shape[1] + gap // 2
            texts += [(left, top + paper.height_of(i), t, letters, paper.INK) for i, t in enumerate(text)]
            left += width + gap
        blocks.append(paper.write(block, texts))
    # About as wide as high, with a wider gap between images than between their views.
    columns = math.ceil(math.sqrt(n * height / sum(widths)))
    picture = paper.arrange(np.stack(blocks), columns=min(columns, n), gap=3 * gap)
    return paper.save(paper.titled(picture, *_titles(sizes, n, captions)), path)


def _below(captions, large, made, widths, letters):
    """The lines below each view of one image; `made` of its large views, the last ones, have no caption."""
    told = [*captions[: large - made], *[["made of the views beside it", "by the objective"]] * made]
    told += captions[large - made :]
    return [paper.wrapped(parts, width, letters) for parts, width in zip(told, widths, strict=True)]


def _titles(sizes, n, captions):
    number = " and ".join(f"{one.shape[1]} of {one.shape[2]} x {one.shape[2]} pixels" for one in sizes)
    title = f"What the network is shown: {n} {'image' if n == 1 else 'images'}, views of each: {number}"
    note = "Below each view what was drawn for it, in the order in which it acts; crop: width x height, in % of the "
    return title, note + "image's." if captions else "", paper.of_channels(sizes[0].shape[-1])
