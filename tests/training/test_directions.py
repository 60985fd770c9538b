"""The batched, resumable table against a plain loop over channels, images and signs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training.directions import DirectionRecipe, conv_channels, direction_table
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
from styleclip_rt.runtime.training.statistics import StyleStatistics, style_statistics

CONFIG = GeneratorConfig(resolution=16, z_dim=12, w_dim=10, mapping_layers=2, channels={4: 6, 8: 5, 16: 4})


class Encoder(torch.nn.Module):
    """A stand-in for CLIP: a fixed random projection of the picture. After `budget` images it is killed."""

    def __init__(self, budget: int | None = None) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(9)
        self.project = torch.randn(3 * 16 * 16, 11, generator=rng) / 30
        self.budget = budget

    def forward(self, image: Tensor) -> Tensor:
        if self.budget is not None:
            self.budget -= len(image)
            if self.budget < 0:
                raise KeyboardInterrupt
        return torch.nn.functional.normalize(torch.tanh(image.flatten(1) @ self.project), dim=-1)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(CONFIG).eval()


@pytest.fixture(scope="module")
def statistics(generator: Generator) -> StyleStatistics:
    return style_statistics(generator, 12, samples=200)


@pytest.fixture(scope="module")
def base_w(generator: Generator) -> Tensor:
    with torch.no_grad():
        return generator.broadcast(
            generator.mapping(torch.randn(4, 12, generator=torch.Generator().manual_seed(2)), 0.7)
        )


@torch.no_grad()
def plain_table(
    generator: Generator, encode: Encoder, statistics: StyleStatistics, base_w: Tensor, recipe: DirectionRecipe
) -> Tensor:
    """StyleCLIP's procedure as it reads, one image at a time, with GetFs written out."""
    base = generator.styles(base_w[: recipe.images])
    table = torch.zeros(generator.style_channels, 11)
    for c in conv_channels(generator):
        differences = []
        for row in base:
            low, high = (row.clone() for _ in range(2))
            low[c] = statistics.s_mean[c] - recipe.sigmas * statistics.s_std[c]
            high[c] = statistics.s_mean[c] + recipe.sigmas * statistics.s_std[c]
            pair = [encode(generator.synthesize(s[None]))[0] for s in (low, high)]
            difference = pair[1] - pair[0]
            differences.append(difference / difference.norm())
        mean = torch.stack(differences).mean(0)
        table[c] = mean / mean.norm()
        if recipe.cumulative:
            base[:, c] = statistics.s_mean[c]
    return table


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("channels_per_step", [1, 4])
def test_equals_the_plain_loop(
    generator: Generator, statistics: StyleStatistics, base_w: Tensor, channels_per_step: int, cumulative: bool
) -> None:
    recipe = DirectionRecipe(images=3, sigmas=4.0, cumulative=cumulative)
    table = direction_table(generator, Encoder(), statistics, base_w, recipe, channels_per_step=channels_per_step)
    assert torch.allclose(table, plain_table(generator, Encoder(), statistics, base_w, recipe), atol=2e-4)


def test_rows_are_unit_and_torgb_rows_zero(generator: Generator, statistics: StyleStatistics, base_w: Tensor) -> None:
    table = direction_table(generator, Encoder(), statistics, base_w, DirectionRecipe(images=2))
    norms = table.norm(dim=1).numpy()
    for layer in generator.style_layers:
        wanted = 1.0 if layer.kind == "conv" else 0.0
        np.testing.assert_allclose(norms[layer.offset : layer.offset + layer.channels], wanted, atol=1e-5)


def test_a_killed_run_continues_and_ends_equal(
    tmp_path: Path, generator: Generator, statistics: StyleStatistics, base_w: Tensor
) -> None:
    recipe, path = DirectionRecipe(images=2), tmp_path / "directions.pt"
    whole = direction_table(generator, Encoder(), statistics, base_w, recipe)
    with pytest.raises(KeyboardInterrupt):
        direction_table(generator, Encoder(budget=40), statistics, base_w, recipe, checkpoint=path, save_every_s=0)
    done = torch.load(path, weights_only=True)["done"]
    assert 0 < done < len(conv_channels(generator))
    left = (len(conv_channels(generator)) - done) * 4 + 1
    resumed = direction_table(generator, Encoder(budget=left), statistics, base_w, recipe, checkpoint=path)
    assert torch.allclose(resumed, whole, atol=1e-5)


def test_another_recipe_does_not_reuse_the_rows(
    tmp_path: Path, generator: Generator, statistics: StyleStatistics, base_w: Tensor
) -> None:
    path = tmp_path / "directions.pt"
    direction_table(generator, Encoder(), statistics, base_w, DirectionRecipe(images=2), checkpoint=path)
    other = DirectionRecipe(images=2, sigmas=2.0)
    resumed = direction_table(generator, Encoder(), statistics, base_w, other, checkpoint=path)
    assert torch.allclose(resumed, direction_table(generator, Encoder(), statistics, base_w, other), atol=1e-5)


def test_too_few_base_images_are_refused(generator: Generator, statistics: StyleStatistics, base_w: Tensor) -> None:
    with pytest.raises(InputError, match="asks for 100"):
        direction_table(generator, Encoder(), statistics, base_w)
    with pytest.raises(InputError, match="more than 0 sigma"):
        DirectionRecipe(sigmas=0)
