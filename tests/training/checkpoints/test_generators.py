"""Imported generators give the picture of the published formula, computed on the arrays of the file itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.runtime.archives import read_source  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.generators import generator_from_arrays, recognises  # noqa: E402
from styleclip_rt.runtime.training.pack import load_pack  # noqa: E402
from styleclip_rt.runtime.training.pack_writer import Component, save_pack  # noqa: E402

from . import reference  # noqa: E402
from .generator_helpers import SMALL, SMALL_NVIDIA, TOLERANCE, assert_equal, imported_file, latents, network  # noqa: E402
from .writers import rosinality_state, tensors, write_rosinality  # noqa: E402
from .writers_nvidia import nvidia_state, write_nvidia, write_tensorflow  # noqa: E402


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("variant", ["converted", "trained"])
def test_rosinality_at_64_px(tmp_path, multiplier, variant):
    sizes = {"channels": {4: 64, 8: 64, 16: 64, 32: 64, 64: 32 * multiplier}, "width": 64}
    arrays = write_rosinality(tmp_path / "g.pt", variant, size=64, **sizes)
    generator = network(imported_file(tmp_path / "g.pt"))
    g = arrays["g_ema"]
    assert_equal(generator, lambda z: reference.rosinality_mapping(g, z), lambda w: reference.rosinality(g, w))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_rosinality_at_the_published_width(tmp_path, multiplier):
    arrays = write_rosinality(tmp_path / "g.pt", size=64, multiplier=multiplier)
    imported = imported_file(tmp_path / "g.pt")
    assert imported.config["channels"] == {4: 512, 8: 512, 16: 512, 32: 512, 64: 256 * multiplier}
    g = arrays["g_ema"]
    assert_equal(network(imported), lambda z: reference.rosinality_mapping(g, z), lambda w: reference.rosinality(g, w))
    assert np.array_equal(imported.content["mapping.w_avg"], arrays["latent_avg"])


@pytest.mark.parametrize("clamp", [None, 256, 1.5], ids=["no clamp", "clamp 256", "a clamp that bites"])
@pytest.mark.parametrize("mapping", [2, 8])
def test_nvidia_at_64_px(tmp_path, mapping, clamp):
    channels = {4: 64, 8: 64, 16: 64, 32: 64, 64: 32}
    g = write_nvidia(
        tmp_path / "g.pkl",
        options={"conv_clamp": clamp},
        size=64,
        channels=channels,
        mapping=mapping,
        z_dim=48,
        w_dim=64,
    )
    imported = imported_file(tmp_path / "g.pkl")
    assert imported.config["conv_clamp"] == clamp
    assert imported.config["mapping_layers"] == mapping
    generator = network(imported)
    assert_equal(generator, lambda z: reference.nvidia_mapping(g, z), lambda w: reference.nvidia(g, w, clamp))
    if clamp == 1.5:
        _, w = latents(generator)
        assert not torch.allclose(reference.nvidia(g, w, None), generator(w), atol=0.1)


@pytest.mark.parametrize("base", [16384, 32768])
def test_nvidia_at_the_published_width(tmp_path, base):
    """A channel base of 16384 is config-e and stylegan2-ada's `auto` below 512 px: rosinality's multiplier 1."""
    g = write_nvidia(tmp_path / "g.pkl", size=64, base=base)
    imported = imported_file(tmp_path / "g.pkl")
    assert imported.config["channels"][64] == base // 64
    assert_equal(network(imported), lambda z: reference.nvidia_mapping(g, z), lambda w: reference.nvidia(g, w), 1)


def test_tensorflow(tmp_path):
    v = write_tensorflow(tmp_path / "g.pkl", size=32, channels={4: 24, 8: 16, 16: 12, 32: 8}, width=20)
    imported = imported_file(tmp_path / "g.pkl")
    assert_equal(network(imported), lambda z: reference.tensorflow_mapping(v, z), lambda w: reference.tensorflow(v, w))


@pytest.mark.slow
def test_rosinality_at_1024_px(tmp_path):
    """Full width, as the published FFHQ generator; 171 tensors."""
    arrays = write_rosinality(tmp_path / "g.pt", size=1024)
    assert len(arrays["g_ema"]) == 171
    generator = network(imported_file(tmp_path / "g.pt"))
    assert (generator.num_ws, generator.style_channels) == (18, 9088)
    _, w = latents(generator, 1)
    expected, found = reference.rosinality(arrays["g_ema"], w), generator(w)
    assert (found - expected).abs().max() <= TOLERANCE * max(1, expected.abs().max())


@pytest.mark.slow
def test_nvidia_at_1024_px(tmp_path):
    """Full width, as NVIDIA's own pickle of the FFHQ generator: 30 million weights, no clamp."""
    g = write_nvidia(tmp_path / "g.pkl", size=1024)
    generator = network(imported_file(tmp_path / "g.pkl"))
    assert (generator.num_ws, generator.style_channels) == (18, 9088)
    learnt = [array for name, array in g.items() if not name.endswith(("resample_filter", "noise_const", "w_avg"))]
    assert sum(array.size for array in learnt) == 30_370_060
    assert_equal(generator, lambda z: reference.nvidia_mapping(g, z), lambda w: reference.nvidia(g, w), 1)


def test_formats_are_recognised_by_content(tmp_path):
    """The names say nothing: every file is called the same."""
    path, found = tmp_path / "weights", {}
    for variant in ("converted", "g", "state"):
        write_rosinality(path, variant, legacy=variant == "g", **SMALL)
        found[variant] = recognises(read_source(path))
    write_nvidia(path, **SMALL_NVIDIA)
    found["nvidia"] = recognises(read_source(path))
    torch.save(tensors(nvidia_state(**SMALL_NVIDIA)), path)
    found["nvidia state"] = recognises(read_source(path))
    write_tensorflow(path, **SMALL)
    found["tensorflow"] = recognises(read_source(path))
    torch.save({"model": {"layer.weight": torch.zeros(2)}}, path)
    found["other"] = recognises(read_source(path))
    assert found == {
        "converted": "rosinality StyleGAN2",
        "g": "rosinality StyleGAN2",
        "state": "rosinality StyleGAN2 (state dict)",
        "nvidia": "NVIDIA StyleGAN2 pickle",
        "nvidia state": "NVIDIA StyleGAN2 (state dict)",
        "tensorflow": "NVIDIA StyleGAN2 pickle (TensorFlow)",
        "other": None,
    }


@pytest.mark.parametrize("size", [32, 128, 256])
def test_any_size(tmp_path, size):
    channels = {2**i: max(2, 64 >> i) for i in range(2, size.bit_length())}
    g = write_rosinality(tmp_path / "g.pt", size=size, width=8, channels=channels)["g_ema"]
    generator = network(imported_file(tmp_path / "g.pt"))
    assert generator.config.resolution == size
    assert_equal(generator, lambda z: reference.rosinality_mapping(g, z), lambda w: reference.rosinality(g, w))


def test_mapping_of_any_depth(tmp_path):
    write_rosinality(tmp_path / "g.pt", mapping=3, **SMALL)
    assert imported_file(tmp_path / "g.pt").config["mapping_layers"] == 3


def test_what_is_left_out_is_said(tmp_path):
    write_rosinality(tmp_path / "g.pt", "trained", **SMALL)
    notes = " ".join(imported_file(tmp_path / "g.pt").notes)
    assert "left out of the file: g, d, g_optim, d_optim, args, ada_aug_p" in notes


def test_the_average_of_a_trained_file_is_that_of_the_mapping(tmp_path):
    arrays = write_rosinality(tmp_path / "g.pt", "trained", **SMALL)
    imported = imported_file(tmp_path / "g.pt")
    assert any("average of w" in note for note in imported.notes)
    z = torch.randn(200_000, 12, generator=torch.Generator().manual_seed(7))
    w = reference.rosinality_mapping(arrays["g_ema"], z)
    error = imported.content["mapping.w_avg"] - w.mean(0)
    assert (error.abs() < 5 * w.std(0) / 16384**0.5).all()
    again = imported_file(tmp_path / "g.pt")
    assert torch.equal(again.content["mapping.w_avg"], imported.content["mapping.w_avg"])


def test_the_unaveraged_generator_is_taken_with_a_note(tmp_path):
    write_rosinality(tmp_path / "g.pt", "g", **SMALL)
    assert any("no g_ema" in note for note in imported_file(tmp_path / "g.pt").notes)


def test_missing_noise_is_drawn_the_same_each_time_and_said(tmp_path):
    write_rosinality(tmp_path / "g.pt", noises=False, **SMALL)
    first, second = (imported_file(tmp_path / "g.pt") for _ in range(2))
    assert any("noises.noise_0" in note for note in first.notes)
    noise = [name for name in first.content if name.endswith("noise_const")]
    assert len(noise) == 5
    assert all(torch.equal(first.content[name], second.content[name]) for name in noise)
    drawn = torch.cat([first.content[name].flatten() for name in noise])
    assert abs(drawn.mean()) < 0.2
    assert abs(drawn.std() - 1) < 0.1


def test_average_of_e4e_form(tmp_path):
    """e4e and pSp repeat the average for each layer; the generator inside their files is read as well."""
    state = rosinality_state(**SMALL)
    inside = {f"decoder.{name}": tensor for name, tensor in tensors(state).items()}
    average = torch.randn(12)
    tree = {"state_dict": {"encoder.x": torch.zeros(2), **inside}, "latent_avg": average.repeat(6, 1), "opts": {}}
    torch.save(tree, tmp_path / "e.pt")
    imported = imported_file(tmp_path / "e.pt")
    assert "inside a checkpoint" in imported.format
    assert torch.equal(imported.content["mapping.w_avg"], average)
    direct = generator_from_arrays(state, "e.pt", latent_avg=average.numpy())
    assert all(torch.equal(direct.content[name], tensor) for name, tensor in imported.content.items())


def test_parallel_training_prefix(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in tensors(rosinality_state(**SMALL)).items()}
    torch.save({"g_ema": state, "latent_avg": torch.zeros(12)}, tmp_path / "g.pt")
    assert imported_file(tmp_path / "g.pt").config["resolution"] == 16


def test_a_generator_without_noise(tmp_path):
    g = write_nvidia(tmp_path / "g.pkl", use_noise=False, **SMALL_NVIDIA)
    imported = imported_file(tmp_path / "g.pkl")
    assert any("without noise" in note for note in imported.notes)
    assert_equal(network(imported), lambda z: reference.nvidia_mapping(g, z), lambda w: reference.nvidia(g, w))


def test_float16_is_computed_in_float32_and_said(tmp_path):
    write_nvidia(tmp_path / "g.pkl", options={"conv_clamp": 256}, **SMALL_NVIDIA)
    imported = imported_file(tmp_path / "g.pkl")
    assert any("float16" in note for note in imported.notes)
    assert {tensor.dtype for tensor in imported.content.values()} == {torch.float32}


def test_our_own_file(tmp_path, root):
    """A pack's generator keeps its config, clamp included, from the pack.json beside it."""
    write_nvidia(tmp_path / "g.pkl", options={"conv_clamp": 256}, **SMALL_NVIDIA)
    first = imported_file(tmp_path / "g.pkl")
    folder = save_pack(tmp_path / "pack", "p", {"generator": Component(first.content, first.config, exact=True)})
    again = imported_file(folder / "generator.safetensors")
    assert again.config == {**first.config}
    assert all(torch.equal(again.content[name], tensor) for name, tensor in first.content.items())
    assert load_pack(folder).generator.config.conv_clamp == 256
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "generator.safetensors").read_bytes())
    assert any("no pack.json" in note for note in imported_file(alone).notes)
    shipped = imported_file(Path(root) / "runtime" / "data" / "toyfaces" / "generator.safetensors")
    assert shipped.config["resolution"] == 64
