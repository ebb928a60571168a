"""A network as an ONNX graph, for onnxruntime, TensorRT, OpenVINO and the like.

    onnx_graph.save("r50.onnx", weights, config, channels, meta)

It is written node by node from the arrays under PyTorch's names (`naming`), whose layouts are ONNX's own: nothing is
traced, and what stands in the file is what a person would draw. It takes images as they are after resizing and
cropping, and normalises them itself:

    images      uint8, or uint16 of a run with config.data.bits of 16, [batch, height, width, channels]; height and
                width are fixed where the network is for one size
    features    float32 [batch, F]
    logits      float32 [batch, classes], of a run of linear_eval.py

Operators: github.com/onnx/onnx, docs/Operators.md.
"""

import json
import math

import numpy as np

from barlow_jax import model
from barlow_jax.data import levels
from barlow_jax.errors import UserError
from barlow_jax.networks.batch_norm import BatchNorm
from barlow_jax.networks.vit import LAYER_NORM_EPS
from barlow_jax.weights import files, hub, naming

FORMAT = "onnx"
OPSET, IR_VERSION = 17, 8  # the oldest that have LayerNormalization: onnxruntime 1.12, TensorRT 8.6


def libraries():
    """The modules onnx and onnxruntime; UserError where they are not installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--format=onnx needs onnx and onnxruntime ({error}): pip install 'barlow-jax[onnx]'."
        ) from None
    return onnx, onnxruntime


def save(path, weights, config, channels, meta):
    """Writes the file. Arguments as of `hub.save`, but for the path, which is that of the file."""
    onnx, _ = libraries()
    params, batch_stats = files.backbone(weights)
    head = {name: weights.params[name] for name in ("fc",) if name in weights.params}
    graph = Graph(onnx, naming.state_dict(params | head, batch_stats))
    dtype = np.dtype(levels.dtype_of(config["data"].get("bits", 8)))
    resize, crop = hub.seen(config, meta)
    sides = (crop, crop) if config["arch"] in model.OF_ONE_SIZE else ("height", "width")
    taken = onnx.helper.make_tensor_value_info(
        "images", onnx.helper.np_dtype_to_tensor_dtype(dtype), ["batch", *sides, channels]
    )
    features = GRAPHS[config["arch"]](graph, _normalised(graph, np.iinfo(dtype).max, config["views"]), config)
    given = [graph.output("features", features, hub.width(weights))]
    if head:
        given.append(graph.output("logits", graph.linear("features", "fc"), head["fc"]["bias"].shape[0]))
    made = onnx.helper.make_graph(graph.nodes, config["arch"], [taken], given, graph.constants)
    opset = onnx.helper.make_opsetid("", OPSET)
    file = onnx.helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION, producer_name="barlow-jax")
    told = files.about_of(config, channels, weights.step, weights.epoch)
    told = {name: told[name] for name in ("arch", "stem", "channels", "mean", "std", "step")}
    told |= {"resize": str(resize), "crop": str(crop), "class_names": json.dumps(hub.class_names(meta) or [])}
    onnx.helper.set_model_props(file, told)
    onnx.checker.check_model(file, full_check=True)
    path.write_bytes(file.SerializeToString(deterministic=True))


def run(path, images):
    """What onnxruntime computes of a file, {"features": [b, F]} and, where it has a classifier, "logits"."""
    _, onnxruntime = libraries()
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


class Graph:
    """Nodes and constants as they come. Values are names; maps are [batch, C, H, W], tokens [batch, T, C].

    Attributes: nodes; constants; arrays, {PyTorch's name: array}.
    """

    def __init__(self, onnx, arrays):
        self.nodes, self.constants, self.arrays, self._onnx = [], [], arrays, onnx

    def node(self, op, *inputs, **attributes):
        """Adds one with one output, whose name is returned; arrays among the inputs become constants."""
        inputs = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        output = attributes.pop("output", f"{op}_{len(self.nodes)}")
        self.nodes.append(self._onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, array, name=""):
        """Adds one, whose name is returned."""
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def output(self, name, value, width):
        """Gives a value the name under which it leaves the graph."""
        self.node("Identity", value, output=name)
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, ["batch", width])

    def weight(self, name):
        """An array of the network, as a constant of its own name."""
        return self.constant(np.asarray(self.arrays[name], np.float32), name)

    def conv(self, x, name, stride=1, padding=0, group=1):
        """With a bias where the network has one."""
        side = self.arrays[f"{name}.weight"].shape[-1]
        biases = [self.weight(f"{name}.bias")] if f"{name}.bias" in self.arrays else []
        shape = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": 4 * [padding], "group": group}
        return self.node("Conv", x, self.weight(f"{name}.weight"), *biases, **shape)

    def norm(self, x, name):
        """BatchNorm by its running statistics, or the offset that stands in its place (`resnet.Offset`)."""
        if f"{name}.running_mean" in self.arrays:
            parts = [self.weight(f"{name}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
            return self.node("BatchNormalization", x, *parts, epsilon=BatchNorm.eps)
        if f"{name}.weight" in self.arrays:
            x = self.node("Mul", x, self.weight(f"{name}.weight"))
        return self.node("Add", x, np.asarray(self.arrays[f"{name}.bias"], np.float32)[:, None, None])

    def layer_norm(self, x, name):
        """Of the last axis."""
        parts = [self.weight(f"{name}.{part}") for part in ("weight", "bias")]
        return self.node("LayerNormalization", x, *parts, axis=-1, epsilon=LAYER_NORM_EPS)

    def linear(self, x, name):
        """Of the last axis, with a bias where the network has one."""
        x = self.node("MatMul", x, np.asarray(self.arrays[f"{name}.weight"], np.float32).T)
        return self.node("Add", x, self.weight(f"{name}.bias")) if f"{name}.bias" in self.arrays else x

    def mlp(self, x, name):
        """Two linear layers and the exact GELU between them."""
        x = self.linear(x, f"{name}.fc1")
        share = self.node("Erf", self.node("Div", x, np.float32(math.sqrt(2))))
        x = self.node("Mul", self.node("Mul", x, np.float32(0.5)), self.node("Add", share, np.float32(1)))
        return self.linear(x, f"{name}.fc2")

    def moved(self, x, *axes):
        return self.node("Transpose", x, perm=list(axes))

    def shaped(self, x, *shape):
        """0 stands for the size that the axis has, -1 for what is left."""
        return self.node("Reshape", x, np.array(shape, np.int64))

    def relu(self, x):
        return self.node("Relu", x)

    def mean(self, x):
        """[b, C, H, W] -> [b, C]."""
        return self.node("Flatten", self.node("GlobalAveragePool", x), axis=1)

    def count(self, pattern):
        """How many of a list of modules there are, of the name of an array in the {}-th."""
        number = 0
        while pattern.format(number) in self.arrays:
            number += 1
        return number


def _normalised(graph, white, views):
    """The images, (x / white - mean) / std, as maps."""
    mean, std = (np.array(views[name], np.float32) for name in ("mean", "std"))
    x = graph.node("Div", graph.node("Cast", "images", to=1), np.float32(white))
    x = graph.node("Div", graph.node("Sub", x, mean), std)
    return graph.moved(x, 0, 3, 1, 2)


def _resnet(graph, x, config):
    is_small = config["stem"] == "cifar"
    x = graph.relu(graph.norm(graph.conv(x, "conv1", *((1, 1) if is_small else (2, 3))), "bn1"))
    if not is_small:
        x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        for block in range(graph.count(layer + ".{}.conv1.weight")):
            x = _residual(graph, x, f"{layer}.{block}", stride=2 if layer != "layer1" and block == 0 else 1)
    return graph.mean(x)


def _residual(graph, x, name, stride):
    """A basic block or a bottleneck, whose stride sits in its first 3x3 convolution."""
    y, last = x, 3 if f"{name}.conv3.weight" in graph.arrays else 2
    for number in range(1, last + 1):
        own = f"{name}.conv{number}"
        padding = graph.arrays[f"{own}.weight"].shape[-1] // 2
        y = graph.norm(graph.conv(y, own, stride if number == last - 1 else 1, padding), f"{name}.bn{number}")
        y = graph.relu(y) if number < last else y
    if f"{name}.downsample.0.weight" in graph.arrays:
        x = graph.norm(graph.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
    return graph.relu(graph.node("Add", y, x))


def _vit(graph, x, config):
    heads = model.VITS[config["arch"]].args[1]
    _, tokens, width = graph.arrays["pos_embed"].shape
    patches = graph.conv(x, "patch_embed.proj", graph.arrays["patch_embed.proj.weight"].shape[-1])
    patches = graph.moved(graph.shaped(patches, 0, width, -1), 0, 2, 1)
    batch = graph.node("Slice", graph.node("Shape", patches), np.array([0]), np.array([1]))
    token = graph.node("Expand", graph.weight("cls_token"), graph.node("Concat", batch, np.array([1, width]), axis=0))
    x = graph.node("Add", graph.node("Concat", token, patches, axis=1), graph.weight("pos_embed"))
    for number in range(graph.count("blocks.{}.norm1.weight")):
        name = f"blocks.{number}"
        y = _attention(graph, graph.layer_norm(x, f"{name}.norm1"), f"{name}.attn", heads, tokens, width)
        x = graph.node("Add", x, y)
        x = graph.node("Add", x, graph.mlp(graph.layer_norm(x, f"{name}.norm2"), f"{name}.mlp"))
    if "norm.weight" in graph.arrays:
        return graph.layer_norm(graph.node("Gather", x, np.array(0), axis=1), "norm")
    x = graph.node("Slice", x, np.array([1]), np.array([tokens]), np.array([1]))
    return graph.layer_norm(graph.node("ReduceMean", x, axes=[1], keepdims=0), "fc_norm")


def _attention(graph, x, name, heads, tokens, width):
    side = width // heads
    qkv = graph.moved(graph.shaped(graph.linear(x, f"{name}.qkv"), 0, tokens, 3, heads, side), 2, 0, 3, 1, 4)
    q, k, v = (graph.node("Gather", qkv, np.array(part), axis=0) for part in range(3))
    logits = graph.node("Div", graph.node("MatMul", q, graph.moved(k, 0, 1, 3, 2)), np.float32(math.sqrt(side)))
    x = graph.moved(graph.node("MatMul", graph.node("Softmax", logits, axis=-1), v), 0, 2, 1, 3)
    return graph.linear(graph.shaped(x, 0, tokens, width), f"{name}.proj")


def _convnext(graph, x, config):
    to_last, to_first = (0, 2, 3, 1), (0, 3, 1, 2)  # of the channels

    def normed(x, name):
        return graph.moved(graph.layer_norm(graph.moved(x, *to_last), name), *to_first)

    x = normed(graph.conv(x, "stem.0", 4), "stem.1")
    for stage in range(graph.count("stages.{}.blocks.0.gamma")):
        before = f"stages.{stage}.downsample"
        if f"{before}.1.weight" in graph.arrays:
            x = graph.conv(normed(x, f"{before}.0"), f"{before}.1", 2)
        for block in range(graph.count(f"stages.{stage}.blocks.{{}}.gamma")):
            name = f"stages.{stage}.blocks.{block}"
            gamma = graph.weight(f"{name}.gamma")
            y = graph.conv(x, f"{name}.conv_dw", padding=3, group=graph.arrays[f"{name}.gamma"].shape[0])
            y = graph.mlp(graph.layer_norm(graph.moved(y, *to_last), f"{name}.norm"), f"{name}.mlp")
            x = graph.node("Add", x, graph.moved(graph.node("Mul", y, gamma), *to_first))
    return graph.layer_norm(graph.mean(x), "head.norm")


def _convnet(graph, x, config):
    for number in range(graph.count("convs.{}.weight")):
        x = graph.relu(graph.norm(graph.conv(x, f"convs.{number}", 2, 1), f"norms.{number}"))
    x = graph.shaped(graph.moved(x, 0, 2, 3, 1), 0, -1)  # rows, columns and channels, in our order
    return graph.relu(graph.norm(graph.linear(x, "dense"), "norm"))


GRAPHS = {
    **dict.fromkeys(model.RESNETS, _resnet),
    **dict.fromkeys(model.VITS, _vit),
    **dict.fromkeys(model.CONVNEXTS, _convnext),
    "convnet": _convnet,
}
