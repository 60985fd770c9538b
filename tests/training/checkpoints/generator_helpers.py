"""Imported generators as networks, and their comparison with the reference."""

from __future__ import annotations

import torch

from styleclip_rt.runtime.archives import read_source
from styleclip_rt.runtime.training.checkpoints.generators import import_generator, recognises
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
from styleclip_rt.runtime.training.pack import load_state

SMALL = {"size": 16, "width": 12, "channels": {4: 8, 8: 6, 16: 4}}
SMALL_NVIDIA = {"size": 16, "w_dim": 12, "z_dim": 10, "mapping": 2, "channels": {4: 8, 8: 6, 16: 4}}
TOLERANCE = 1e-4


def network(imported):
    """The network that the pack would hold."""
    generator = Generator(GeneratorConfig.from_dict(imported.config))
    load_state(generator, imported.content, imported.component)
    return generator.eval().requires_grad_(False)


def imported_file(path):
    source = read_source(path)
    assert recognises(source) is not None
    return import_generator(source)


def latents(generator, count=2):
    """w+ of different rows, from the mapping, so that its range is the network's own."""
    z = torch.randn(count * generator.num_ws, generator.config.z_dim, generator=torch.Generator().manual_seed(1))
    return z, generator.mapping(z).reshape(count, generator.num_ws, -1)


def assert_equal(generator, mapping, picture, count=2):
    """Mapping and picture against the reference's, to 1e-4 of their own size where that is above one."""
    z, w = latents(generator, count)
    expected_w = mapping(z)
    assert torch.allclose(generator.mapping(z), expected_w, atol=TOLERANCE * max(1, expected_w.abs().max()))
    expected, found = picture(w), generator(w)
    assert expected.shape == found.shape == (count, 3, generator.config.resolution, generator.config.resolution)
    assert expected.std() > 0.1, "the reference is flat, so the test would show nothing"
    assert (found - expected).abs().max() <= TOLERANCE * max(1, expected.abs().max())
