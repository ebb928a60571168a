"""Pictures of a run: the views, the cross-correlation matrix, nearest neighbours, a map of the features, curves.

Every function returns the picture as uint8 [height, width, 3] and, if given a path, saves it there as a PNG, in full
colour. Each has a title that says what is seen and of how much. Images may have any number of channels: one is shown as
grey, two as red and green, of more than three the first three. docs/pictures.md says how each is read.
"""

from barlow_jax.run.pictures.charts import curves, sweep
from barlow_jax.run.pictures.features import features_map, spread
from barlow_jax.run.pictures.matrix import cross_correlation_picture
from barlow_jax.run.pictures.neighbours import RIGHT, UNKNOWN, WRONG, neighbours_grid
from barlow_jax.run.pictures.paper import save
from barlow_jax.run.pictures.viewed import views_grid

__all__ = [
    "RIGHT",
    "UNKNOWN",
    "WRONG",
    "cross_correlation_picture",
    "curves",
    "features_map",
    "neighbours_grid",
    "save",
    "spread",
    "sweep",
    "views_grid",
]
