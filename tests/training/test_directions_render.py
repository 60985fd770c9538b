"""Ways of rendering moved channels beside PyTorch's: our own kernels, OpenVINO's, and a lower resolution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training import directions_engine
from styleclip_rt.runtime.training.directions import DirectionRecipe, resolution_for
from styleclip_rt.runtime.training.directions_render import Front, Renderer
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig

CHANNELS = {4: 8, 8: 8, 16: 128, 32: 128, 64: 128}  # wide enough at 64 px for the convolution by tiles


@pytest.fixture(scope="module", params=[None, 0.9], ids=["free", "clamped"])
def generator(request: pytest.FixtureRequest) -> Generator:
    """Every bias and noise strength counts, as in a trained network."""
    torch.manual_seed(0)
    config = GeneratorConfig(64, z_dim=12, w_dim=10, mapping_layers=2, channels=CHANNELS, conv_clamp=request.param)
    made = Generator(config).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith(("noise_strength", "bias")) and "mapping" not in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def styles(generator: Generator) -> Tensor:
    z = torch.randn(1, 12, generator=torch.Generator().manual_seed(2))
    return generator.styles(generator.broadcast(generator.mapping(z, 0.7)))[0]


VALUES = torch.tensor([[-2.0, 3.0], [0.5, 4.0]])


@pytest.mark.parametrize("layer", ["b4.conv1", "b16.conv0", "b32.conv1", "b64.conv0", "b64.conv1", "b16.torgb"])
@pytest.mark.parametrize("engine", ["openvino", "kernels"])
def test_engines_render_what_pytorch_renders(
    generator: Generator, styles: Tensor, layer: str, engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == "kernels":
        request.getfixturevalue("with_kernels")
    else:
        pytest.importorskip("openvino", reason="extra 'openvino'")
    index = [one.name for one in generator.style_layers].index(layer)
    expected, found = (Renderer(generator, Front(24), engine=name).open(styles, index) for name in ("torch", engine))
    for channels in ([1, 5], [7], [2, 3]):  # another batch is compiled anew
        a, b = (opened.pictures(channels, VALUES[: len(channels)]) for opened in (expected, found))
        assert a.shape == b.shape == (len(channels), 2, 3, 24, 24)
        assert (a - b).abs().max() < 1e-4 * a.abs().max()
        assert (a[:, 0] - a[:, 1]).abs().max() > 1e-3 * a.abs().max()  # the channel does move the picture


def test_openvino_is_for_large_generators_on_the_cpu(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="extra 'openvino'")
    assert Renderer(generator).engine == "torch"
    monkeypatch.setattr(directions_engine, "SMALLEST", 64)
    assert Renderer(generator).engine == "openvino"
    monkeypatch.setattr(directions_engine, "find_spec", lambda name: None)
    assert Renderer(generator).engine == "torch"


def test_the_kernels_render_where_they_are_built(generator: Generator, with_kernels: Path) -> None:
    renderer = Renderer(generator)
    assert renderer.engine == "kernels"
    assert renderer.kernel(0, torch.ones(8)) is None  # 4 px: left to PyTorch
    names = [layer.name for layer in generator.style_layers]
    style = torch.ones(128)
    assert renderer.kernel(names.index("b64.conv0"), style) is not None
    one, two = (renderer.kernel(names.index("b64.conv1"), style) for _ in range(2))
    assert one is not None
    assert two is not None
    assert one.kernel is two.kernel  # transformed once


def test_images_opened_after_each_other_do_not_share_memory(
    generator: Generator, styles: Tensor, with_kernels: Path
) -> None:
    """The kernels write features into two arrays in turn; what an opened image keeps must not be among them."""
    index = [layer.name for layer in generator.style_layers].index("b64.conv1")
    renderer = Renderer(generator, Front(24))
    first = renderer.open(styles, index)
    expected = first.pictures([1, 5], VALUES)
    renderer.open(styles * 1.5, index).pictures([1, 5], VALUES)
    assert torch.equal(first.pictures([1, 5], VALUES), expected)


@pytest.mark.parametrize("layer", ["b8.conv0", "b16.conv1", "b16.torgb", "b64.conv0"])
def test_above_the_resolution_the_picture_is_the_unmoved_one(generator: Generator, styles: Tensor, layer: str) -> None:
    """Up to 16 px: the term of every toRGB of more is that of the image itself; channels above are exact."""
    layers = generator.style_layers
    index = [one.name for one in layers].index(layer)
    near = Renderer(generator, Front(24), render_at=16).open(styles, index)
    whole = Renderer(generator, Front(24))
    exact = whole.open(styles, index)
    found, expected = near.pictures([1, 5], VALUES), exact.pictures([1, 5], VALUES)
    if layer == "b8.conv0":
        assert {r for r, _ in near.above} == {8, 16}
    if layers[index].kind == "torgb" or layer == "b64.conv0":
        assert torch.equal(found, expected)
        return
    by_hand = torch.zeros_like(expected)
    for i, channel in enumerate([1, 5]):
        for j in range(2):
            moved = styles.clone()
            moved[layers[index].offset + channel] = VALUES[i, j]
            for low, s in ((True, moved), (False, styles)):
                for resolution, rgb in skip_terms(generator, s):
                    if (resolution <= 16) == low:
                        by_hand[i, j] += whole.look(rgb, resolution)[0]
    assert (found - by_hand).abs().max() < 1e-4 * by_hand.abs().max()
    assert (found - expected).abs().max() > 1e-3 * expected.abs().max()  # it is an approximation


def skip_terms(generator: Generator, s: Tensor) -> list[tuple[int, Tensor]]:
    """(resolution, output) of every toRGB layer for styles s [S], by the layers of the network itself."""
    terms, x = [], next(iter(generator.blocks.values())).const[None]
    for layer, style in zip(
        generator.style_layers, s.split([one.channels for one in generator.style_layers]), strict=True
    ):
        y = generator.layer(layer.name)(x, style[None])
        if layer.kind == "torgb":
            terms.append((int(layer.name.split(".")[0][1:]), y))
        else:
            x = y
    return terms


def test_what_render_at_may_be() -> None:
    sizes = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert resolution_for("full", sizes, 224) is None
    assert resolution_for("clip", sizes, 224) == 256
    assert resolution_for("clip", sizes[:5], 224) is None  # CLIP sees more than the generator gives
    assert resolution_for("64", sizes, 224) == 64
    assert resolution_for("1024", sizes, 224) is None
    for bad in ("100", "half", "-4", ""):
        with pytest.raises(InputError, match=r"expected full, clip, or one of the generator's resolutions: 4, 8, 16"):
            resolution_for(bad, sizes, 224)
    with pytest.raises(InputError, match="render_at must be full"):
        DirectionRecipe(cumulative=True, render_at=64)
