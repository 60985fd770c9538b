"""The table converter: every key accounted for, every mismatch in one message."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.rows import Mismatch, Row, convert, targets  # noqa: E402

ROWS = [Row(r"a(\d)", r"x.\1"), Row(r"t", "y", np.transpose), Row(r"drop", None)]
EXPECTED = {"x.1": (2,), "y": (3, 2)}


def source(**changes):
    arrays = {"a1": np.ones(2), "t": np.zeros((2, 3)), "drop": np.zeros(9)} | changes
    return {key: array for key, array in arrays.items() if array is not None}


def message(rows=ROWS, **changes):
    with pytest.raises(PackError) as raised:
        convert(source(**changes), rows, EXPECTED, "the file")
    return str(raised.value)


def test_a_sound_source():
    result = convert(source(), ROWS, EXPECTED, "the file")
    assert {name: (tuple(t.shape), t.dtype) for name, t in result.items()} == {
        "x.1": ((2,), torch.float32),
        "y": ((3, 2), torch.float32),
    }


def test_results_are_copies():
    """The source is a memory map; the pack is not to change with the file."""
    array = np.ones(2, np.float32)
    result = convert(source(a1=array), ROWS, EXPECTED, "the file")
    array[:] = 5
    assert result["x.1"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"other": np.zeros(4)}, "not accounted for: other [4]"),
        ({"a1": None}, "missing: x.1"),
        ({"a2": np.zeros(2)}, "no place for: a2 [2]"),
        ({"a1": np.zeros(3)}, "wrong shape: a1 is [3], which does not give x.1 [2]"),
        ({"a1": np.array([1, np.nan])}, "not finite: a1"),
        ({"a1": np.array([1e300, 1])}, "not finite: a1"),
        ({"a1": np.array(["p", "q"])}, "not finite: a1"),
    ],
    ids=str,
)
def test_each_mismatch_has_its_name(changes, part):
    text = message(**changes)
    assert text.startswith("the file does not fit.")
    assert part in text


def test_all_mismatches_come_at_once():
    text = message(other=np.zeros(1), a1=None, t=np.zeros(4))
    for part in ("not accounted for: other [1]", "missing: x.1", "wrong shape: t is [4]"):
        assert part in text


def test_two_keys_for_one_place():
    assert "filled twice: b [2]" in message([*ROWS, Row("b", "x.1")], b=np.ones(2))


def test_long_lists_are_cut():
    text = message(**{f"z{i}": np.zeros(1) for i in range(40)})
    assert "and 28 more" in text
    assert len(text) < 500


def test_a_transform_may_say_why():
    def refuse(array):
        raise Mismatch("is of no use")

    assert "cannot be used: t is of no use" in message([Row("a1", "x.1"), Row("t", "y", refuse), Row("drop", None)])
    assert "cannot be used: drop is of no use" in message([*ROWS[:2], Row("drop", None, refuse)])


def test_a_spoilt_array_is_not_missing_too():
    def fail(array):
        return array.reshape(7)

    text = message([ROWS[0], Row("t", "y", fail), ROWS[2]])
    assert "wrong shape: t is [2, 3]" in text
    assert "missing" not in text


def test_the_first_row_decides():
    rows = [Row("a1", None), *ROWS]
    assert targets(source(), rows) == {"y"}
    assert "missing: x.1" in message(rows)
