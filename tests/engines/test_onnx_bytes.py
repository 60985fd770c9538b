"""ONNX with its weights inside, held against what the onnx library reads."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip_rt.engines.errors import BundleError, EngineError
from styleclip_rt.engines.onnx_bytes import inline_weights

onnx = pytest.importorskip("onnx")


def weights_of(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("graph", ["synthesize_u8", "encode_text", "mapping"])
def test_shipped_graphs_come_out_as_the_onnx_library_reads_them(root, graph):
    path = root / f"runtime/data/toyfaces-bundle/graphs/{graph}.onnx"
    found, wanted = onnx.load_from_string(inline_weights(path)), onnx.load(str(path))
    for tensor in (*found.graph.initializer, *wanted.graph.initializer):
        tensor.ClearField("data_location")
        assert not tensor.external_data
    assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
    onnx.checker.check_model(found)


def test_a_model_without_outside_weights_comes_back_as_it_is(tiny):
    model = tiny.blend()
    assert inline_weights(model) == model


def test_weights_are_found_wherever_a_graph_may_keep_them(tmp_path):
    """In a Constant, in the body of an If, in a function: nowhere may a parser be left to open a file itself."""
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())

    def outside(name):
        tensor = onnx.TensorProto(name=name, data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        return tensor

    helper = onnx.helper
    out = helper.make_tensor_value_info("z", 1, [4])
    body = helper.make_graph([helper.make_node("Identity", ["b"], ["z"])], "body", [], [out], [outside("b")])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    constant = helper.make_node("Constant", [], ["k"], value=outside("k"))
    many = helper.make_node("Op", [], ["m"], domain="x", tensors=[outside("m1"), outside("m2")])
    graph = helper.make_graph([branch, constant, many], "g", [helper.make_tensor_value_info("c", 9, [])], [out])
    function = helper.make_function(
        "x", "F", [], ["q"], [helper.make_node("Constant", [], ["q"], value=outside("q"))], []
    )
    model = helper.make_model(graph, functions=[function])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    data = inline_weights(tmp_path / "m.onnx")
    assert b"w.bin" not in data
    assert data.count(np.arange(4, dtype=np.float32).tobytes()) == 6
    assert onnx.load_from_string(data).functions[0].node[0].attribute[0].t.raw_data


@pytest.mark.parametrize(
    ("location", "error", "message"),
    [
        ("../secret.bin", BundleError, "points outside"),
        ("/etc/passwd", BundleError, "points outside"),
        ("link.bin", BundleError, "leaves the bundle through a symbolic link"),
        ("absent.bin", EngineError, r"cannot load .*the weights absent\.bin cannot be read"),
        ("empty.bin", EngineError, r"cannot load .*the weights empty\.bin cannot be read"),
        ("short.bin", EngineError, r"short\.bin has 80 bytes, the graph wants 64 to 96; export the bundle again"),
    ],
)
def test_weights_from_elsewhere_or_cut_short_are_refused(tiny, tmp_path, location, error, message):
    folder = tmp_path / "graphs"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(200))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "short.bin").write_bytes(bytes(80))
    (folder / "empty.bin").write_bytes(b"")
    (folder / "g.onnx").write_bytes(tiny.projection(False, location))
    with pytest.raises(error, match=message):
        inline_weights(folder / "g.onnx")


def test_bytes_may_name_no_file(tiny):
    with pytest.raises(EngineError, match=r"a graph in memory names the file 'weights\.bin'"):
        inline_weights(tiny.projection(False))


@pytest.mark.parametrize("number", ["-1", "1e3", "\uff19", "9" * 30, ""])
def test_odd_numbers_are_refused(tiny, bundle_dir, number):
    model = onnx.load_from_string(tiny.projection(False))
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "offset").value = number
    (bundle_dir / "graphs/odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="external data with offset"):
        inline_weights(bundle_dir / "graphs/odd.onnx")


@given(st.data())
def test_no_damage_ends_in_anything_but_an_error_of_ours(tiny, data):
    good = tiny.blend()
    cut = data.draw(st.integers(0, len(good)))
    bad = bytearray(good[:cut])
    for _ in range(data.draw(st.integers(0, 3))):
        if bad:
            bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    with suppress(EngineError, BundleError):
        assert isinstance(inline_weights(bytes(bad)), bytes)


def test_deep_nesting_is_refused():
    message = b""
    for _ in range(200):  # graph in attribute in node in graph ...
        for field in (6, 5, 1):
            size = len(message)
            head = bytearray([field << 3 | 2])
            while size > 127:
                head.append(size & 127 | 128)
                size >>= 7
            message = bytes([*head, size]) + message
    size = len(message)
    head = bytearray([7 << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    with pytest.raises(EngineError, match="nested deeper than 32 levels"):
        inline_weights(bytes([*head, size]) + message)
