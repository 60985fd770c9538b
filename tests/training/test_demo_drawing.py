"""Factors and renderer: what is drawn is what the labels say, and the same seed draws the same faces."""

from __future__ import annotations

import numpy as np
import pytest

from styleclip_rt.runtime.training.demo import factors as fx
from styleclip_rt.runtime.training.demo.dataset import RenderedFaces, to_pm1
from styleclip_rt.runtime.training.demo.renderer import render


@pytest.fixture(scope="module")
def faces() -> fx.Factors:
    return fx.sample_factors(64, np.random.default_rng(7))


def turned_on(faces: fx.Factors, name: str, value: float) -> fx.Factors:
    return {**faces, name: np.full_like(faces[name], value)}


def test_sampling_is_a_function_of_the_seed() -> None:
    a, b = (fx.sample_factors(8, np.random.default_rng(3)) for _ in range(2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert np.array_equal(render(a), render(b))


def test_labels_stay_inside_their_classes(faces: fx.Factors) -> None:
    labels = fx.labels(faces)
    assert labels.keys() == fx.ATTRIBUTES.keys()
    for name, values in fx.ATTRIBUTES.items():
        assert set(np.unique(labels[name])) <= set(range(-1, len(values)))


def test_hair_color_is_undefined_where_no_hair_shows(faces: fx.Factors) -> None:
    bald = turned_on(faces, "hat", 0.0)
    bald["hair_style"] = np.tile(np.eye(6, dtype=np.float32)[0], (64, 1))
    assert (fx.labels(bald)["hair_color"] == -1).all()


def test_a_hat_hides_short_hair_but_not_long_hair(faces: fx.Factors) -> None:
    short = turned_on(faces, "hat", 1.0)
    long = {**short, "hair_style": np.tile(np.eye(6, dtype=np.float32)[3], (64, 1))}
    short["hair_style"] = np.tile(np.eye(6, dtype=np.float32)[1], (64, 1))
    assert (fx.labels(short)["hair_style"] == -1).all()
    assert (fx.labels(long)["hair_style"] == 3).all()


def test_code_is_finite_and_of_moderate_scale(faces: fx.Factors) -> None:
    code = fx.code(fx.sample_factors(4000, np.random.default_rng(1)))
    assert np.isfinite(code).all()
    assert code.std(0).min() > 0.1
    assert code.std(0).max() < 1.5


def test_blurred_classes_keep_their_face_and_a_margin(faces: fx.Factors) -> None:
    noise = np.random.default_rng(3).normal(0, 0.8, (64, fx.BLURRED)).astype(np.float32)
    blurred = fx.blurred(faces, noise)
    assert np.array_equal(blurred["hair_style"].argmax(1), faces["hair_style"].argmax(1))
    ranked = np.sort(blurred["hair_style"], 1)
    assert (ranked[:, -1] - ranked[:, -2]).min() >= 0.199
    for name in ("glasses", "beard", "hat", "lipstick"):
        assert np.array_equal(blurred[name] > 0.5, faces[name] > 0.5), name
        assert np.abs(blurred[name] - 0.5).min() >= 0.099
        assert not np.array_equal(blurred[name], faces[name])
    assert not np.array_equal(fx.code(blurred), fx.code(faces))
    still = fx.blurred(faces, np.zeros_like(noise))
    assert np.allclose(fx.code(still), fx.code(faces))


def test_a_colour_past_its_corner_moves_away_from_the_other(faces: fx.Factors) -> None:
    away = np.full(64, 0)
    moved = fx.past_corner(faces, away, np.full(64, 0.5, np.float32))
    plain = faces["hair_weights"].max(1) > 0.9
    assert 0 < plain.sum() < 64
    assert np.array_equal(moved["hair_weights"][~plain], faces["hair_weights"][~plain])
    off_black = plain & (faces["hair_weights"].argmax(1) != 0)
    assert np.allclose((moved["hair_weights"] - faces["hair_weights"])[off_black, 0], -0.5)
    assert np.allclose(moved["hair_weights"].sum(1), faces["hair_weights"].sum(1), atol=1e-5)


def test_identity_is_the_geometry_and_nothing_else(faces: fx.Factors) -> None:
    other = fx.with_identity(faces, -fx.identity(faces))
    assert np.array_equal(fx.identity(other), -fx.identity(faces))
    assert np.array_equal(other["hair_rgb"], faces["hair_rgb"])


@pytest.mark.parametrize(
    ("name", "rows"),
    [("glasses", slice(20, 48)), ("hat", slice(0, 30)), ("beard", slice(32, 64)), ("age", slice(8, 60))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_attribute_draws_where_it_belongs(faces: fx.Factors, name: str, rows: slice) -> None:
    off, on = (render(turned_on(faces, name, value)).astype(int) for value in (0.0, 1.0))
    changed = (np.abs(on - off).max(-1) > 8).any(0)  # [64, 64] over all faces
    assert changed[rows].any()
    changed[rows] = False
    assert not changed.any()


def test_hair_colour_reaches_the_picture(faces: fx.Factors) -> None:
    afro = {**turned_on(faces, "hat", 0.0), "hair_style": np.tile(np.eye(6, dtype=np.float32)[4], (64, 1))}
    crown = render(afro)[:, 6:9, 24:40].astype(float).mean((1, 2)) / 255
    assert np.abs(crown - afro["hair_rgb"]).mean() < 0.12


def test_size_is_free_and_small_pictures_agree_with_large_ones(faces: fx.Factors) -> None:
    part = fx.take(faces, slice(0, 4))
    small, large = render(part, 64).astype(float), render(part, 256).astype(float)
    assert np.abs(large.reshape(4, 64, 4, 64, 4, 3).mean((2, 4)) - small).mean() < 3


def test_faces_on_disk_are_drawn_once_and_memory_mapped(tmp_path) -> None:  # type: ignore[no-untyped-def]
    first = RenderedFaces.open(tmp_path, 70, 5)
    stamp = (tmp_path / "faces-70-5-64" / "images.npy").stat().st_mtime_ns
    again = RenderedFaces.open(tmp_path, 70, 5)
    assert (tmp_path / "faces-70-5-64" / "images.npy").stat().st_mtime_ns == stamp
    assert isinstance(again.images, np.memmap)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(again.images, render(again.factors))
    assert again.batch(np.arange(3)).shape == (3, 3, 64, 64)


def test_pm1_covers_the_whole_range() -> None:
    x = to_pm1(np.array([[[[0, 255, 51]]]], np.uint8))
    assert x.flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])
