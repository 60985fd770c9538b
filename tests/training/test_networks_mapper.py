from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.training.networks.mapper import (  # noqa: E402
    MAPPER_SCALE,
    EqualLinear,
    LevelsMapper,
    MapperConfig,
)


def test_equals_the_published_equations():
    torch.manual_seed(0)
    mapper, w = LevelsMapper(MapperConfig(18, 16)), torch.randn(2, 18, 16)
    out = mapper(w)
    for group, start, stop in (("coarse", 0, 4), ("medium", 4, 8), ("fine", 8, 18)):
        x = w[:, start:stop]
        x = x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + 1e-8)  # over the layers (StyleCLIP issue 82)
        for layer in mapper.groups[group].layers:
            x = x @ (layer.weight * 0.01 / math.sqrt(16)).T + layer.bias * 0.01
            x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
        assert torch.allclose(out[:, start:stop], x, atol=1e-5), group
    assert torch.equal(mapper.delta(w), MAPPER_SCALE * out)
    assert MAPPER_SCALE == 0.1


@pytest.mark.parametrize("off", ["coarse", "medium", "fine"])
def test_a_group_that_is_off_gives_zeros_and_has_no_weights(off):
    mapper = LevelsMapper(MapperConfig(10, 8, **{off: False}))
    start, stop = {"coarse": (0, 4), "medium": (4, 8), "fine": (8, 10)}[off]
    out = mapper(torch.randn(3, 10, 8))
    assert out.shape == (3, 10, 8)
    assert not out[:, start:stop].any()
    assert off not in mapper.groups


def test_few_layers_leave_the_fine_group_empty():
    mapper = LevelsMapper(MapperConfig(8, 8))
    assert list(mapper.groups) == ["coarse", "medium"]
    assert mapper(torch.randn(1, 8, 8)).shape == (1, 8, 8)


def test_config_survives_json():
    config = MapperConfig(10, 8, fine=False)
    assert MapperConfig.from_dict(config.to_dict()) == config
    with pytest.raises(PackError, match="kind is 'double'"):
        MapperConfig.from_dict({**config.to_dict(), "kind": "double"})
    with pytest.raises(PackError, match="w_dim"):
        MapperConfig.from_dict({k: v for k, v in config.to_dict().items() if k != "w_dim"})


def test_equal_linear_scales_its_weights_at_run_time():
    layer = EqualLinear(64, 32, lr_mul=0.01)
    assert 50 < layer.weight.std() < 200
    assert layer(torch.randn(5, 64)).std() < 3
