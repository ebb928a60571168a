"""Views of images as the official main.py draws them, and its initial weights, for trainings of both codes on the same.

    python benchmarks/official_views.py --official=barlowtwins --images=part.npz --epochs=20 --out=FOLDER \\
        --arch=resnet18 --image_size=32 --projector=512-512-512 --seed=0

For `same_views.py`, by a Python that has torch and torchvision. FOLDER gets views.npy, uint8 [epochs * images, 2, S, S,
3] in the order of training, each epoch in another order, up to what ToTensor and Normalize do; and initial.pth, a full
checkpoint of epoch 0. The same seed gives the same files.
"""

import argparse
import pathlib
import random

import numpy as np
import official_on_cpu
import torch
from PIL import Image


def main():
    parser = argparse.ArgumentParser(description="The official views and initial weights.")
    for name in ("official", "images", "out"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--projector", default="512-512-512")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    width = official_on_cpu.at_another_size(chosen.arch, chosen.image_size, chosen.seed)
    official = {"__name__": "official"}  # and not "__main__": defines, and does not train
    text = official_on_cpu.changed(official_on_cpu.main_py(chosen.official), [("[2048]", f"[{width}]")])
    exec(compile(text, "main.py", "exec"), official)

    torch.manual_seed(chosen.seed)
    network = official["BarlowTwins"](chosen).state_dict()
    torch.save(
        {"epoch": 0, "model": {f"module.{name}": value for name, value in network.items()}}, chosen.out / "initial.pth"
    )

    # Of other seeds than the network's, as the order of the images and the workers' draws are of others in main.py.
    random.seed(chosen.seed + 77)
    torch.manual_seed(chosen.seed + 77)
    draw(
        official["Transform"](),
        np.load(chosen.images)["train_images"],
        chosen.epochs,
        chosen.image_size,
        chosen.out / "views.npy",
    )


def draw(transform, images, epochs, size, file):
    """Writes the views of all images, `size` pixels wide, each epoch in an order of its own."""
    last = ("ToTensor", "Normalize")
    recipes = [
        [step for step in recipe.transforms if type(step).__name__ not in last]
        for recipe in (transform.transform, transform.transform_prime)
    ]
    pictures = [Image.fromarray(image) for image in images]
    unfinished = file.with_suffix(".unfinished")
    views = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (epochs * len(images), 2, size, size, 3))
    row = 0
    for _ in range(epochs):
        for number in torch.randperm(len(images)).tolist():
            for which, recipe in enumerate(recipes):
                view = pictures[number]
                for step in recipe:
                    view = step(view)
                views[row, which] = np.asarray(view)
            row += 1
    views.flush()
    unfinished.rename(file)


if __name__ == "__main__":
    main()
