"""IR-SE50: the published file against the published definition."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

sys.path.insert(0, str(Path(__file__).parent))

import writers_encoders as writers  # noqa: E402
from encoder_helpers import read  # noqa: E402

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.identity import import_identity, recognises  # noqa: E402
from styleclip_rt.runtime.training.networks.arcface import ArcFace, ArcFaceConfig, pool_matrix  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402


def network(imported):
    identity = ArcFace(ArcFaceConfig.from_dict(imported.config)).eval()
    missing = identity.load_state_dict(imported.content, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    return identity.requires_grad_(False)


def narrow(**changes):
    return {**writers.write_identity(widths=writers.NARROW, reduction=4, embed=8), **changes}


@pytest.mark.parametrize("size", [256, 1024, 300, 64])
def test_equals_the_published_definition_at_every_image_size(tmp_path, size):
    state = narrow()
    imported = import_identity(read(tmp_path, state))
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours, theirs = network(imported)(image), writers.identity_of(image, state)
    assert (ours - theirs).abs().max() < 1e-5
    assert (theirs[0] - theirs[1]).abs().max() > 1e-3


def test_the_published_size_from_file_to_pack(tmp_path):
    state = writers.write_identity()
    source = read(tmp_path, state)
    assert recognises(source) == "IR-SE50"
    imported = import_identity(source)
    assert ArcFaceConfig.from_dict(imported.config) == ArcFaceConfig.ir_se50()
    with PackWriter(tmp_path / "pack", "p") as writer:
        writer.add("identity", imported.content, imported.config)
    identity = load_pack(tmp_path / "pack").identity
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2)) * 2 - 1
    assert (network(imported)(image) - writers.identity_of(image, state)).abs().max() < 1e-5
    assert float((identity(image) * writers.identity_of(image, state)).sum()) > 0.9999  # a pack's fp16 by default


def test_pool_matrix_is_adaptive_average_pooling():
    for source, target in ((188, 112), (256, 112), (7, 7), (5, 3), (3, 8)):
        line = torch.randn(1, 1, source, generator=torch.Generator().manual_seed(source))
        expected = torch.nn.functional.adaptive_avg_pool1d(line, target)
        assert torch.allclose(line @ pool_matrix(source, target).T, expected, atol=1e-6)


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    state = narrow(**{"output_layer.9.weight": torch.zeros(2), "output_layer.3.bias": torch.zeros(3)})
    del state["body.5.res_layer.4.bias"]
    state["body.7.res_layer.0.weight"] = torch.full((8,), float("nan"))
    with pytest.raises(PackError) as error:
        import_identity(read(tmp_path, state))
    for part in (
        "file.pt as IR-SE50 does not fit",
        "not accounted for: output_layer.9.weight [2]",
        "output_layer.3.bias is [3]",
        "missing: backbone.stages.1.2.residual.4.bias",
        "not finite: body.7.res_layer.0.weight",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if not k.startswith("body.23")}, r"\(16, 2\).*expected \(3, 4, 14, 3\)"),
        (lambda s: {k: v for k, v in s.items() if ".res_layer.5." not in k}, "no squeeze-and-excitation"),
        (lambda s: {**s, "output_layer.3.weight": torch.zeros(8, 100)}, r"reads 100 values; expected 16 x 7\^2"),
        (lambda s: {**s, "output_layer.3.weight": torch.zeros(8)}, r"output_layer.3.weight is \[8\]; expected 2"),
        (lambda s: {"weight": torch.zeros(2)}, "input_layer.0.weight is missing"),
    ],
    ids=["shallow", "ir", "features", "dimensions", "other"],
)
def test_other_networks_are_refused_with_a_reason(tmp_path, spoil, message):
    with pytest.raises(PackError, match=message):
        import_identity(read(tmp_path, spoil(narrow())))


def test_other_files_are_not_recognised(tmp_path):
    assert recognises(read(tmp_path, writers.write_encoder(widths=writers.NARROW, reduction=4))) is None
    assert recognises(read(tmp_path, torch.zeros(3))) is None
