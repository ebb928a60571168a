"""The official main.py on a CPU, in one process: read from a checkout, changed in memory. Nothing of it stands here.

    python benchmarks/official_on_cpu.py --official=barlowtwins --arch=resnet18 --image_size=32 --warmup=2 --seed=0

For `beside_official.py`, by a Python that has torch and torchvision. What else is given, behind `--`, goes to main.py.
Changed is what a CPU lacks (no CUDA, gloo for nccl, one process, plain BatchNorm for SyncBatchNorm, no float16), and
what main.py has no flag for: the network, the size of the crops, the epochs of warm-up, the seed.
"""

import argparse
import contextlib
import functools
import pathlib
import random
import sys

try:
    import torch
    import torchvision
except ImportError as error:
    sys.exit(f"error: The official code needs torch and torchvision ({error}); name a Python that has them.")


def arguments():
    parser = argparse.ArgumentParser(description="The official main.py on a CPU.")
    parser.add_argument("--official", required=True, type=pathlib.Path, help="a checkout of the official code")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=2, help="epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    return parser.parse_args()


def without_cuda():
    """Makes of every call that asks for a GPU one that a CPU answers."""

    def where_it_is(self, *_, **__):
        return self

    def as_it_is(module):
        return module

    def here(function, args, processes):
        assert processes == 1
        function(0, *args)

    def alone(backend, init_method, world_size, rank):
        del backend, init_method
        store = torch.distributed.HashStore()
        joined("gloo", store=store, world_size=world_size, rank=rank)

    joined, parallel = torch.distributed.init_process_group, torch.nn.parallel.DistributedDataParallel
    torch.Tensor.cuda = torch.nn.Module.cuda = where_it_is
    torch.cuda.device_count, torch.cuda.set_device = (lambda: 1), (lambda device: None)
    torch.cuda.amp.autocast = contextlib.nullcontext
    torch.cuda.amp.GradScaler = functools.partial(torch.amp.GradScaler, "cpu", enabled=False)
    torch.multiprocessing.spawn = here
    torch.distributed.init_process_group = alone
    torch.nn.SyncBatchNorm.convert_sync_batchnorm = as_it_is
    torch.nn.parallel.DistributedDataParallel = lambda module, device_ids: parallel(module)


def at_another_size(arch, image_size, seed):
    """Another network for ResNet-50, smaller crops, another order of the images; the width of the features."""
    network, crop = getattr(torchvision.models, arch), torchvision.transforms.RandomResizedCrop
    sampler = torch.utils.data.distributed.DistributedSampler
    torchvision.models.resnet50 = network
    torchvision.transforms.RandomResizedCrop = lambda size, **options: crop(image_size, **options)
    torch.utils.data.distributed.DistributedSampler = functools.partial(sampler, seed=seed)
    torch.manual_seed(seed)
    random.seed(seed)
    return network().fc.in_features


def changed(text, changes):
    """The text with every (old, new) changed, of which the old one must stand there once."""
    for old, new in changes:
        if text.count(old) != 1:
            sys.exit(f"error: main.py has {old!r} {text.count(old)} times and not once; take the last commit, 8e8d284.")
        text = text.replace(old, new)
    return text


def main_py(official):
    """The text of main.py of a checkout."""
    file = official / "main.py"
    if not file.is_file():
        sys.exit(f"error: {file} is not there; clone https://github.com/facebookresearch/barlowtwins.")
    return file.read_text()


def main():
    chosen = arguments()
    text = main_py(chosen.official)
    without_cuda()
    width = at_another_size(chosen.arch, chosen.image_size, chosen.seed)
    torch.manual_seed(chosen.seed)  # the network above has drawn from it
    changes = [("[2048]", f"[{width}]"), ("10 * len(loader)", f"{chosen.warmup} * len(loader)")]
    file = chosen.official / "main.py"
    sys.argv = [str(file), *(word for word in chosen.rest if word != "--")]
    # As __main__, so that its loader's workers find the classes, which they have by fork.
    code = compile(changed(text, changes), str(file), "exec")
    exec(code, {"__name__": "__main__", "__file__": str(file)})


if __name__ == "__main__":
    main()
