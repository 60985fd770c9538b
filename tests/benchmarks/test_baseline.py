"""The original's form of the generator, and every technique on the way, draw the same picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the baselines need the extra 'torch'")

from styleclip_rt.benchmarks.baseline import (  # noqa: E402
    ORIGINAL,
    Technique,
    Variant,
    by_weights,
    fir_by_zeros,
    original_boundary,
    original_edit,
)
from styleclip_rt.benchmarks.network import NetworkSpec, load_network, make_inputs  # noqa: E402
from styleclip_rt.engines.errors import InputError  # noqa: E402
from styleclip_rt.runtime import edits  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import fir_kernel  # noqa: E402


@pytest.fixture(scope="module")
def network():
    return load_network(NetworkSpec(size=32, width="sixteenth"))


@pytest.fixture(scope="module")
def feeds(network):
    return make_inputs(network, 3, seed=1)


@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=4)), ids=str)
@pytest.mark.parametrize(("half", "limit"), [(False, 5e-6), (True, 1e-2)], ids=["fp32", "fp16"])
def test_every_variant_is_the_generator(network, feeds, switches, half: bool, limit: float) -> None:
    s = torch.from_numpy(feeds["s"])
    expected = network.generator.synthesize(s)
    variant = Variant(network.generator, Technique(*switches, half=half))
    with torch.no_grad():
        found = variant(s)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) < limit
    assert float(expected.std()) > 0.1


def test_the_original_modulates_each_sample_by_its_own_style() -> None:
    """Grouped over the batch it gives what a loop over the samples gives, straight from the equations."""
    rng = torch.Generator().manual_seed(0)
    x, s = torch.randn(2, 5, 6, 6, generator=rng), torch.randn(2, 5, generator=rng)
    weight = torch.randn(7, 5, 3, 3, generator=rng)
    found = by_weights(x, s, weight, up=False)
    for i in range(2):
        own = weight * s[i][None, :, None, None]
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        alone = torch.nn.functional.conv2d(x[i : i + 1], own, padding=1)
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_zero_insertion_is_the_transposed_filter() -> None:
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    kernel = fir_kernel() * 4
    expected = torch.nn.functional.conv_transpose2d(x, kernel.expand(3, 1, 4, 4), stride=2, padding=1, groups=3)
    torch.testing.assert_close(fir_by_zeros(x, kernel, up=2, before=2, after=1), expected)


def test_the_original_direction_is_the_runtime_s(network, feeds) -> None:
    table, sigma = network.directions.numpy(), network.sigma.numpy()
    found = original_boundary(table, sigma, feeds["delta_t"][0], 0.12)
    expected = edits.direction(table, feeds["delta_t"][0], 0.12, sigma)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < np.count_nonzero(found) < len(found) / 2
    assert not original_boundary(table, sigma, feeds["delta_t"][0], 2.0).any()


def test_the_original_edit_is_the_fused_graph(network, feeds) -> None:
    from styleclip_rt.export.modules import DirectionGraph, EditGlobalGraph

    variant = Variant(network.generator, ORIGINAL)
    found = original_edit(variant, network.directions.numpy(), network.sigma.numpy(), feeds, "cpu")
    module = EditGlobalGraph(network.generator, DirectionGraph(network.directions, network.sigma))
    expected = module(*(torch.from_numpy(feeds[name]) for name in ("w", "delta_t", "alpha", "beta"))).numpy()
    assert found.shape == (3, 32, 32, 3)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    still = original_edit(
        variant, network.directions.numpy(), network.sigma.numpy(), feeds | {"alpha": np.zeros(3, np.float32)}, "cpu"
    )
    assert np.abs(found.astype(int) - still.astype(int)).max() > 5


def test_random_networks_are_seeded_and_hold_what_a_pack_can_hold() -> None:
    spec = NetworkSpec(size=32, width="sixteenth", seed=3)
    one, two = (load_network(spec).generator.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    weight = one["blocks.b8.conv0.weight"]
    assert torch.equal(weight, weight.half().float())
    other = load_network(NetworkSpec(size=32, width="sixteenth", seed=4)).generator.state_dict()
    assert not torch.equal(weight, other["blocks.b8.conv0.weight"])


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(InputError, match="got size 48"):
        load_network(NetworkSpec(size=48))
