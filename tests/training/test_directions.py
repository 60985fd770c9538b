"""The fast, resumable table against the published loop over channels, images and signs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from torch import Tensor

from styleclip_rt.engines.errors import InputError, StyleclipError
from styleclip_rt.runtime.training import directions, directions_predicted, directions_progress
from styleclip_rt.runtime.training.directions import (
    DirectionRecipe,
    asked_channels,
    conv_channels,
    direction_table,
    measure_directions,
)
from styleclip_rt.runtime.training.directions_plain import plain_rows
from styleclip_rt.runtime.training.directions_predicted import FACES, passes_for, predict, probes_for
from styleclip_rt.runtime.training.directions_progress import Probe
from styleclip_rt.runtime.training.directions_render import Front
from styleclip_rt.runtime.training.directions_stop import CHECKS, unit
from styleclip_rt.runtime.training.networks.clip import resize_image
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
from styleclip_rt.runtime.training.statistics import StyleStatistics, style_statistics

CONFIG = GeneratorConfig(resolution=16, z_dim=12, w_dim=10, mapping_layers=2, channels={4: 6, 8: 5, 16: 4})
WIDTH = 11


class Encoder(torch.nn.Module):
    """A stand-in for CLIP: a fixed random projection of the picture. After `budget` images it is killed."""

    def __init__(self, budget: int | None = None, size: int = 16, mode: str = "bicubic") -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(9)
        self.project = torch.randn(3 * size * size, WIDTH, generator=rng) / 30
        self.budget, self.size, self.mode = budget, size, mode
        self.sizes: set[int] = set()

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.add(image.shape[-1])
        if self.budget is not None:
            self.budget -= len(image)
            if self.budget < 0:
                raise KeyboardInterrupt
        pixels = resize_image(image, self.size, self.mode)
        return torch.nn.functional.normalize(torch.tanh(pixels.flatten(1) @ self.project), dim=-1)


def make_generator(clamp: float | None = None) -> Generator:
    """Every bias and noise strength counts, as in a trained network."""
    torch.manual_seed(0)
    generator = Generator(replace(CONFIG, conv_clamp=clamp)).eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise_strength", "bias")) and "mapping" not in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator()


@pytest.fixture(scope="module")
def statistics(generator: Generator) -> StyleStatistics:
    return style_statistics(generator, 12, samples=200)


def faces(generator: Generator, count: int = 4) -> Tensor:
    z = torch.randn(count, 12, generator=torch.Generator().manual_seed(2))
    return generator.broadcast(generator.mapping(z, 0.7))


@pytest.fixture(scope="module")
def base_w(generator: Generator) -> Tensor:
    return faces(generator)


def plain_table(
    generator: Generator, encode: Encoder, statistics: StyleStatistics, base_w: Tensor, recipe: DirectionRecipe
) -> Tensor:
    """The table by the published loop."""
    asked = asked_channels(generator, recipe.channels)
    styles, moments = generator.styles(base_w[: recipe.images]), (statistics.s_mean, statistics.s_std)
    table = torch.zeros(generator.style_channels, WIDTH)
    table[asked] = plain_rows(
        generator.synthesize, encode, styles, *moments, asked, sigmas=recipe.sigmas, cumulative=recipe.cumulative
    )
    return table


@pytest.mark.parametrize("channels", ["conv", "all"])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("block", [4, 64])
def test_equals_the_plain_loop(
    generator: Generator, statistics: StyleStatistics, base_w: Tensor, block: int, cumulative: bool, channels: str
) -> None:
    recipe = DirectionRecipe(images=2, sigmas=4.0, cumulative=cumulative, channels=channels)
    table = measure_directions(generator, Encoder(), statistics, base_w, recipe, block=block).rows
    plain = plain_table(generator, Encoder(), statistics, base_w, recipe)
    assert torch.allclose(table, plain, atol=2e-4)
    asked = asked_channels(generator, channels)
    assert len(asked) == (generator.style_channels if channels == "all" else len(conv_channels(generator)))


def test_the_cumulative_table_is_another_one(generator: Generator, statistics: StyleStatistics, base_w: Tensor) -> None:
    tables = [
        direction_table(generator, Encoder(), statistics, base_w, DirectionRecipe(images=3, cumulative=c))
        for c in (False, True)
    ]
    assert (tables[0] - tables[1]).abs().max() > 0.05


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("size", [6, 16, 24])
def test_pictures_only_as_large_as_clip_sees_give_the_same_rows(
    generator: Generator, statistics: StyleStatistics, base_w: Tensor, size: int, mode: str
) -> None:
    recipe, encoder = DirectionRecipe(images=2, sigmas=4.0, channels="all"), Encoder(size=size, mode=mode)
    front = Front(size, mode)
    table = direction_table(generator, encoder, statistics, base_w, recipe, front=front)
    assert encoder.sizes <= {16, size}  # one whole picture for the probe, then CLIP's size alone
    plain = plain_table(generator, Encoder(size=size, mode=mode), statistics, base_w, recipe)
    assert torch.allclose(table, plain, atol=2e-4)


def test_a_network_with_a_clamp(statistics: StyleStatistics) -> None:
    generator = make_generator(clamp=0.8)
    recipe, w = DirectionRecipe(images=2, sigmas=4.0, channels="all"), faces(generator)
    table = direction_table(generator, Encoder(size=6), statistics, w, recipe, front=Front(6))
    assert torch.allclose(table, plain_table(generator, Encoder(size=6), statistics, w, recipe), atol=2e-4)


def test_rows_are_unit_and_torgb_rows_zero(generator: Generator, statistics: StyleStatistics, base_w: Tensor) -> None:
    table = direction_table(generator, Encoder(), statistics, base_w, DirectionRecipe(images=2))
    norms = table.norm(dim=1).numpy()
    for layer in generator.style_layers:
        wanted = 1.0 if layer.kind == "conv" else 0.0
        np.testing.assert_allclose(norms[layer.offset : layer.offset + layer.channels], wanted, atol=1e-5)


def test_a_channel_that_never_moves_is_not_rendered(
    generator: Generator, statistics: StyleStatistics, base_w: Tensor
) -> None:
    std = statistics.s_std.clone()
    std[conv_channels(generator)[1:]] = 0
    encoder = Encoder(budget=1 + 2 * 2)  # the probe, and one channel in two images
    table = direction_table(generator, encoder, replace(statistics, s_std=std), base_w, DirectionRecipe(images=2))
    assert table.any(1).tolist() == [True] + [False] * (len(std) - 1)


@pytest.fixture
def few_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients pay for a table of 26 channels already."""
    monkeypatch.setattr(directions_predicted, "FACES", 32)


@pytest.mark.usefixtures("few_faces")
@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_a_killed_run_continues_and_ends_equal(
    tmp_path: Path, generator: Generator, statistics: StyleStatistics, tolerance: float
) -> None:
    recipe, path = DirectionRecipe(images=12, tolerance=tolerance), tmp_path / "directions.pt"
    base_w, budget = faces(generator, 12), 300 + (32 + 12 if tolerance else 0)
    whole = measure_directions(generator, Encoder(), statistics, base_w, recipe, block=4)
    settings = {"checkpoint": path, "save_every_s": 0, "block": 4}
    with pytest.raises(KeyboardInterrupt):
        measure_directions(generator, Encoder(budget), statistics, base_w, recipe, **settings)
    state = torch.load(path, weights_only=True)
    assert state["block"] > 0
    done = int(state["seen"].sum())
    left = 2 * (int(whole.images.sum()) - done) + 1  # and no gradient again: those lie in a file of their own
    resumed = measure_directions(generator, Encoder(left), statistics, base_w, recipe, checkpoint=path, block=4)
    assert torch.equal(resumed.rows, whole.rows)
    assert torch.equal(resumed.images, whole.images)
    assert bool((whole.images[conv_channels(generator)] < 12).any()) is bool(tolerance), "some stop, where they may"


def test_a_finished_run_is_not_repeated(
    tmp_path: Path, generator: Generator, statistics: StyleStatistics, base_w: Tensor
) -> None:
    recipe, path = DirectionRecipe(images=2), tmp_path / "deeper" / "directions.pt"
    whole = direction_table(generator, Encoder(), statistics, base_w, recipe, checkpoint=path)
    again = direction_table(generator, Encoder(budget=1), statistics, base_w, recipe, checkpoint=path)
    assert torch.equal(whole, again)


def test_another_recipe_does_not_reuse_the_rows_nor_throw_them_away(
    tmp_path: Path, generator: Generator, statistics: StyleStatistics, base_w: Tensor
) -> None:
    path = tmp_path / "directions.pt"
    direction_table(generator, Encoder(), statistics, base_w, DirectionRecipe(images=2), checkpoint=path)
    first = path.read_bytes()
    other = DirectionRecipe(images=2, sigmas=2.0)
    resumed = direction_table(generator, Encoder(), statistics, base_w, other, checkpoint=path)
    assert torch.allclose(resumed, direction_table(generator, Encoder(), statistics, base_w, other), atol=1e-5)
    assert (tmp_path / "directions.other.pt").read_bytes() == first


@pytest.mark.usefixtures("few_faces")
def test_gradients_save_images_of_the_early_stop_and_keep_the_rows(
    generator: Generator, statistics: StyleStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_w, asked = faces(generator, 40), conv_channels(generator)
    full = measure_directions(generator, Encoder(), statistics, base_w, DirectionRecipe(images=40))
    recipe = DirectionRecipe(images=40, tolerance=0.01)
    foreseen = measure_directions(generator, Encoder(), statistics, base_w, recipe)
    monkeypatch.setattr(directions, "probes_for", lambda *_: 0)
    alone = measure_directions(generator, Encoder(), statistics, base_w, recipe)
    cosines = [(full.rows * table.rows).sum(1)[asked] for table in (foreseen, alone)]
    used = [table.images[asked].float().mean() for table in (foreseen, alone)]
    assert used[0] < 0.97 * used[1], "three probes for eleven dimensions"
    assert cosines[0].mean() > max(0.99, float(cosines[1].mean()))
    assert cosines[0].min() > 0.97


def test_early_stop_saves_images_and_keeps_the_rows(generator: Generator, statistics: StyleStatistics) -> None:
    base_w, asked = faces(generator, 40), conv_channels(generator)[::5]
    full = measure_directions(generator, Encoder(), statistics, base_w, DirectionRecipe(images=40), channels=asked)
    early = measure_directions(
        generator, Encoder(), statistics, base_w, DirectionRecipe(images=40, tolerance=0.01), channels=asked
    )
    cosines = (full.rows * early.rows).sum(1)[asked]
    assert early.images[asked].float().mean() < 32
    assert cosines.mean() > 0.99
    assert cosines.min() > 0.97
    assert (full.images[asked] == 40).all()
    assert not full.images.sum() > 40 * len(asked)  # nothing else was rendered


def test_predictions_are_the_unit_slopes_of_every_image(generator: Generator, statistics: StyleStatistics) -> None:
    s = generator.styles(faces(generator, 7))
    found = predict(generator, Encoder(), s, statistics.s_std, WIDTH)
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(len(found.basis), dtype=torch.float64))
    exact = torch.stack([
        torch.autograd.functional.jacobian(lambda x: Encoder()(generator.synthesize(x[None]))[0], row).T for row in s
    ])  # fmt: skip
    wanted = unit(exact.double() @ found.basis.T)
    torch.testing.assert_close(found.rows.double(), wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(predict(generator, lambda x: 3 * Encoder()(x), s, statistics.s_std, 2).basis.shape,
                               torch.Size([2, WIDTH]))  # fmt: skip


def test_gradients_that_were_interrupted_go_on_to_the_same_bits(
    tmp_path: Path, generator: Generator, statistics: StyleStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions_predicted, "chunk_size", lambda generator: 2)
    s, path, stamp = (
        generator.styles(faces(generator, 7)),
        tmp_path / "gradients.pt",
        Probe(torch.ones(3), {"images": 7}),
    )
    settings = {"checkpoint": path, "stamp": stamp, "save_every_s": 0}
    whole = predict(generator, Encoder(), s, statistics.s_std, 5)
    for budget, kept in (
        (100, {"faces": 100, "basis": 0, "rows": 0}),
        (FACES - 96, {"faces": FACES, "basis": 5, "rows": 4}),
    ):
        with pytest.raises(KeyboardInterrupt):
            predict(generator, Encoder(budget), s, statistics.s_std, 5, **settings)
        state = torch.load(path, weights_only=True)
        assert {name: len(state[name]) for name in kept} == kept
    resumed = predict(generator, Encoder(3), s, statistics.s_std, 5, **settings)
    assert torch.equal(resumed.rows, whole.rows)
    assert torch.equal(predict(generator, Encoder(0), s, statistics.s_std, 5, **settings).rows, whole.rows)
    other = predict(generator, Encoder(), s[:3], statistics.s_std, 5, checkpoint=path, stamp=Probe(torch.ones(3), {}))
    assert len(other.rows) == 3
    assert (tmp_path / "gradients.other.pt").exists()


def test_gradients_are_made_where_they_can_pay() -> None:
    assert probes_for(0.01, 100, 6048) == probes_for(0.01, 100, 928) == 96
    assert probes_for(0.01, 100, 80) == 10
    assert probes_for(0.01, 100, 24) == 0, "512 faces and 100 images, for 4800 pictures"
    assert [probes_for(0.0, 100, 928), probes_for(0.01, CHECKS[0], 928), probes_for(0.01, 100, 7)] == [0, 0, 0]
    assert passes_for(0.01, 100, 928) == FACES + 100 * (1 + 96)
    assert passes_for(0.0, 100, 928) == 0


@pytest.mark.usefixtures("few_faces")
def test_an_encoder_that_sees_nothing_gives_empty_rows(generator: Generator, statistics: StyleStatistics) -> None:
    def blind(image: Tensor) -> Tensor:
        return 0 * image.mean((1, 2, 3))[:, None] + torch.ones(WIDTH)

    recipe = DirectionRecipe(images=10, tolerance=0.02)
    table = measure_directions(generator, blind, statistics, faces(generator, 10), recipe)
    assert not table.rows.any()


def test_a_full_disk_is_one_line_and_keeps_the_file(
    tmp_path: Path, generator: Generator, statistics: StyleStatistics, base_w: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, recipe = tmp_path / "directions.pt", DirectionRecipe(images=2)
    settings = {"checkpoint": path, "save_every_s": 0}
    with pytest.raises(KeyboardInterrupt):
        measure_directions(generator, Encoder(budget=30), statistics, base_w, recipe, **settings)
    kept = path.read_bytes()

    def full(state: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directions_progress.torch, "save", full)
    with pytest.raises(StyleclipError, match=r"cannot write .*No space left"):
        measure_directions(generator, Encoder(), statistics, base_w, recipe, checkpoint=path, save_every_s=0)
    assert [file.name for file in tmp_path.iterdir()] == ["directions.pt"]
    assert path.read_bytes() == kept


def test_a_damaged_checkpoint_is_named(
    tmp_path: Path, generator: Generator, statistics: StyleStatistics, base_w: Tensor
) -> None:
    path = tmp_path / "directions.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"directions\.pt cannot be read"):
        direction_table(generator, Encoder(), statistics, base_w, DirectionRecipe(images=2), checkpoint=path)


def test_embeddings_that_are_not_finite_are_refused(
    generator: Generator, statistics: StyleStatistics, base_w: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(statistics, s_mean=torch.full_like(statistics.s_mean, float("nan")))
    with pytest.raises(InputError, match="statistics of style space, or CLIP's embedding"):
        direction_table(generator, Encoder(), broken, base_w, DirectionRecipe(images=2))

    def fails_later() -> Callable[[Tensor], Tensor]:
        factors = itertools.chain([1.0], itertools.repeat(float("nan")))
        return lambda image: Encoder()(image) * next(factors)

    with pytest.raises(InputError, match=r"layer b4\.conv1: the embeddings of 5 sigma are not finite"):
        direction_table(generator, fails_later(), statistics, base_w, DirectionRecipe(images=2))
    monkeypatch.setattr(directions_predicted, "FACES", 32)
    recipe = DirectionRecipe(images=12, tolerance=0.02)
    with pytest.raises(InputError, match="their channels moved are not finite"):
        direction_table(generator, fails_later(), statistics, faces(generator, 12), recipe)


def test_what_a_recipe_refuses(generator: Generator, statistics: StyleStatistics, base_w: Tensor) -> None:
    with pytest.raises(InputError, match="asks for 100"):
        direction_table(generator, Encoder(), statistics, base_w)
    with pytest.raises(InputError, match="more than 0 sigma"):
        DirectionRecipe(sigmas=0)
    with pytest.raises(InputError, match="one of conv, all"):
        DirectionRecipe(channels="rgb")
    with pytest.raises(InputError, match="below 1"):
        DirectionRecipe(tolerance=1.0)
    with pytest.raises(InputError, match="never stops early"):
        DirectionRecipe(cumulative=True, tolerance=0.01)
