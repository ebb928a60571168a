"""How long opening a folder of very many images takes, and what it holds in memory.

    python benchmarks/start.py --folder=NEW_FOLDER [--files=1281167] [--classes=1000] [--rounds=3] [--beside=CHECKOUT]

Makes the folder, of hard links to a few small JPEGs under names as ImageNet has them (65,000 links are the most that
ext4 allows a file), unless it is there. Then, each in a process of its own and by turns, so that other work on the
machine hits all alike:

    walk    os.scandir over all folders, the names counted and dropped: what the file system takes.
    first   data.ImageFolder without a kept list, which it then writes.
    second  the same again, with the list.
    listed  data.ImageFolder of the lines of a text file, a hundredth of the images.
    list    listed.ListedFiles of a text file that names every image.
    batch   after `second`, listing() and the first batch of 64, with TensorFlow loaded.

Seconds of wall time and of CPU, and how much resident memory grew: now, and at its highest. --beside=CHECKOUT measures
another version of the package the same way, in the same rounds. What the system has cached before the first round is
what the rounds before left: the first one is not counted.
"""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from absl import app, flags

FOLDER = flags.DEFINE_string("folder", "", "The folder of class folders; made where it is missing.")
FILES = flags.DEFINE_integer("files", 1_281_167, "Images in it.", lower_bound=1)
CLASSES = flags.DEFINE_integer("classes", 1000, "Class folders.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds that are counted.", lower_bound=1)
BESIDE = flags.DEFINE_string("beside", "", "A checkout of another version, measured by turns with this one.")

LINKS = 60_000  # to one file

CHILD = """
import os, sys, time

def held():
    with open("/proc/self/status") as file:
        found = dict(line.split(":", 1) for line in file)
    return [int(found[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]

what, folder, texts = sys.argv[1:]
if what == "walk":
    def work():
        count = 0
        for entry in os.scandir(folder):
            for inner in os.scandir(entry.path):
                count += inner.is_file()
        return range(count)
else:
    from barlow_jax import data
    from barlow_jax.data.listed import ListedFiles
    if what == "batch":
        from barlow_jax.data import decode
    def work():
        if what == "list":
            return ListedFiles(os.path.join(texts, "all.txt"))
        source = data.ImageFolder(folder, listed=os.path.join(texts, "some.txt") if what == "listed" else "")
        if what == "batch":
            source.listing()
            reader = data.train_batches(source, batch_size=64, seed=0, canvas=128, last="wrap", threads=2)
            next(reader)
            return source, reader
        return source
before, wall, cpu = held(), time.perf_counter(), time.process_time()
held_on_to = work()
wall, cpu, after = time.perf_counter() - wall, time.process_time() - cpu, held()
count = len(held_on_to[0] if what == "batch" else held_on_to)
print(count, wall, cpu, after[0] - before[0], after[1] - before[0])
os._exit(0)  # a reader would be read to its end
"""


def name_of(place, files, classes):
    """As ImageNet's training images are named: n01440764/n01440764_10026.JPEG."""
    number = place * classes // files
    synset = f"n{1440764 + 10007 * number:08}"
    return synset, f"{synset}_{place - number * files // classes}.JPEG"


def make(folder, files, classes):
    """The folder, and beside it nothing: it takes its name when it is whole."""
    import numpy as np
    from PIL import Image

    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=unfinished.parent) as pictures:
        for place in range(files):
            picture, class_name, name = f"{pictures}/{place // LINKS}.jpg", *name_of(place, files, classes)
            if place % LINKS == 0:
                pixels = np.random.RandomState(place).randint(0, 256, (64, 64, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(picture)
            try:
                os.link(picture, f"{unfinished}/{class_name}/{name}")
            except FileNotFoundError:
                os.mkdir(f"{unfinished}/{class_name}")
                os.link(picture, f"{unfinished}/{class_name}/{name}")
    unfinished.rename(folder)


def write_lists(folder, texts):
    """all.txt, which names every image by its path, and some.txt, every hundredth by its bare name."""
    with open(texts / "all.txt", "w") as everything, open(texts / "some.txt", "w") as some:
        for entry in os.scandir(folder):
            for place, image in enumerate(os.scandir(entry.path)):
                everything.write(f"{image.path}\n")
                if place % 100 == 0:
                    some.write(f"{image.name}\n")


def measure(what, package, folder, texts, kept):
    """[count, wall s, CPU s, MB held, MB at the highest] of a process that does one thing."""
    environment = os.environ | {"PYTHONPATH": str(package), "BARLOW_JAX_LISTS": str(kept)}
    words = [sys.executable, "-W", "ignore", "-c", CHILD, what, str(folder), str(texts)]
    done = subprocess.run(words, env=environment, cwd=package, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {what} in {package} ended with:\n{done.stderr[-2000:]}")
    return [float(word) for word in done.stdout.split()]


def rounds(packages, folder, work):
    """{(package, what): [[count, wall, cpu, held, highest] of each round]}, the first round left out."""
    found = {}
    for number in range(ROUNDS.value + 1):
        for package, path in packages.items():
            kept = work / f"kept {package}"
            shutil.rmtree(kept, ignore_errors=True)
            for what in ("walk", "first", "second", "listed", "list", "batch"):
                row = measure(what, path, folder, work, kept)
                print(number, package, what, *(f"{value:.2f}" for value in row), file=sys.stderr, flush=True)
                if number:
                    found.setdefault((package, what), []).append(row)
    return found


def told(found):
    """A table, a line for each thing of each version: medians, and of wall time the range."""
    lines = [
        "| version | what | wall s (lowest to highest) | CPU s | MB held | MB at the highest | bytes an image, held |"
    ]
    lines.append("|" + "---|" * 7)
    for (package, what), rows in found.items():
        count, _, cpu, held, highest = (statistics.median(column) for column in zip(*rows, strict=True))
        wall, cpus = min(row[1] for row in rows), [row[2] for row in rows]
        spread = f"{cpu:.2f} ({min(cpus):.2f} to {max(cpus):.2f})"
        an_image = f"{held * 2**20 / count:.0f}"
        lines.append(f"| {package} | {what} | {wall:.2f} | {spread} | {held:.0f} | {highest:.0f} | {an_image} |")
    return lines


def main(_):
    if not FOLDER.value:
        sys.exit("error: --folder is empty: name a folder to make, on the disk to be measured.")
    folder = pathlib.Path(FOLDER.value).absolute()
    if not folder.exists():
        make(folder, FILES.value, CLASSES.value)
    packages = {"this": ROOT} | ({"beside": pathlib.Path(BESIDE.value).absolute()} if BESIDE.value else {})
    with tempfile.TemporaryDirectory() as work:
        write_lists(folder, pathlib.Path(work))
        print("\n".join(told(rounds(packages, folder, pathlib.Path(work)))))


if __name__ == "__main__":
    app.run(main)
