"""Shared by the tests of trainings: a pack that is small enough to train in."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A pack with a random generator of 16 px and an identity network, the same in every run."""
    torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
    from styleclip_rt.runtime.training.networks.arcface import ArcFace, ArcFaceConfig
    from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
    from styleclip_rt.runtime.training.pack import PackWriter, load_pack

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("packs") / "tiny"
    channels = {4: 8, 8: 8, 16: 6}
    with PackWriter(folder, "tiny") as writer:
        writer.add("generator", Generator(GeneratorConfig(16, z_dim=12, w_dim=12, mapping_layers=2, channels=channels)))
        writer.add("identity", ArcFace(ArcFaceConfig(16, 8, 8, ((8, 1), (8, 1)), 4)))
    return load_pack(folder)
