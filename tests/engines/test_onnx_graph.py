"""A graph read from its bytes, held against what the onnx library reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip_rt.engines.errors import EngineError
from styleclip_rt.engines.onnx_graph import INT64, Graph, Tensor, message_field
from styleclip_rt.engines.onnx_wire import varint
from styleclip_rt.engines.ort_forms import styled

onnx = pytest.importorskip("onnx", reason="the graphs are built with onnx")

from onnx import AttributeProto, helper  # noqa: E402

INT64S = st.integers(-(1 << 63), (1 << 63) - 1)
VALUES = {
    "i": INT64S,
    "f": st.floats(width=32, allow_nan=False),
    "s": st.binary(min_size=1),
    "ints": st.lists(INT64S, min_size=1),
}


def graph_of(node):
    """The Graph of one node, a message or its bytes."""
    return Graph(memoryview(message_field(1, node if isinstance(node, bytes) else node.SerializeToString())))


@given(st.data())
def test_attributes_are_what_the_onnx_library_reads(data):
    wanted = {name: data.draw(values, name) for name, values in VALUES.items()}
    node = helper.make_node("Op", [], ["y"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in wanted.items())
    found = graph_of(node).nodes[0].attributes
    assert found == {name: tuple(value) if name == "ints" else value for name, value in wanted.items()}


@given(st.lists(INT64S, min_size=1, max_size=90))
def test_packed_numbers_are_read_as_single_ones(numbers):
    packed = b"".join(varint(number % (1 << 64)) for number in numbers)
    attribute = message_field(1, b"pads") + message_field(8, packed)
    assert AttributeProto.FromString(attribute).ints == numbers
    node = message_field(2, b"y") + message_field(5, attribute)
    assert graph_of(node).nodes[0].attributes == {"pads": tuple(numbers)}
    tensor = Tensor(INT64, (len(numbers),), memoryview(message_field(7, packed)))
    assert tensor.whole_numbers() == tuple(numbers)


def overlong(number, content):
    """A field of a message whose tag takes two bytes where one would do."""
    return bytes((number << 3 | 2 | 0x80, 0)) + varint(len(content)) + content


@pytest.mark.parametrize("number", [6, 11])
@pytest.mark.parametrize("field", [message_field, overlong])
def test_what_a_graph_in_an_attribute_reads_is_read_twice(number, field):
    """By a body that is one graph or one of a list, however its tag is written."""
    body = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "", [], [])
    attribute = message_field(1, b"body") + field(number, body.SerializeToString())
    parsed = AttributeProto.FromString(attribute)
    assert [*parsed.graphs, parsed.g][0].node[0].input == ["a"]
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["c"])]
    once = b"".join(message_field(1, node.SerializeToString()) for node in nodes)
    graph = Graph(memoryview(once))
    assert graph.inner("a", "Abs") is graph.nodes[0]
    twice = Graph(memoryview(once + message_field(1, message_field(5, attribute))))
    assert twice.nodes[2].captured == ("a",)
    assert twice.inner("a", "Abs") is None


def test_an_output_that_is_left_out_is_no_value():
    node = helper.make_node("Split", ["x"], ["", "y", ""])
    graph = graph_of(node)
    assert graph.made_by == {"y": graph.nodes[0]}
    assert graph.is_regular()


@pytest.mark.parametrize(
    ("outputs", "regular"), [(["a", "b"], True), (["a", "a"], False), (["x", "b"], False), (["w", "b"], False)]
)
def test_a_value_is_made_once(outputs, regular):
    graph = helper.make_graph(
        [helper.make_node("Split", ["x", "w"], outputs)],
        "",
        [helper.make_tensor_value_info("x", 1, [])],
        [],
        [onnx.numpy_helper.from_array(np.zeros(2, np.float32), "w")],
    )
    assert Graph(memoryview(graph.SerializeToString())).is_regular() is regular


@pytest.mark.parametrize(("node", "read"), [("y.style", False), ("y.c", True)])
def test_what_nobody_looks_at_goes_through_as_it_is(styled_graphs, node, read):
    """An attribute that is no message: in a node that stays it is ONNX Runtime's to refuse, in a layer it is read."""
    model = styled_graphs.one_layer()
    damage = message_field(5, b"\x07no attribute")
    nodes = [n.SerializeToString() + damage * (node in n.output) for n in model.graph.node]
    del model.graph.node[:]
    graph = b"".join(message_field(1, content) for content in nodes) + model.graph.SerializeToString()
    model.ClearField("graph")
    data = model.SerializeToString() + message_field(7, graph)
    if read:
        with pytest.raises(EngineError, match="wire type 7 at byte 0"):
            styled(data)
    else:
        after = styled(data)
        assert damage in after
        assert b"StyledConv" in after
