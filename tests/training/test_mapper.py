"""Mapper training on a miniature generator: it learns, resumes exactly and touches nothing but the mapper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training.losses import LossWeights
from styleclip_rt.runtime.training.mapper import (
    PRESETS,
    MapperNetworks,
    MapperPreset,
    TextPair,
    mapper_config,
    preset,
    train_mapper,
    training_faces,
)
from styleclip_rt.runtime.training.networks.mapper import MAPPER_SCALE
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig

CONFIG = GeneratorConfig(resolution=16, z_dim=12, w_dim=12, mapping_layers=2, channels={4: 8, 8: 8, 16: 6})


class Colour(nn.Module):
    """A stand-in for CLIP that sees the mean colour of the picture and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        constant = torch.full((len(image), 1), 0.5)
        return functional.normalize(torch.cat([image.mean((2, 3)), constant], 1) * self.unused, dim=-1)


@pytest.fixture(scope="module")
def networks() -> MapperNetworks:
    torch.manual_seed(0)
    return MapperNetworks(Generator(CONFIG).eval(), Colour(), Colour())


@pytest.fixture(scope="module")
def text() -> TextPair:
    red, grey = torch.tensor([[1.0, -0.2, -0.2, 0.5], [0.0, 0.0, 0.0, 1.0]])
    return TextPair(functional.normalize(red, dim=0), functional.normalize(grey, dim=0))


SMALL = MapperPreset(LossWeights(clip=1.0, directional=0.1, l2=0.001, identity=0.0), steps=80, batch=6, lr=5.0)


def likeness(networks: MapperNetworks, w: Tensor, text: TextPair) -> float:
    with torch.no_grad():
        return float((networks.encode_image(networks.generator(w)) @ text.target).mean())


def test_the_mapper_learns_its_prompt(tmp_path: Path, networks: MapperNetworks, text: TextPair) -> None:
    mapper = train_mapper("red", tmp_path, networks, text, SMALL)
    w = training_faces(networks.generator, replace(SMALL, batch=32), 123, 0)
    with torch.no_grad():
        edited = w + mapper.delta(w)
    assert likeness(networks, edited, text) > likeness(networks, w, text) + 0.1
    assert torch.allclose(mapper.delta(w), MAPPER_SCALE * mapper(w))


def test_only_the_mapper_is_trained(tmp_path: Path, networks: MapperNetworks, text: TextPair) -> None:
    before = [p.detach().clone() for p in networks.generator.parameters()]
    flags = [p.requires_grad for p in networks.generator.parameters()]
    mapper = train_mapper("red", tmp_path, networks, text, replace(SMALL, steps=3))
    for old, flag, p in zip(before, flags, networks.generator.parameters(), strict=True):
        assert torch.equal(old, p)
        assert p.requires_grad == flag
        assert p.grad is None
    assert not any(p.requires_grad for p in mapper.parameters())


def test_a_finished_run_is_read_back(tmp_path: Path, networks: MapperNetworks, text: TextPair) -> None:
    first = train_mapper("red", tmp_path, networks, text, replace(SMALL, steps=4))
    again = train_mapper("red", tmp_path, networks, text, replace(SMALL, steps=4))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_faces_depend_on_seed_and_step_alone(networks: MapperNetworks) -> None:
    first, again, other = (training_faces(networks.generator, SMALL, 1, step) for step in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (6, CONFIG.num_ws, CONFIG.w_dim)


def test_groups(networks: MapperNetworks) -> None:
    config = mapper_config(networks.generator, replace(SMALL, groups=("coarse",)))
    assert (config.coarse, config.medium, config.fine) == (True, False, False)
    with pytest.raises(InputError, match="expected one or more of coarse"):
        mapper_config(networks.generator, replace(SMALL, groups=("rough",)))


def test_presets_cover_the_embedded_mappers() -> None:
    assert {"bob-cut", "purple-hair", "glasses", "surprised"} <= PRESETS.keys()
    assert preset("anything else") == MapperPreset()


def test_equal_texts_are_refused(text: TextPair) -> None:
    with pytest.raises(InputError, match="mean the same"):
        _ = TextPair(text.target, text.target).delta_t
