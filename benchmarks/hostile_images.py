"""Damaged and hostile image files through the input pipeline: what it holds, and that nothing hangs or breaks.

    python benchmarks/hostile_images.py [--mutants=1000] [--threads=2] [--seed=0]

Mutants are small images of six formats (JPEG, PNG, WebP, GIF, TIFF, BMP) of which some bytes are changed, cut out,
repeated or cut off, drawn from the seed; every ninth file is whole. Bombs are small files with large images in them: a
WebP of 16000 x 11000, a PNG of 13000 x 13000, JPEGs whose headers are edited to a height of 65500, GIF, TIFF, BMP and
PGM of the like. Then come images with exactly as many pixels as config.data.max_pixels allows, of every format: the
worst that is read.

Each set goes through data.train_batches, in a process of its own, which must end by itself with no traceback. Prints
for each what was read, what was not, the time, and by how much memory grew at its highest; exit status 1 where
something is not as it must be.
"""

import argparse
import io
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import zlib

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image

from barlow_jax.data.pixels import MAX_PIXELS

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp"}
LIMIT = 600  # seconds for a set
CANVAS, BATCH_SIZE = 256, 8


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def mutated(content, rng):
    """The bytes with one to eight changes."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        kind, place = rng.integers(5), int(rng.integers(len(content)) if rng.random() < 0.5 else rng.integers(64))
        length = int(rng.integers(1, 40))
        if kind == 0:
            content[place : place + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            content[place : place + 4] = struct.pack(
                rng.choice([">I", "<I"]), rng.choice([0, 1, 0xFFFF, 2**31, 2**32 - 1])
            )
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = content[place : place + length] * int(rng.integers(1, 4))
        else:
            del content[max(32, place) :]
        if len(content) < 64:
            content += bytes(64)
    return bytes(content)


def write_mutants(folder, count, seed):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    photo = coarse.resize((160, 120), Image.Resampling.BICUBIC)
    kinds = [
        *((form, encoded(photo, form)) for form in FORMATS),
        *((form, encoded(photo.convert("L"), form)) for form in FORMATS),
        ("JPEG", encoded(photo, "JPEG", progressive=True)),
        ("JPEG", encoded(photo.convert("CMYK"), "JPEG")),
        ("PNG", encoded(photo.convert("P"), "PNG")),
        ("WEBP", encoded(photo, "WEBP", lossless=True)),
        ("TIFF", encoded(photo, "TIFF", compression="tiff_lzw")),
        ("TIFF", encoded(photo, "TIFF", compression="jpeg")),
    ]
    for k in range(count):
        if k % 8 == 0:
            (folder / f"{k:05}.a.jpg").write_bytes(kinds[0][1])
        form, content = kinds[k % len(kinds)]
        (folder / f"{k:05}.{FORMATS[form]}").write_bytes(mutated(content, rng))


def png_of_zeros(width, height):
    """A PNG of black pixels, written row by row."""
    squeeze, row = zlib.compressobj(9), bytes(1 + 3 * width)
    body = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def taller_jpeg(width, height, **options):
    """A JPEG of 400 rows whose header says `height`."""
    noise = np.random.RandomState(0).randint(0, 256, (400, width, 3)).astype(np.uint8)
    content = bytearray(encoded(Image.fromarray(noise), "JPEG", **options))
    frame = content.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    content[frame + 5 : frame + 7] = struct.pack(">H", height)
    return bytes(content)


def bombs():
    """{name of a file: its bytes}, all of more than MAX_PIXELS."""
    black = Image.new("RGB", (12_000, 12_000))
    bmp = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    return {
        "a.webp": encoded(Image.new("RGB", (16_000, 11_000)), "WEBP", lossless=True, method=0),
        "b.png": png_of_zeros(13_000, 13_000),
        "c.jpg": taller_jpeg(2000, 65_500),
        "d.jpg": taller_jpeg(2000, 65_500, progressive=True),
        "e.gif": encoded(black.convert("P"), "GIF"),
        "f.tif": encoded(black.convert("L"), "TIFF", compression="tiff_adobe_deflate"),
        "g.bmp": bytes(bmp),
        "h.pgm": b"P5 4000000000 4000000000 255\n" + bytes(100),
    }


def largest():
    """The same of exactly MAX_PIXELS."""
    side = math.isqrt(MAX_PIXELS)
    black = Image.new("RGB", (side, side))
    return {
        "a.webp": encoded(black, "WEBP", lossless=True, method=0),
        "b.png": png_of_zeros(side, side),
        "c.jpg": encoded(black, "JPEG"),
        "d.jpg": encoded(black, "JPEG", progressive=True),
        "e.jpg": encoded(black.convert("CMYK"), "JPEG"),
        "f.gif": encoded(black.convert("P"), "GIF"),
        "g.tif": encoded(black, "TIFF", compression="tiff_adobe_deflate"),
        "h.pgm": f"P5 {side} {side} 65535\n".encode() + bytes(2 * side * side),
        "i.jpg": taller_jpeg(1000, 65_500),
    }


def read(folder, threads):
    """Two epochs, in this process; prints a line of JSON."""
    from barlow_jax import data

    def peak():  # getrusage would begin with that of the process that started this one
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    options = {"seed": 0, "canvas": CANVAS, "last": "wrap", "threads": threads, "max_bad_fraction": 1.0}
    calm = data.open_source("folder", str(pathlib.Path(folder).with_name("calm")), "")
    next(data.train_batches(calm, batch_size=BATCH_SIZE, **options))
    before, start = peak(), time.perf_counter()
    source = data.open_source("folder", folder, "", labels="none")
    batches = data.train_batches(source, batch_size=BATCH_SIZE, scale=(0.5, 1.0), **options)
    shown = set()
    for _ in range(2 * -(-len(source) // BATCH_SIZE)):
        shown |= {int(index) for index in next(batches)["index"]}
    batches.close()
    told = {
        "files": len(source),
        "read": len(shown),
        "unreadable": len(batches.bad_files),
        "seconds": time.perf_counter() - start,
        "grew_by_mb": peak() - before,
        "reasons": sorted(set(batches.bad_files.values())),
    }
    print(json.dumps(told))


def measure(name, folder, threads):
    """What `read` says of a folder, in a process of its own; and whether all is as it must be."""
    line = [sys.executable, __file__, f"--read={folder}", f"--threads={threads}"]
    try:
        result = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        print(f"{name:10} hangs: not at its end after {LIMIT} s")
        return False
    if result.returncode or "Traceback" in result.stderr:
        print(f"{name:10} fails with status {result.returncode}\n{result.stderr[-2000:]}")
        return False
    found = json.loads(result.stdout.splitlines()[-1])
    print(
        f"{name:10}{found['files']:7}{found['read']:7}{found['unreadable']:12}{found['seconds']:9.1f}"
        f"{found['grew_by_mb']:16.0f}",
        flush=True,
    )
    if name == "bombs":
        return found["read"] == 1 and all(" pixels" in reason for reason in found["reasons"])
    return found["read"] > 0 and (name == "mutants" or found["unreadable"] == 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read", default="", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.read:
        read(wanted.read, wanted.threads)
        return 0
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        for name in ("calm", "mutants", "bombs", "largest"):
            (root / name).mkdir()
        photo = encoded(Image.new("RGB", (64, 48), (90, 80, 70)), "JPEG")
        for folder, number in (("calm", 8), ("bombs", 1)):
            for k in range(number):
                (root / folder / f"z{k}.jpg").write_bytes(photo)
        write_mutants(root / "mutants", wanted.mutants, wanted.seed)
        for name, files in (("bombs", bombs()), ("largest", largest())):
            for file, content in files.items():
                (root / name / file).write_bytes(content)
        print(f"{wanted.threads} threads, config.data.max_pixels {MAX_PIXELS:,}")
        print(f"{'set':10}{'files':>7}{'read':>7}{'unreadable':>12}{'seconds':>9}{'grew by, MB':>16}")
        good = [measure(name, root / name, wanted.threads) for name in ("mutants", "bombs", "largest")]
    return 0 if all(good) else 1


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
