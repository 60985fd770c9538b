"""Graphs of styled layers of StyleGAN2 and of plain convolutions, as the exporter writes them, in every form that it or
its like may choose."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 16


class Layers:
    """A graph in the making; every value that a layer y makes is named y.something, and its activation y."""

    def __init__(self):
        self.nodes, self.constants, self.inputs, self.outputs = [], [], {}, {}
        self.rng = np.random.default_rng(7)
        self.constant("axes", np.array([2, 3]), np.int64)

    def constant(self, name, array, dtype=np.float32):
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype=dtype), name))
        return name

    def normal(self, name, *shape, dtype=np.float32, scale=1.0):
        return self.constant(name, scale * self.rng.standard_normal(shape), dtype)

    def op(self, kind, inputs, output, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node {output}", **attributes))
        return output

    def pair(self, kind, swap, a, b, output):
        return self.op(kind, [b, a] if swap else [a, b], output)

    def column(self, name, channels, given):
        self.inputs[given] = ["N", channels]
        return self.op("Unsqueeze", [given, "axes"], name)

    def weight(self, name, stored, *shape, swap=False):
        """float32, or float16 behind a Cast, or that times a gain, or times one for each channel out ("gains")."""
        scale = 1 / math.sqrt(math.prod(shape) / min(shape[:2]))
        if stored == "float32":
            return self.normal(name, *shape, scale=scale)
        self.normal(f"{name}.f16", *shape, dtype=np.float16, scale=scale)
        if stored == "float16":
            return self.op("Cast", [f"{name}.f16"], name, to=TensorProto.FLOAT)
        self.op("Cast", [f"{name}.f16"], f"{name}.f32", to=TensorProto.FLOAT)
        gain = 1.5 if stored == "gain" else self.rng.uniform(0.5, 2, (shape[0], 1, 1, 1))
        return self.pair("Mul", swap, f"{name}.f32", self.constant(f"{name}.gain", gain), name)

    def styled(
        self, x="x", y="y", up=False, stored="gain", offset="parts", swap=False, size=(32, 64), channels=(8, 12)
    ):
        """One layer; size: height and width of its output."""
        inputs, outputs = channels
        style, demod = self.column(f"{y}.style", inputs, f"{y}.s"), self.column(f"{y}.demod", outputs, f"{y}.d")
        shape = (inputs, outputs, 3, 3) if up else (outputs, inputs, 3, 3)
        w = self.weight(f"{y}.w", stored, *shape, swap=swap)
        c = self.pair("Mul", swap, x, style, f"{y}.m")
        if up:
            self.constant(f"{y}.fir", np.broadcast_to(FIR, (outputs, 1, 4, 4)))
            t = self.op("ConvTranspose", [c, w], f"{y}.t", strides=[2, 2])
            c = self.op("Conv", [t, f"{y}.fir"], f"{y}.c", pads=[1] * 4, group=outputs, kernel_shape=[4, 4])
        else:
            c = self.op("Conv", [c, w], f"{y}.c", pads=[1] * 4, auto_pad="NOTSET")
        v = self.pair("Mul", swap, self.constant(f"{y}.value", 0.7), c, f"{y}.v")
        p = self.pair("Mul", swap, v, demod, f"{y}.p")
        self.op(
            "LeakyRelu",
            [self.pair("Add", swap, self.offset(y, offset, swap, outputs, size), p, f"{y}.a")],
            y,
            alpha=0.2,
        )
        return y

    def offset(self, y, kind, swap, channels, size):
        """(noise + bias) * gain; `kind` says how much of that is folded."""
        if kind == "folded":
            return self.normal(f"{y}.offset", channels, *size)
        gain = self.constant(f"{y}.gain", 1.4)
        if kind == "scaled":
            return self.pair("Mul", swap, self.normal(f"{y}.sum", channels, *size), gain, f"{y}.offset")
        self.pair("Add", swap, self.normal(f"{y}.noise", *size), self.normal(f"{y}.bias", channels, 1, 1), f"{y}.sum")
        return self.pair("Mul", swap, f"{y}.sum", gain, f"{y}.offset")

    def rgb(self, x="y", name="rgb", previous="", channels=12, stored="gain", swap=False):
        style = self.column(f"{name}.style", channels, f"{name}.s")
        w = self.weight(f"{name}.w", stored, 3, channels, 1, 1, swap=swap)
        m = self.pair("Mul", swap, x, style, f"{name}.m")
        c = self.op("Conv", [m, w, self.normal(f"{name}.b", 3)], f"{name}.c" if previous else name)
        if previous:
            self.constant(f"{name}.fir", np.broadcast_to(FIR, (3, 1, 4, 4)))
            about = {"strides": [2, 2], "pads": [1] * 4, "group": 3}
            u = self.op("ConvTranspose", [previous, f"{name}.fir"], f"{name}.u", **about)
            self.pair("Add", swap, c, u, name)
        return name

    def plain(self, x="x", y="y", stride=1, stored="gains", after="PRelu", bias=True, channels=(8, 16), swap=False):
        """A convolution with a border of 1, and an activation after it, or ""."""
        inputs, outputs = channels
        given = [x, self.weight(f"{y}.w", stored, outputs, inputs, 3, 3, swap=swap)]
        given += [self.normal(f"{y}.b", outputs)] * bias
        self.op("Conv", given, f"{y}.c" if after else y, pads=[1] * 4, strides=[stride] * 2, kernel_shape=[3, 3])
        if after == "PRelu":
            self.op("PRelu", [f"{y}.c", self.normal(f"{y}.slope", outputs, 1, 1)], y)
        elif after:
            self.op(after, [f"{y}.c"], y, **({"alpha": 0.3} if after == "LeakyRelu" else {}))
        return y

    def model(self):
        ins, outs = (
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in table.items()]
            for table in (self.inputs, self.outputs)
        )
        graph = helper.make_graph(self.nodes, "test", ins, outs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def one_layer(**options):
    """A graph of one layer, an onnx.ModelProto."""
    layers = Layers()
    layers.styled(**options)
    (height, width), (inputs, outputs) = options.get("size", (32, 64)), options.get("channels", (8, 12))
    half = 2 if options.get("up") else 1
    layers.inputs["x"] = ["N", inputs, height // half, width // half]
    layers.outputs["y"] = ["N", outputs, height, width]
    return layers.model()


def one_plain(size=(32, 40), **options):
    """A graph of one plain convolution of a map of `size`, an onnx.ModelProto."""
    layers = Layers()
    layers.plain(**options)
    inputs, outputs = options.get("channels", (8, 16))
    layers.inputs["x"] = ["N", inputs, *size]
    layers.outputs["y"] = ["N", outputs, None, None]
    return layers.model()


def two_colours(swap=False, stored="gain"):
    """Two layers of 32 and 64 pixels, each with its branch to colours; the second adds the first, doubled."""
    layers = Layers()
    layers.inputs["x"] = ["N", 8, 32, 32]
    layers.styled(size=(32, 32))
    layers.rgb(stored=stored, swap=swap)
    layers.styled("y", "z", up=True, size=(64, 64), channels=(12, 4))
    layers.rgb("z", "image", previous="rgb", channels=4, stored=stored, swap=swap)
    layers.outputs["image"] = ["N", 3, 64, 64]
    return layers.model()
