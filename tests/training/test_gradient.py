"""Gradients against finite differences, forward-mode derivatives and the finite table, on a tiny generator."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training.directions import DirectionRecipe, conv_channels, direction_table
from styleclip_rt.runtime.training.gradient import (
    GradientRecipe,
    embed,
    finite_passes,
    gradient_relevance,
    gradient_table,
    mean_rows,
    principal_components,
    probe_matrix,
    pullbacks,
    scattered,
)
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
from styleclip_rt.runtime.training.statistics import StyleStatistics

CONFIG = GeneratorConfig(resolution=16, z_dim=12, w_dim=10, mapping_layers=2, channels={4: 6, 8: 5, 16: 4})
WIDTH = 11


class Encoder(torch.nn.Module):
    """A stand-in for CLIP that is smooth everywhere: a fixed random projection of the picture, bent."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(9)
        self.project = torch.randn(3 * 16 * 16, WIDTH, generator=rng, dtype=torch.float64) / 30

    def forward(self, image: Tensor) -> Tensor:
        return torch.nn.functional.normalize(torch.tanh(image.flatten(1) @ self.project.to(image)), dim=-1)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(CONFIG).double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base_w(generator: Generator) -> Tensor:
    z = torch.randn(6, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return generator.broadcast(generator.mapping(z, 0.7))


@pytest.fixture(scope="module")
def s(generator: Generator, base_w: Tensor) -> Tensor:
    return generator.styles(base_w)


def texts(count: int) -> Tensor:
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def jacobian(generator: Generator, s: Tensor) -> Tensor:
    """[n,S,E] channel by channel, by forward-mode derivatives: the slow reference."""
    encoder = Encoder()

    def embedded(x: Tensor) -> Tensor:
        return encoder(generator.synthesize(x))

    channels = torch.eye(s.shape[1], dtype=s.dtype)
    return torch.stack([torch.func.jvp(embedded, (s,), (channel.expand_as(s),))[1] for channel in channels], 1)


def reference_table(generator: Generator, s: Tensor) -> Tensor:
    """The rows from the forward-mode Jacobian: unit an image, mean, unit."""
    rows = jacobian(generator, s)
    mean = (rows / rows.norm(dim=2, keepdim=True).clamp(min=1e-30)).mean(0)
    return mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-30)


def test_a_pullback_is_the_slope_of_small_steps(generator: Generator, s: Tensor) -> None:
    encode, step, text = Encoder(), 1e-5, texts(1)[0]
    (gradient,) = pullbacks(generator, encode, s[:2], text[None])
    for channel in range(0, s.shape[1], 7):
        move = torch.zeros(s.shape[1], dtype=s.dtype)
        move[channel] = step
        up, down = (encode(generator.synthesize(s[:2] + sign * move)) @ text for sign in (1, -1))
        assert torch.allclose(gradient[:, channel], (up - down) / (2 * step), rtol=1e-5, atol=1e-9)


def test_the_table_equals_forward_mode(generator: Generator, s: Tensor) -> None:
    recipe = GradientRecipe(images=6, spread=0, channels="all")
    table = gradient_table(generator, Encoder(), s, recipe, chunk=4)
    assert torch.allclose(table, reference_table(generator, s).float(), atol=1e-5)


def test_torgb_and_still_channels_have_no_row(generator: Generator, s: Tensor) -> None:
    s_std = torch.ones(s.shape[1])
    s_std[conv_channels(generator)[2]] = 0
    recipe = GradientRecipe(images=6, spread=0, components=3)
    table = gradient_table(generator, Encoder(), s, recipe, s_std=s_std)
    found = gradient_relevance(generator, Encoder(), s, texts(1), recipe, s_std=s_std)
    moving = set(conv_channels(generator)) - {conv_channels(generator)[2]}
    assert {int(c) for c in table.any(1).nonzero()} == moving
    assert {int(c) for c in found[0].nonzero()} == moving


def test_probes_of_all_dimensions_give_the_relevance_of_the_table(generator: Generator, s: Tensor) -> None:
    # five components (six images), three texts and three random vectors span E = 11 all but surely
    encode, delta_t = Encoder(), texts(3)
    probes = probe_matrix(embed(generator, encode, s), delta_t, GradientRecipe(images=6, components=5, random=1))
    basis = torch.linalg.qr(torch.cat([probes, torch.randn(11, WIDTH, dtype=torch.float64)]).T)[0].T
    rows = mean_rows(generator, encode, s, basis, alike=True)
    table = gradient_table(generator, encode, s, GradientRecipe(images=6, spread=0, channels="all"))
    assert torch.allclose(rows @ (basis @ delta_t.T).float(), table @ delta_t.T.float(), atol=1e-5)


def test_more_probes_come_nearer_to_the_table(generator: Generator, s: Tensor) -> None:
    delta_t = texts(2)
    exact = gradient_table(generator, Encoder(), s, GradientRecipe(images=6, spread=0)) @ delta_t.T.float()

    def error(random: int) -> float:
        recipe = GradientRecipe(images=6, spread=0, components=2, random=random)
        return float((gradient_relevance(generator, Encoder(), s, delta_t, recipe).T - exact).abs().mean())

    errors = [error(random) for random in (2, 20, 400)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02 < exact.abs().mean()


def test_small_finite_moves_give_the_same_table(generator: Generator, base_w: Tensor) -> None:
    # one image whose own styles are the mean: the finite procedure then moves every channel around where it stands
    base_w = base_w[:1].float()
    single = copy.deepcopy(generator).float()
    s = single.styles(base_w)
    statistics = StyleStatistics(base_w[0, 0], s[0], torch.full((s.shape[1],), 0.1), 2, 1.0)
    finite = direction_table(single, Encoder(), statistics, base_w, DirectionRecipe(images=1, sigmas=0.1))
    table = gradient_table(single, Encoder(), s, GradientRecipe(images=1, spread=0))
    assert (finite * table).sum(1)[conv_channels(generator)].min() > 0.999


def test_a_spread_gives_the_gradient_of_the_mean_embedding(generator: Generator, s: Tensor) -> None:
    s_std = torch.linspace(0.05, 0.4, s.shape[1])
    recipe = GradientRecipe(images=6, spread=0.7, channels="all")
    points = scattered(s, s_std, recipe)
    assert torch.equal(points, scattered(s, s_std, recipe))
    many = scattered(torch.zeros(4000, s.shape[1]), s_std, recipe)
    assert torch.allclose(many.std(0) / (0.7 * s_std), torch.ones(s.shape[1]), atol=0.06)
    rows = jacobian(generator, points)
    mean = (rows / rows.square().sum((1, 2), keepdim=True).sqrt()).mean(0)
    wanted = mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-30)
    table = gradient_table(generator, Encoder(), s, recipe, s_std=s_std)
    assert torch.allclose(table, wanted.float(), atol=1e-5)
    assert not torch.allclose(table, reference_table(generator, points).float(), atol=1e-2)


class Edge(torch.nn.Module):
    """CLIP's answer to an attribute with a sharp edge: nothing before the picture's mean passes it, then all."""

    def __init__(self, generator: Generator, s: Tensor) -> None:
        super().__init__()
        self.mean = float(generator.synthesize(s).mean())

    def forward(self, image: Tensor) -> Tensor:
        worn = torch.sigmoid(400 * (image.mean((1, 2, 3)) - self.mean - 0.05))
        shade = image[:, :, :4].mean((1, 2, 3))
        return torch.stack([worn, 0.05 * shade, torch.ones_like(worn)], 1)


def test_a_spread_sees_an_attribute_that_no_face_is_near_to(generator: Generator, s: Tensor) -> None:
    encode, one = Edge(generator, s[:1]), s[:1].expand(48, -1)
    text = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    s_std = torch.full((s.shape[1],), 0.5)

    def largest(spread: float) -> float:
        recipe = GradientRecipe(images=48, spread=spread, components=0, random=8)
        return float(gradient_relevance(generator, encode, one, text, recipe, s_std=s_std).abs().max())

    assert largest(0.0) < 0.1
    assert largest(1.0) > 0.5


def test_random_probes_estimate_lengths_without_bias(generator: Generator, s: Tensor) -> None:
    encode, delta_t = Encoder(), texts(1)
    rows = jacobian(generator, s[:1])[0]
    embeddings = embed(generator, encode, s)
    squares = torch.stack([
        (rows @ probe_matrix(embeddings, delta_t, GradientRecipe(images=6, components=2, random=2, seed=seed)).T)
        .square()
        .sum(1)
        for seed in range(600)
    ])  # fmt: skip
    truth = rows.square().sum(1)
    moving = truth > 1e-12
    assert torch.allclose(squares.mean(0)[moving] / truth[moving], torch.ones(int(moving.sum())).double(), atol=0.12)


def test_components_are_orthonormal_and_no_more_than_the_faces_span() -> None:
    rows = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    found = principal_components(rows, 8)
    assert found.shape == (3, WIDTH)
    assert torch.allclose(found @ found.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert principal_components(rows[:1], 8).shape == (0, WIDTH)


def test_too_few_images_and_senseless_recipes_are_refused(generator: Generator, s: Tensor) -> None:
    with pytest.raises(InputError, match="asks for 64"):
        gradient_relevance(generator, Encoder(), s, texts(1))
    with pytest.raises(InputError, match="at least one image and one probe"):
        GradientRecipe(components=0, random=0)
    with pytest.raises(InputError, match="0 or more standard deviations"):
        GradientRecipe(spread=-1)
    with pytest.raises(InputError, match="give s_std"):
        gradient_relevance(generator, Encoder(), s, texts(1), GradientRecipe(images=2))
    with pytest.raises(InputError, match="expected one of conv, all"):
        GradientRecipe(channels="rgb")


def test_gradients_that_are_not_finite_are_refused(generator: Generator, s: Tensor) -> None:
    def broken(image: Tensor) -> Tensor:
        return torch.sqrt(image.flatten(1)[:, :WIDTH] * 0)

    with pytest.raises(InputError, match="not finite"):
        gradient_table(generator, broken, s, GradientRecipe(images=2, spread=0))


def test_one_prompt_costs_under_a_hundredth_of_the_table() -> None:
    rows = len(conv_channels(Generator(GeneratorConfig(64, channels={4: 128, 8: 128, 16: 128, 32: 64, 64: 32}))))
    assert GradientRecipe().passes() * 100 <= finite_passes(DirectionRecipe().images, rows)
