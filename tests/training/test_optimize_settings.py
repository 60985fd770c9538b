"""Presets, ranges and the published schedule of the latent optimisation."""

from __future__ import annotations

import math
from typing import Any

import pytest

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training.optimize_settings import (
    PRESETS,
    PUBLISHED,
    OptimizeSettings,
    default_preset,
    rate,
    settings_for,
)
from styleclip_rt.runtime.training.pack import load_pack


@pytest.mark.parametrize("steps", [40, 300])
def test_the_schedule_is_the_published_formula(steps: int) -> None:
    rates = [rate(i, steps, 0.1) for i in range(steps)]
    for i, value in enumerate(rates):
        t = i / steps
        down = min(1, (1 - t) / 0.25)
        down = 0.5 - 0.5 * math.cos(down * math.pi)
        assert value == pytest.approx(0.1 * down * min(1, t / 0.05), rel=1e-12)
    assert rates[0] == 0
    assert max(rates) == rates[steps // 2] == 0.1
    assert 0 < rates[-1] < 0.01


def test_the_published_preset() -> None:
    expected = {
        "space": "w+", "channels": "conv", "steps": 300, "lr": 0.1, "lambda_clip": 1.0, "lambda_directional": 0.0,
        "lambda_l2": 0.008, "lambda_id": 0.0, "front_end": "raw", "templates": False, "precision": "fp32",
        "patience": 0, "returned": "last", "whiten": False, "warm": 0,
    }  # fmt: skip
    assert {name: PUBLISHED.to_dict()[name] for name in expected} == expected
    assert PRESETS["published"] is PUBLISHED


def test_the_preset_follows_the_width_of_w(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = load_pack("toyfaces")
    assert default_preset(pack) == "small"
    wide = pack.layout.config.__class__(16, w_dim=512, channels={4: 8, 8: 8, 16: 8})
    monkeypatch.setattr(pack.layout, "config", wide)
    assert default_preset(pack) == "published"
    assert settings_for(pack) == PUBLISHED


def test_free_generation_is_driven_by_clip_alone() -> None:
    pack = load_pack("toyfaces")
    free = settings_for(pack, "published", free=True)
    assert (free.lambda_clip, free.lambda_l2, free.lambda_id, free.lambda_directional) == (1, 0, 0, 0)
    assert settings_for(pack, "published", free=True, lambda_l2=0.5).lambda_l2 == 0.5


def test_what_is_not_given_is_the_presets() -> None:
    pack = load_pack("toyfaces")
    settings = settings_for(pack, "published", steps=7, lr=None)
    assert (settings.steps, settings.lr) == (7, 0.1)


BAD: dict[str, dict[str, Any]] = {
    "space": {"space": "z"},
    "channels": {"channels": "rgb"},
    "front_end": {"front_end": "bicubic"},
    "precision": {"precision": "int8"},
    "returned": {"returned": "first"},
    "steps": {"steps": 0},
    "batch": {"batch": 2.5},
    "patience": {"patience": -1},
    "warm is 5": {"warm": 5},
    "whiten is for the spaces w": {"whiten": True, "space": "s"},
    "lr": {"lr": 0.0},
    "lambda_l2": {"lambda_l2": float("nan")},
    "lambda_id": {"lambda_id": -0.1},
    "tolerance": {"tolerance": float("inf")},
    "drives the edit": {"lambda_clip": 0.0},
    "no setting stepps": {"stepps": 3},
}


@pytest.mark.parametrize("case", list(BAD))
def test_settings_out_of_range_are_named(case: str) -> None:
    with pytest.raises(InputError, match=case):
        OptimizeSettings().changed(BAD[case])


def test_style_space_drops_the_presets_whitening_but_not_the_users() -> None:
    pack = load_pack("toyfaces")
    assert settings_for(pack).whiten
    assert not settings_for(pack, space="s").whiten
    with pytest.raises(InputError, match="whiten is for the spaces w"):
        settings_for(pack, space="s", whiten=True)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="published, small"):
        settings_for(load_pack("toyfaces"), "best")
