"""What the official main.py begins with and sees for a seed: its initial weights, and the views of all epochs in order.

    python benchmarks/official_views.py --official=barlowtwins --images=FOLDER --epochs=20 --out=OUT \\
        --arch=resnet18 --image_size=32 --projector=512-512-512 --seed=0 --workers=1

For `same_views.py`, by a Python that has torch and torchvision; FOLDER has train/ with a folder for each class. OUT
gets initial.pth, a full checkpoint of epoch 0, and views.npy, uint8 [epochs * images, 2, S, S, 3] up to what ToTensor
and Normalize do. They are those of `official_on_cpu.py` with the same seed, batches and workers, as each worker of the
loader draws from a seed of its own: random numbers are taken here in the order in which main.py takes them.
"""

import argparse
import pathlib

import numpy as np
import official_on_cpu
import torch
import torchvision

MEAN, STD = (torch.tensor(of)[:, None, None] for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def main():
    parser = argparse.ArgumentParser(description="The official views and initial weights.")
    for name in ("official", "images", "out"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--projector", default="512-512-512")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    width = official_on_cpu.at_another_size(chosen.arch, chosen.image_size, chosen.seed)
    official = {"__name__": "official"}  # and not "__main__": defines, and does not train
    text = official_on_cpu.changed(official_on_cpu.main_py(chosen.official), [("[2048]", f"[{width}]")])
    exec(compile(text, "main.py", "exec"), official)

    torch.manual_seed(chosen.seed)
    network = official["BarlowTwins"](chosen).state_dict()
    model = {f"module.{name}": value for name, value in network.items()}
    torch.save({"epoch": 0, "model": model}, chosen.out / "initial.pth")

    images = torchvision.datasets.ImageFolder(chosen.images / "train", official["Transform"]())
    order = torch.utils.data.distributed.DistributedSampler(images, num_replicas=1, rank=0)
    loader = torch.utils.data.DataLoader(
        images, batch_size=chosen.batch_size, num_workers=chosen.workers, sampler=order
    )
    file = chosen.out / "views.npy"
    shape = (chosen.epochs * len(images), 2, chosen.image_size, chosen.image_size, 3)
    views, row = np.lib.format.open_memmap(file, "w+", np.uint8, shape), 0
    for epoch in range(chosen.epochs):
        order.set_epoch(epoch)
        for pair, _ in loader:
            rows = slice(row, row + len(pair[0]))
            for which, view in enumerate(pair):
                views[rows, which] = levels(view)
            row = rows.stop
    views.flush()


def levels(view):
    """uint8 [B, S, S, 3] of what Normalize made of them, [B, 3, S, S]."""
    return ((view * STD + MEAN) * 255).round().byte().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    main()
