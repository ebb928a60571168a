"""Which files below a folder are images, what was left out and why; and file lists, which choose among them."""

import bisect
import collections
import itertools
import logging
import os
import pathlib
import re
import time
from typing import NamedTuple

from barlow_jax.data import kept
from barlow_jax.data.paths import Paths
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

# torchvision's list, and GIF. What a file is tells its content: a PNG named .JPEG is read as a PNG.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")

# How files of these formats begin; "." is any byte.
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM....\x00\x00\x00\x00|GIF8[79]a|II\*\x00|MM\x00\*", re.DOTALL
)


class Kind(NamedTuple):
    """What counts as an image below a folder."""

    endings: tuple[str, ...]
    signature: re.Pattern[bytes]  # of how other files begin
    looked_at: int = 12  # bytes of them


USUAL = Kind(EXTENSIONS, SIGNATURE)
# What sensors give, of which a folder is full or has none: beside usual images it is left out, as it ever was.
SENSORS = Kind((".dcm", ".dicom", ".npy"), re.compile(rb".{128}DICM|\x93NUMPY", re.DOTALL), 132)

# Images of formats that are not read: worth a warning where they lie among others.
OTHER_FORMATS = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga", ".jfif", ".svg", ".psd", ".dcm", ".exr", ".hdr"),
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".ico", ".icns", ".fits", ".npy"),
)
NOT_AS_PATHLIB_HAS_IT = ("//", "./", "/\n", "/.\n", "\n.\n")  # in the lines of a list, each after and before a "\n"
SECONDS = 5  # between two lines of log about how far one is
ARCHIVES_REST = "__MACOSX"  # what the Finder puts into a ZIP beside the files themselves


class Found(NamedTuple):
    """What lies below a folder."""

    images: Paths  # below it, sorted, '/'-separated
    folders: list[str]  # the names of those in it, sorted
    left_out: collections.Counter  # of kinds, in words
    unreadable: list[str]  # folders that may not be looked into


def is_remote(path):
    """Whether a path is an address, as of a bucket (remote/bucket.py says which can be read)."""
    return "://" in str(path)


def local_path(path):
    """A path as pathlib.Path, the home folder in place of "~". UserError for an address of a bucket."""
    if is_remote(path):
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
    """What lies below a folder, as `Found`: the usual images, and where there is none, DICOM files and arrays."""
    found = look_for(USUAL, root)
    return found if len(found.images) or not found.left_out else look_for(SENSORS, root)


def look_for(kind, root):
    """What lies below a folder, as `Found`, its images being those of a Kind.

    Regular files are looked at, and links to them; what is hidden, `__MACOSX`, pipes, sockets and devices are left
    out. A link to a folder is followed, but not to one that the path has come through, or there would be no end.
    Folders that are as they were when they were last looked through are not looked through again, see `kept`.
    """
    root = os.fspath(root)
    lists, progress = kept.Lists(root, repr((kind.endings, kind.signature.pattern, ARCHIVES_REST))), Progress(root)
    found = Found(Paths.joined([]), [], collections.Counter(), [])
    found = found._replace(images=Paths.joined(_pieces(root, kind, lists, progress, found)))
    found.folders.sort()
    found.unreadable.sort()
    lists.keep(len(found.images))
    return found


def _pieces(root, kind, lists, progress, found):
    """The images below root in sorted order, as pieces for `Paths.joined`; what else there is goes into `found`.

    An order by whole paths is one by the names in each folder, those of folders with the "/" that follows there.
    """
    waiting = [("", frozenset())]  # folders by their paths, and images of one folder, the next of them last
    while waiting:
        relative, more = waiting.pop()
        if isinstance(more, list):
            progress.images += len(more)
            yield os.fsencode(relative + f"\0{relative}".join(more) + "\0")
            continue
        folder = os.path.join(root, relative[:-1]) if relative else root
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in more:
                found.left_out["links to a folder above them"] += 1
                continue
            contents = lists.of(relative, state) or lists.told(relative, state, contents_of(folder, kind, progress))
        except OSError:
            found.unreadable.append(folder)
            continue
        progress.tell()
        found.left_out.update(contents.left_out)
        if not relative:
            found.folders.extend(contents.folders)
        waiting += _in_reverse(relative, contents, more | {(state.st_dev, state.st_ino)})


def _in_reverse(relative, contents, above):
    """What waits in a folder: its images and folders in the order, what comes first at the end."""
    images, waiting, start = contents.names(), [], 0
    for name in sorted(f"{folder}/" for folder in contents.folders):
        stop = bisect.bisect_left(images, name, start)
        waiting += [(relative, images[start:stop])] * (stop > start) + [(relative + name, above)]
        start = stop
    return [*waiting, *([(relative, images[start:])] * (start < len(images)))][::-1]


def contents_of(folder, wanted, progress):
    """What is in one folder, as kept.Contents. OSError where it may not be looked into."""
    images, folders, left_out, asked = [], [], collections.Counter(), {}
    with os.scandir(folder) as entries:
        while some := list(itertools.islice(entries, 10_000)):
            for entry in some:
                if _is_plain(entry, wanted):
                    images.append(entry.name)
                    continue
                kind = _kind(entry, wanted)
                if kind == "folder":
                    folders.append(entry.name)
                elif kind == "image":
                    images.append(entry.name)
                else:
                    left_out[kind] += 1
                asked = _more_asked(asked, entry, kind)
            progress.tell(len(images))
    images.sort()
    return kept.Contents(os.fsencode("\0".join(images)), tuple(folders), dict(left_out), asked)


def _is_plain(entry, wanted):
    """Whether it is an image by what the folder says: most of what there is, in a third of the time of `_kind`."""
    name = entry.name
    try:
        return name.lower().endswith(wanted.endings) and name[0] != "." and entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _more_asked(asked, entry, kind):
    """kept.Contents.asked after another entry: by what else than the folder it was told to be of its kind."""
    if kind == "hidden" or asked is None:
        return asked
    try:
        if entry.is_symlink() or len(asked) == kept.ASKED:
            return None
        if entry.is_file():
            asked[entry.name] = kept.state_of(os.lstat(entry.path))  # a change since it was read is too recent
    except OSError:
        return None
    return asked


class Progress:
    """A line of log every few seconds while a folder is looked through."""

    def __init__(self, root):
        self.images, self._root, self._last = 0, root, time.monotonic()

    def tell(self, more=0):
        """more: images found in the folder at hand, beyond `images`."""
        if time.monotonic() - self._last > SECONDS:
            self._last = time.monotonic()
            logger.info("looking through %s: %d images so far", readable(self._root), self.images + more)


def _kind(entry, wanted):
    """ "folder", "image", or in words what else an os.DirEntry is."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        if entry.is_dir():
            return ARCHIVES_REST if entry.name == ARCHIVES_REST else "folder"
        named = entry.name.lower().endswith(wanted.endings)
        if not entry.is_file():
            if os.path.exists(entry.path):
                return "pipes, sockets or devices"
            return "image" if named else "broken links"  # an image that is missing is told of when it is its turn
    except OSError:  # a link to itself
        return "broken links"
    if named or _begins_as_image(entry.path, wanted):
        return "image"
    return readable(os.path.splitext(entry.name)[1].lower()) or "without an ending"


def _begins_as_image(path, wanted):
    """Whether a file of another name (`photo`, `0042.bin`) begins as an image."""
    try:
        with open(path, "rb") as file:
            return wanted.signature.match(file.read(wanted.looked_at)) is not None
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
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(
            f"The file list {path} cannot be read ({reason}): give a text file, one image a line."
        ) from None
    if not (lines := [line for line in lines if line]):
        raise UserError(f"The file list {path} is empty: give a text file, one image a line.")
    return lines


def listed(files, path, root):
    """Places in `files` (Paths below root) of what a file list names, by path below root or by bare file name."""
    lines = read_list(path)
    wanted = set(lines)
    by_path, by_name = {}, {}
    for place, file in enumerate(files):
        name = file.rpartition("/")[2]
        if file in wanted:
            by_path[file] = place
        if name in wanted:
            by_name.setdefault(name, []).append(place)
    for line in lines:
        if line not in by_path and len(by_name.get(line, ())) > 1:
            raise UserError(f"The file list {path} names {line}, which is several files below {root}: give its folder.")
    found = {name: places[0] for name, places in by_name.items()} | by_path
    missing = [line for line in lines if line not in found]
    if len(missing) == len(lines):
        raise UserError(f"The file list {path} names no file below {root}: its lines are like {lines[0]}.")
    if missing:
        logger.warning(
            "%d of the %d files in %s are not below %s, %s for one", len(missing), len(lines), path, root, missing[0]
        )
    return sorted(set(found.values()))


def joined(folder, lines):
    """[str(folder / line) for line in lines] of a pathlib.Path, which takes 6 us a line, in a tenth of the time."""
    text = "\n".join(["", *lines, ""])
    if any(part in text for part in NOT_AS_PATHLIB_HAS_IT):
        return [str(folder / line) for line in lines]
    start = str(folder / "x")[:-1]
    return [line if line[0] == "/" else start + line for line in lines]


def missing(paths):
    """Those of the paths that are no regular files, nor links to any, in order.

    What a folder says of many files at once takes a tenth of the time of asking for each. What is not among its first
    entries, ten for each file that is wanted there, is asked for.
    """
    wanted = collections.defaultdict(set)
    for path in paths:
        start = path.rfind("/") + 1
        wanted[path[:start]].add(path[start:])
    absent = set()
    for folder, names in wanted.items():
        try:
            with os.scandir(folder or ".") as entries:
                some = itertools.islice(entries, 10 * len(names))
                found = {entry.name for entry in some if entry.is_file(follow_symlinks=False)}
        except OSError:
            found = set()  # of a folder that may not be listed files may be read
        absent.update(f"{folder}{name}" for name in names - found)
    absent = {path for path in absent if not os.path.isfile(path)}
    return [path for path in paths if path in absent] if absent else []
