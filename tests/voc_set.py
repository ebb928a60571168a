"""A set laid out like PASCAL VOC, drawn."""

import numpy as np
from PIL import Image

CLASSES = ("bird", "boat", "cow")


def write(root):
    """A folder like VOC2007 whose classes are colours; every seventh image is difficult for the next class."""
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, numbers in (("trainval", range(0, 31)), ("test", range(31, 54))):
        for c, name in enumerate(CLASSES):
            told = [1 if n % 3 == c else 0 if n % 7 == 0 and (n + 1) % 3 == c else -1 for n in numbers]
            text = "".join(f"{n:06} {t:2}\n" for n, t in zip(numbers, told, strict=True))
            (root / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text(text)
        for n in numbers:
            colour = rng.uniform(0, 90, (3, 4, 3)) + 100 * (np.arange(3) == n % 3)
            image = Image.fromarray(colour.astype(np.uint8)).resize((44, 33), Image.BICUBIC)
            image.save(root / "JPEGImages" / f"{n:06}.jpg", quality=95)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{n:06}\n" for n in numbers))
    return root
