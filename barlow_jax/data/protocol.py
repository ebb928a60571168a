"""What a source of images is: everything that may be asked of one, whatever kind it is.

Whoever reads images takes a `Source` and asks it nothing else, and whoever adds a kind gives what stands here (of
images that lie encoded on a disk `sources.Encoded` gives half of it) and a line in kinds.py.
"""

from collections.abc import Iterator
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from barlow_jax.data.readers import Job


class Source(Protocol):
    """A set of images in a fixed order, with or without labels, each addressed by its place 0 .. len() - 1."""

    @property
    def name(self) -> str:
        """What to call it in messages and results."""
        ...

    @property
    def channels(self) -> int:
        """Of each image as it is read: C below."""
        ...

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(height, width, C) of the largest image; None where only the image files know."""
        ...

    @property
    def images(self) -> Any | None:
        """All of them [n, *shape], uint8 or uint16, if they may go to the devices as they are; else None.

        An array in memory, or a `mapped.Levels`, which makes such of what lies on the disk as it is asked for rows.
        """
        ...

    @property
    def sizes(self) -> NDArray[np.int32] | None:
        """Height and width of each of `images`, int32 [n, 2], the content being at the top left; None: all of it."""
        ...

    @property
    def num_classes(self) -> int | None:
        """One more than the largest label can be; None: unlabelled."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes by number, or None."""
        ...

    @property
    def labels(self) -> NDArray[np.int32] | None:
        """int32 [n], -1 = unlabelled; None where there are none, or where they can be had only with the images."""
        ...

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """The places where what can only be read whole begins, 0 the first, as row groups of Parquet; None: none."""
        ...

    def __len__(self) -> int:
        """n, the number of images."""
        ...

    def take(self, rows: ArrayLike) -> Self:
        """The images at the places `rows` (int [m]) as a source of their own."""
        ...

    def where(self, index: int) -> str:
        """What to call an image, for a person: the path of its file, or the set and the image's number there."""
        ...

    def stored_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image as it is stored; of a file its header says it."""
        ...

    def fingerprint(self) -> str:
        """64 hex digits that change when the images or labels do, and are the same in another process.

        Found when it is asked for: of files by size and time of change, of what is in memory by every byte.
        """
        ...

    def listing(self) -> str:
        """64 hex digits of which images there are, in which order and of which class, wherever the set lies.

        What the order of training goes by: it changes when images come, go or are renamed, and not when the set moves
        to another folder or host.
        """
        ...

    def batches(self, job: Job) -> Iterator[dict[str, np.ndarray]]:
        """The batches that a job asks for, in order, as decode.canvas_batches describes them."""
        ...

    def why_unreadable(self, index: int) -> str:
        """A few words on what is wrong with an image that `batches` passed over; "" where nothing is."""
        ...
