"""e4e and pSp: the published files against the published definition."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

sys.path.insert(0, str(Path(__file__).parent))

import writers_encoders as writers  # noqa: E402
from encoder_helpers import read  # noqa: E402

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.encoders import import_inverter, recognises  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.psp_files import generator_inside  # noqa: E402
from styleclip_rt.runtime.training.networks.e4e import E4EConfig, Encoder4Editing  # noqa: E402

PSP = {"encoder_type": "GradualStyleEncoder"}
CARS = {"dataset_type": "cars_encode"}


def narrow(**options):
    return writers.write_encoder(widths=writers.NARROW, reduction=4, **options)


def network(imported):
    inverter = Encoder4Editing(E4EConfig.from_dict(imported.config)).eval()
    left = inverter.load_state_dict(imported.content, strict=False)
    assert not left.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    return inverter.requires_grad_(False)


def photos(height=256, width=256, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("options", [{}, PSP], ids=["e4e", "psp"])
@pytest.mark.parametrize(("styles", "average"), [(18, True), (14, False), (5, True)])
def test_equals_the_published_definition(tmp_path, options, styles, average):
    file = narrow(styles=styles, average=average, **options)
    imported = import_inverter(read(tmp_path, file))
    assert imported.config["kind"] == ("psp" if options else "e4e") == imported.format.lower()
    ours, theirs = network(imported)(photos()), writers.encoder_of(photos(), file)
    assert ours.shape == (2, styles, 16)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert theirs.std() > 0.1
    assert imported.notes == ()


def test_e4e_and_psp_differ_on_the_same_weights(tmp_path):
    w = [network(import_inverter(read(tmp_path, narrow(**options))))(photos()) for options in ({}, PSP)]
    assert torch.allclose(w[0][:, 0], w[1][:, 0], atol=1e-5)
    assert (w[0] - w[1]).abs().max() > 0.1


@pytest.mark.parametrize("styles", [16, 18])
def test_cars_read_192_by_256_and_give_16_styles(tmp_path, styles):
    file = narrow(styles=styles, **CARS)
    imported = import_inverter(read(tmp_path, file))
    config = E4EConfig.from_dict(imported.config)
    assert config.input_shape == (192, 256)
    assert any("256 x 192" in note for note in imported.notes)
    ours, theirs = network(imported)(photos(192, 256)), writers.encoder_of(photos(192, 256), file, 16)
    assert ours.shape == (2, 16, 16)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_a_latent_average_that_differs_by_layer_is_kept_by_layer(tmp_path):
    file = narrow(styles=6)
    file["latent_avg"] = torch.randn(6, 16, generator=torch.Generator().manual_seed(4))
    imported = import_inverter(read(tmp_path, file))
    assert imported.config["average_per_layer"]
    theirs = writers.encoder_of(photos(), file)
    assert (network(imported)(photos()) - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("shape", [(16,), (1, 16)])
def test_one_average_for_all_layers(tmp_path, shape):
    file = narrow(styles=6)
    average = file["latent_avg"][0].reshape(shape)
    imported = import_inverter(read(tmp_path, {**file, "latent_avg": average}))
    assert torch.equal(imported.content["w_avg"], average.reshape(16))
    assert not imported.config["average_per_layer"]


def test_an_average_that_training_did_not_start_from_is_not_added(tmp_path):
    file = narrow(styles=5)
    file["opts"]["start_from_latent_avg"] = False
    imported = import_inverter(read(tmp_path, file))
    assert not imported.content["w_avg"].any()
    assert "is not added" in imported.notes[0]
    theirs = writers.encoder_of(photos(), file)
    assert (network(imported)(photos()) - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_options_may_be_a_namespace_and_may_be_absent(tmp_path):
    file = narrow(styles=5, **PSP)
    source = read(tmp_path, {**file, "opts": argparse.Namespace(**file["opts"])})
    assert recognises(source) == "pSp"
    assert import_inverter(source).config["kind"] == "psp"
    del file["opts"]
    source = read(tmp_path, file)
    assert recognises(source) == "e4e or pSp"
    with pytest.raises(PackError, match="encoder_type, and e4e and pSp have the same keys"):
        import_inverter(source)
    imported = import_inverter(source, "psp")
    assert imported.config["kind"] == "psp"
    assert imported.content["w_avg"].any()


def test_what_training_resumes_from_is_left_out_and_the_generator_offered(tmp_path):
    file = narrow(styles=5)
    file |= {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "discriminator_state_dict": {"mlp.0.weight": torch.zeros(2, 2)},
        "global_step": 7,
        "best_val_loss": torch.tensor(0.5),
    }
    source = read(tmp_path, file)
    assert set(import_inverter(source).content) == set(import_inverter(read(tmp_path, narrow(styles=5))).content)
    assert np.array_equal(generator_inside(source)["style.1.weight"], file["state_dict"]["decoder.style.1.weight"])


def state_without(file, *parts):
    return {**file, "state_dict": {k: v for k, v in file["state_dict"].items() if not any(p in k for p in parts)}}


def state_with(file, **more):
    return {**file, "state_dict": {**file["state_dict"], **more}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: {**f, "opts": {**f["opts"], "encoder_type": "BackboneEncoderUsingLastLayerIntoW"}},
            "another network",
        ),
        (lambda f: {**f, "opts": {**f["opts"], "label_nc": 19}}, "label maps or sketches"),
        (lambda f: state_with(f, **{"encoder.input_layer.0.weight": torch.zeros(4, 1, 3, 3)}), "reads 1 channels"),
        (lambda f: state_without(f, "styles.3."), r"holds \[0, 1, 2, 4\]"),
        (lambda f: {k: v for k, v in f.items() if k != "latent_avg"}, "latent_avg is missing"),
        (lambda f: {**f, "latent_avg": torch.zeros(4, 16)}, r"latent_avg is \[4, 16\]; expected \[16\]"),
        (lambda f: state_with(f, **{"encoder.styles.1.convs.8.weight": torch.zeros(16, 16, 3, 3)}), "no place for"),
        (lambda f: {**f, "face_pool": torch.zeros(2)}, r"not accounted for: face_pool \[2\]"),
        (lambda f: {**f, "encoder.latlayer1.bias": torch.zeros(16)}, "there twice"),
        (lambda f: state_with(f, **{"encoder.latlayer1.weight": torch.zeros(0, 12, 1, 1)}), "expected 4 dimensions"),
        (lambda f: {"g_ema": {}}, "input_layer.0.weight is missing"),
    ],
    ids=["backbone", "labels", "grey", "gap", "no-average", "average", "head", "extra", "twice", "empty", "other"],
)
def test_other_files_are_refused_with_a_reason(tmp_path, spoil, message):
    file = spoil(narrow(styles=5))
    with pytest.raises(PackError, match=message):
        import_inverter(read(tmp_path, file), None if "opts" in file else "e4e")


def test_a_kind_that_contradicts_the_file_is_refused(tmp_path):
    with pytest.raises(PackError, match="kind 'psp' was given; the file's encoder_type is 'Encoder4Editing'"):
        import_inverter(read(tmp_path, narrow(styles=5)), "psp")
    with pytest.raises(PackError, match="inverter kind is 'restyle'"):
        E4EConfig.from_dict({**E4EConfig().to_dict(), "kind": "restyle"})


def test_configs_of_older_packs_are_read():
    config = E4EConfig().to_dict()
    for key in ("kind", "input_height", "input_width", "average_per_layer"):
        del config[key]
    assert E4EConfig.from_dict(config) == E4EConfig()


def test_other_files_are_not_recognised(tmp_path):
    assert recognises(read(tmp_path, writers.write_identity(widths=writers.NARROW, reduction=4, embed=8))) is None
    assert recognises(read(tmp_path, {"state_dict": {"encoder.weight": torch.zeros(1)}})) is None
