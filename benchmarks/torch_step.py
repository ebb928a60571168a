"""The train step that a user of the official PyTorch code has, for `train_step.py --vs=torch`.

Written from what facebookresearch/barlowtwins computes (main.py at its last commit): torchvision's ResNet without fc, a
projector of three linear layers, batch norm without parameters before c, LARS with two parameter groups, AMP. One
process, so no SyncBatchNorm and no all-reduce; two passes, one a view. The views are given, as the official host makes
them.
"""

import math
import sys

try:
    import torch
    import torchvision
except ImportError as error:
    sys.exit(f"error: --vs=torch needs torch and torchvision ({error}); install them, or leave --vs out.")


class BarlowTwins(torch.nn.Module):
    """Network and loss; two batches of views in, loss out."""

    def __init__(self, arch, projector, lambd, stem="imagenet"):
        super().__init__()
        self.lambd = lambd
        self.backbone = getattr(torchvision.models, arch)(zero_init_residual=True)
        if stem == "cifar":
            self.backbone.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
            self.backbone.maxpool = torch.nn.Identity()
        widths = (self.backbone.fc.in_features, *projector)
        self.backbone.fc = torch.nn.Identity()
        layers = []
        for wide_in, wide_out in zip(widths[:-2], widths[1:-1], strict=True):
            layers += [
                torch.nn.Linear(wide_in, wide_out, bias=False),
                torch.nn.BatchNorm1d(wide_out),
                torch.nn.ReLU(True),
            ]
        self.projector = torch.nn.Sequential(*layers, torch.nn.Linear(*widths[-2:], bias=False))
        self.bn = torch.nn.BatchNorm1d(widths[-1], affine=False)

    def forward(self, y1, y2):
        z1, z2 = self.projector(self.backbone(y1)), self.projector(self.backbone(y2))
        c = self.bn(z1).T @ self.bn(z2) / len(z1)
        on_diag = (torch.diagonal(c) - 1).pow(2).sum()
        off_diag = c.pow(2).sum() - torch.diagonal(c).pow(2).sum()
        return on_diag + self.lambd * off_diag


class Lars(torch.optim.Optimizer):
    """Trust ratio and weight decay for tensors of two axes and more, momentum for all; learning rate outside of it."""

    def __init__(self, params, weight_decay=1e-6, momentum=0.9, eta=0.001):
        super().__init__(params, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if p.ndim > 1:
                    update = update.add(p, alpha=group["weight_decay"])
                    norm_p, norm_u = torch.norm(p), torch.norm(update)
                    one = torch.ones_like(norm_p)
                    ratio = torch.where(norm_u > 0, group["eta"] * norm_p / norm_u, one)
                    update = update.mul(torch.where(norm_p > 0, ratio, one))
                state = self.state[p]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(p)
                state["mu"].mul_(group["momentum"]).add_(update)
                p.add_(state["mu"], alpha=-group["lr"])


def make_step(chosen, lambd, device, memory_format, compiled=False):
    """() -> the loss of one more step; compiled: network and loss by torch.compile."""
    network = BarlowTwins(chosen.arch, chosen.projector, lambd, getattr(chosen, "stem", "imagenet"))
    network = network.to(device).to(memory_format=memory_format).train()
    weights = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim == 1]
    optimizer = Lars([{"params": weights}, {"params": biases}])
    shape = (chosen.batch_size, 3, chosen.image_size, chosen.image_size)
    views = [torch.randn(shape, device=device).to(memory_format=memory_format) for _ in range(2)]
    half = chosen.precision != "float32"
    # The official code: float16 with a scaler, on CUDA. CPUs have no fast float16.
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(device, enabled=half and device == "cuda")
    taken = 0
    loss_of = torch.compile(network) if compiled else network

    def once():
        nonlocal taken
        rate = 0.2 * chosen.batch_size / 256 * 0.5 * (1 + math.cos(math.pi * taken / 626_000))
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, 0.024 * rate
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype, enabled=half):
            loss = loss_of(*views)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        taken += 1
        return loss

    return once


def contestants(chosen, lambd, compiled=False):
    """{name: (one step, what waits for its result)}; compiled: one by torch.compile too."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    kind = f"PyTorch {torch.__version__.split('+')[0]} {device}"

    def finish(loss):
        loss.item()

    made = {
        f"{kind}, official form": (make_step(chosen, lambd, device, torch.contiguous_format), finish),
        f"{kind}, channels last": (make_step(chosen, lambd, device, torch.channels_last), finish),
    }
    if compiled:
        both = make_step(chosen, lambd, device, torch.channels_last, compiled=True)
        made[f"{kind}, channels last, torch.compile"] = both, finish
    return made
