"""The images that a word names, and small pictures of some of them for people."""

import functools
import pathlib

import numpy as np

from barlow_jax.data import open_source, pixels, shards, walk
from barlow_jax.data.listed import ListedFiles
from barlow_jax.data.remote import files as remote_files
from barlow_jax.data.walk import local_path
from barlow_jax.errors import UserError

SIDE = 112  # pixels of a small picture


def open_images(named, channels, data_dir="", **reading):
    """The source that the second argument names, for a network of images with so many channels; see `open_any`."""
    source = open_any(named, channels, data_dir, **reading)
    if source.channels != channels:
        raise UserError(f"{source.name} has images of {source.channels} channels and the network is for {channels}.")
    return source


def open_any(named, channels=0, data_dir="", any_range=False, **reading):
    """The source that a word names: a folder of images or of shards (or FOLDER:SPLIT), an .npz, a list, a set of TFDS.

    Or an .npy, whose images have no labels. channels: of image files, 0 is as the set says. data_dir: of TFDS.
    any_range: takes arrays too of which it is not known what is black and white. reading: of `data.pixels.Reading`;
    of a folder of images class_names too.
    """
    reading |= {"channels": channels}
    of_arrays = {name: reading[name] for name in ("value_range", "bits") if name in reading} | {"any_range": any_range}
    if walk.is_remote(named):
        return _open_remote(named, reading, of_arrays)
    path = local_path(named)
    before, _, after = named.rpartition(":")
    if kind := shards.kind_of(path):
        source = open_source(kind, named, "", **reading)
    elif before and (kind := shards.kind_of(local_path(before))):
        source = open_source(kind, before, after, **reading)
    elif path.is_dir():
        source = open_source("folder", named, "", **reading)
    elif path.suffix in (".npz", ".npy") or before.endswith(".npz"):
        whole = path.suffix in (".npz", ".npy")
        source = open_source("npz", *((named, "") if whole else (before, after)), **of_arrays)
    elif path.is_file():
        lines = walk.read_list(path)
        if any(map(walk.is_remote, lines)):
            source = remote_files.open_list(lines, str(path), **reading)
        else:
            source = ListedFiles(path, **reading)
    elif before and "/" not in after:
        source = open_source("tfds", data_dir, after, name=before, **reading)
    else:
        raise UserError(f"{named} is no folder, no file and no NAME:SPLIT of TFDS; give the images to embed.")
    return source


def _open_remote(named, reading, of_arrays):
    """The images at an address: an .npz, a list of addresses and of paths below its own, shards, or a folder."""
    before, _, split = named.rpartition(":")
    if named.endswith(".npz") or before.endswith(".npz"):
        return open_source("npz", *((named, "") if named.endswith(".npz") else (before, split)), **of_arrays)
    if named.endswith(".txt"):
        lines = remote_files.content(named).read().decode("utf-8-sig", "replace").split("\n")
        return remote_files.open_list([line.strip() for line in lines if line.strip()], named, **reading)
    if split and "/" not in split and (kind := shards.kind_of(before)):  # first, as a split may end in .tar too
        return open_source(kind, before, split, **reading)
    if kind := shards.kind_of(named):
        return open_source(kind, named, "", **reading)
    return open_source("folder", named, "", **reading)


def counted(count, word="image"):
    """ "1 image", "7 images"."""
    return f"{count} {word}{'' if count == 1 else 's'}"


class Thumbnails:
    """Small pictures of images by their paths as embed writes them, each whole, in the middle of a white square.

    Args:
      about: of the embeddings, see `embed.made_by`: where the paths begin, and the set whose images are no files.
    Attributes:
      unreadable: {path: why} of those that were asked for and could not be read.
    """

    def __init__(self, about):
        self._about, self.unreadable = about, {}

    def of(self, path, side=SIDE):
        """uint8 [side, side, 3], or None where the image cannot be read."""
        try:
            return _in_square(self._pixels(path), side)
        except Exception as error:  # Pillow's plugins raise whatever their parsers run into; it is told of
            self.unreadable[path] = " ".join(str(error).split())[:200] or type(error).__name__
            return None

    def told(self):
        """[] or a line for people on what could not be read."""
        if not self.unreadable:
            return []
        path, why = next(iter(self.unreadable.items()))
        return [f"{counted(len(self.unreadable))} for the picture could not be read, {path} for one ({why})."]

    def _pixels(self, path):
        file = self._from(walk.named(path))
        if file.is_file():
            return self._shown(file.read_bytes())
        if self._source is None or path not in self._places:
            raise ValueError("there is no such file")
        place = self._places[path]
        if self._source.images is None:
            return self._shown(self._source.encoded(place))
        height, width = self._source.shape[:2] if self._source.sizes is None else self._source.sizes[place]
        found = self._source.images[place][:height, :width]
        return found if found.dtype == np.uint8 else (found >> 8).astype(np.uint8)

    def _shown(self, encoded):
        """uint8 [h, w, C]: of images of grey or colour in RGB, else in all of their bands."""
        reading = self._reading
        if self._about.get("channels", 3) not in (1, 3):
            reading = reading._replace(channels=self._about["channels"])
        return pixels.pillow_pixels(encoded, reading)

    def _from(self, path):
        return pathlib.Path(self._about.get("working folder", "")) / path

    @functools.cached_property
    def _reading(self):
        """As the images were read for their features, but for the number of channels: RGB shows them all."""
        return pixels.Reading.of(self._about.get("reading", {}))._replace(channels=3, bits=8)

    @functools.cached_property
    def _source(self):
        """The set whose images are no files, or None."""
        given = self._about.get("images as given", "")
        if not given or self._from(given).is_dir():
            return None
        begins = self._from(given.rpartition(":")[0] or given)
        where = str(self._from(given)) if begins.exists() or self._from(given).exists() else given
        return open_images(where, self._about["channels"], self._about["data_dir"], **self._about.get("reading", {}))

    @functools.cached_property
    def _places(self):
        return {self._source.where(place): place for place in range(len(self._source))}


def _in_square(image, side):
    """uint8 [h, w, C] at the largest size that fits, whole multiples where it grows: uint8 [side, side, 3]."""
    from PIL import Image

    channels = image.shape[-1]
    if channels == 2:
        image = np.concatenate([image, np.zeros_like(image[..., :1])], -1)
    found = Image.fromarray(np.repeat(image, 3, -1) if channels == 1 else np.ascontiguousarray(image[..., :3]))
    zoom = side // max(found.size)
    if zoom > 1:
        found = found.resize((zoom * found.width, zoom * found.height), Image.Resampling.NEAREST)
    found.thumbnail((side, side))
    square = Image.new("RGB", (side, side), "white")
    square.paste(found, ((side - found.width) // 2, (side - found.height) // 2))
    return np.asarray(square)


def value_range(words):
    """(low, high, ...) of the words of a flag --value_range; () of none. UserError where they are no pairs."""
    try:
        given = tuple(float(word) for word in words)
    except ValueError:
        given = (None,)
    if None in given or len(given) % 2:
        raise UserError(f"--value_range is {','.join(words)}; give two numbers, LOW,HIGH, or two for each channel.")
    return given
