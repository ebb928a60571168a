"""A small backbone for images of any size: strided convolutions, and the mean over what is left of the pixels."""

from flax import nnx

from barlow_jax.networks.batch_norm import BatchNorm, relu
from barlow_jax.networks.resnet import Conv


class Pooled(nnx.Module):
    """Of so many layers of 5 channels; what a ResNet is told beside its channels and dtype it does not read."""

    def __init__(self, *, channels, dtype, rngs, layers=1, **options):
        self.num_features = 5
        sides = [channels, *[5] * layers]
        self.convs = nnx.List([Conv(n, 5, 3, 2, dtype=dtype, rngs=rngs) for n in sides[:-1]])
        self.norms = nnx.List([BatchNorm(5) for _ in range(layers)])

    def __call__(self, images, *, train):
        """[..., H, W, C] -> [..., 5]."""
        for convolution, norm in zip(self.convs, self.norms, strict=True):
            images = relu(norm.normalised(convolution(images), train=train))
        return images.mean((-3, -2))
