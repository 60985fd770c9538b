"""The training loop and the generator's stages: resuming is exact, toRGB styles are constant, w is a rotated code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training.demo import factors as fx
from styleclip_rt.runtime.training.demo import generator as stage
from styleclip_rt.runtime.training.demo import recipe
from styleclip_rt.runtime.training.loop import load_stage, rng_for, train


def fit_line(work: Path, steps: int, *, stop_at: int | None = None) -> nn.Module:
    """Fits y = 2 x, with randomness from (seed, step); `stop_at` raises there, as a kill would."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)

    def step(i: int) -> dict[str, Tensor]:
        if i == stop_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng_for(1, i).standard_normal((8, 4), dtype=np.float32))
        return {"loss": (model(x) - 2 * x).square().mean()}

    return train("line", work, model, step, steps=steps, lr=0.05, ema=0.9, save_every_s=0)


def test_a_killed_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole = fit_line(tmp_path / "whole", 40)
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "cut", 40, stop_at=23)
    resumed = fit_line(tmp_path / "cut", 40)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_finished_stage_returns_at_once(tmp_path: Path) -> None:
    fit_line(tmp_path, 5)
    assert torch.equal(fit_line(tmp_path, 5, stop_at=0).weight, fit_line(tmp_path, 5, stop_at=0).weight)
    rows = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0]


def test_a_nan_loss_is_an_error_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="loss is nan"):
        train("nan", tmp_path, model, lambda i: {"loss": model.weight.sum() * float("nan")}, steps=3, lr=0.1)
    assert not (tmp_path / "nan.pt").exists()


def test_a_stage_that_never_ran_says_how_to_run_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the stage 'line' first"):
        load_stage(tmp_path, "line", nn.Linear(4, 4))


def test_torgb_styles_are_the_constant_one() -> None:
    generator = stage.new_generator()
    s = generator.styles(torch.randn(3, generator.num_ws, generator.config.w_dim))
    for layer in generator.style_layers:
        part = s[:, layer.offset : layer.offset + layer.channels]
        assert (layer.kind == "torgb") == bool((part == 1).all()), layer.name


def test_w_is_a_rotation_of_the_code() -> None:
    rotation = stage.code_rotation()
    assert torch.allclose(rotation @ rotation.T, torch.eye(len(rotation)), atol=1e-5)
    codes = torch.from_numpy(fx.code(fx.sample_factors(5, np.random.default_rng(0))))
    assert torch.allclose(stage.w_from_codes(codes).norm(dim=1), codes.norm(dim=1), rtol=1e-5)


def test_latents_draw_the_prior_of_the_renderer() -> None:
    z = torch.randn(4000, stage.CONFIG.z_dim, generator=torch.Generator().manual_seed(1))
    f = stage.factors_of_z(z)
    assert (f["glasses"] > 0.5).mean() == pytest.approx(fx.BINARY_P["glasses"], abs=0.03)
    styles = np.bincount(f["hair_style"].argmax(1), minlength=6) / len(z)
    assert styles == pytest.approx(np.array(fx.HAIR_STYLE_P), abs=0.03)


def test_a_picture_at_half_size_is_the_skip_of_that_block() -> None:
    generator = stage.new_generator()
    s = generator.styles(torch.randn(2, generator.num_ws, generator.config.w_dim))
    assert stage._synthesize_at(generator, s, 32).shape == (2, 3, 32, 32)
    assert torch.equal(stage._synthesize_at(generator, s, 64), generator.synthesize(s))


def test_style_noise_leaves_constant_channels_alone() -> None:
    s_std = torch.tensor([0.0, 1.0, 2.0])
    noise = stage.style_noise(s_std, 20_000, 1.0, np.random.default_rng(0))
    assert torch.all(noise[:, 0] == 0)
    assert float(noise[:, 2].std() / noise[:, 1].std()) == pytest.approx(2, rel=0.1)


def test_spread_tells_one_factor_from_many() -> None:
    generator, rotation = stage.new_generator(), stage.code_rotation()
    many = float(stage.spread(generator, rotation, torch.ones(len(rotation))).detach())
    with torch.no_grad():
        for layer in generator.style_layers:
            affine = generator.layer(layer.name).affine
            affine.weight.copy_(rotation[0].expand_as(affine.weight))
    one = float(stage.spread(generator, rotation, torch.ones(len(rotation))).detach())
    assert one == pytest.approx(len(rotation) ** -0.5, rel=1e-3)
    assert many > 0.7


def test_the_drawing_loss_is_zero_for_equal_pictures_only() -> None:
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    assert float(stage.drawing_loss(image, image)["loss"]) == 0
    assert float(stage.drawing_loss(image, -image)["loss"]) > 0.5


def test_an_unknown_stage_is_named_with_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown stage dance; expected some of: faces, judge"):
        recipe.run(tmp_path, ("dance",))
    assert not any(tmp_path.iterdir())


def test_the_mapping_starts_as_an_affine_map_of_ramps() -> None:
    mapping = stage.informed_start(stage.new_generator().mapping_network)
    z = torch.from_numpy(rng_for(1, 0).standard_normal((2000, stage.CONFIG.z_dim), dtype=np.float32))
    w = stage.w_from_codes(torch.from_numpy(fx.code(stage.factors_of_z(z))))
    with torch.no_grad():
        error = (mapping(z) - w).square().mean() / w.var()
    assert error < 0.06  # what is not affine in the ramps; untrained weights give 1
