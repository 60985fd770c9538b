"""float16 of the generator: equal to float32 on paper, in range for hostile weights, islands where they are needed."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

import torch.nn.functional as F  # noqa: E402

from styleclip_rt.engines.errors import InputError  # noqa: E402
from styleclip_rt.engines.gate import MIN_PSNR_DB  # noqa: E402
from styleclip_rt.export.forms import UpConvolution, convolve  # noqa: E402
from styleclip_rt.export.precision import (  # noqa: E402
    HALF_MAX,
    HEADROOM,
    checked_precision,
    picture_psnr,
    settle,
    worst_first,
)
from styleclip_rt.export.precision_layers import TypedSynthesis, normalised, scale_for  # noqa: E402
from styleclip_rt.export.ranges import measure, sample_styles  # noqa: E402


class GeneratorPack:
    """A pack with nothing but a generator."""

    def __init__(self, generator):
        self.generator = generator

    def has(self, component):
        return component == "generator"


def samples_of(generator, count=3):
    return sample_styles(GeneratorPack(generator), count)


@torch.no_grad()
def naive_half(generator, s):
    """What casting everything to float16 does: no normalisation, no scales, float16 demodulation."""
    x, rgb, offset = None, None, 0
    for layer in generator.style_layers:
        module, style = generator.layer(layer.name), s[:, offset : offset + layer.channels].half()
        offset += layer.channels
        block = generator.blocks[layer.name.split(".")[0]]
        if x is None:
            x = block.const.half().expand(len(s), -1, -1, -1)
        weight, y = (module.weight * module.gain).half(), x * style[:, :, None, None]
        if layer.kind == "torgb":
            skip = convolve(F.conv2d, y, weight) + module.bias.half()[:, None, None]
            up = (
                None
                if rgb is None
                else convolve(F.conv_transpose2d, rgb, block.fir_rgb.half(), stride=2, padding=1, groups=3)
            )
            rgb = skip if up is None else skip + up
            continue
        if module.up:
            y = UpConvolution(weight.float(), "fir", torch.float16)(y)
        else:
            y = convolve(F.conv2d, y, weight, padding=1)
        d = torch.rsqrt((style.square().float() @ weight.float().square().sum((2, 3)).T).half() + 1e-8)
        offsets = (module.noise_const * module.noise_strength + module.bias[:, None, None]).half()
        x = F.leaky_relu(y * d[:, :, None, None] + offsets, 0.2) * math.sqrt(2)
    return rgb.float()


def hostile(kind, make_generator):
    """A generator without conv_clamp whose weights float16 cannot hold as they are."""
    torch.manual_seed(3)
    generator = make_generator(32)
    convs = [generator.layer(entry.name) for entry in generator.style_layers if entry.kind == "conv"]
    rgbs = [generator.layer(entry.name) for entry in generator.style_layers if entry.kind == "torgb"]
    with torch.no_grad():
        for layer in convs:
            if kind == "huge weights":
                layer.weight.mul_(1e6)
            if kind == "unbounded activations":
                layer.bias.mul_(3e6)
            if kind == "extreme style channels":
                layer.affine.bias[0], layer.affine.bias[1] = 1e6, 1e-7
            if kind == "dead output channels":
                layer.weight[1].zero_()
            if kind == "tiny weights":
                layer.weight.mul_(1e-7)
        if kind == "unbounded activations":
            for layer in rgbs:
                layer.weight.mul_(3e-7)
        if kind == "huge constant":
            generator.blocks["b4"].const.mul_(1e7)
            for layer in rgbs:
                layer.weight.mul_(1e-7)
    return generator


@pytest.fixture(scope="module")
def plain(generator_of):
    torch.manual_seed(3)
    return generator_of(32)


def test_in_float32_the_typed_form_is_the_generator(plain):
    s = samples_of(plain).all()
    with torch.no_grad():
        expected = plain.synthesize(s)
        # the same operations, but with several threads a convolution may sum in another order
        torch.testing.assert_close(TypedSynthesis(plain)(s), expected, atol=1e-5, rtol=1e-5)
        rewritten = TypedSynthesis(plain, islands=(), measuring=True)(s)
        torch.testing.assert_close(rewritten, expected, atol=1e-4, rtol=0)
        scaled = TypedSynthesis(plain, islands=(), scales=dict.fromkeys(["const", "b8.conv0"], 64.0), measuring=True)(s)
        torch.testing.assert_close(scaled, rewritten, atol=1e-5, rtol=0)


def test_conv_clamp_is_kept_under_a_scale(plain, generator_of):
    torch.manual_seed(3)
    clamped = generator_of(32)
    for entry in clamped.style_layers:
        clamped.layer(entry.name).clamp = 0.5
    s = samples_of(clamped).plain
    with torch.no_grad():
        expected = clamped.synthesize(s)
        assert not torch.allclose(expected, plain.synthesize(s), atol=0.05)
        scales = {entry.name: 8.0 for entry in clamped.style_layers if entry.kind == "conv"}
        got = TypedSynthesis(clamped, islands=(), scales=scales, measuring=True)(s)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_weights_of_a_pack_lose_nothing():
    """A float16 weight over a power of two is a float16 weight."""
    weight = torch.randn(6, 20, 3, 3).half().float() * torch.tensor([1.0, 1e-3, 300.0, 0, 1, 1])[:, None, None, None]
    weight = weight.half().float()
    unit, factor = normalised(weight, gain=0.1)
    usual = unit.abs() > 6.2e-5  # below, float16 is subnormal
    assert torch.equal(unit[usual].half().float(), unit[usual])
    torch.testing.assert_close(unit * factor[:, None, None, None], weight * 0.1)
    peaks = unit[[0, 1, 2, 4]].abs().amax((1, 2, 3)) * math.sqrt(180)
    assert ((peaks > 0.5) & (peaks < 2.1)).all()


def test_a_dead_style_gives_what_float32_gives(plain):
    """max |s| is 0: the eps of the demodulation decides, and nothing is NaN."""
    s = samples_of(plain).plain.clone()
    layer = plain.style_layers[2]
    s[:, layer.offset : layer.offset + layer.channels] = 0
    with torch.no_grad():
        got, expected = TypedSynthesis(plain, islands=())(s), plain.synthesize(s)
    assert min(picture_psnr(got, expected)) > 55


HOSTILE = ["huge weights", "unbounded activations", "extreme style channels", "huge constant"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_generators_pass_where_naive_float16_fails(kind, generator_of):
    generator = hostile(kind, generator_of)
    samples = samples_of(generator)
    with torch.no_grad():
        expected = generator.synthesize(samples.plain)
        assert expected.isfinite().all()
        assert min(picture_psnr(naive_half(generator, samples.plain), expected)) < 20
    choice = settle(generator, samples)
    assert choice.passes
    assert choice.psnr_db["plain"] > MIN_PSNR_DB["plain"]
    assert len(choice.islands) <= 3


@pytest.mark.parametrize("kind", ["dead output channels", "tiny weights"])
def test_harmless_oddities_need_no_island(kind, generator_of):
    generator = hostile(kind, generator_of)
    choice = settle(generator, samples_of(generator))
    assert choice.islands == ()
    assert min(choice.psnr_db.values()) > 50


def test_measured_ranges_are_kept_below_the_limit(generator_of):
    generator = hostile("unbounded activations", generator_of)
    samples = samples_of(generator)
    choice = settle(generator, samples)
    assert choice.ranges["b8.conv0"]["output"] > HALF_MAX
    for name, row in choice.ranges.items():
        if "output" in row:
            assert row["output"] / choice.scales[name] <= 2048
    entry = choice.as_json()
    assert entry["type"] == "fp16"
    assert entry["ranges"]["b8.conv0"]["output"] == pytest.approx(choice.ranges["b8.conv0"]["output"], rel=1e-3)
    assert all(scale > 1 for scale in entry["scales"].values())


def test_the_layer_that_float16_cannot_compute_becomes_the_island(generator_of):
    """One style channel drowns the others, and half of the outputs do not listen to it: s / max |s| underflows."""
    torch.manual_seed(5)
    generator = generator_of(32)
    layer = generator.layer("b16.conv1")
    with torch.no_grad():
        layer.affine.bias[0] = 3e8
        layer.weight[::2, 0] = 0
    samples = samples_of(generator)
    assert worst_first(generator, samples, TypedSynthesis(generator, islands=()))[0] == "b16.conv1"
    choice = settle(generator, samples)
    assert "b16.conv1" in choice.islands
    assert len(choice.islands) < len(generator.style_layers) / 2
    assert choice.passes


def test_two_islands_in_a_row_stay_float32_between(generator_of):
    torch.manual_seed(5)
    generator = generator_of(32)
    names = [entry.name for entry in generator.style_layers]
    with torch.no_grad():
        s = samples_of(generator).plain
        everything = TypedSynthesis(generator, islands=names)(s)
        torch.testing.assert_close(everything, generator.synthesize(s), atol=1e-5, rtol=0)
    states, _ = TypedSynthesis(generator, islands=["b8.conv0", "b8.conv1"]).states(s)
    assert states["b8.conv1"][0].dtype == torch.float32
    assert states["b16.conv1"][0].dtype == torch.float16


def test_a_tail_goes_on_from_a_state(plain):
    typed = TypedSynthesis(plain, islands=("b16.conv0",))
    s = samples_of(plain).plain
    with torch.no_grad():
        states, image = typed.states(s)
        for name in ("b8.conv1", "b16.conv0", "b32.conv1"):
            assert torch.equal(typed.states(s, name, states[name])[1], image)


def test_edited_samples_go_where_edits_go(plain):
    samples = samples_of(plain, 4)
    sigma = samples_of(plain, 64).plain.std(0)
    moved = (samples.edited[:4] - samples.plain) / sigma
    assert 7 < moved.abs().amax() < 14  # sigma is estimated from other faces than here
    rgb = [entry for entry in plain.style_layers if entry.kind == "torgb"]
    for entry in rgb:
        assert not moved[:, entry.offset : entry.offset + entry.channels].any()
    torch.testing.assert_close(samples.edited[4:] + samples.edited[:4], 2 * samples.plain)


def test_ranges_cover_every_layer(plain):
    ranges = measure(plain, samples_of(plain).plain)
    assert set(ranges) == {"const"} | {entry.name for entry in plain.style_layers}
    assert set(ranges["b8.conv0"]) == {"product", "sum", "demodulation", "output"}
    assert ranges["const"]["output"] == pytest.approx(float(plain.blocks["b4"].const.detach().abs().max()))


def test_pictures_that_are_not_finite_fail():
    image = torch.zeros(3, 3, 2, 2)
    broken = image.clone()
    broken[1, 0, 0, 0], broken[2, 0, 0, 0] = math.nan, math.inf
    assert picture_psnr(broken, image) == [200.0, -math.inf, -math.inf]
    assert picture_psnr(image + 0.2, image)[0] == pytest.approx(20, abs=1e-3)
    assert picture_psnr(image + 7, image + 3)[0] == 200.0  # both are shown as white


def test_scales_are_powers_of_two_and_only_where_needed():
    assert scale_for(2048.0) == 1.0
    assert scale_for(2049.0) == 2.0
    assert scale_for(1e6) == 512.0
    assert 1e6 / scale_for(1e6) <= 2048
    assert HALF_MAX / HEADROOM > 2048


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="'int8'; expected one of fp32, fp16, auto"):
        checked_precision("int8")
