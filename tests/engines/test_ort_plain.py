"""Plain convolutions as a node of ONNX Runtime's kernels: where it comes, and where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from styleclip_rt.engines.ort_forms import styled

onnx = pytest.importorskip("onnx", reason="the graphs are built with onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

GRAPHS = "runtime/data/toyfaces-bundle/graphs"
STORED = {"float32": ("y.w", ""), "float16": ("y.w.f16", ""), "gain": ("y.w.f16", "y.w.gain")}
STORED["gains"] = STORED["gain"]
SLOPES = {"PRelu": ("y.slope", 1.0), "LeakyRelu": ("", 0.3), "Relu": ("", 0.0), "": ("", 1.0)}


def rewritten(model):
    data = styled(model.SerializeToString())
    return None if data is None else onnx.load_from_string(data)


def ours(model):
    return [node for node in model.graph.node if node.domain == "styleclip_rt"]


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def node_of(model, name):
    return next(node for node in model.graph.node if name in node.output)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("after", SLOPES)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_form_becomes_one_node(styled_graphs, stride, stored, after, bias, swap):
    before = styled_graphs.one_plain(
        size=(61, 63), stride=stride, stored=stored, after=after, bias=bias, swap=swap, channels=(128, 132)
    )
    after_it = rewritten(before)
    onnx.checker.check_model(after_it)
    (node,) = after_it.graph.node
    slopes, slope = SLOPES[after]
    assert (node.domain, node.op_type, list(node.output), node.name) == ("styleclip_rt", "PlainConv", ["y"], "node y")
    assert list(node.input) == ["x", *STORED[stored], "y.b" if bias else "", slopes]
    assert attributes(node) == {"slope": pytest.approx(slope), "stride": stride}
    assert after_it.graph.initializer == before.graph.initializer
    assert rewritten(after_it) is None


def with_attribute(name, **changes):
    def edit(model):
        node = node_of(model, name)
        kept = [a for a in node.attribute if a.name not in changes]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in changes.items())])

    return edit


def with_tensor(name, change):
    def edit(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), name))

    return edit


def overridable(name):
    def edit(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))

    return edit


def computed_weight(model):
    model.graph.node.insert(0, helper.make_node("Neg", ["y.w"], ["negative"]))
    node_of(model, "y.c").input[1] = "negative"


def half_precision(model):
    """As `precision: fp16` of the exporter types it."""
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def free_height(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"


def free_width(model):
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "W"


def resized(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    node_of(model, "y.c").input[0] = "large"
    model.graph.node.insert(0, helper.make_node("Resize", ["x", "", "scales"], ["large"]))


OTHERS = {
    "a map of 8 pixels": ({"size": (8, 8)}, None),
    "few channels": ({"channels": (64, 12)}, None),
    "18 channels out": ({"channels": (64, 18)}, None),
    "stride 2 on a small map": ({"size": (48, 64), "stride": 2, "channels": (128, 128)}, None),
    "stride 2 with few channels in": ({"size": (64, 64), "stride": 2, "channels": (124, 128)}, None),
    "stride 3": ({}, with_attribute("y.c", strides=[3, 3])),
    "strides that differ": ({}, with_attribute("y.c", strides=[1, 2])),
    "no border": ({}, with_attribute("y.c", pads=[0] * 4)),
    "a border of one side": ({}, with_attribute("y.c", pads=[0, 0, 1, 1])),
    "dilations": ({}, with_attribute("y.c", dilations=[2, 2])),
    "groups": ({}, with_attribute("y.c", group=2)),
    "auto_pad": ({}, with_attribute("y.c", auto_pad="SAME_UPPER")),
    "5x5": ({}, lambda model: [edit(model) for edit in (
        with_tensor("y.w", lambda w: np.pad(w, [(0, 0), (0, 0), (1, 1), (1, 1)])),
        with_attribute("y.c", kernel_shape=[5, 5]))]),
    "a weight that callers override": ({}, overridable("y.w")),
    "a computed weight": ({}, computed_weight),
    "float16": ({}, half_precision),
    "gains along another axis": ({"stored": "gains"}, with_tensor("y.w.gain", lambda g: g.reshape(1, -1, 1, 1)[:, :8])),
    "a free height": ({}, free_height),
    "a free width": ({}, free_width),
    "a map that is resized": ({}, resized),
}  # fmt: skip


@pytest.mark.parametrize("variant", OTHERS)
def test_a_convolution_that_differs_stays(styled_graphs, variant):
    options, edit = OTHERS[variant]
    model = styled_graphs.one_plain(**{"stored": "float32", **options})
    if edit is not None:
        assert rewritten(model) is not None, "the convolution is one of ours before the change"
        edit(model)
    assert rewritten(model) is None


@pytest.mark.parametrize(
    "change", [lambda s: s.reshape(16), lambda s: s.reshape(1, 1, 16), lambda s: np.ones((32, 40))]
)
def test_slopes_along_a_row_stay(styled_graphs, change):
    model = styled_graphs.one_plain(size=(64, 16) if change(np.ones(16)).shape[-1] == 16 else (32, 40))
    with_tensor("y.slope", lambda s: change(s).astype(np.float32))(model)
    assert [node.op_type for node in rewritten(model).graph.node] == ["PlainConv", "PRelu"]


@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (1,), (1, 1, 1)])
def test_slopes_for_each_channel_or_for_all_go(styled_graphs, shape):
    model = styled_graphs.one_plain()
    with_tensor("y.slope", lambda s: np.resize(s, shape))(model)
    assert [node.op_type for node in rewritten(model).graph.node] == ["PlainConv"]


def test_a_map_that_others_read_too_is_made_without_the_activation(styled_graphs):
    model = styled_graphs.one_plain()
    model.graph.output.append(helper.make_tensor_value_info("y.c", TensorProto.FLOAT, None))
    node, activation = rewritten(model).graph.node
    assert (node.op_type, list(node.output), list(node.input)[-1]) == ("PlainConv", ["y.c"], "")
    assert attributes(node) == {"slope": 1.0, "stride": 1}
    assert activation == node_of(model, "y")


def test_the_size_of_a_map_is_followed_through_the_graph(styled_graphs):
    """64 px, halved twice: the convolution of 32 px goes, that of 8 px stays; so does a styled layer's own."""
    layers = styled_graphs.Layers()
    layers.inputs["x"] = ["N", 3, 64, 64]
    layers.plain(y="a", stride=2, channels=(3, 16), after="Relu")
    layers.plain("a", "b", channels=(16, 16))
    layers.op("MaxPool", ["b"], "c", kernel_shape=[4, 4], strides=[4, 4])
    layers.plain("c", "y", channels=(16, 16))
    layers.outputs["y"] = ["N", 16, 8, 8]
    after = rewritten(layers.model())
    onnx.checker.check_model(after)
    assert [list(node.output) for node in ours(after)] == [["b"]]


@pytest.mark.parametrize(("graph", "count"), [("invert", 4), ("identify", 4)])
def test_the_shipped_networks_that_read_images(root, graph, count):
    model = onnx.load_from_string(styled(root / f"{GRAPHS}/{graph}.onnx"))
    assert [node.op_type for node in ours(model)] == ["PlainConv"] * count


def test_convolutions_too_small_to_pay_stay(root):
    assert styled(root / f"{GRAPHS}/encode_image.onnx") is None
