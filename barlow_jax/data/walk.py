"""Which files below a folder are images, what was left out and why; and file lists, which choose among them."""

import collections
import logging
import os
import pathlib
import re
from typing import NamedTuple

from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

# torchvision's list, and GIF. What a file is tells its content: a PNG named .JPEG is read as a PNG.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")

# How files of these formats begin; "." is any byte.
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM....\x00\x00\x00\x00|GIF8[79]a|II\*\x00|MM\x00\*", re.DOTALL
)

# Images of formats that are not read: worth a warning where they lie among others.
OTHER_FORMATS = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga", ".jfif", ".svg", ".psd", ".dcm", ".exr", ".hdr"),
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".ico", ".icns", ".fits", ".npy"),
)
ARCHIVES_REST = "__MACOSX"  # what the Finder puts into a ZIP beside the files themselves


class Found(NamedTuple):
    """What lies below a folder."""

    images: list[str]  # paths below it, sorted, '/'-separated
    left_out: collections.Counter  # of kinds, in words
    unreadable: list[str]  # folders that may not be looked into


def local_path(path):
    """A path as pathlib.Path, the home folder in place of "~". UserError for an address of a bucket."""
    if "://" in str(path):
        raise UserError(f"{path} is not on a file system: mount the bucket and give that folder.")
    return pathlib.Path(path).expanduser()


def readable(path):
    r"""A path or name of a file as text that can be printed and stored, from which the name can be had again.

    Names are bytes. One that is UTF-8 is itself. In others each byte that is none stands as \xNN, and a backslash as
    two; so does a name in which a backslash and an x follow each other, lest the two be taken for such a byte.
    """
    path = str(path)
    if path.isascii() and "\\x" not in path:
        return path
    try:
        path.encode()
        if "\\x" not in path:
            return path
    except UnicodeEncodeError:
        pass
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def named(text):
    """The path that `readable` told, for the operating system."""
    if "\\x" not in text:
        return text

    def meant(match):
        return "\\" if match[1] == "\\" else chr(0xDC00 + int(match[1][1:], 16))  # as os.fsdecode has such a byte

    return os.fsdecode(os.fsencode(re.sub(r"\\(\\|x[0-9a-f]{2})", meant, text)))


def look(root):
    """What lies below a folder, as `Found`.

    Regular files are looked at, and links to them; what is hidden, `__MACOSX`, pipes, sockets and devices are left
    out. A link to a folder is followed, but not to one that the path has come through, or there would be no end.
    """
    found, waiting = Found([], collections.Counter(), []), [(os.fspath(root), "", frozenset())]
    while waiting:
        folder, relative, above = waiting.pop()
        try:
            state = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError:
            found.unreadable.append(folder)
            continue
        if (state.st_dev, state.st_ino) in above:
            found.left_out["links to a folder above them"] += 1
            continue
        above = above | {(state.st_dev, state.st_ino)}
        for entry in entries:
            kind = _kind(entry)
            if kind == "folder":
                waiting.append((entry.path, f"{relative}{entry.name}/", above))
            elif kind == "image":
                found.images.append(f"{relative}{entry.name}")
            else:
                found.left_out[kind] += 1
    found.images.sort()
    found.unreadable.sort()
    return found


def _kind(entry):
    """ "folder", "image", or in words what else an os.DirEntry is."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        if entry.is_dir():
            return ARCHIVES_REST if entry.name == ARCHIVES_REST else "folder"
        named = entry.name.lower().endswith(EXTENSIONS)
        if not entry.is_file():
            if os.path.exists(entry.path):
                return "pipes, sockets or devices"
            return "image" if named else "broken links"  # an image that is missing is told of when it is its turn
    except OSError:  # a link to itself
        return "broken links"
    if named or _begins_as_image(entry.path):
        return "image"
    return readable(os.path.splitext(entry.name)[1].lower()) or "without an ending"


def _begins_as_image(path):
    """Whether a file of another name (`photo`, `0042.bin`) begins as an image."""
    try:
        with open(path, "rb") as file:
            return SIGNATURE.match(file.read(12)) is not None
    except OSError:  # another's file: no image of ours
        return False


def class_folders(root):
    """The names of the folders in `root` that can be classes, sorted."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if _is_class(entry))


def _is_class(entry):
    try:
        return entry.is_dir() and not entry.name.startswith(".") and entry.name != ARCHIVES_REST
    except OSError:  # a link to itself
        return False


def tell(root, found):
    """One line of log about what was left out, and one about folders that may not be looked into."""
    if found.unreadable:
        logger.warning(
            "%d folders below %s may not be looked into, so their images are missing: %s for one",
            len(found.unreadable),
            readable(root),
            readable(found.unreadable[0]),
        )
    if found.left_out:
        told = ", ".join(f"{count} {kind}" for kind, count in found.left_out.most_common(10))
        more = f" and {len(found.left_out) - 10} other kinds" if len(found.left_out) > 10 else ""
        level = logging.WARNING if set(OTHER_FORMATS) & set(found.left_out) else logging.INFO
        logger.log(level, "below %s: %d images; left out: %s%s", readable(root), len(found.images), told, more)


def read_list(path):
    """The lines of a file list, without empty ones. UserError where it cannot be read or has none."""
    path = local_path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "it is no regular file")
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(
            f"The file list {path} cannot be read ({reason}): give a text file, one image a line."
        ) from None
    if not (lines := [line for line in lines if line]):
        raise UserError(f"The file list {path} is empty: give a text file, one image a line.")
    return lines


def listed(files, path, root):
    """Places in `files` (paths below root) of what a file list names, by path below root or by bare file name."""
    by_name = {}
    for place, file in enumerate(files):
        by_name.setdefault(file.rpartition("/")[2], []).append(place)
        by_name[file] = [place]
    lines = read_list(path)
    for line in lines:
        if len(by_name.get(line, ())) > 1:
            raise UserError(f"The file list {path} names {line}, which is several files below {root}: give its folder.")
    missing = [line for line in lines if line not in by_name]
    if len(missing) == len(lines):
        raise UserError(f"The file list {path} names no file below {root}: its lines are like {lines[0]}.")
    if missing:
        logger.warning(
            "%d of the %d files in %s are not below %s, %s for one", len(missing), len(lines), path, root, missing[0]
        )
    return sorted({by_name[line][0] for line in lines if line in by_name})
