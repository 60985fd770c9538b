from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from styleclip_rt.engines.errors import InputError
from styleclip_rt.engines.spec import FINITE_CHECK_MAX_SIZE, GraphSpec, TensorSpec, check_feeds, spec_differences

W = TensorSpec("w", "float32", ("N", 10, 128))
ALPHA = TensorSpec("alpha", "float32", ("N",))
IMAGE = TensorSpec("image", "float32", ("N", 3, 64, 64))
EDIT = GraphSpec("edit", (W, ALPHA), (IMAGE,))


def feeds(n: int = 2) -> dict[str, np.ndarray]:
    return {"alpha": np.ones(n, np.float32), "w": np.zeros((n, 10, 128), np.float32)}


def test_good_feeds_come_back_in_the_order_of_the_spec_and_uncopied():
    given_feeds = feeds()
    checked = check_feeds(EDIT, given_feeds)
    assert list(checked) == ["w", "alpha"]
    assert checked["w"] is given_feeds["w"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"w": None}, "missing w; its inputs are: w float32 [N, 10, 128], alpha float32 [N]", id="missing"),
        pytest.param({"beta": np.ones(2)}, "unknown beta; its inputs are", id="unknown"),
        pytest.param({"w": None, "s": np.ones(2)}, "missing w and unknown s", id="renamed"),
        pytest.param({"alpha": [1.0, 2.0]}, "got list, expected a numpy array float32 [N]", id="list"),
        pytest.param({"alpha": 3.0}, "got float, expected a numpy array", id="scalar"),
        pytest.param({"alpha": np.ones(2)}, "got float64 [2], expected float32 [N]; convert it", id="float64"),
        pytest.param({"alpha": np.ones(2, np.int64)}, "got int64 [2], expected float32 [N]", id="int64"),
        pytest.param({"alpha": np.ones(2, object)}, "got object [2], expected float32 [N]", id="object"),
        pytest.param({"alpha": np.float32(3) * np.ones(())}, "got", id="0-d"),
        pytest.param({"w": np.zeros((10, 128), np.float32)}, "got float32 [10, 128], expected float32 [N,", id="rank"),
        pytest.param({"w": np.zeros((2, 18, 512), np.float32)}, "got float32 [2, 18, 512], expected", id="size"),
        pytest.param({"alpha": np.ones(3, np.float32)}, "N is 3, but 2 in input 'w'", id="batches differ"),
        pytest.param({"w": np.zeros((0, 10, 128), np.float32)}, "an empty array; give at least one", id="empty"),
        pytest.param({"alpha": np.array([1, np.nan], np.float32)}, "holds NaN or infinity", id="nan"),
        pytest.param({"alpha": np.array([1, np.inf], np.float32)}, "holds NaN or infinity", id="inf"),
    ],
)
def test_bad_feeds_name_the_tensor_and_both_types(change, message):
    changed = {name: value for name, value in {**feeds(), **change}.items() if value is not None}
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        check_feeds(EDIT, changed)
    assert "graph 'edit'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_large_inputs_are_not_scanned_for_nan():
    spec = GraphSpec("big", (TensorSpec("x", "float32", ("N",)),), ())
    x = np.full(FINITE_CHECK_MAX_SIZE + 1, np.nan, np.float32)
    assert check_feeds(spec, {"x": x})["x"] is x


@given(
    array=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(-1, 1, width=32)
    ),
    layout=st.sampled_from(["transposed", "strided", "reversed", "big-endian"]),
)
def test_any_layout_comes_back_contiguous_native_and_equal(array, layout):
    given_array = {
        "transposed": lambda: np.asfortranarray(array),
        "strided": lambda: np.repeat(array, 2, axis=1)[:, ::2],
        "reversed": lambda: array[::-1],
        "big-endian": lambda: array.astype(">f4"),
    }[layout]()
    spec = GraphSpec("g", (TensorSpec("x", "float32", ("N", "M")),), ())
    checked = check_feeds(spec, {"x": given_array})["x"]
    assert checked.flags.c_contiguous
    assert checked.dtype == np.float32
    assert checked.dtype.isnative
    np.testing.assert_array_equal(checked, given_array)


def test_specs_differ_by_name_type_rank_and_fixed_size_but_not_by_free_dimension():
    other = GraphSpec("edit", (TensorSpec("w", "float32", ("batch", 10, 128)), ALPHA), (IMAGE,))
    assert spec_differences(EDIT, other) == []
    wrong = GraphSpec("edit", (TensorSpec("w", "float16", ("N", 18, 512)),), (IMAGE, ALPHA))
    assert spec_differences(EDIT, wrong) == [
        "input alpha float32 [N] is missing",
        "input w float32 [N, 10, 128] is float16 [N, 18, 512]",
        "output alpha float32 [N] is extra",
    ]


def test_tensor_row_of_the_manifest():
    assert W.as_json() == {"name": "w", "dtype": "float32", "shape": ["N", 10, 128]}
