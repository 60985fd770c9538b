"""The four forms of the up-sampling convolution: equal to its definition and to each other."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError  # noqa: E402
from styleclip_rt.engines.ort import OrtEngine  # noqa: E402
from styleclip_rt.export.form_bench import in_turns, write_form  # noqa: E402
from styleclip_rt.export.forms import FORMS, UpConvolution, UpRgb, form_for  # noqa: E402
from styleclip_rt.export.precision_layers import TypedSynthesis  # noqa: E402


def by_definition(x, weight):
    """The sums of the module's docstring in both directions, in float64 loops."""
    n, _, r, _ = x.shape
    outputs = weight.shape[0]
    t = np.zeros((n, outputs, 2 * r + 1, 2 * r + 1))
    for i in range(r):
        for j in range(r):
            t[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += np.einsum("nc,ockl->nokl", x[:, :, i, j], weight)
    f = np.array([0.25, 0.75, 0.75, 0.25])
    padded = np.pad(t, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((n, outputs, 2 * r, 2 * r))
    for p in range(4):
        for q in range(4):
            y += f[p] * f[q] * padded[:, :, p : p + 2 * r, q : q + 2 * r]
    return y


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("batch", "inputs", "outputs", "size"), [(2, 5, 7, 4), (1, 1, 1, 1), (1, 3, 2, 9)])
def test_every_form_is_the_definition(form, batch, inputs, outputs, size):
    rng = torch.Generator().manual_seed(size)
    x = torch.randn(batch, inputs, size, size, generator=rng)
    weight = torch.randn(outputs, inputs, 3, 3, generator=rng)
    got = UpConvolution(weight, form)(x)
    np.testing.assert_allclose(got.numpy(), by_definition(x.double().numpy(), weight.double().numpy()), atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_forms_in_float16_round_and_nothing_else(form):
    rng = torch.Generator().manual_seed(1)
    x, weight = torch.randn(1, 16, 8, 8, generator=rng), torch.randn(8, 16, 3, 3, generator=rng) / 12
    exact = by_definition(x.half().double().numpy(), weight.half().double().numpy())
    got = UpConvolution(weight.half().float(), form, torch.float16)(x.half())
    assert got.dtype == torch.float16
    error = got.double().numpy() - exact
    assert np.sqrt((error**2).mean()) < 2e-3 * exact.std()
    assert np.abs(error).max() > 0


def test_the_skip_by_phases_equals_the_transposed_one():
    rgb = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(UpRgb("polyphase")(rgb), UpRgb("fir")(rgb), atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_synthesis_is_the_same_in_every_form(form, generator_of):
    torch.manual_seed(0)
    generator = generator_of(16)
    with torch.no_grad():
        s = generator.styles(torch.randn(2, generator.num_ws, 16))
        torch.testing.assert_close(TypedSynthesis(generator, form)(s), generator.synthesize(s), atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["separable", "transposed", "polyphase"])
def test_an_exported_form_equals_pytorch(form, tmp_path, generator_of):
    from styleclip_rt.engines.spec import GraphSpec, TensorSpec

    torch.manual_seed(0)
    generator = generator_of(8)
    s = TensorSpec("s", "float32", ("N", generator.style_channels))
    spec = GraphSpec("synthesize", (s,), (TensorSpec("image", "float32", ("N", 3, 8, 8)),))
    file = write_form(tmp_path, generator, spec, form, "fp32")
    with torch.no_grad():
        styles = generator.styles(torch.randn(3, generator.num_ws, 16))
        expected = generator.synthesize(styles).numpy()
    with OrtEngine(file, spec) as engine:
        np.testing.assert_allclose(engine.run({"s": styles.numpy()})["image"], expected, atol=1e-4)


def test_a_form_is_chosen_by_name_or_from_the_table():
    assert form_for("auto", "fp32") in FORMS
    assert form_for("polyphase", "fp16") == "polyphase"
    with pytest.raises(InputError, match="'winograd'; expected one of fir, separable"):
        form_for("winograd", "fp32")


def test_forms_are_timed_in_turns():
    order = []
    times = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3, warm_up=1)
    assert order == list("abababab")
    assert set(times) == {"a", "b"}
    assert all(value >= 0 for value in times.values())
