"""The inverter and the identity network."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.training.networks.arcface import ArcFace, ArcFaceConfig, MarginHead  # noqa: E402
from styleclip_rt.runtime.training.networks.e4e import E4EConfig, Encoder4Editing  # noqa: E402


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_default_sizes_are_those_of_the_embedded_pack():
    inverter, identity = Encoder4Editing().eval(), ArcFace().eval()
    assert 1.0e6 < parameters(inverter) < 1.4e6
    assert 0.4e6 < parameters(identity) < 0.7e6
    assert inverter(torch.randn(2, 3, 64, 64)).shape == (2, 10, 128)
    embedding = identity(torch.randn(2, 3, 64, 64))
    assert embedding.shape == (2, 256)
    assert torch.allclose(embedding.norm(dim=-1), torch.ones(2), atol=1e-5)


def test_published_layouts_have_the_published_parameter_counts():
    with torch.device("meta"):
        identity, inverter = ArcFace(ArcFaceConfig.ir_se50()), Encoder4Editing(E4EConfig.published())
    assert round(parameters(identity) / 1e6, 1) == 43.8  # model_ir_se50
    assert len(inverter.heads) == 18
    assert [len(head.convs) // 2 for head in inverter.heads] == [4] * 3 + [5] * 4 + [6] * 11
    assert parameters(inverter) > 200e6


def test_published_identity_crops_and_pools_inside():
    with torch.device("meta"):
        identity = ArcFace(ArcFaceConfig.ir_se50())
    image = torch.arange(256.0).expand(1, 3, 256, 256)
    kept = identity.prepare(image)
    assert kept.shape == (1, 3, 112, 112)
    assert kept.min() >= 32
    assert kept.max() <= 219


def test_w0_is_shared_and_deltas_are_per_layer():
    config = E4EConfig(6, 8, 32, 8, ((8, 1), (8, 1), (8, 1)), 4, 8, 1, 3)
    inverter, image = Encoder4Editing(config).eval(), torch.randn(1, 3, 32, 32)
    base = inverter(image)
    inverter.w_avg.fill_(1.0)
    assert torch.allclose(inverter(image), base + 1, atol=1e-5)
    for head in inverter.heads[1:]:
        for p in head.parameters():
            torch.nn.init.zeros_(p)
    assert torch.allclose(inverter.deltas(inverter(image)), torch.zeros(1, 5, 8), atol=1e-6)


def test_margin_head_equals_the_definition():
    torch.manual_seed(0)
    head, x = MarginHead(16, 5, scale=10, margin=0.3), torch.nn.functional.normalize(torch.randn(7, 16), dim=-1)
    label = torch.randint(0, 5, (7,))
    logits = head(x, label)
    for i in range(7):
        for k in range(5):
            cosine = float(x[i] @ torch.nn.functional.normalize(head.weight[k].detach(), dim=0))
            expected = math.cos(math.acos(cosine) + 0.3) if k == label[i] else cosine
            assert math.isclose(float(logits[i, k].detach()), 10 * expected, abs_tol=1e-3)


def test_margin_is_monotone_beyond_pi():
    head = MarginHead(2, 1, scale=1, margin=0.5)
    head.weight.data = torch.tensor([[1.0, 0.0]])
    angles = torch.linspace(0.1, math.pi, 40)
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    logits = head(x, torch.zeros(40, dtype=torch.int64))[:, 0]
    assert (logits.diff() < 0).all()


@pytest.mark.parametrize("kind", [E4EConfig, ArcFaceConfig])
def test_configs_survive_json_and_name_what_is_wrong(kind):
    import json

    config = kind()
    assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(PackError, match="colour"):
        kind.from_dict({**config.to_dict(), "colour": 1})
