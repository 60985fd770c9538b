"""The gate of a built plan: feeds that mean something, limits by strength, and faults that it must see."""

from __future__ import annotations

import numpy as np
import pytest

from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.gate import ALPHA, MIN_PSNR_DB, feeds, gate_fault
from styleclip_rt.engines.spec import GraphSpec, TensorSpec

W = TensorSpec("w", "float32", ("N", 16))
TOKENS = TensorSpec("tokens", "int64", ("N", 8))


def spec(dtype="float32", name="y"):
    return GraphSpec("g", (W, TOKENS), (TensorSpec(name, dtype, ("N", 16)),))


def run(change=lambda y: y, dtype="float32"):
    seen = []

    def go(feeds):
        seen.append({name: array.shape for name, array in feeds.items()})
        y = feeds["w"] * 100 + 128 if dtype == "uint8" else feeds["w"]
        y = np.clip(y, 0, 255).astype(dtype) if dtype == "uint8" else y.astype(dtype)
        return {"y": change(y)}

    go.seen = seen
    return go


def test_what_agrees_passes_at_one_and_several_images():
    found = run()
    assert gate_fault(spec(), found, run()) == ""
    assert found.seen == [{"w": (1, 16), "tokens": (1, 8)}, {"w": (3, 16), "tokens": (3, 8)}]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda y: y * 1.005, ""),
        (lambda y: y * 1.02, r"output 'y' at batch 1: relative error 2.0e-02, at most 1e-02 is allowed"),
        (lambda y: y * np.float32(np.nan), "output 'y' at batch 1: holds NaN or infinity"),
        (lambda y: y[:, :8], "output 'y' at batch 1: float32 [1, 8], expected float32 [1, 16]"),
        (lambda y: np.where(len(y) == 3, 0, y).astype(np.float32), "output 'y' at batch 3: relative error 1.0e+00"),
    ],
)
def test_floats_by_their_relative_error(change, fault):
    found = gate_fault(spec(), run(change), run())
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def test_images_by_their_psnr():
    near = run(lambda y: y ^ 1, "uint8")
    assert gate_fault(spec("uint8"), near, run(dtype="uint8")) == ""
    far = run(lambda y: y ^ 4, "uint8")
    assert "PSNR 36.1 dB, at least 45 dB are needed" in gate_fault(spec("uint8"), far, run(dtype="uint8"))


def test_zeros_agree_with_zeros():
    zero = run(lambda y: y * 0)
    assert gate_fault(spec(), zero, zero) == ""
    assert "relative error" in gate_fault(spec(), run(), zero)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_is_a_fault_and_says_so(value):
    broken = run(lambda y: y + np.float32(value))
    for engine in (run(), broken):
        fault = gate_fault(spec(), engine, broken)
        assert fault.startswith("output 'y' at batch 1: the reference itself gives NaN or infinity; ")


def test_integers_must_be_equal():
    whole = GraphSpec("g", (W, TOKENS), (TensorSpec("y", "int64", ("N", 8)),))
    same = lambda feeds: {"y": feeds["tokens"]}  # noqa: E731
    assert gate_fault(whole, same, same) == ""
    assert "at most 0e+00" in gate_fault(whole, lambda feeds: {"y": feeds["tokens"] + 1}, same)


EDIT = GraphSpec(
    "edit",
    tuple(
        TensorSpec(name, "float32", ("N", *shape))
        for name, shape in {"w": (4, 16), "delta_t": (64,), "alpha": (), "beta": (), "psi": (), "s": (900,)}.items()
    ),
    (TensorSpec("image_u8", "uint8", ("N", 8, 8, 3)),),
)


def test_what_is_fed_has_the_range_of_its_name():
    fed = feeds(EDIT, 3, -ALPHA)
    assert {array.dtype.name for array in fed.values()} == {"float32"}
    assert fed["alpha"].tolist() == [-ALPHA] * 3
    np.testing.assert_allclose(np.linalg.norm(fed["delta_t"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(fed["beta"], [0.001, 0.05, 2], rtol=1e-6)
    assert ((fed["psi"] >= 0) & (fed["psi"] <= 1)).all()
    assert (fed["w"] == fed["w"][:, :1]).all()
    assert len({array.tobytes() for array in fed["w"]}) == 3
    plain = feeds(EDIT, 3)
    assert abs(plain["s"].mean() - 1) < 0.05
    moved = fed["s"] != plain["s"]
    assert 0.05 < moved.mean() < 0.15
    assert 1 < np.abs(fed["s"] - plain["s"]).max() <= 2.01
    assert all((fed[name] == plain[name]).all() for name in fed if name not in ("alpha", "s"))
    assert 0 < feeds(EDIT, 1)["beta"][0] < 0.01, "a single edit moves channels, however the table's rows lie"


def picture(change=lambda image, fed: image):
    """An editor of a kind: a ramp of levels; `change` gets them and the feeds."""

    def go(fed):
        image = np.broadcast_to(np.arange(192).reshape(1, 8, 8, 3) + 20, (len(fed["alpha"]), 8, 8, 3))
        return {"image_u8": change(image, fed).astype(np.uint8)}

    return go


def test_an_edit_is_compared_at_no_strength_and_at_both_ends():
    seen = []
    assert gate_fault(EDIT, picture(lambda image, fed: (seen.append(fed["alpha"].tolist()), image)[1]), picture()) == ""
    assert seen == [[a] * n for n in (1, 3) for a in (0.0, ALPHA, -ALPHA)]


@pytest.mark.parametrize("alpha", [0.0, ALPHA, -ALPHA])
def test_the_limit_is_that_of_the_strength(alpha):
    """Two levels off everywhere are 42.1 dB, four are 36.1 dB."""
    where = f"output 'image_u8' at batch 1, alpha {alpha:{'+' if alpha else ''}g}: PSNR "
    two, four = (
        gate_fault(EDIT, picture(lambda image, fed, n=n: image + n * (fed["alpha"][0] == alpha)), picture())
        for n in (2, 4)
    )
    assert MIN_PSNR_DB["edited"] < 42.1 < MIN_PSNR_DB["plain"]
    assert two == ("" if alpha else f"{where}42.1 dB, at least 45 dB are needed")
    assert four == f"{where}36.1 dB, at least {40 if alpha else 45} dB are needed"


def test_the_worst_picture_counts_and_not_the_mean():
    def last(image, fed):
        return image + 2 * (np.arange(len(image)) == 2)[:, None, None, None]  # 46.9 dB over the three

    fault = gate_fault(EDIT, picture(last), picture())
    assert fault == "output 'image_u8' at batch 3, alpha 0: PSNR 42.1 dB, at least 45 dB are needed"


def test_a_float_picture_is_compared_as_it_is_shown():
    graph = GraphSpec("synthesize", (TensorSpec("s", "float32", ("N", 192)),), (TensorSpec("image", "float32", ()),))
    made = lambda fed: {"image": 3 * (fed["s"] - 1).reshape(-1, 3, 8, 8)}  # noqa: E731
    assert gate_fault(graph, lambda fed: {"image": np.clip(made(fed)["image"], -1, 1)}, made) == ""
    fault = gate_fault(graph, lambda fed: {"image": made(fed)["image"] + np.float32(0.02)}, made)
    assert fault.startswith("output 'image' at batch 1, alpha 0: PSNR 4")
    edits = lambda fed: {"image": made(fed)["image"] + np.float32(0.015 * (fed["s"].std() > 0.3))}  # noqa: E731
    assert gate_fault(graph, edits, made) == "", "43 dB: an edit needs 40"


@pytest.fixture(scope="module")
def shipped(root):
    with open_bundle(root / "runtime/data/toyfaces-bundle", device="cpu", engine="onnxruntime", threads=1) as bundle:
        yield bundle


@pytest.mark.parametrize("graph", ["synthesize_u8", "edit_global", "edit_mapper/bob-cut"])
def test_the_feeds_draw_pictures_and_move_them(shipped, graph):
    """A flat or saturated picture would agree with anything."""
    spec_ = shipped.spec(graph)
    images = [shipped.run(graph, **feeds(spec_, 1, alpha))["image_u8"].astype(float) for alpha in (0, ALPHA, -ALPHA)]
    for image in images:
        assert ((image > 0) & (image < 255)).mean() > 0.5
        assert image.std() > 20
    for image in images[1:]:
        assert np.abs(image - images[0]).mean() > 5


@pytest.mark.parametrize(
    ("graph", "damage"),
    [
        ("edit_global", lambda fed: fed | {"alpha": fed["alpha"] * 0}),
        ("edit_global", lambda fed: fed | {"alpha": abs(fed["alpha"])}),
        ("edit_global", lambda fed: fed | {"beta": fed["beta"] * 0}),
        ("edit_global", lambda fed: fed | {"delta_t": np.roll(fed["delta_t"], 1, axis=1)}),
        ("edit_mapper/bob-cut", lambda fed: fed | {"strength": fed["strength"] * 0}),
        ("mapping", lambda fed: fed | {"psi": np.ones_like(fed["psi"])}),
        ("synthesize", lambda fed: {"s": np.clip(fed["s"], 0, 2)}),
        ("direction", lambda fed: fed | {"beta": fed["beta"] * 0}),
        ("encode_text", lambda fed: {"tokens": fed["tokens"][:, ::-1].copy()}),
    ],
)
def test_an_engine_that_misreads_an_input_is_found(shipped, graph, damage):
    spec_, engine = shipped.spec(graph), shipped.engine(graph)
    assert gate_fault(spec_, engine.run, engine.run) == ""
    assert gate_fault(spec_, lambda fed: engine.run(damage(fed)), engine.run).startswith("output ")
