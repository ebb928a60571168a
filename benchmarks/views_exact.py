"""How many values of the views differ from Pillow's, by operation, on photographs and under jit.

    python benchmarks/views_exact.py --images=FOLDER [--images=FOLDER ...] [--count=100] \\
        [--python=.venv11/bin/python ...]

Each --python is an interpreter with a Pillow (and numpy) of its own, such as `python -m venv .venv11 &&
.venv11/bin/pip install "Pillow==11.*" numpy`; without any it is this one. Photographs are decoded once, here; of those
larger than the canvas the middle is taken. The reference is what torchvision calls for PIL images, see
tests/fixtures/make_augment.py, with the boxes and random numbers of the official recipe, drawn by ours.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import PIL
from PIL import Image, ImageFilter, ImageOps

ROOT = pathlib.Path(__file__).parent.parent
CANVAS, SIZE, SHORT = 512, 224, 256
COLOURS = ("brightness", "contrast", "saturation", "hue")


def photographs(folders, count):
    """uint8 [H, W, 3] each, no side above CANVAS: an equal share of every folder, evenly spaced by name."""
    chosen = []
    for number, folder in enumerate(folders):
        share = (count - len(chosen)) // (len(folders) - number)
        files = sorted(f for f in pathlib.Path(folder).rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
        chosen += [files[k * len(files) // share] for k in range(min(share, len(files)))]
    for file in chosen:
        image = Image.open(file).convert("RGB")
        left, top = max((image.width - CANVAS) // 2, 0), max((image.height - CANVAS) // 2, 0)
        right, bottom = min(left + CANVAS, image.width), min(top + CANVAS, image.height)
        yield np.asarray(image.crop((left, top, right, bottom)))


def with_pillow(numbers):
    """{operation: uint8 [images, SIZE, SIZE, 3]} by this interpreter's Pillow; numbers: what `given` makes."""
    sys.path.insert(0, str(ROOT / "tests" / "fixtures"))
    import make_augment

    made = {}
    for k in range(len(numbers["box"])):
        image, n = Image.fromarray(numbers[f"image{k}"]), {name: numbers[name][k] for name in numbers["names"]}
        part, box = image.crop((0, 0, SIZE, SIZE)), [int(x) for x in n["box"]]
        crop = make_augment.crop(image, *box, SIZE, "cubic")
        results = {"crop": crop, "evaluation": make_augment.resize_center_crop(image, SHORT, SIZE)}
        for name, factor in zip(COLOURS, n["factors"], strict=True):
            results[name] = make_augment.OPERATIONS[name](part, float(factor))
        order = [int(x) for x in n["order"]]
        results["jitter"] = make_augment.jitter(part, order, n["factors"].tolist())
        results["grayscale"] = part.convert("L").convert("RGB")
        results["blur"] = part.filter(ImageFilter.GaussianBlur(float(n["sigma"])))
        results["solarise"] = ImageOps.solarize(part)
        whole = ImageOps.mirror(crop) if n["flip"] else crop
        whole = make_augment.jitter(whole, order, n["factors"].tolist()) if n["jitters"] else whole
        whole = whole.convert("L").convert("RGB") if n["grayscale"] else whole
        whole = whole.filter(ImageFilter.GaussianBlur(float(n["sigma"])))
        results["whole recipe"] = ImageOps.solarize(whole) if n["solarize"] else whole
        for name, result in results.items():
            made.setdefault(name, []).append(np.asarray(result))
    return {name: np.stack(results) for name, results in made.items()}


def given(images):
    """Boxes and random numbers for these images: {"image0": .., "box": [n, 4], "order": [n, 4], ..., "names"}."""
    import jax

    from barlow_jax import augment
    from barlow_jax.data import boxes

    official = dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    draws = boxes.crop_draws(0, 0, np.arange(len(images)), views=1, **official)[:, 0]
    sides = [np.array([[float(side)] for side in axis]) for axis in zip(*(x.shape[:2] for x in images), strict=True)]
    numbers = {"box": boxes.random_crop(draws, *sides, official["ratio"])}
    recipe = dataclasses.replace(augment.Recipe(), jitter=1.0, blur=(1.0, 1.0))
    drawn = jax.vmap(lambda key: augment.draw(key, recipe, 1))(jax.random.split(jax.random.key(0), len(images)))
    fields = ("flip", "order", "factors", "grayscale", "sigma", "solarize")
    numbers |= {name: np.asarray(getattr(drawn, name)) for name in fields}
    numbers["jitters"] = np.random.RandomState(0).uniform(size=len(images)) < 0.8
    return {**numbers, "names": np.array(list(numbers)), **{f"image{k}": x for k, x in enumerate(images)}}


def ours(numbers):
    """The same as `with_pillow`, by jitted programs."""
    import jax

    from barlow_jax import augment
    from barlow_jax.data import boxes
    from barlow_jax.ops import color, image

    recipe = augment.Recipe(solarize=(1.0, 1.0))  # every operation present
    apply = jax.jit(lambda *args: augment.apply(*args, recipe))
    crop = jax.jit(lambda x, box: image.crop_resize(x, box, SIZE))
    unit = dict(mean=(0.0,) * 3, std=(1 / 255,) * 3)
    central = jax.jit(lambda *args: augment.eval_views(*args, size=SIZE, **unit)[0])
    colours = {name: jax.jit(getattr(color, name)) for name in COLOURS}
    jitter, gray, solarise = (jax.jit(f) for f in (color.color_jitter, color.grayscale, color.solarize))
    blur, made = jax.jit(image.gaussian_blur), {}
    for k in range(len(numbers["box"])):
        photo, n = numbers[f"image{k}"], {name: numbers[name][k] for name in numbers["names"]}
        height, width = photo.shape[:2]
        canvas, part = np.zeros((CANVAS, CANVAS, 3), np.uint8), np.zeros((SIZE, SIZE, 3), np.float32)
        canvas[:height, :width] = photo
        part[: min(height, SIZE), : min(width, SIZE)] = photo[:SIZE, :SIZE]
        box, factors = n["box"].astype(np.float32), n["factors"]
        results = {"crop": crop(canvas.astype(np.float32), box)}
        middle = boxes.center_crop(np.array([height]), np.array([width]), SHORT, SIZE).astype(np.float32)
        results["evaluation"] = np.round(central(canvas[None], middle[None, None], np.array([[height, width]])))
        results |= {name: colours[name](part, factor) for name, factor in zip(COLOURS, factors, strict=True)}
        results["jitter"] = jitter(part, n["order"], factors)
        results |= {"grayscale": gray(part), "blur": blur(part, n["sigma"]), "solarise": solarise(part)}
        order = np.where(n["jitters"], n["order"], color.NOTHING)
        draw = augment.Draw(
            n["flip"], np.float32(0), order, factors, n["grayscale"], n["sigma"], n["solarize"], np.False_
        )
        results["whole recipe"] = apply(canvas, box, draw)
        for name, result in results.items():
            made.setdefault(name, []).append(np.asarray(result))
    return {name: np.stack(results) for name, results in made.items()}


def reference(python, numbers, folder):
    """(version of Pillow, results) of another interpreter, which is handed the numbers in a file."""
    source, target = folder / "numbers.npz", folder / "results.npz"
    np.savez(source, **numbers)
    subprocess.run([python, __file__, "--reference", str(source), str(target)], check=True)
    with np.load(target) as results:
        made = dict(results)
    return str(made.pop("version")), made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="append", default=[], help="Folder of JPEGs; may be given several times.")
    parser.add_argument("--count", type=int, default=100, help="Photographs in all.")
    parser.add_argument("--python", action="append", help="Interpreter with a Pillow; may be given several times.")
    parser.add_argument("--reference", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference:
        source, target = options.reference
        with np.load(source) as numbers:
            np.savez(target, version=PIL.__version__, **with_pillow(dict(numbers)))
        return
    if not options.images:
        parser.error("--images is missing: a folder of JPEGs.")
    sys.path.insert(0, str(ROOT))
    found = list(photographs(options.images, options.count))
    if not found:
        parser.error(f"no JPEG is in {', '.join(options.images)}; give --images a folder that holds some.")
    numbers = given(found)
    made = ours(numbers)
    with tempfile.TemporaryDirectory() as folder:
        references = [reference(p, numbers, pathlib.Path(folder)) for p in options.python or [sys.executable]]
    count = len(numbers["box"])
    print(f"{count} photographs; images with a difference, share of the values that differ, largest difference\n")
    print("| operation |" + "".join(f" Pillow {version} |" for version, _ in references))
    print("|---|" + "---|" * len(references))
    for name, result in made.items():
        cells = []
        for _, theirs in references:
            difference = np.abs(result - theirs[name].astype(np.float32))
            images = int((difference > 0).any((1, 2, 3)).sum())
            share = f"{images}, {(difference > 0).mean():.2g}, {difference.max():.0f}" if images else "0"
            cells.append(f" {share} |")
        print(f"| {name} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
