"""The generator against a straight-line implementation of the paper's equations, written independently of it."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
F = torch.nn.functional

from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402

FILTER = [1.0, 3.0, 3.0, 1.0]


def make_generator(clamp=None):
    torch.manual_seed(3)
    generator = Generator(GeneratorConfig(32, 12, 20, 3, {4: 16, 8: 24, 16: 12, 32: 8}, clamp))
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.normal_(parameter, std=0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("affine" in name), std=0.3)
    torch.nn.init.normal_(generator.mapping_network.w_avg)
    return generator.eval().requires_grad_(False)


def fir(x, gain):
    """x [n,c,h,w] filtered by the 4x4 kernel by definition: one sum per output pixel, no padding."""
    kernel = torch.tensor(FILTER)[:, None] * torch.tensor(FILTER)[None, :] / 64 * gain
    n, c, h, w = x.shape
    out = torch.zeros(n, c, h - 3, w - 3)
    for i in range(4):
        for j in range(4):
            out += kernel[i, j] * x[:, :, i : i + h - 3, j : j + w - 3]  # symmetric, so no flip
    return out


def insert_zeros(x):
    """[n,c,h,w] -> [n,c,2h,2w] with the values at even positions."""
    n, c, h, w = x.shape
    out = torch.zeros(n, c, 2 * h, 2 * w)
    out[:, :, ::2, ::2] = x
    return out


def modulated_weights(weight, s, demodulate):
    """Equations 1 and 3: one weight tensor per sample, [n,co,ci,k,k]."""
    w = weight[None] / math.sqrt(weight.shape[1] * weight.shape[2] ** 2) * s[:, None, :, None, None]
    if demodulate:
        w = w / torch.sqrt((w**2).sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    return w


def per_sample_conv(x, w, padding):
    """One ordinary convolution per sample."""
    return torch.cat([F.conv2d(x[i : i + 1], w[i], padding=padding) for i in range(x.shape[0])])


def upsampled_conv(x, w):
    """Zero insertion, correlation with the flipped kernel (a transposed convolution by definition), then the FIR."""
    flipped = w.flip((3, 4))
    y = per_sample_conv(F.pad(insert_zeros(x)[:, :, :-1, :-1], (2, 2, 2, 2)), flipped, 0)  # 2h + 1
    return fir(F.pad(y, (1, 1, 1, 1)), 4)


def reference_synthesis(state, config, s_parts):
    """The image from per-layer style vectors, with the pack's tensor names."""

    def layer(x, name, s, up):
        w = modulated_weights(state[f"{name}.weight"], s, True)
        x = upsampled_conv(x, w) if up else per_sample_conv(x, w, 1)
        x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
        x = F.leaky_relu(x + state[f"{name}.bias"][None, :, None, None], 0.2) * math.sqrt(2)
        return x if config.conv_clamp is None else x.clamp(-config.conv_clamp, config.conv_clamp)

    parts = iter(s_parts)
    image = None
    for size in config.resolutions:
        block = f"synthesis.b{size}"
        if size == 4:
            s = next(parts)
            x = state[f"{block}.const"][None].repeat(s.shape[0], 1, 1, 1)
        else:
            x = layer(x, f"{block}.conv0", next(parts), True)
            s = next(parts)
        x = layer(x, f"{block}.conv1", s, False)
        rgb = per_sample_conv(x, modulated_weights(state[f"{block}.torgb.weight"], next(parts), False), 0)
        rgb = rgb + state[f"{block}.torgb.bias"][None, :, None, None]
        if config.conv_clamp is not None:
            rgb = rgb.clamp(-config.conv_clamp, config.conv_clamp)
        image = rgb if image is None else rgb + fir(F.pad(insert_zeros(image), (2, 1, 2, 1)), 4)
    return image


def pack_state(generator):
    from styleclip_rt.runtime.training.pack_writer import state_of

    return state_of(generator)


@pytest.mark.parametrize("clamp", [None, 0.8], ids=["no clamp", "clamp"])
def test_synthesis_equals_the_equations(clamp):
    generator = make_generator(clamp)
    s = torch.randn(3, generator.style_channels) * 0.5 + 1
    parts = [s[:, layer.offset : layer.offset + layer.channels] for layer in generator.style_layers]
    expected = reference_synthesis(pack_state(generator), generator.config, parts)
    assert torch.allclose(generator.synthesize(s), expected, atol=1e-4)


def test_styles_are_affine_maps_of_the_right_w():
    generator = make_generator()
    state, w = pack_state(generator), torch.randn(2, generator.num_ws, 20)
    s = generator.styles(w)
    for layer in generator.style_layers:
        weight, bias = (state[f"synthesis.{layer.name}.affine.{part}"] for part in ("weight", "bias"))
        expected = w[:, layer.w_index] @ weight.T / math.sqrt(20) + bias
        assert torch.allclose(s[:, layer.offset : layer.offset + layer.channels], expected, atol=1e-5), layer


def test_mapping_and_truncation():
    generator = make_generator()
    state, z = pack_state(generator), torch.randn(4, 12)
    x = z / torch.sqrt((z**2).mean(dim=1, keepdim=True) + 1e-8)
    for i in range(3):
        weight, bias = state[f"mapping.fc{i}.weight"], state[f"mapping.fc{i}.bias"]
        x = F.leaky_relu(x @ weight.T * 0.01 / math.sqrt(weight.shape[1]) + bias * 0.01, 0.2) * math.sqrt(2)
    average = state["mapping.w_avg"]
    assert torch.allclose(generator.mapping(z), x, atol=1e-5)
    assert torch.allclose(generator.mapping(z, 0.5), average + 0.5 * (x - average), atol=1e-5)
    assert torch.allclose(generator.mapping(z, torch.zeros(4, 1)), average.expand(4, -1), atol=1e-6)


def test_dead_styles_stay_finite():
    generator = make_generator()
    assert torch.isfinite(generator.synthesize(torch.zeros(1, generator.style_channels))).all()


def test_pack_names_are_the_published_ones():
    names = set(pack_state(make_generator()))
    assert {"mapping.w_avg", "mapping.fc0.weight", "synthesis.b4.const", "synthesis.b4.conv1.noise_strength"} <= names
    assert {"synthesis.b8.conv0.affine.weight", "synthesis.b32.torgb.affine.bias"} <= names
    assert not any("fir" in name for name in names)


def test_layout_at_1024_px():
    """26 style vectors, 9088 = 6048 convolution + 3040 toRGB channels, 18 w vectors (StyleCLIP's S space)."""
    channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(1024, 512, 512, 8, channels))
    layers = generator.style_layers
    assert (len(layers), generator.style_channels, generator.num_ws) == (26, 9088, 18)
    assert sum(layer.channels for layer in layers if layer.kind == "conv") == 6048
    assert sum(layer.channels for layer in layers if layer.kind == "torgb") == 3040
    assert [i for i, layer in enumerate(layers) if layer.kind == "torgb"] == list(range(1, 26, 3))
    expected = [512] * 15 + [256] * 3 + [128] * 3 + [64] * 3 + [32] * 2
    assert [layer.channels for layer in layers] == expected
    assert [layer.w_index for layer in layers][:8] == [0, 1, 1, 2, 3, 3, 4, 5]
    assert layers[-1].w_index == 17
