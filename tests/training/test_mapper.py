"""Mapper training on a miniature generator: it learns, resumes exactly and touches nothing but the mapper."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training.loop_store import SafetensorsStore
from styleclip_rt.runtime.training.losses import ImageLoss, LossWeights
from styleclip_rt.runtime.training.mapper import (
    PRESETS,
    PUBLISHED,
    MapperNetworks,
    MapperPreset,
    edited_faces,
    mapper_config,
    preset,
    train_mapper,
    training_faces,
)
from styleclip_rt.runtime.training.mapper_presets import GROUPS, named_preset, published_preset
from styleclip_rt.runtime.training.networks.mapper import MAPPER_SCALE, LevelsMapper
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig, StyleLayer
from styleclip_rt.runtime.training.texts import TextPair

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


def plain_loop(networks: MapperNetworks, text: TextPair, settings: MapperPreset, seed: int) -> LevelsMapper:
    """The training of a levels mapper as one straight loop: what the recipe's mappers were trained with."""
    torch.manual_seed(seed)
    generator, mapper = networks.generator, LevelsMapper(mapper_config(networks.generator, settings))
    with torch.no_grad():
        for group in mapper.groups.values():
            group.layers[-1].weight.mul_(0.1)
    average = copy.deepcopy(mapper)
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=1.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    for i in range(settings.steps):
        ramp, fall = min(1.0, (i + 1) / 50), 0.5 * (1 + math.cos(math.pi * i / settings.steps))
        optimizer.param_groups[0]["lr"] = settings.lr * ramp * (0.005 + 0.995 * fall)
        w = training_faces(generator, settings, seed, i)
        source = generator(w).detach()
        delta_w = mapper.delta(w)
        terms = ImageLoss(networks.encode_image, text.target, text.delta_t, settings.weights, networks.identify)
        optimizer.zero_grad(set_to_none=True)
        terms(generator(w + delta_w), source, delta_w)["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), mapper.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(0.98, (1 + i) / (10 + i)))
    return average


def test_the_recipes_training_is_the_plain_loop(tmp_path: Path, networks: MapperNetworks, text: TextPair) -> None:
    settings = replace(SMALL, steps=7)
    trained = train_mapper("red", tmp_path, networks, text, settings)
    expected = plain_loop(networks, text, settings, 40)
    for got, wanted in zip(trained.parameters(), expected.parameters(), strict=True):
        assert torch.equal(got, wanted)


KINDS = {
    "levels": {},
    "coarse": {"groups": ("coarse",)},
    "single": {"kind": "single"},
    "style": {"kind": "style"},
    "style-torgb": {"kind": "style", "torgb": True},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_every_kind_learns(
    tmp_path: Path, networks: MapperNetworks, text: TextPair, changes: dict[str, object]
) -> None:
    settings = replace(SMALL, steps=60, **changes)  # type: ignore[arg-type]
    mapper = train_mapper("red", tmp_path, networks, text, settings)
    w = training_faces(networks.generator, replace(SMALL, batch=32), 123, 0)
    with torch.no_grad():
        edited, delta = edited_faces(networks.generator, mapper, w)
        gain = float((networks.encode_image(edited) @ text.target).mean()) - likeness(networks, w, text)
    assert gain > 0.01  # the single one is slowest: 0.015 here
    if settings.kind == "style":
        assert delta.shape == (32, networks.generator.style_channels)
        torgb = torch.cat([delta[:, x.offset : x.offset + x.channels] for x in style_layers(networks, "torgb")], 1)
        assert bool(torgb.abs().max() > 0) == settings.torgb
    if settings.groups == ("coarse",):
        assert delta[:, 4:].abs().max() == 0
        assert delta[:, :4].abs().max() > 0


def style_layers(networks: MapperNetworks, kind: str) -> list[StyleLayer]:
    return [layer for layer in networks.generator.style_layers if layer.kind == kind]


@pytest.mark.parametrize("kind", ["levels", "style"])
def test_the_l2_term_is_in_the_space_of_the_mapper(
    tmp_path: Path, networks: MapperNetworks, text: TextPair, kind: str
) -> None:
    weights = LossWeights(clip=0.0, l2=1.0, identity=0.0)
    settings = replace(SMALL, weights=weights, steps=2, kind=kind, gain=1.0, ema=None, lr=1e-9, warmup=1)
    mapper = train_mapper("red", tmp_path, networks, text, settings)
    w = training_faces(networks.generator, settings, 40, 0)
    latents = networks.generator.styles(w) if kind == "style" else w
    row = json.loads((tmp_path / "mapper-red.jsonl").read_text().splitlines()[0])
    with torch.no_grad():
        assert row["l2"] == pytest.approx(float(mapper.delta(latents).square().mean()), rel=1e-4)
    assert row["loss"] == pytest.approx(row["l2"])


def test_the_published_settings_train(tmp_path: Path, networks: MapperNetworks, text: TextPair) -> None:
    settings = replace(PUBLISHED, steps=60, weights=replace(PUBLISHED.weights, l2=0.01, identity=0.0))
    mapper = train_mapper("red", tmp_path, networks, text, settings, store=SafetensorsStore(tmp_path / "m.st", {}))
    w = training_faces(networks.generator, replace(SMALL, batch=32), 123, 0)
    with torch.no_grad():
        assert likeness(networks, w + mapper.delta(w), text) > likeness(networks, w, text) + 0.01
    state = SafetensorsStore(tmp_path / "m.st", {})._read()[0]
    assert sum(name.endswith(".slow") for name in state) == len(list(mapper.parameters()))
    assert not any(name.startswith("ema.") for name in state)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("bob-cut", ("coarse", "medium")),
        ("Afro hairstyle", ("coarse", "medium")),
        ("purple_hair", GROUPS),
        ("x", GROUPS),
    ],
)
def test_published_prompts_have_their_groups(name: str, groups: tuple[str, ...]) -> None:
    settings = published_preset(name)
    assert settings.groups == groups
    assert (settings.optimizer, settings.lr, settings.betas, settings.eps) == ("ranger", 0.5, (0.95, 0.999), 1e-5)
    assert (settings.steps, settings.batch, settings.front_end, settings.ema) == (50_000, 2, "raw", None)
    assert (settings.weights.clip, settings.weights.identity, settings.weights.l2) == (1.0, 0.1, 0.8)


def test_presets_go_by_the_size_of_the_generator() -> None:
    assert named_preset("auto", "bob-cut", 1024) == published_preset("bob-cut")
    assert named_preset("auto", "glasses", 64) == PRESETS["glasses"]
    assert named_preset("published", "glasses", 64).optimizer == "ranger"
    with pytest.raises(InputError, match="expected auto, published or toyfaces"):
        named_preset("best", "glasses", 64)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "deep"}, {"optimizer": "sgd"}, {"front_end": "raw2"}, {"steps": 0}, {"lr": float("nan")}],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(networks: MapperNetworks, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        mapper_config(networks.generator, replace(SMALL, **wrong))  # type: ignore[arg-type]


def test_groups_without_layers_are_refused(networks: MapperNetworks) -> None:
    with pytest.raises(InputError, match="hold none of the generator's 6 layers"):
        mapper_config(networks.generator, replace(SMALL, groups=("fine",)))


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
