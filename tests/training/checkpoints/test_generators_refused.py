"""Generators that are refused, each with its reason, and arrays that do not fit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.archives import read_source  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.generators import (  # noqa: E402
    generator_from_arrays,
    import_generator,
    recognises,
)

from . import writers_nvidia  # noqa: E402
from .generator_helpers import SMALL, SMALL_NVIDIA, imported_file  # noqa: E402
from .writers import rosinality_state  # noqa: E402
from .writers_nvidia import write_nvidia, write_tensorflow  # noqa: E402


def test_a_file_without_a_generator_says_what_it_holds(tmp_path):
    torch.save({"model": {"layer.weight": torch.zeros(2)}}, tmp_path / "x.pt")
    with pytest.raises(PackError, match=r"holds no generator.*model"):
        import_generator(read_source(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"architecture": "resnet"}, "another architecture.*resnet"),
        ({"architecture": "orig"}, "another architecture.*orig"),
        ({"c_dim": 10}, "conditional"),
        ({"SynthesisLayer.activation": "relu"}, "another activation"),
        ({"SynthesisLayer.act_gain": 1.0}, "another gain"),
        ({"SynthesisLayer.conv_clamp": 128}, "conv_clamp is not one number"),
        ({"FullyConnectedLayer.bias_gain": 3.0}, "another learning rate"),
        ({"MappingNetwork.c_dim": 2}, "conditional"),
        ({"SynthesisBlock.img_channels": 1}, "RGB"),
    ],
    ids=str,
)
def test_other_networks_of_nvidia_are_refused_with_the_reason(tmp_path, options, reason):
    write_nvidia(tmp_path / "g.pkl", options={"conv_clamp": None, **options}, **SMALL_NVIDIA)
    with pytest.raises(PackError, match=reason):
        imported_file(tmp_path / "g.pkl")


def test_stylegan3_is_refused_by_name(tmp_path):
    with writers_nvidia.stand_ins() as names:

        def part(kind, **modules):
            state = {"_parameters": {}, "_buffers": {}, "_modules": modules, "c_dim": 0}
            return writers_nvidia.Persistent(names.rebuild, names.EasyDict, kind, state)

        synthesis = part("SynthesisNetwork", input=part("SynthesisInput"), L0_36_512=part("SynthesisLayer"))
        tree = {"G_ema": part("Generator", mapping=part("MappingNetwork"), synthesis=synthesis)}
        (tmp_path / "g.pkl").write_bytes(pickle.dumps(tree))
    source = read_source(tmp_path / "g.pkl")
    assert recognises(source) == "NVIDIA StyleGAN3 pickle"
    with pytest.raises(PackError, match=r"StyleGAN3.*work with StyleGAN2"):
        import_generator(source)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"resample_kernel": [1, 2, 1]}, "resample_kernel"),
        ({"label_size": 5}, "label_size"),
        ({"architecture": "resnet"}, "architecture"),
    ],
    ids=str,
)
def test_other_networks_of_tensorflow_are_refused(tmp_path, kwargs, reason):
    write_tensorflow(tmp_path / "g.pkl", kwargs, **SMALL)
    with pytest.raises(PackError, match=reason):
        imported_file(tmp_path / "g.pkl")


def broken(**changes):
    """Arrays of a small rosinality generator; None removes one."""
    state = {**rosinality_state(**SMALL), **changes}
    return {name: array for name, array in state.items() if array is not None}


def test_all_mismatches_are_reported_at_once():
    arrays = broken(
        **{
            "convs.0.conv.weight": np.zeros((1, 6, 9, 3, 3), np.float32),
            "conv1.activate.bias": None,
            "extra.thing": np.zeros(3, np.float32),
            "to_rgb1.bias": np.full((1, 3, 1, 1), np.nan, np.float32),
            "convs.0.conv.blur.kernel": np.ones((4, 4), np.float32),
        }
    )
    with pytest.raises(PackError) as raised:
        generator_from_arrays(arrays, "g.pt")
    message = str(raised.value)
    for part in (
        "g.pt does not fit",
        "missing: synthesis.b4.conv1.bias",
        "not accounted for: extra.thing [3]",
        "wrong shape: convs.0.conv.weight is [1, 6, 9, 3, 3], which does not give synthesis.b8.conv0.weight",
        "not finite: to_rgb1.bias",
        "convs.0.conv.blur.kernel is not the filter [1, 3, 3, 1]",
    ):
        assert part in message


@pytest.mark.parametrize("key", sorted(rosinality_state(size=8, width=6, channels={4: 4, 8: 4})))
def test_every_key_is_needed(key):
    """Without any one of its arrays a file is refused, or says what it did about it (noise only); filters may lack."""
    arrays = rosinality_state(size=8, width=6, channels={4: 4, 8: 4})
    del arrays[key]
    if key.startswith("noises."):
        assert any(key in note for note in generator_from_arrays(arrays, "x", latent_avg=np.zeros(6)).notes)
    elif key.endswith("kernel"):
        assert generator_from_arrays(arrays, "x", latent_avg=np.zeros(6)).config["resolution"] == 8
    else:
        with pytest.raises(PackError, match="x"):
            generator_from_arrays(arrays, "x", latent_avg=np.zeros(6))


def test_hostile_sizes_are_refused_without_memory():
    wide = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1, 1 << 40, 4, 4), (0, 0, 0, 0))
    with pytest.raises(PackError, match=r"input\.input"):
        generator_from_arrays(broken(**{"input.input": wide}), "x")


def test_an_average_that_differs_by_layer_is_refused():
    with pytest.raises(PackError, match="latent_avg holds a different average for each layer"):
        generator_from_arrays(rosinality_state(**SMALL), "x", latent_avg=np.arange(24.0).reshape(2, 12))
