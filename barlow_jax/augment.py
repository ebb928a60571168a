"""Random views of images, on the device: the Barlow Twins recipe as one function for jit.

The host hands over canvases and crop boxes, uint8, or uint16 of images of more than 8 bits, where nothing is rounded;
everything else happens here. `draw` draws the random numbers of one
view of one example from the example's own key, `apply` makes the view from them, and `random_views` maps both over a
batch. So the views of an example depend on its key, canvas and boxes alone: not on its place in the batch, nor on the
number of devices. The operations, equal to Pillow's 8-bit arithmetic, are in ops/image.py and ops/color.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from barlow_jax.errors import UserError
from barlow_jax.ops import color as color_ops
from barlow_jax.ops import image as image_ops

# What is folded into an example's key for its boxes; 0 and 1 are for its first two views, what comes after for further
# pairs of views, and _SMALL for the key of its small views. So all may be given the same key.
_BOXES = 2
_SMALL = 2**16

_TRIES = 10  # of RandomResizedCrop, before it falls back to a central crop


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How views are made of crops; the defaults are the official recipe of Barlow Twins.

    facebookresearch/barlowtwins, main.py, class Transform. Operations act in the order of the fields, each with draws
    of its own for each view. Pairs are (view 1, view 2); further views take turns.

    Attributes:
      size: side of a view in pixels.
      interpolation: of the crop, "cubic" or "linear".
      flip: probability of a horizontal flip.
      rotation: degrees; a box is turned by a uniform angle in [-rotation, rotation]. Above 0 crops are sampled
        bilinearly without antialiasing (`interpolation` is not used), and boxes may reach outside the image: see
        image_ops.affine_crop. For small images that fill their canvas.
      jitter: probability of the colour jitter: one coin for all four, then a random order.
      brightness, contrast, saturation: strengths x; factors are uniform in [max(0, 1 - x), 1 + x].
      hue: strength, at most 0.5; shifts are uniform in [-hue, hue] turns. 0 leaves the hue untouched.
      grayscale: probability.
      blur: probability for each view.
      blur_sigma: (lowest, highest) standard deviation in pixels, uniform.
      solarize: probability for each view.
      invert: probability of 255 - image; not in the official recipe.
      mean, std: of each channel, on a scale of 0..1. Their length is the number of channels; with other than 3,
        saturation, hue and grayscale do nothing.

    Raises:
      UserError (a ValueError): for a field that is out of range; the message names it.
    """

    size: int = 224
    interpolation: str = "cubic"
    flip: float = 0.5
    rotation: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: tuple[float, float] = (1.0, 0.1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: tuple[float, float] = (0.0, 0.2)
    invert: float = 0.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        for name in ("blur", "blur_sigma", "solarize", "mean", "std"):
            self._check(name, np.ndim(getattr(self, name)) == 1, "a tuple of numbers")
            object.__setattr__(self, name, tuple(getattr(self, name)))  # hashable, so that jit can key on a recipe
        self._check("size", self.size == int(self.size) and self.size > 0, "a whole number above 0")
        known = sorted(image_ops.KERNELS)
        self._check("interpolation", self.interpolation in known, " or ".join(known))
        for name in ("flip", "jitter", "grayscale", "invert"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a probability between 0 and 1")
        for name in ("blur", "solarize"):
            pair = getattr(self, name)
            valid = len(pair) == 2 and all(0 <= p <= 1 for p in pair)
            self._check(name, valid, "two probabilities between 0 and 1, one for each view")
        self._check("rotation", 0 <= self.rotation <= 180, "an angle between 0 and 180 degrees")
        for name in ("brightness", "contrast", "saturation"):
            self._check(name, 0 <= getattr(self, name) < np.inf, "a strength of 0 or more")
        self._check("hue", 0 <= self.hue <= 0.5, "a strength between 0 and 0.5")
        sigma = self.blur_sigma
        valid = len(sigma) == 2 and 0 <= sigma[0] <= sigma[1] < np.inf
        self._check("blur_sigma", valid, "(lowest, highest) in pixels, both 0 or more")
        self._check("mean", len(self.mean) > 0, "one number for each channel")
        valid = len(self.std) == len(self.mean) and all(s > 0 for s in self.std)
        self._check("std", valid, f"{len(self.mean)} numbers above 0, as many as mean has")

    def _check(self, name, valid, requirement):
        if not valid:
            raise UserError(f"Recipe.{name} is {getattr(self, name)!r}, but must be {requirement}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """The random numbers of one view; all scalars but `order` and `factors`.

    Attributes:
      flip, grayscale, solarize, invert: bool, whether the operation acts.
      angle: degrees of the rotation.
      order: int32 [4], steps of the colour jitter, see color_ops.color_jitter; all NOTHING where it does not act.
      factors: float32 [4], brightness, contrast and saturation factors and hue shift.
      sigma: of the blur in pixels; 0 where it does not act.
    """

    flip: Array
    angle: Array
    order: Array
    factors: Array
    grayscale: Array
    sigma: Array
    solarize: Array
    invert: Array


def draw(key: Array, recipe: Recipe, view: Array | int) -> Draw:
    """Draws the random numbers of one view of one example.

    Args:
      key: typed PRNG key of the example.
      recipe: probabilities and ranges.
      view: 0 or 1; may be traced.
    """
    # One call for all: each call of threefry adds to the compile time. Uniform in [0, 1): `< p` is never true for p = 0
    # and always for p = 1.
    uniform = jax.random.uniform(jax.random.fold_in(key, view), (16,))
    flip, angle, jitter, grayscale, blur, sigma, solarize, invert = uniform[:8]
    strength = np.array([recipe.brightness, recipe.contrast, recipe.saturation])
    low = np.append(np.maximum(1.0 - strength, 0.0), -recipe.hue).astype(np.float32)
    high = np.append(1.0 + strength, recipe.hue).astype(np.float32)
    sigma_low, sigma_high = recipe.blur_sigma
    return Draw(
        flip=flip < recipe.flip,
        angle=recipe.rotation * (2.0 * angle - 1.0),
        order=jnp.where(jitter < recipe.jitter, jnp.argsort(uniform[8:12]), color_ops.NOTHING),
        factors=jnp.asarray(low + (high - low) * uniform[12:]),
        grayscale=grayscale < recipe.grayscale,
        sigma=jnp.where(
            blur < jnp.array(recipe.blur)[view],
            sigma_low + (sigma_high - sigma_low) * sigma,
            0.0,
        ),
        solarize=solarize < jnp.array(recipe.solarize)[view],
        invert=invert < recipe.invert,
    )


def apply(image: Array, box: Array, numbers: Draw, recipe: Recipe) -> Array:
    """Makes one view with given random numbers, up to the normalisation.

    Args:
      image: [H, W, C], uint8 or whole numbers 0..255, or uint16; content at the top left.
      box: (top, left, height, width) in pixels of `image`; may be fractional.
      numbers: the random numbers, from `draw` or chosen.
      recipe: which operations there are; those whose probability is 0 are left out of the program.

    Returns:
      grey levels 0..255, float32 [size, size, C], whole numbers but of uint16.
    """
    fine = image.dtype == jnp.uint16
    image = color_ops.levels(image)
    colour = image.shape[-1] == 3
    if recipe.rotation > 0:
        image = image_ops.affine_crop(image, box, numbers.angle, recipe.size, fine=fine)
    else:
        image = image_ops.crop_resize(image, box, recipe.size, interpolation=recipe.interpolation, fine=fine)
    if recipe.flip > 0:
        image = jnp.where(numbers.flip, image_ops.hflip(image), image)
    if recipe.jitter > 0:
        image = color_ops.color_jitter(image, numbers.order, numbers.factors, with_hue=recipe.hue > 0, fine=fine)
    if recipe.grayscale > 0 and colour:
        image = jnp.where(numbers.grayscale, color_ops.grayscale(image, fine=fine), image)
    if max(recipe.blur) > 0:
        image = image_ops.gaussian_blur(image, numbers.sigma, max_sigma=recipe.blur_sigma[1], fine=fine)
    if max(recipe.solarize) > 0:
        image = jnp.where(numbers.solarize, color_ops.solarize(image, fine=fine), image)
    if recipe.invert > 0:
        image = jnp.where(numbers.invert, color_ops.invert(image), image)
    return image


def random_views(keys: Array, canvas: Array, boxes: Array, recipe: Recipe) -> Array:
    """Makes the views of every example of a batch, one for each box: the first of `views_and_draws`."""
    return views_and_draws(keys, canvas, boxes, recipe)[0]


def views_and_draws(keys: Array, canvas: Array, boxes: Array, recipe: Recipe) -> tuple[Array, Draw]:
    """The views of every example of a batch, one for each box, and what was drawn for them.

    The third view and the fourth are the two views of another key, made of the example's, and so on: odd views have the
    first of the recipe's two distributions, even ones the second, and no view changes when there are more of them.

    Args:
      keys: typed PRNG keys [B], one for each example.
      canvas: uint8 or uint16 [B, H, W, C]; content at the top left.
      boxes: float32 [B, V, 4], a crop box for each view: (top, left, height, width) in pixels of the canvas.
      recipe: see Recipe.

    Returns:
      float32 [B, V, size, size, C], normalised; Draw of [B, V, ...].

    Raises:
      UserError: if the recipe is for another number of channels.
      ValueError: for boxes of another shape.
    """
    if canvas.shape[-1] != len(recipe.mean):
        raise UserError(
            f"The images have {canvas.shape[-1]} channels, but Recipe.mean and Recipe.std have "
            f"{len(recipe.mean)} values; give one for each channel."
        )
    if boxes.ndim != 3 or (boxes.shape[0], boxes.shape[2]) != (len(canvas), 4):
        raise ValueError(f"boxes must have shape ({len(canvas)}, views, 4); got {boxes.shape}.")

    def one_view(key, image, box, view):
        numbers = draw(key, recipe, view)
        return color_ops.normalize(apply(image, box, numbers, recipe), recipe.mean, recipe.std), numbers

    number = boxes.shape[1]
    distribution = jnp.arange(number) if number <= 2 else jnp.arange(number) % 2
    views = jax.vmap(one_view, in_axes=(None if number <= 2 else 0, None, 0, 0))
    examples = jax.vmap(views, in_axes=(0, 0, 0, None))
    return examples(keys if number <= 2 else _keys_of_pairs(keys, number), canvas, boxes, distribution)


def _keys_of_pairs(keys, number):
    """Keys [B] of examples -> [B, number], of their views: the same for both of a pair."""
    pairs = [jax.vmap(lambda key, k=k: jax.random.fold_in(key, _BOXES + k))(keys) for k in range(1, (number + 1) // 2)]
    return jnp.stack([[keys, *pairs][view // 2] for view in range(number)], axis=1)


def keys_of_small(keys: Array) -> Array:
    """Keys [B] of examples -> those of their small views, which have draws and boxes of their own."""
    return jax.vmap(lambda key: jax.random.fold_in(key, _SMALL))(keys)


def eval_views(
    canvas: Array,
    boxes: Array,
    extent: Array,
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "linear",
) -> Array:
    """The deterministic view for evaluation: Resize and CenterCrop as one antialiased resampling.

    Args:
      canvas: uint8 or uint16 [B, H, W, C]; content at the top left.
      boxes: float32 [B, 1, 4], the central crop in pixels of the canvas (see image_ops.crop_resize). Padding rows,
        all zero, give black images.
      extent: int [B, 2], height and width of the content on the canvas.
      size: side of the result.
      mean, std: of each channel, on a scale of 0..1.
      interpolation: "linear" as in the official evaluate.py, or "cubic".

    Returns:
      float32 [B, size, size, C], normalised.
    """

    def one_view(image, box, extent):
        fine, image = image.dtype == jnp.uint16, color_ops.levels(image)
        view = image_ops.crop_resize(image, box, size, interpolation=interpolation, extent=extent, fine=fine)
        return color_ops.normalize(view, mean, std)

    return jax.vmap(one_view)(canvas, boxes[:, 0], extent)


def random_boxes(
    keys: Array,
    height: Array | int,
    width: Array | int,
    *,
    views: int = 2,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Array:
    """Draws crop boxes on the device, as torchvision's RandomResizedCrop.get_params does.

    A box has a uniform share of the area and a log-uniform aspect; its sides are rounded (halves to even). Of 10 tries
    the first that fits counts, else the largest central box within the aspect limits. Its place is uniform over whole
    pixels.

    With scale[1] > 1 boxes may exceed the image (for recipes with `rotation`, see image_ops.affine_crop): one try,
    nothing rounded, the place uniform between the two aligned positions, also where the box is the larger.

    Args:
      keys: typed PRNG keys [B]; may be the keys that random_views gets.
      height, width: of the images in pixels, whole numbers or integer arrays [B].
      views: boxes per example; the first of them are those that fewer views have.
      scale: (lowest, highest) share of the image's area.
      ratio: (lowest, highest) width / height.

    Returns:
      float32 [B, views, 4]: (top, left, height, width).

    Raises:
      UserError: for limits that are not positive or not in order.
    """
    for name, limits in (("scale", scale), ("ratio", ratio)):
        if not 0 < limits[0] <= limits[1]:
            raise UserError(f"{name} is {tuple(limits)!r}, but must be (lowest, highest), both above 0.")

    def one_example(key, height, width):
        uniform = jax.random.uniform(jax.random.fold_in(key, _BOXES), (views, 2 * _TRIES + 2))
        return jax.vmap(lambda u: _random_box(u, height, width, scale, ratio))(uniform)

    height = jnp.broadcast_to(jnp.asarray(height, jnp.float32), keys.shape)
    width = jnp.broadcast_to(jnp.asarray(width, jnp.float32), keys.shape)
    return jax.vmap(one_example)(keys, height, width)


def _random_box(uniform: Array, height: Array, width: Array, scale, ratio) -> Array:
    """One box [4] from 22 uniform numbers: areas and aspects of the tries, then the two of the place."""
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[:_TRIES])
    low, high = float(np.log(ratio[0])), float(np.log(ratio[1]))
    aspect = jnp.exp(low + (high - low) * uniform[_TRIES:-2])
    heights, widths = jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)
    if scale[1] > 1:
        h, w = heights[0], widths[0]
        return jnp.stack([uniform[-2] * (height - h), uniform[-1] * (width - w), h, w])
    heights, widths = jnp.round(heights), jnp.round(widths)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = jnp.argmax(fits)
    h, w = heights[first], widths[first]
    top = jnp.floor(uniform[-2] * (height - h + 1))
    left = jnp.floor(uniform[-1] * (width - w + 1))
    return jnp.where(jnp.any(fits), jnp.stack([top, left, h, w]), _central_box(height, width, ratio))


def _central_box(height: Array, width: Array, ratio: tuple[float, float]) -> Array:
    """The largest central box whose width / height lies within `ratio`, [4]."""
    too_narrow, too_wide = width / height < min(ratio), width / height > max(ratio)
    h = jnp.where(too_narrow, jnp.round(width / min(ratio)), height)
    w = jnp.where(too_wide, jnp.round(height * max(ratio)), width)
    return jnp.stack([jnp.floor((height - h) / 2), jnp.floor((width - w) / 2), h, w])
