"""The networks: BarlowTwins (backbone and projector) for pre-training, Classifier (backbone and fc) for evaluation.

Modules are Flax NNX, used as pure functions: `split` a fresh module once into its structure and two plain nested
dicts, params and batch_stats; `merge` them inside the function that is jitted or differentiated.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from barlow_jax.errors import UserError
from barlow_jax.networks import batch_norm, convnet, convnext, resnet, vit

Backbone = Callable[..., Any]  # rngs -> module with `num_features`
Tree = dict[str, Any]  # nested: parameters or batch statistics by name

RESNETS: dict[str, Backbone] = {
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "wide_resnet50_2": resnet.wide_resnet50_2,
    "wide_resnet101_2": resnet.wide_resnet101_2,
}
VITS: dict[str, Backbone] = {"vit_tiny": vit.vit_tiny, "vit_small": vit.vit_small, "vit_base": vit.vit_base}
CONVNEXTS: dict[str, Backbone] = {
    "convnext_tiny": convnext.convnext_tiny,
    "convnext_small": convnext.convnext_small,
    "convnext_base": convnext.convnext_base,
}
BACKBONES: dict[str, Backbone] = {
    **RESNETS,
    **VITS,
    **CONVNEXTS,
    "convnet": convnet.ConvNet,
    "pixels": convnet.Pixels,
}
OF_ONE_SIZE = ("convnet", *VITS, "pixels")  # their parameters or features depend on the size of the images

# PyTorch's nn.Linear: uniform in +-1 / sqrt(fan_in).
linear_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def make_backbone(
    arch: str,
    *,
    image_size: int,
    channels: int = 3,
    stem: str = "imagenet",
    zero_init_residual: bool = True,
    remat: bool = False,
    patch: int = 16,
    positions: str = "learned",
    pooling: str = "token",
    depths: Sequence[int] = (),
    width: float = 1.0,
    norm: str = "batch",
    dtype: DTypeLike = jnp.float32,
) -> Backbone:
    """A constructor of the named backbone, rngs -> module.

    Every backbone takes channels and dtype, and of the others what its constructor names.

    Args:
      arch: a key of BACKBONES.
      image_size: side of the images.
      stem, zero_init_residual: of the ResNets; remat: of them, the ViTs and the ConvNeXts.
      patch, positions, pooling: of the ViTs, see `vit.ViT`.
      depths, width, norm: of the ResNets: `stages`, `width_factor` and `norm` of `resnet.ResNet`.
    """
    if arch not in BACKBONES:
        raise UserError(f"config.arch is {arch!r}; it is one of {', '.join(BACKBONES)}.")
    if arch in VITS:
        vit.check(image_size, patch, positions, pooling)
    options = {"image_size": image_size, "stem": stem, "zero_init_residual": zero_init_residual, "remat": remat}
    options |= {"patch": patch, "positions": positions, "pooling": pooling}
    options |= {"stages": tuple(depths), "width_factor": width, "norm": norm}
    network = getattr(BACKBONES[arch], "func", BACKBONES[arch])
    named = inspect.signature(network.__init__).parameters  # a module's own signature says nothing
    own = {name: value for name, value in options.items() if name in named}
    return functools.partial(BACKBONES[arch], channels=channels, dtype=dtype, **own)


class Projector(nnx.Module):
    """Linear, BatchNorm, ReLU, repeated, and a last Linear: the head that is thrown away after pre-training.

    Args:
      in_features: width of the features.
      widths: of the layers, the last one the dimension D of the embeddings; () makes it the identity.
      norm: whether there are BatchNorms. Without them nothing takes their place: the linear layers have no bias.
    """

    def __init__(self, in_features: int, widths: Sequence[int], *, norm: bool = True, dtype: DTypeLike, rngs: nnx.Rngs):
        self.linears = nnx.List([])
        self.norms = nnx.List([batch_norm.BatchNorm(width) for width in widths[:-1]] if norm else [])
        options = {"use_bias": False, "kernel_init": linear_init, "dtype": dtype}
        options["precision"] = resnet.precision_of(dtype)
        for fan_in, width in zip((in_features, *widths), widths, strict=False):
            self.linears.append(nnx.Linear(fan_in, width, **options, rngs=rngs))

    def __call__(self, features: Array, *, train: bool) -> Array:
        """[..., in_features] -> [..., D]; the view axis as in `resnet`."""
        z = features
        for k, linear in enumerate(self.linears[:-1]):
            z = linear(z)
            z = batch_norm.relu(self.norms[k].normalised(z, train=train)) if self.norms else nnx.relu(z)
        return self.linears[-1](z) if self.linears else z


class BarlowTwins(nnx.Module):
    """Backbone and projector.

    `bn` stands for the affine-free BatchNorm in front of the official loss: `loss.standardize` does that work, and
    this one only keeps the running statistics that an official checkpoint holds.

    Args:
      backbone: rngs -> module with `num_features`, as `make_backbone` gives.
      projector: widths of the projector.
      norm: whether the projector has BatchNorms.
      predictor: widths of a second projector behind the first, of the first view alone and in training alone, as in
        SimSiam and the paper's Table 6; () is none. Its last width is that of the embeddings.
      dtype: compute dtype.
    """

    def __init__(
        self,
        backbone: Backbone,
        projector: Sequence[int] = (8192, 8192, 8192),
        *,
        norm: bool = True,
        predictor: Sequence[int] = (),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone(rngs=rngs)
        self.projector = Projector(self.backbone.num_features, projector, norm=norm, dtype=dtype, rngs=rngs)
        width = projector[-1] if projector else self.backbone.num_features
        if predictor:
            self.predictor = Projector(width, predictor, dtype=dtype, rngs=rngs)
        self.bn = batch_norm.BatchNorm(width, affine=False)

    def __call__(self, images: Array, *, train: bool) -> tuple[Array, Array]:
        """Features and embeddings of every view in one pass.

        Args:
          images: [B, V, H, W, C] in training, [B, H, W, C] in evaluation; normalised.
        Returns:
          features [B(, V), F] and embeddings [B(, V), D], float32 or wider.
        """
        features = self.backbone(images, train=train)
        z = self.projector(features, train=train)
        if train and hasattr(self, "predictor"):
            z = jnp.concatenate([self.predictor(z[:, :1], train=True), z[:, 1:]], 1)
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        if train:
            self.bn(z, train=True)
        return features, z


def embed_views(network: BarlowTwins, views: Array | tuple[Array, ...]) -> tuple[Array, Array]:
    """Features [B, V, F] and embeddings [B, V, D] in training, of views of one size or, in a tuple, of several.

    Each size is one pass, and the running statistics move for its views after those of the sizes before it.
    """
    if not isinstance(views, tuple):
        return network(views, train=True)
    features, z = zip(*(network(of_one_size, train=True) for of_one_size in views), strict=True)
    return jnp.concatenate(features, 1), jnp.concatenate(z, 1)


class Classifier(nnx.Module):
    """Backbone and one linear layer, `fc`, initialised as the official evaluate.py does: normal(0, 0.01), bias 0."""

    def __init__(self, backbone: Backbone, num_classes: int, *, rngs: nnx.Rngs):
        self.backbone = backbone(rngs=rngs)
        self.fc = nnx.Linear(
            self.backbone.num_features,
            num_classes,
            kernel_init=nnx.initializers.normal(0.01),
            precision="highest",  # of float32 features whatever the backbone computes in
            rngs=rngs,
        )

    def __call__(self, images: Array, *, train: bool) -> Array:
        """images as in BarlowTwins -> logits [B(, V), num_classes] float32."""
        return self.fc(self.backbone(images, train=train))


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """A module's structure, and its parameters and batch statistics as plain nested dicts with string keys.

    Returns:
      graphdef: hashable, static.
      params, batch_stats: {"backbone": {"layer1": {"0": {"conv1": {"kernel": array}}}}, ...}
    """
    graphdef, params, batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    return graphdef, _string_keys(nnx.to_pure_dict(params)), _string_keys(nnx.to_pure_dict(batch_stats))


def merge(graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree) -> Any:
    """The module again, with these arrays in it."""
    return nnx.merge(graphdef, _list_keys(params), _list_keys(batch_stats))


def batch_stats_of(module: nnx.Module) -> Tree:
    """The batch statistics of a merged module, after a training pass has moved them."""
    return _string_keys(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))


class Moments(nnx.Variable):
    """Of a BatchNorm whose batch comes in parts."""


def moments_at_start(graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree, views: int) -> dict[str, Array]:
    """The moments of every BatchNorm if the batch had the running statistics: {path: [2, views, C]}.

    The predictor sees one view.
    """
    return {
        path: jnp.stack([jnp.zeros_like(norm.var[...]), norm.var[...]])[:, None].repeat(
            1 if path.startswith("predictor.") else views, 1
        )
        for path, norm in _batch_norms(merge(graphdef, params, batch_stats))
    }


def merge_with_moments(
    graphdef: nnx.GraphDef, params: Tree, batch_stats: Tree, moments: dict[str, Array], parts: int
) -> Any:
    """The module with these moments in its BatchNorms, for one of several parts of a batch, see `batch_norm`."""
    module = merge(graphdef, params, batch_stats)
    for path, norm in _batch_norms(module):
        norm.moments, norm.parts = Moments(moments[path]), parts
    return module


def moments_of(module: nnx.Module) -> dict[str, Array]:
    """The moments of the part that a module with moments has seen, {path: [2, views, C]}."""
    return {path: norm.moments[...] for path, norm in _batch_norms(module)}


def _batch_norms(module):
    for path, node in nnx.iter_modules(module):
        if isinstance(node, batch_norm.BatchNorm):
            yield ".".join(map(str, path)), node


def _string_keys(tree):
    # Lists become dicts with integer keys in NNX; checkpoints know string keys only.
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _list_keys(tree):
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _list_keys(v) for k, v in tree.items()}
