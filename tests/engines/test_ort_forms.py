"""A graph with the operators of ONNX Runtime's kernels: where they come, and where they do not."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip_rt.engines.errors import EngineError
from styleclip_rt.engines.onnx_graph import message_field
from styleclip_rt.engines.ort_forms import styled

onnx = pytest.importorskip("onnx", reason="the graphs are built with onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

GRAPHS = "runtime/data/toyfaces-bundle/graphs"


def rewritten(model):
    data = styled(model.SerializeToString())
    return None if data is None else onnx.load_from_string(data)


def ours(model):
    return [node for node in model.graph.node if node.domain == "styleclip_rt"]


def node_of(model, name):
    return next(node for node in model.graph.node if name in node.output)


def tensor_of(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


STORED = {"float32": ("y.w", ""), "float16": ("y.w.f16", ""), "gain": ("y.w.f16", "y.w.gain")}
OFFSETS = {
    "parts": ("y.noise", "y.bias", "y.gain"), "scaled": ("y.sum", "", "y.gain"), "folded": ("y.offset", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("up", [False, True])
def test_every_form_of_a_layer_becomes_one_node(styled_graphs, up, stored, offset, swap):
    before = styled_graphs.one_layer(up=up, stored=stored, offset=offset, swap=swap, size=(8, 64))
    after = rewritten(before)
    onnx.checker.check_model(after)
    (node,) = ours(after)
    weight, gain = STORED[stored]
    fir = "y.fir" if up else ""
    assert node.op_type == "StyledConv"
    assert tuple(node.input) == ("x", weight, "y.style", "y.demod", *OFFSETS[offset], "y.value", fir, gain)
    assert (list(node.output), node.name) == (["y"], "node y")
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"slope": pytest.approx(0.2), "up": int(up)}
    assert [n.op_type for n in after.graph.node] == ["Unsqueeze", "Unsqueeze", "StyledConv"]
    assert {(o.domain, o.version) for o in after.opset_import} == {("", 20), ("styleclip_rt", 1)}
    assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
    assert after.graph.initializer == before.graph.initializer
    assert rewritten(after) is None


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("stored", STORED)
def test_the_branches_to_colours_become_one_node_each(styled_graphs, stored, swap):
    after = rewritten(styled_graphs.two_colours(swap, stored))
    onnx.checker.check_model(after)
    assert [n.op_type for n in ours(after)] == ["StyledConv", "StyledRgb", "StyledConv", "StyledRgb"]
    assert {n.op_type for n in after.graph.node} == {"StyledConv", "StyledRgb", "Unsqueeze"}
    first, second = (n for n in ours(after) if n.op_type == "StyledRgb")
    for node, x, name, rest in ((first, "y", "rgb", ["", ""]), (second, "z", "image", ["rgb", "image.fir"])):
        weight, gain = (text.replace("y", name) for text in STORED[stored])
        assert list(node.input) == [x, weight, f"{name}.style", f"{name}.b", *rest, gain]
        assert (list(node.output), len(node.attribute)) == ([name], 0)


def with_attribute(name, **changes):
    def edit(model):
        node = node_of(model, name)
        kept = [a for a in node.attribute if a.name not in changes]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in changes.items())])

    return edit


def with_tensor(name, change):
    def edit(model):
        tensor = tensor_of(model, name)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), name))

    return edit


def with_input(node, place, name):
    def edit(model):
        node_of(model, node).input[place] = name

    return edit


def read_again(name):
    def edit(model):
        model.graph.node.append(helper.make_node("Neg", [name], ["again"]))
        model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))

    return edit


def given_out(name):
    def edit(model):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    return edit


def read_inside(name):
    """By the body of an If, which names what it takes from outside nowhere else."""

    def edit(model):
        out = helper.make_tensor_value_info("in", TensorProto.FLOAT, None)
        body = helper.make_graph([helper.make_node("Neg", [name], ["in"])], "body", [], [out])
        model.graph.input.append(helper.make_tensor_value_info("if", TensorProto.BOOL, []))
        model.graph.node.append(helper.make_node("If", ["if"], ["again"], then_branch=body, else_branch=body))
        model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))

    return edit


def overridable(name):
    def edit(model):
        shape = tensor_of(model, name).dims
        model.graph.input.append(helper.make_tensor_value_info(name, tensor_of(model, name).data_type, shape))

    return edit


def other_domain(model):
    node_of(model, "y.m").domain = "elsewhere"


def out_of_order(model):
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def made_twice(model):
    model.graph.node.append(helper.make_node("Neg", ["x"], ["y"]))


def own_function(model):
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("", "Conv", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))


def with_biased_convolution(name):
    def edit(model):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(12, np.float32), "extra"))
        node_of(model, name).input.append("extra")

    return edit


def scaled_on_the_way(name):
    """Times another scalar, between a value and the nodes that read it."""

    def edit(model):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "extra"))
        maker = next((place for place, node in enumerate(model.graph.node) if name in node.output), -1)
        for node in model.graph.node:
            node.input[:] = ["scaled" if given == name else given for given in node.input]
        model.graph.node.insert(maker + 1, helper.make_node("Mul", ["extra", name], ["scaled"]))

    return edit


def half_precision(model):
    """The graph in float16, as `precision: fp16` of the exporter types it."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


OTHER_LAYERS = {
    "16 pixels wide": ({"size": (16, 16)}, None),
    "48 pixels wide": ({"size": (32, 48)}, None),
    "6 pixels high": ({"size": (6, 32)}, None),
    "16 pixels wide before doubling": ({"size": (32, 32), "up": True}, None),
    "6 channels in": ({"channels": (6, 12)}, None),
    "10 channels out": ({"channels": (8, 10)}, None),
    "steep": ({}, with_attribute("y", alpha=1.5)),
    "falling": ({}, with_attribute("y", alpha=-0.5)),
    "no padding": ({}, with_attribute("y.c", pads=[0] * 4)),
    "strides": ({}, with_attribute("y.c", strides=[2, 2])),
    "dilations": ({}, with_attribute("y.c", dilations=[2, 2])),
    "groups": ({}, with_attribute("y.c", group=2)),
    "auto_pad": ({}, with_attribute("y.c", auto_pad="SAME_UPPER")),
    "5x5": ({}, with_tensor("y.w.f16", lambda w: np.pad(w, [(0, 0), (0, 0), (1, 1), (1, 1)]))),
    "biased convolution": ({}, with_biased_convolution("y.c")),
    "biased transposed convolution": ({"up": True}, with_biased_convolution("y.t")),
    "biased filter": ({"up": True}, with_biased_convolution("y.c")),
    "transposed stride": ({"up": True}, with_attribute("y.t", strides=[1, 1])),
    "transposed padding": ({"up": True}, with_attribute("y.t", pads=[1] * 4)),
    "output padding": ({"up": True}, with_attribute("y.t", output_padding=[1, 1])),
    "output shape": ({"up": True}, with_attribute("y.t", output_shape=[33, 65])),
    "wide filter border": ({"up": True}, with_attribute("y.c", pads=[2] * 4)),
    "filters that differ": ({"up": True}, with_tensor("y.fir", lambda f: f * np.arange(1, 13).reshape(12, 1, 1, 1))),
    "no depthwise filter": ({"up": True}, with_attribute("y.c", group=1)),
    "noise for one pixel": ({}, with_tensor("y.noise", lambda n: n[:1, :1])),
    "noise of rank 1": ({}, with_tensor("y.noise", lambda n: n[0])),
    "offset of one channel": ({"offset": "folded"}, with_tensor("y.offset", lambda n: n[:1])),
    "bias of one channel": ({}, with_tensor("y.bias", lambda b: b[:1])),
    "bias for each pixel of a row": ({}, with_tensor("y.bias", lambda b: b * np.ones((1, 1, 64), b.dtype))),
    "scaled filter": ({"up": True}, scaled_on_the_way("y.fir")),
    "a second value": ({}, scaled_on_the_way("y.c")),
    "float64 behind a Cast": ({}, with_tensor("y.w.f16", lambda w: w.astype(np.float64))),
    "bias along the row": ({}, with_tensor("y.bias", lambda b: np.zeros(64, np.float32))),
    "gain for each channel": ({}, with_tensor("y.gain", lambda g: np.full((12, 1, 1), g))),
    "weight gain for each row": ({}, with_tensor("y.w.gain", lambda g: np.full((12, 1, 1, 1), g))),
    "value for each channel": ({}, with_tensor("y.value", lambda v: np.full((12, 1, 1), v))),
    "noise that callers override": ({}, overridable("y.noise")),
    "weight that callers override": ({"stored": "float32"}, overridable("y.w")),
    "computed weight": ({"stored": "float32"}, with_input("y.c", 1, "y.style")),
    "style of another axis": ({}, with_tensor("axes", lambda a: np.array([1, 2]))),
    "no style": ({}, with_input("y.c", 0, "x")),
    "float16": ({"stored": "float32"}, half_precision),
    "another's operator": ({}, other_domain),
    "order": ({}, out_of_order),
    "two makers": ({}, made_twice),
    "operators redefined": ({}, own_function),
    **{f"{name} is read again": ({"up": True}, read_again(f"y.{name}")) for name in "mtcvpa"},
    **{f"{name} is given out": ({"up": True}, given_out(f"y.{name}")) for name in "mtcvpa"},
    **{f"{name} is read inside": ({"up": True}, read_inside(f"y.{name}")) for name in "mtcvpa"},
}  # fmt: skip


@pytest.mark.parametrize("variant", OTHER_LAYERS)
def test_a_layer_that_differs_stays(styled_graphs, variant):
    options, edit = OTHER_LAYERS[variant]
    model = styled_graphs.one_layer(**options)
    if edit is not None:
        assert rewritten(model) is not None, "the layer is one of ours before the change"
        edit(model)
    assert rewritten(model) is None


def test_what_is_around_a_layer_stays(styled_graphs):
    """The layer of 32 pixels goes; that of 48 stays node by node, and what both read stays for it."""
    layers = styled_graphs.Layers()
    layers.inputs["x"] = ["N", 12, 48, 48]
    layers.styled(y="z", size=(48, 48), channels=(12, 12))
    layers.op("Resize", ["z", "", "", layers.constant("sizes", [1, 12, 32, 32], np.int64)], "small")
    layers.styled("small", size=(32, 32), channels=(12, 12))
    before = layers.model()
    node_of(before, "y.c").input[1] = "z.w"  # a weight that is shared
    for name in ("z", "y"):
        before.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    after = rewritten(before)
    assert [n.input[1] for n in ours(after)] == ["z.w.f16"]
    kept = [n for n in before.graph.node if not n.output[0].startswith("y") or n.output[0] in ("y.style", "y.demod")]
    assert [n for n in after.graph.node if n.domain == ""] == kept
    assert [o.name for o in after.graph.output] == ["z", "y"]


def test_what_an_inner_graph_reads_stays(styled_graphs):
    model = styled_graphs.one_layer()
    model.graph.node.append(helper.make_node("Abs", ["x"], ["size"]))
    read_inside("size")(model)
    assert [node.op_type for node in rewritten(model).graph.node if node.op_type in ("Abs", "If")] == ["Abs", "If"]


OTHER_COLOURS = {
    "four colours": (with_tensor("rgb.w.f16", lambda w: np.zeros((4, 12, 1, 1), w.dtype)), ["image"]),
    "bias for each channel": (with_tensor("rgb.b", lambda b: b.reshape(3, 1, 1)), ["image"]),
    "3x3": (with_attribute("rgb", kernel_shape=[3, 3]), ["image"]),
    "other maps": (with_input("rgb.m", 0, "x"), ["image"]),
    "no style": (with_input("rgb", 0, "y"), ["image"]),
    "product is read again": (read_again("rgb.m"), ["image"]),
    "sum is read again": (read_again("image"), ["rgb", "image"]),
    "colours before the sum are read again": (read_again("image.c"), ["rgb", "image.c"]),
    "doubled colours are given out": (given_out("image.u"), ["rgb", "image.c"]),
    "doubled by another filter": (with_attribute("image.u", pads=[0] * 4), ["rgb", "image.c"]),
}


@pytest.mark.parametrize("variant", OTHER_COLOURS)
def test_a_branch_to_colours_that_differs_stays(styled_graphs, variant):
    edit, expected = OTHER_COLOURS[variant]
    model = styled_graphs.two_colours()
    edit(model)
    found = [node.output[0] for node in ours(rewritten(model)) if node.op_type == "StyledRgb"]
    assert found == expected


def test_colours_of_a_map_that_no_kernel_made_stay(styled_graphs):
    layers = styled_graphs.Layers()
    layers.inputs["x"] = ["N", 8, 48, 48]
    layers.styled(size=(48, 48))
    layers.rgb()
    layers.outputs["rgb"] = ["N", 3, 48, 48]
    assert rewritten(layers.model()) is None


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(styled_graphs, tmp_path):
    """The path of a graph of a layer that doubles, every tensor of some size in a file beside it."""
    path = tmp_path / "layer.onnx"
    model = styled_graphs.one_layer(up=True)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    return path


def test_tensors_in_a_file_stay_there(outside):
    after = onnx.load_from_string(styled(outside))
    assert [node.op_type for node in ours(after)] == ["StyledConv"]
    before = onnx.load(outside, load_external_data=False)
    assert after.graph.initializer == before.graph.initializer
    assert tensor_of(after, "y.w.f16").external_data[0].value == "weights.bin"


@pytest.mark.parametrize("damage", ["missing", "short", "elsewhere", "in memory"])
def test_a_filter_that_cannot_be_read_is_not_taken_for_the_same_in_every_channel(outside, damage):
    model = onnx.load(outside, load_external_data=False)
    if damage == "missing":
        (outside.parent / "weights.bin").unlink()
    if damage == "short":
        next(e for e in tensor_of(model, "y.fir").external_data if e.key == "length").value = "100"
    if damage == "elsewhere":
        tensor_of(model, "y.fir").external_data[0].value = "../weights.bin"
        (outside.parent.parent / "weights.bin").write_bytes(bytes(1 << 20))
    outside.write_bytes(model.SerializeToString())
    assert styled(outside.read_bytes() if damage == "in memory" else outside) is None


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_what_is_no_graph_is_refused(styled_graphs, tmp_path, damage):
    good = styled_graphs.one_layer().SerializeToString()
    with pytest.raises(EngineError, match="cannot load a graph in memory"):
        styled({"empty": b"", "text": b"\x07graph", "cut": good[:-7]}[damage])
    with pytest.raises(EngineError, match=r"cannot load .*absent\.onnx"):
        styled(tmp_path / "absent.onnx")


def test_two_graphs_in_one_file_are_left_to_the_library(styled_graphs):
    data = styled_graphs.one_layer().SerializeToString()
    assert styled(data) is not None
    assert styled(data + data) is None


def test_deep_nesting_is_refused():
    graph = b""
    for _ in range(40):  # a graph in an attribute of a node of a graph ...
        graph = message_field(1, message_field(5, message_field(6, graph)))
    with pytest.raises(EngineError, match="nested deeper than 32 levels"):
        styled(message_field(7, graph))


@given(st.data())
def test_no_damage_ends_in_anything_but_an_error_of_ours(styled_graphs, data):
    bad = bytearray(styled_graphs.one_layer(size=(4, 32), channels=(4, 4), offset="folded").SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    with suppress(EngineError):
        assert isinstance(styled(bytes(bad)), bytes | None)


WHOLE = ["synthesize_u8", "edit_global", "edit_mapper.glasses", "edit_mapper.bob-cut"]
SLICES = [f"synthesize_tail.b{side}.conv{i}" for side in (16, 32, 64) for i in (0, 1)]


@pytest.mark.parametrize("graph", WHOLE + SLICES)
def test_all_layers_of_the_shipped_graphs_from_32_pixels_on(root, graph):
    path = root / f"{GRAPHS}/{graph}.onnx"
    stored = [tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer]
    layers = ("b32_conv1.weight", "b64_conv0.up.weight", "b64_conv1.weight", "b32_torgb.weight", "b64_torgb.weight")
    expected = {name for name in stored for layer in layers if name.removesuffix(".f16").endswith(f".layers.{layer}")}
    found = [node for node in ours(onnx.load_from_string(styled(path))) if node.op_type != "PlainConv"]
    assert {node.input[1] for node in found} == expected
    assert (
        len(found) == len(expected) == {"b64.conv0": 3, "b64.conv1": 2}.get(graph.removeprefix("synthesize_tail."), 5)
    )
    assert all(bool(node.input[4]) for node in found if node.input[1].endswith("b64_torgb.weight"))


@pytest.mark.parametrize("graph", ["encode_text", "mapping", "synthesize_head.b32.conv1"])
def test_shipped_graphs_without_such_layers_stay(root, graph):
    assert styled(root / f"{GRAPHS}/{graph}.onnx") is None
