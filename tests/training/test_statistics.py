"""Style statistics against numpy, both sigma conventions, and the batch size that must not matter."""

from __future__ import annotations

import pytest
import torch

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
from styleclip_rt.runtime.training.statistics import (
    RunningMoments,
    latent_batches,
    sample_w_plus,
    style_statistics,
)

CONFIG = GeneratorConfig(resolution=16, z_dim=12, w_dim=10, mapping_layers=2, channels={4: 8, 8: 6, 16: 4})


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    network = Generator(CONFIG).eval()
    with torch.no_grad():
        network.mapping_network.w_avg.normal_()
    return network


def test_moments_equal_numpy_for_any_batching() -> None:
    rows = torch.randn(1000, 7, generator=torch.Generator().manual_seed(1)) * 3 + 100
    for sizes in ([1000], [1, 9, 490, 500], [250] * 4):
        moments = RunningMoments()
        for part in rows.split(sizes):
            moments.add(part)
        assert moments.count == 1000
        assert torch.allclose(moments.mean, rows.double().mean(0))
        assert torch.allclose(moments.std, rows.double().std(0, correction=0), rtol=1e-9)


def test_statistics_of_all_samples_at_once(generator: Generator) -> None:
    found = style_statistics(generator, 12, samples=300, psi=0.7, seed=3, batch=70)
    z = torch.cat(list(latent_batches(300, 12, 3, 70)))
    with torch.no_grad():
        w = generator.mapping(z, 0.7)
        s = generator.styles(generator.broadcast(w))
    assert torch.allclose(found.w_mean, w.mean(0), atol=1e-5)
    assert torch.allclose(found.s_mean, s.mean(0), atol=1e-5)
    assert torch.allclose(found.s_std, s.std(0, correction=0), atol=1e-5)
    assert found.s_std.shape == (generator.style_channels,)
    assert (found.samples, found.config()["convention"]) == (300, found.convention)


def test_the_two_published_conventions_differ_above_the_cutoff(generator: Generator) -> None:
    full = style_statistics(generator, 12, samples=400, psi=0.5)
    port = style_statistics(generator, 12, samples=400, psi=0.5, cutoff=3)
    for layer in generator.style_layers:
        part = slice(layer.offset, layer.offset + layer.channels)
        ratio = port.s_std[part] / full.s_std[part]
        expected = torch.full_like(ratio, 1.0 if layer.w_index < 3 else 2.0)
        assert torch.allclose(ratio, expected, atol=1e-3)
    assert "all layers" in full.convention
    assert "below 3" in port.convention


def test_psi_zero_is_the_mean_face(generator: Generator) -> None:
    w_plus = sample_w_plus(generator, torch.randn(2, 12), psi=0.0)
    assert torch.allclose(w_plus, generator.mapping_network.w_avg.expand_as(w_plus), atol=1e-6)


def test_one_sample_is_refused(generator: Generator) -> None:
    with pytest.raises(InputError, match="at least 2"):
        style_statistics(generator, 12, samples=1)
