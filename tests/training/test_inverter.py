"""Training of an inverter on a miniature generator: its losses by hand, the schedule, learning and resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training import inverter_losses as losses
from styleclip_rt.runtime.training.inverter import (
    Critics,
    EndToEndStep,
    Faces,
    InverterNetworks,
    new_networks,
    train_inverter,
)
from styleclip_rt.runtime.training.inverter_photos import Photos
from styleclip_rt.runtime.training.inverter_presets import (
    PRESETS,
    InverterPreset,
    InverterWeights,
    check_preset,
    encoder_config,
    named_preset,
    unlocked,
)
from styleclip_rt.runtime.training.inverter_report import Examiner
from styleclip_rt.runtime.training.networks.e4e import E4EConfig, Encoder4Editing
from styleclip_rt.runtime.training.networks.stylegan2 import GeneratorConfig
from styleclip_rt.runtime.training.pack import Pack

ENCODER = E4EConfig(6, 12, 16, 8, ((12, 1), (16, 1), (16, 1)), 4, 12, 2, 4)
SHORT = InverterPreset(warm_steps=60, warm_batch=16, warm_lr=3e-3, steps=40, batch=8, lr=2e-3, r1_every=4, ema=0.9)


@pytest.fixture(scope="module")
def pack(tiny: Pack) -> Pack:
    return tiny


@pytest.fixture(scope="module")
def photos() -> Photos:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), np.uint8)
    return Photos(pixels, tuple("abcde"), {}, "digest")


def networks_of(pack: Pack) -> InverterNetworks:
    return new_networks(pack, ENCODER, 1.0, 3)


def step_of(pack: Pack, settings: InverterPreset = SHORT, photos: Photos | None = None) -> EndToEndStep:
    networks = networks_of(pack).train()
    faces = Faces(pack.generator, ENCODER.input_size, settings, photos)
    return EndToEndStep(networks, faces, Critics(pack, settings), settings, 7)


# Losses --------------------------------------------------------------------------------------------------------------


def test_adversarial_losses_equal_the_formulas() -> None:
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0, -1.0])
    softplus = [math.log1p(math.exp(x)) for x in (-1.0, 2.0, 0.5, 3.0, -1.0)]
    expected = sum(softplus[:2]) / 2 + sum(softplus[2:]) / 3
    assert losses.discriminator_loss(real, fake) == pytest.approx(expected, rel=1e-6)
    passing = sum(math.log1p(math.exp(-x)) for x in (0.5, 3.0, -1.0)) / 3
    assert losses.encoder_adversarial_loss(fake) == pytest.approx(passing, rel=1e-6)


def test_r1_is_the_squared_gradient() -> None:
    weight = torch.tensor([0.5, -2.0, 1.0])
    real = torch.randn(4, 3, requires_grad=True)
    assert losses.r1_penalty(real @ weight, real) == pytest.approx(0.25 + 4 + 1, rel=1e-6)
    slope = 2 * real.detach() * weight  # of (w^2) @ weight
    penalty = losses.r1_penalty(real.square() @ weight, real).detach()
    assert penalty == pytest.approx(float(slope.square().sum(1).mean()), rel=1e-5)


def test_the_discriminator_has_four_layers_and_sees_w_normalised() -> None:
    mean, scale = torch.randn(5), torch.tensor(2.0)
    net = losses.LatentDiscriminator(mean, scale)
    linear = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(5, 5), (5, 5), (5, 5), (1, 5)]
    x = w = torch.randn(3, 5)
    x = (x - mean) / scale
    for layer in linear[:-1]:
        x = functional.leaky_relu(layer(x), 0.2)
    assert torch.allclose(net(w), linear[-1](x)[:, 0])


def test_offsets_and_known_w_by_hand() -> None:
    w_plus = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 3.0]]])
    offsets = w_plus[:, 1:] - w_plus[:, :1]
    assert losses.offset_norm(offsets) == pytest.approx((5 + 2) / 2)
    assert losses.offset_square(offsets) == pytest.approx((25 + 4) / 8)
    w = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert losses.known_w_loss(w_plus, w) == pytest.approx((25 + 4) / 12)


def test_features_are_of_unit_length_and_their_loss_is_zero_on_equal_pictures(pack: Pack) -> None:
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    maps = losses.features(pack.identity, a)
    assert [x.shape[-1] for x in maps] == [8, 4]
    assert all(torch.allclose(x.norm(dim=1), torch.ones(()), atol=1e-4) for x in maps)
    assert losses.feature_loss(maps, maps) == 0
    others = losses.features(pack.identity, b)
    distances = [float((x - y).square().sum(1).mean()) for x, y in zip(maps, others, strict=True)]
    assert losses.feature_loss(maps, others) == pytest.approx(np.mean(distances), rel=1e-5)


# Settings ------------------------------------------------------------------------------------------------------------


def test_the_published_offsets_are_unlocked_at_the_published_steps() -> None:
    free = [unlocked(step, 200_000, 17, PRESETS["e4e"].unlock) for step in range(0, 60_001, 1000)]
    assert free[:21] == [0] * 20 + [1]
    assert [free[20 + 2 * k] for k in range(17)] == list(range(1, 18))
    assert free[-1] == 17


@pytest.mark.parametrize(("unlock", "expected"), [((0, 0), [5] * 4), ((1, 1), [0] * 4), ((0.5, 0.5), [0, 0, 5, 5])])
def test_unlocking_at_the_ends(unlock: tuple[float, float], expected: list[int]) -> None:
    assert [unlocked(step, 4, 5, unlock) for step in range(4)] == expected


@pytest.mark.parametrize("resolution", [8, 16, 64, 256, 1024])
@pytest.mark.parametrize("encoder", ["narrow", "e4e"])
def test_an_encoder_fits_its_generator(resolution: int, encoder: str) -> None:
    sizes = {2**i: 8 for i in range(2, int(math.log2(resolution)) + 1)}
    generator = GeneratorConfig(resolution, 12, 24, 2, sizes)
    config = encoder_config(encoder, generator)
    assert E4EConfig.from_dict({**config.to_dict(), "training": {"any": "record"}}) == config
    if encoder == "e4e" and resolution < 64:
        return  # it has four halvings: the published sizes are for large pictures
    with torch.device("meta"):
        w = Encoder4Editing(config).eval()(torch.zeros(1, 3, config.input_size, config.input_size))
    assert w.shape == (1, generator.num_ws, 24)
    assert config.input_size == min(resolution, 256)


def test_the_preset_follows_the_generator() -> None:
    assert named_preset("auto", 128) is PRESETS["narrow"]
    assert named_preset("auto", 256) is PRESETS["e4e"]
    with pytest.raises(InputError, match="no preset 'huge'; expected auto or one of narrow, e4e"):
        named_preset("huge", 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "wide"}, "encoder 'wide': expected one of narrow, e4e"),
        ({"optimizer": "sgd"}, "expected one of adam, ranger"),
        ({"steps": 0}, "at least 1"),
        ({"warm_steps": -1}, "at least 0"),
        ({"unlock": (0.5, 0.2)}, "0 <= first <= last <= 1"),
        ({"photo_share": 1.5}, "expected 0 to 1"),
    ],
)
def test_settings_out_of_range_are_named(change: dict, message: str) -> None:
    check_preset(PRESETS["narrow"])
    with pytest.raises(InputError, match=message):
        check_preset(replace(PRESETS["narrow"], **change))


# Steps ---------------------------------------------------------------------------------------------------------------


def test_locked_layers_repeat_the_base(pack: Pack) -> None:
    step = step_of(pack)
    step.networks.eval()
    image = torch.rand(2, 3, 16, 16)
    w = step.networks.encoder(image)
    assert torch.equal(step.invert(image, 5), w)
    two = step.invert(image, 2)
    assert torch.equal(two[:, :3], w[:, :3])
    assert torch.equal(two[:, 3:], w[:, :1].expand(-1, 3, -1))
    assert [step.free(i) for i in (0, 3, 4, 20, 39)] == [0, 0, 1, 5, 5]


def test_a_step_is_the_weighted_sum_of_its_terms(pack: Pack) -> None:
    row = {name: float(value.detach()) for name, value in step_of(pack)(39).items()}
    weights = vars(SHORT.weights)
    assert set(row) == {"loss", "encoder", "discriminator"} | set(weights) - {"clip"}  # the pack has no CLIP
    expected = sum(weights[name] * value for name, value in row.items() if name in weights)
    assert row["encoder"] == pytest.approx(expected, rel=1e-5)
    assert row["loss"] == pytest.approx(row["encoder"] + row["discriminator"], rel=1e-6)


def test_each_network_learns_from_its_own_term_alone(pack: Pack) -> None:
    step = step_of(pack, replace(SHORT, weights=InverterWeights(0, 0, 0, 0, 0, 0, 0, adversary=1.0)))
    row = step(39)
    encoder, discriminator = (list(part.parameters()) for part in step.networks.children())
    of_encoder = torch.autograd.grad(row["encoder"], [*encoder, *discriminator], retain_graph=True, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in of_encoder[: len(encoder)])
    assert all(g is None for g in of_encoder[len(encoder) :])
    of_other = torch.autograd.grad(row["discriminator"], [*encoder, *discriminator], allow_unused=True)
    assert all(g is None for g in of_other[: len(encoder)])
    assert all(g is not None for g in of_other[len(encoder) :])


def test_r1_comes_every_so_many_steps(pack: Pack) -> None:
    step = step_of(pack)
    real, fake = torch.randn(4, 12), torch.randn(4, 12)
    plain = float(step.tell_apart(real.clone(), fake, 1).detach())
    lazy = float(step.tell_apart(real.clone(), fake, 4).detach())
    real = real.requires_grad_(True)
    penalty = float(losses.r1_penalty(step.networks.discriminator(real), real).detach())
    assert lazy == pytest.approx(plain + SHORT.r1 / 2 * SHORT.r1_every * penalty, rel=1e-5)


def test_a_batch_is_photos_first_then_samples_with_their_w(pack: Pack, photos: Photos) -> None:
    faces = Faces(pack.generator, 16, SHORT, photos)
    images, w = faces.batch(np.random.default_rng(1), 8)
    again, _ = faces.batch(np.random.default_rng(1), 8)
    assert torch.equal(images, again)
    assert images.shape == (8, 3, 16, 16)
    assert w.shape == (4, 12)
    known = {photos.batch(np.array([i])).numpy().tobytes() for i in photos.training}
    known |= {photos.batch(np.array([i]), np.array([True])).numpy().tobytes() for i in photos.training}
    assert all(image[None].numpy().tobytes() in known for image in images[:4])
    assert torch.equal(images[4:], faces.drawn(w))
    assert (
        len(Faces(pack.generator, 16, replace(SHORT, photo_share=1.0), photos).batch(np.random.default_rng(1), 3)[1])
        == 0
    )


def test_test_photos_are_none_of_the_training(photos: Photos) -> None:
    assert len(photos.held) == 1
    assert set(photos.held) | set(photos.training) == set(range(5))
    assert not set(photos.held) & set(photos.training)
    many = Photos(np.zeros((1000, 3, 2, 2), np.uint8), ("x",) * 1000, {}, "")
    assert len(set(many.held)) == 50
    few = Photos(np.zeros((3, 3, 2, 2), np.uint8), ("x",) * 3, {}, "")
    assert len(few.held) == 0


# Training ------------------------------------------------------------------------------------------------------------


def test_the_encoder_learns_to_invert(tmp_path: Path, pack: Pack) -> None:
    networks = networks_of(pack)
    examiner = Examiner(Faces(pack.generator, 16, SHORT, None), pack.identity, 99, 16)
    before = examiner.examine(networks.encoder.eval())[0]["samples"]
    encoder = train_inverter(tmp_path, pack, networks, SHORT)
    after, sheet = examiner.examine(encoder)
    assert after["samples"].psnr_db > before.psnr_db + 2
    assert after["samples"].identity > before.identity
    assert sheet.height > 256
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    with pytest.raises(InputError, match="other settings"):
        train_inverter(tmp_path, pack, networks_of(pack), replace(SHORT, batch=4))


def test_a_killed_run_goes_on_bit_exactly(tmp_path: Path, pack: Pack, photos: Photos) -> None:
    settings = replace(SHORT, warm_steps=4, steps=9, batch=4)

    def kill(step: int, model: nn.Module, row: object) -> None:
        if step == 7:
            raise KeyboardInterrupt

    whole = train_inverter(tmp_path / "a", pack, networks_of(pack), settings, photos=photos)
    with pytest.raises(KeyboardInterrupt):
        train_inverter(tmp_path / "b", pack, networks_of(pack), settings, photos=photos, watch=kill, save_every=3)
    resumed = train_inverter(tmp_path / "b", pack, networks_of(pack), settings, photos=photos, save_every=3)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_loss_that_is_not_finite_ends_the_training_and_spares_the_checkpoint(tmp_path: Path, pack: Pack) -> None:
    settings = replace(SHORT, warm_steps=0, steps=4, batch=2)
    spoiled = replace(settings, weights=replace(settings.weights, pixels=float("nan")))
    with pytest.raises(InputError, match="stage inverter: the loss is nan at step 0"):
        train_inverter(tmp_path, pack, networks_of(pack), spoiled)
    assert not (tmp_path / "inverter.safetensors").exists()


def test_ranger_trains_too(tmp_path: Path, pack: Pack) -> None:
    settings = replace(SHORT, warm_steps=0, steps=3, batch=2, optimizer="ranger")
    networks = networks_of(pack)
    before = networks.encoder.heads[0].linear.weight.detach().clone()
    encoder = train_inverter(tmp_path, pack, networks, settings)
    assert not torch.equal(encoder.heads[0].linear.weight, before)
