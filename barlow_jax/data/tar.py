"""What is in a tar, by its headers: the samples of a WebDataset shard, their labels, and where each image lies.

A sample is the members that follow each other with the same name up to the first dot of its last part: 000017.jpg,
000017.cls. One that has been there already begins another sample. A link is what it names, where that is in the tar.
Of a tar only the headers are read, and the small files that hold labels.
"""

import collections
import json
import logging
import os
import posixpath
import re

from barlow_jax.data import walk
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

BLOCK = 512
LOOK = 2  # what `look` finds: another number where it finds other things in the same tar
IMAGES = tuple(ending[1:] for ending in walk.EXTENSIONS)
LABELS = ("cls", "json")  # what holds a label, the first that is there
IN_JSON = ("label", "cls")  # the key of the label in a .json, the first that is there
LONGEST = 2**20  # bytes of a name, of a pax header, of a file with a label
MOST_LINKS = 8  # that are followed from one to the next

_SPARE = "images left out, as their samples have another one"
_LOST = "links left out, as what they name is not in the tar"
_ODD = "labels left out, as they are neither whole numbers nor text"


def look(shard):
    """(names of the image files, label of each as text or "", starts, sizes) of the samples of one tar.

    shard: a shards.Shard, or one from afar.

    UserError where it is no whole tar.
    """
    names, labels, starts, sizes, told = [], [], [], [], collections.Counter()
    try:
        size = shard.state()[0]
        with shard.through() as file:
            key, image, label, there = None, None, {}, set()
            for name, start, length in _followed(file, size):
                folder, _, base = name.rpartition("/")
                first, dot, ending = base.partition(".")
                if not first or not dot:  # hidden, or without an ending
                    continue
                if (folder, first) != key or base in there:
                    _add(names, labels, starts, sizes, image, label)
                    key, image, label, there = (folder, first), None, {}, set()
                there.add(base)
                ending = ending.lower()
                if start is None:
                    told[_LOST] += 1
                elif ending in LABELS:
                    label[ending] = _label(file, start, length, ending, name)
                    told[_ODD] += label[ending] is None
                elif ending in IMAGES or ending.rpartition(".")[2] in IMAGES:
                    # 7.seg.png is no other image of the sample than 7.jpg, but it is one where there is nothing else.
                    better = image is None or (ending in IMAGES and image[3] not in IMAGES)
                    told[_SPARE] += image is not None
                    image = (name, start, length, ending) if better else image
            _add(names, labels, starts, sizes, image, label)
    except OSError as error:
        raise UserError(f"{walk.readable(shard.path)} cannot be read ({error.strerror or error}): see to it.") from None
    except Damaged as error:
        raise UserError(f"{walk.readable(shard.path)} {error}") from None
    for what, count in (+told).items():
        logger.info("%s: %d %s", walk.readable(shard.path), count, what)
    return names, labels, starts, sizes


def _add(names, labels, starts, sizes, image, label):
    if image is not None:
        names.append(image[0])
        starts.append(image[1])
        sizes.append(image[2])
        labels.append(next((label[ending] for ending in LABELS if label.get(ending)), ""))


def _label(file, start, length, ending, name):
    """The label that a small member holds, as text; "" where it says none, None where it is neither number nor text."""
    if length > LONGEST:
        raise Damaged(f"has a label of {length} bytes ({name[:80]!r}): write it anew.")
    file.seek(start)
    try:
        text = file.read(length).decode()
        if ending == "json":
            held = json.loads(text)
            held = next((held[key] for key in IN_JSON if key in held), "") if isinstance(held, dict) else ""
            held = int(held) if isinstance(held, bool) or (isinstance(held, float) and held.is_integer()) else held
            if not isinstance(held, int | str | None):
                return None
            text = "" if held is None else str(held)
    except (ValueError, RecursionError):
        raise Damaged(f"has a label that cannot be read ({name[:80]!r}): write it anew.") from None
    return " ".join(text.replace("\0", " ").split())


class Damaged(Exception):
    """What is wrong with a tar and the remedy, as a sentence that lacks its name."""


def _followed(file, size):
    """(name, start of the content, its length) of each file or link; the start is None where a link leads nowhere."""
    places = None
    for name, start, length, link in members(file, size):
        if link:
            if places is None:  # most tars have no links, and are gone through once
                places = {name: tuple(place) for name, *place in members(file, size)}
            for _ in range(MOST_LINKS):
                start, length, link = places.get(link, (None, 0, ""))
                if not link:
                    break
            else:
                start = None
        yield name, start, length


def members(file, size):
    """(name, start of the content, its length, "") of each regular file in an open tar of `size` bytes, in order.

    Of a link (name, None, 0, the name of what it links to).
    ustar, GNU and pax, as tarfile reads them. Damaged where a header is none, or a member goes beyond the end.
    """
    place, longer = 0, {}
    while True:
        file.seek(place)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            begins = "is empty" if not size else f"ends at byte {size} without the zeros that end a tar"
            raise Damaged(f"{begins}: it was cut off, so fetch it again.")
        if block == bytes(BLOCK):
            return
        length, kind = _header(block, place), block[156:157]
        start = place + BLOCK
        if kind in b"0\0007":
            length = longer.get("size", length)
        holds = kind not in b"123456"  # links, devices and folders have no content
        if holds and start + length > size:
            raise Damaged(f"ends within a member that begins at byte {place}: it was cut off, so fetch it again.")
        place = start + (-(-length // BLOCK) * BLOCK if holds else 0)
        if kind in b"xLK":
            if length > LONGEST:
                raise Damaged(
                    f"has a header of {length} bytes at byte {start - BLOCK}: it is damaged, so fetch it again."
                )
            file.seek(start)
            key = {b"L": "path", b"K": "linkpath"}.get(kind)
            longer |= {key: _text(file.read(length))} if key else _pax(file.read(length))
            continue
        if kind == b"g":
            continue
        if kind == b"S" or any(key.startswith("GNU.sparse") for key in longer):
            raise Damaged("has a sparse member, which cannot be read by its place: pack it without holes.")
        name = _plain(longer.get("path") or name_in(block))
        if kind in b"0\0007":
            yield name, start, length, ""
        elif kind in b"12":
            link = longer.get("linkpath") or _text(block[157:257])
            link = posixpath.join(posixpath.dirname(name), link) if kind == b"2" else link  # a hard link is of the tar
            yield name, None, 0, _plain(posixpath.normpath(link))
        longer = {}


def _plain(name):
    return name.removeprefix("./").replace("\0", "")


def _header(block, place):
    """The length that a header says. Damaged where it is none."""
    try:
        said, length = number(block[148:156]), number(block[124:136])
    except ValueError:
        said = length = -1
    if length < 0 or said != 256 + sum(block[:148]) + sum(block[156:]):
        if place == 0:
            begins = "gzip" if block[:2] == b"\x1f\x8b" else "zstd" if block[:4] == b"\x28\xb5\x2f\xfd" else ""
            if begins:
                raise Damaged(f"is compressed by {begins}, so nothing in it can be read by its place: unpack it once.")
            raise Damaged("is no tar: fetch it again, or remove it.")
        raise Damaged(f"has no header at byte {place}, where one must be: it is damaged, so fetch it again.")
    return length


def number(field):
    """A number of a header: octal, or beyond 8 GB base 256. ValueError where it is none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def says(block, size):
    """Whether a header, which may be damaged, says that so many bytes come behind it."""
    try:
        return number(block[124:136]) == size
    except (ValueError, IndexError):
        return False


def _text(field):
    return os.fsdecode(field.partition(b"\0")[0])


def name_in(block):
    """The name that a header says, which is cut off where a header before it has a longer one."""
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])


def _pax(content):
    """What a pax header says of the member behind it: {"path": str, "size": int, ...}."""
    found, place = {}, 0
    while place < len(content) and content[place : place + 1] != b"\0":
        digits, space, _ = content[place : place + 20].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(content) - place:
            raise Damaged("has a pax header that cannot be read: it is damaged, so fetch it again.")
        key, _, value = content[place + len(digits) + 1 : place + int(digits) - 1].partition(b"=")
        found[os.fsdecode(key)] = os.fsdecode(value)
        place += int(digits)
    if "size" in found:
        if not re.fullmatch("[0-9]{1,18}", found["size"]):
            raise Damaged("has a pax header that cannot be read: it is damaged, so fetch it again.")
        found["size"] = int(found["size"])
    return found
