"""The host's input pipeline against the usual one, and against nothing but decoding.

    python benchmarks/input_pipeline.py --images=FOLDER [--batches=20] [--rounds=7] [--threads=N] [--torch=PYTHON]
    python benchmarks/input_pipeline.py --images=FOLDER --memory=2000

Contestants on the same JPEGs, by turns, so that other work on the machine hits all alike; medians of the rounds, and of
the ratios within a round the range.

    ours  data.train_batches: read, draw two boxes, decode under their union, canvas, batch of 64.
    peer  what the official Barlow Twins recipe does per image in a PyTorch loader, here with Pillow and numpy: decode
          all of it, then twice crop, flip, jitter, grey, blur, solarize, to float32, normalise. Its worker processes
          send no images back, which flatters it.
    bare  libjpeg-turbo's partial decode of ours' windows, one thread; file bytes and windows are in memory before, and
          the pixels go nowhere.
    torch with --torch=PYTHON, an interpreter that has torch and torchvision: decode_jpeg and the two crops of
          transforms.v2 in a DataLoader, in its own process, see torch_loader.py.

ours leaves colours and blur to the accelerator, which peer does on the host: what they cost there is in views_cost.py.
CPU seconds are of all threads together, and what to compare; wall times of small or shared machines are mostly noise.
--memory runs that many batches of ours instead, and prints what the process holds.
"""

import functools
import math
import multiprocessing
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from absl import app, flags
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from barlow_jax.data import boxes, open_source, order, train_batches
from barlow_jax.errors import UserError

IMAGES = flags.DEFINE_string("images", "", "Folder of JPEGs.")
BATCHES = flags.DEFINE_integer("batches", 20, "Batches of ours, and of bare, in each round.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds; each has all contestants.")
THREADS = flags.DEFINE_integer("threads", 0, "Threads of ours; 0 is one per core.")
CANVAS = flags.DEFINE_integer("canvas", 512, "Side of ours' canvas.")
TORCH = flags.DEFINE_string("torch", "", "An interpreter with torch and torchvision, whose loader takes its turn.")
MEMORY = flags.DEFINE_integer("memory", 0, "Run this many batches of ours and print its memory instead.")

BATCH_SIZE, SEED = 64, 0
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
LOG_RATIO = math.log(RATIO[0]), math.log(RATIO[1])
PREFETCH = 2
WANTED = 1500  # images per second that an accelerator takes: a ResNet-50 with two views each


# The images


def ordinary(path):
    """Whether a file is a JPEG in grey or YCbCr, which all contestants decode by libjpeg alone."""
    try:
        with Image.open(path) as image:
            return image.format == "JPEG" and image.mode in ("L", "RGB")
    except OSError:
        return False


def ordinary_source(folder):
    """The folder's ordinary JPEGs as a source, and how many files were left out."""
    source = open_source("folder", folder, "", labels="none")
    rows = [row for row, path in enumerate(source.paths) if ordinary(path)]
    if not rows:
        raise UserError(f"{folder} holds no ordinary JPEG: point --images to a folder of photographs.")
    return source.take(rows), len(source) - len(rows)


# The peer: facebookresearch/barlowtwins, main.py, class Transform, and what torchvision does for it


def crop_box(width, height, rng):
    """RandomResizedCrop's box (left, top, right, bottom)."""
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(*LOG_RATIO))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * max(RATIO))), min(height, round(width / min(RATIO)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def shift_hue(image, turns):
    hue, saturation, value = image.convert("HSV").split()
    moved = np.array(hue) + np.uint8(int(turns * 255) % 256)  # wraps around
    return Image.merge("HSV", (Image.fromarray(moved), saturation, value)).convert("RGB")


def jitter(image, rng):
    steps = [
        lambda image: ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.4)),
        lambda image: ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.4)),
        lambda image: ImageEnhance.Color(image).enhance(rng.uniform(0.8, 1.2)),
        lambda image: shift_hue(image, rng.uniform(-0.1, 0.1)),
    ]
    rng.shuffle(steps)
    return functools.reduce(lambda image, step: step(image), steps, image)


def peer_view(image, blur, solarize, rng):
    """One view, float32 [3, 224, 224]."""
    image = image.crop(crop_box(*image.size, rng)).resize((224, 224), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        image = jitter(image, rng)
    if rng.random() < 0.2:
        image = Image.merge("RGB", [image.convert("L")] * 3)
    if rng.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < solarize:
        image = ImageOps.solarize(image)
    view = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    view /= 255
    view -= np.float32([0.485, 0.456, 0.406])[:, None, None]
    view /= np.float32([0.229, 0.224, 0.225])[:, None, None]
    return view


def peer_image(path, rng):
    with open(path, "rb") as file:
        image = Image.open(file).convert("RGB")
    return peer_view(image, 1.0, 0.0, rng), peer_view(image, 0.1, 0.2, rng)


def peer_work(paths, seed):
    """Both views of all images, which are dropped: the CPU seconds that took."""
    rng, start = random.Random(seed), time.process_time()
    for path in paths:
        peer_image(path, rng)
    return time.process_time() - start


def time_peer(pool, cores, paths, seed):
    """(images per CPU second of one process alone, images per second of all)."""
    alone = pool.apply(peer_work, (paths, seed))
    shares = [(share, seed + k) for k, share in enumerate([*paths, *paths][k::cores] for k in range(cores))]
    start = time.perf_counter()
    pool.starmap(peer_work, shares, chunksize=1)
    return len(paths) / alone, 2 * len(paths) / (time.perf_counter() - start)


# Bare decoding


def window_of(draws, height, width, canvas):
    """What ours decodes for one image: ((top, left, height, width) in reduced pixels, libjpeg's scale)."""
    box = boxes.random_crop(draws, np.float64(height), np.float64(width), RATIO)
    start, stop = box[:, :2].min(0), (box[:, :2] + box[:, 2:]).max(0)
    for scale in (1, 2, 4, 8):
        top_left = np.floor(start / scale)
        size = np.ceil(stop / scale) - top_left
        if (size <= canvas).all():
            break
    return np.concatenate([top_left, size]).astype(np.int32), scale


def size_of(path):
    """(height, width) from the header."""
    with Image.open(path) as image:
        return image.height, image.width


def windows(paths, sizes, steps):
    """[(row of paths, window, scale)] of the images in ours' batches at these steps."""
    found = []
    for step in steps:
        epoch, index = order.batch_indices(len(paths), BATCH_SIZE, SEED, step, "wrap")
        draws = boxes.crop_draws(SEED, epoch, index, scale=SCALE, ratio=RATIO)
        found += [(k, *window_of(d, *sizes[k], CANVAS.value)) for k, d in zip(index, draws, strict=True)]
    return found


def time_bare(encoded, wanted):
    """Images per CPU second. encoded: tensors of file bytes; wanted: from `windows`."""
    from barlow_jax.data.decode import tf

    # Straight to the op, the arguments ready: Python's share is some 10 us an image.
    work = [(encoded[k], tf.constant(window), scale) for k, window, scale in wanted]
    decode = tf.raw_ops.DecodeAndCropJpeg
    start = time.process_time()
    for contents, window, scale in work:
        decode(contents=contents, crop_window=window, channels=3, ratio=scale, dct_method="INTEGER_ACCURATE")
    return len(work) / (time.process_time() - start)


# torchvision


def start_torch(paths):
    """The process of torch_loader.py, warmed up, or None."""
    if not TORCH.value:
        return None
    words = [TORCH.value, str(pathlib.Path(__file__).with_name("torch_loader.py")), *paths]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if not (version := process.stdout.readline().strip()):
        raise UserError(f"--torch={TORCH.value} ended at once: name an interpreter that has torch and torchvision.")
    print(version)
    return process


def time_torch(process):
    """Images per CPU second of one pass over all of them."""
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


# Ours


def open_ours(source):
    return train_batches(
        source,
        batch_size=BATCH_SIZE,
        seed=SEED,
        canvas=CANVAS.value,
        scale=SCALE,
        ratio=RATIO,
        last="wrap",
        threads=THREADS.value or None,
        prefetch=PREFETCH,
    )


def time_ours(reader, batches):
    """(images per CPU second, images per second), between two moments at which the reader works at full speed."""
    for _ in range(PREFETCH + 2):  # what was ready, or nearly
        next(reader)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(reader)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return batches * BATCH_SIZE / cpu, batches * BATCH_SIZE / wall


def wait_until_idle():
    """Until ours' threads have filled what they read ahead, and leave the machine to the next contestant."""
    used = -1.0
    while time.process_time() - used > 0.01:
        used = time.process_time()
        time.sleep(0.2)


# What is printed


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def line(name, values):
    middle = statistics.median(values)
    print(f"{name:58}{middle:8.0f}{min(values):10.0f}{max(values):8.0f}")
    return middle


def ratio(name, above, below, wanted=""):
    """Of the medians, and the lowest and highest of one round."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    middle = statistics.median(above) / statistics.median(below)
    print(f"{name + ', of CPU':58}{middle:8.2f}{min(each):10.2f}{max(each):8.2f}{wanted}")


def compare(source, pool):
    from barlow_jax.data.decode import tf

    encoded = [tf.constant(pathlib.Path(path).read_bytes()) for path in source.paths]
    sizes = [size_of(path) for path in source.paths]
    reader, of_torch = open_ours(source), start_torch(source.paths)
    rows, step = [], 0
    for number in range(ROUNDS.value + 1):
        ours = time_ours(reader, BATCHES.value)
        wait_until_idle()
        step += PREFETCH + 2  # as time_ours, so that bare has the windows of the batches that were timed
        wanted = windows(source.paths, sizes, range(step, step + BATCHES.value))
        step += BATCHES.value
        peer = time_peer(pool, cores(), list(source.paths), number)
        rows.append((*ours, *peer, time_bare(encoded, wanted), time_torch(of_torch) if of_torch else 1.0))
    reader.close()
    if of_torch:
        of_torch.stdin.close()
        of_torch.wait()

    print(f"{'images per second':58}{'median':>8}{'lowest':>10}{'highest':>8}")
    ours, ours_wall, peer, peer_wall, bare, of_torchvision = zip(*rows[1:], strict=True)  # round 0 was a warm-up
    line("ours, of CPU", ours)
    line(f"ours, of wall time, {THREADS.value or cores()} threads", ours_wall)
    line("peer, of CPU, one process", peer)
    line(f"peer, of wall time, {cores()} processes", peer_wall)
    line("bare, of CPU, one thread", bare)
    if of_torch:
        line("torch, of CPU, one process", of_torchvision)
    print()
    ratio("ours / peer", ours, peer, "  (wanted: 5 or more)")
    ratio("ours / bare", ours, bare, "  (wanted: 0.6 or more)")
    if of_torch:
        ratio("ours / torch", ours, of_torchvision)
    print(f"cores for {WANTED} images/s: ours {WANTED / statistics.median(ours):.1f}, ", end="")
    print(f"peer {WANTED / statistics.median(peer):.1f}")


def held():
    """Resident memory of this process in MB: (now, at its highest)."""
    with open("/proc/self/status") as file:
        found = dict(line.split(":", 1) for line in file)
    return tuple(int(found[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))


def watch_memory(source, batches):
    reader = open_ours(source)
    marks = sorted({min(100, batches), *np.linspace(0, batches, 11)[1:].astype(int).tolist()})
    seen, last, cpu = [], 0, time.process_time()
    print(f"{'batches':>8}{'resident MB':>14}{'highest MB':>14}{'images/CPU-s':>16}")
    for mark in marks:
        for _ in range(mark - last):
            next(reader)
        now, peak = held()
        rate = (mark - last) * BATCH_SIZE / (time.process_time() - cpu)
        print(f"{mark:8}{now:14.0f}{peak:14.0f}{rate:16.0f}", flush=True)
        seen.append((mark, now))
        last, cpu = mark, time.process_time()
    reader.close()
    if len(seen) > 1:
        slope = np.polyfit(*zip(*seen, strict=True), 1)[0]
        print(f"slope: {1000 * slope:+.1f} MB per 1000 batches ({2**20 * slope / BATCH_SIZE:+.0f} bytes an image)")


def main(_):
    try:
        measure()
    except UserError as error:
        sys.exit(f"error: {error}")


def measure():
    if not IMAGES.value:
        raise UserError("--images is empty: set it to a folder of JPEGs.")
    source, left_out = ordinary_source(IMAGES.value)
    # Forked before TensorFlow starts threads, and so with a heap of its own.
    with multiprocessing.get_context("fork").Pool(cores()) as pool:
        from barlow_jax.data.decode import tf  # as ours sets it up

        print(
            f"{len(source)} JPEGs, {left_out} files left out; {cores()} cores; tensorflow {tf.__version__}, "
            f"Pillow {Image.__version__}; batch {BATCH_SIZE}, canvas {CANVAS.value}"
        )
        if MEMORY.value:
            watch_memory(source, MEMORY.value)
        else:
            print(f"{ROUNDS.value} rounds of {BATCHES.value} batches of ours\n")
            compare(source, pool)


if __name__ == "__main__":
    app.run(main)
