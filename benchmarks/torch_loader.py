"""What users of torchvision have of late: decode_jpeg and the crops of transforms.v2 in a DataLoader.

    PYTHON benchmarks/torch_loader.py IMAGE...

For each line that it reads it goes over all the images once, two views of each, and prints how many images that were
per CPU second of the process. The loader has no workers, and so none of the cost of sending batches between processes.
Started by input_pipeline.py --torch=PYTHON, in an environment with torch and torchvision.
"""

import sys
import time

try:
    import torch
    import torchvision
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import InterpolationMode, v2
except ImportError as error:
    sys.exit(f"error: this needs torch and torchvision ({error}); install them, or leave --torch out.")


class TwoViews(torch.utils.data.Dataset):
    """Two crops of each JPEG, mirrored or not, uint8 [2, 3, 224, 224]; colours are left to the device."""

    def __init__(self, paths):
        self.paths = paths
        self.view = v2.Compose(
            [
                v2.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, place):
        image = decode_jpeg(read_file(self.paths[place]), mode=ImageReadMode.RGB)
        return torch.stack([self.view(image), self.view(image)])


def main(paths):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(TwoViews(paths), batch_size=64, shuffle=True, num_workers=0)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        seen = sum(len(batch) for batch in loader)
        print(seen / (time.process_time() - start), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
