"""Directions of the neighbouring works: their maths on data whose answer is known, and steps of W in style space."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.runtime.training import named, neighbours  # noqa: E402
from styleclip_rt.runtime.training.named import NamedDirection, style_step  # noqa: E402
from styleclip_rt.runtime.training.neighbours_ganspace import ganspace, principal_components  # noqa: E402
from styleclip_rt.runtime.training.neighbours_interfacegan import boundary, linear_svm  # noqa: E402
from styleclip_rt.runtime.training.neighbours_stylespace import named_channel, theta  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402
from styleclip_rt.runtime.training.publish import publish  # noqa: E402

W = 12


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(3)
    made = Generator(GeneratorConfig(16, 8, W, 2, {4: 10, 8: 8, 16: 6})).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("affine" in name))
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def pack(generator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "tiny"
    with PackWriter(folder, "tiny") as writer:
        writer.add("generator", generator)
    return load_pack(folder)


# steps of W -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(0, 1, 2, 3, 4, 5), (0, 1), (3,), (2, 5)])
def test_a_step_of_w_is_one_step_of_style_space(generator, rows):
    vector, w = torch.randn(W), torch.randn(4, generator.num_ws, W)
    delta_s = neighbours.w_direction(generator, vector, rows)
    moved = w.clone()
    moved[:, list(rows)] += 2.5 * vector
    expected = generator.styles(w) + 2.5 * delta_s
    torch.testing.assert_close(generator.styles(moved), expected, rtol=1e-5, atol=1e-5)
    for layer in generator.style_layers:
        part = delta_s[layer.offset : layer.offset + layer.channels]
        assert bool(part.any()) == (layer.w_index in rows), layer


def test_the_biases_are_no_part_of_a_step(generator):
    step = torch.randn(generator.num_ws, W)
    base = torch.zeros(1, generator.num_ws, W)
    difference = generator.styles(base + step) - generator.styles(base)
    torch.testing.assert_close(style_step(generator, step)[None], difference, rtol=1e-5, atol=1e-5)
    several = style_step(generator, torch.stack([step, 2 * step]))
    torch.testing.assert_close(several, torch.cat([difference, 2 * difference]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(0, 1, 2, 3, 4, 5), (1, 2)])
def test_the_step_is_found_again(generator, rows):
    vector = torch.randn(W)
    found = neighbours.w_vector(generator, neighbours.w_direction(generator, vector, rows))
    torch.testing.assert_close(found.float(), vector, rtol=1e-3, atol=1e-4)


def test_a_step_of_style_space_alone_is_none_of_w(generator):
    delta_s = torch.randn(generator.style_channels)
    with pytest.raises(InputError, match="'odd' is a step of style space"):
        neighbours.w_vector(generator, delta_s, "odd")


def test_orthogonal_is_the_formula_of_the_paper():
    n1, n2, n3 = (v / v.norm() for v in torch.randn(3, W, dtype=torch.float64))
    expected = n1 - (n1 @ n2) * n2
    found = neighbours.orthogonal_to(n1, [3 * n2])
    torch.testing.assert_close(found, expected / expected.norm())
    both = neighbours.orthogonal_to(n1, [n2, n3])
    assert abs(float(both @ n2)) < 1e-12
    assert abs(float(both @ n3)) < 1e-12
    assert float(both @ n1) > 0
    with pytest.raises(InputError, match="nothing is left"):
        neighbours.orthogonal_to(n1 + n2, [n1, n2])


@pytest.mark.parametrize(("text", "rows"), [(None, (0, 1, 2, 3, 4, 5)), ("0-2", (0, 1, 2)), ("5,0-1,1", (0, 1, 5))])
def test_layer_rows(text, rows):
    assert neighbours.layer_rows(text, 6) == rows


@pytest.mark.parametrize("text", ["", "a", "0-6", "6", "3-1", "-2", "1-", "²", "0--1", "0-99999999999"])
def test_layer_rows_that_are_none(text):
    with pytest.raises(InputError, match="layers"):
        neighbours.layer_rows(text, 6)


# GANSpace -------------------------------------------------------------------------------------------------------------


def test_principal_components_are_those_of_an_svd():
    w = torch.randn(500, W) @ torch.randn(W, W) + torch.randn(W)
    found = principal_components(w, 5)
    centred = w.double().numpy() - w.double().numpy().mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.sigmas.numpy(), singular[:5] / np.sqrt(500), rtol=1e-6)
    np.testing.assert_allclose(np.abs((found.axes.numpy() * axes[:5]).sum(1)), 1, rtol=1e-6)
    np.testing.assert_allclose((found.axes @ found.axes.T).numpy(), np.eye(5), atol=1e-10)
    np.testing.assert_allclose(found.shares.numpy(), singular[:5] ** 2 / (singular**2).sum(), rtol=1e-6)
    assert (found.sigmas.diff() <= 0).all()
    assert (found.axes.gather(1, found.axes.abs().argmax(1, keepdim=True)) > 0).all()


def test_components_that_are_not_there():
    with pytest.raises(InputError, match="13 components"):
        principal_components(torch.randn(100, W), 13)
    flat = torch.randn(100, 2) @ torch.randn(2, W)
    with pytest.raises(InputError, match="varies along 2"):
        principal_components(flat, 3)


def test_ganspace_moves_by_one_sigma_in_its_rows(pack):
    samples = neighbours.Samples(600, 0.7, 4)
    directions = ganspace(pack, samples, 3, (1, 2), "look")
    assert [d.name for d in directions] == ["look-0", "look-1", "look-2"]
    w = neighbours.sampled_w(pack, samples)
    for direction in directions:
        vector = neighbours.w_vector(pack.generator, direction.delta_s)
        unit = vector / vector.norm()
        assert float(vector.norm()) == pytest.approx(float((w.double() @ unit).std(unbiased=False)), rel=1e-3)
        moved = [la.w_index for la in pack.layout.style_layers if direction.delta_s[la.offset]]
        assert set(moved) == {1, 2}
    assert sum(d.config["variance_share"] for d in directions) <= 1


def test_samples_are_the_generators_own_and_a_seed_means_the_same(pack):
    samples = neighbours.Samples(1200, 0.5, 9)
    w = neighbours.sampled_w(pack, samples)
    rng = torch.Generator().manual_seed(9)
    z = torch.randn(1000, 8, generator=rng)
    torch.testing.assert_close(w[:1000], pack.generator.mapping(z, 0.5))
    assert w.shape == (1200, W)
    with pytest.raises(InputError, match="psi"):
        neighbours.Samples(10, 0)


# InterFaceGAN ---------------------------------------------------------------------------------------------------------


def test_the_svm_is_at_its_minimum():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((200, 6)))
    y = torch.sign(x @ torch.from_numpy(rng.standard_normal(6)) + 0.3 + torch.from_numpy(rng.standard_normal(200)))
    v, b = linear_svm(x, y, cost=0.5)
    slack = (1 - y * (x @ v + b)).clamp(min=0)
    gradient = v - 2 * 0.5 * (slack * y) @ x  # of the objective; zero at the one minimum of a convex function
    assert float(gradient.abs().max()) < 1e-5
    assert abs(float((slack * y).sum())) < 1e-5


def test_the_svm_of_two_points_is_known():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    v, b = linear_svm(x, torch.tensor([1.0, -1.0]), cost=10.0)
    # Along the first axis v minimises v^2 / 2 + 2 * 10 * (1 - v)^2: v = 40 / 41.
    np.testing.assert_allclose(v.numpy(), [40 / 41, 0], atol=1e-6)
    assert abs(b) < 1e-6


def test_a_boundary_is_found_and_points_to_high_scores():
    torch.manual_seed(1)
    w = torch.randn(2000, W) * 3 + 5
    truth = torch.nn.functional.normalize(torch.randn(W), dim=0)
    scores = w @ truth + 0.5 * torch.randn(2000)
    found = boundary(w, scores, 0.1)
    assert float(found.normal @ truth.double()) > 0.97
    assert float(found.normal.norm()) == pytest.approx(1)
    assert found.accuracy > 0.98
    assert found.correlation > 0.95
    assert found.sigma == pytest.approx(3, rel=0.05)
    middle = w.double() @ found.normal + found.bias
    assert abs(float(middle.mean())) < 0.5, "the boundary runs between the two ends"


def test_scores_of_chance_are_not_separated():
    torch.manual_seed(2)
    found = boundary(torch.randn(2000, W), torch.randn(2000), 0.1)
    assert 0.3 < found.accuracy < 0.7


def test_too_few_samples_are_refused():
    w = torch.randn(100, W)
    with pytest.raises(InputError, match=r"0.1 of 100 samples are 10 at each end; expected 20"):
        boundary(w, w[:, 0], 0.1)
    with pytest.raises(InputError, match=r"share is 0.6"):
        boundary(w, w[:, 0], 0.6)


# StyleSpace -----------------------------------------------------------------------------------------------------------


def test_theta_ranks_the_channel_that_the_examples_share():
    torch.manual_seed(5)
    population = torch.randn(4000, 8) * torch.tensor([1, 2, 0.5, 1, 1, 1, 1, 0]) + 3
    mean, std = population.mean(0), population.std(0, unbiased=False)
    examples = population[:40].clone()
    examples[:, 2] = mean[2] - 2 * std[2] + 0.05 * torch.randn(40)
    score, sign = theta(examples, mean, std)
    delta = ((examples - mean) / std)[:, :7].double()
    np.testing.assert_allclose(score[:7], delta.mean(0).abs() / delta.std(0, unbiased=False), rtol=1e-4)
    assert int(score.argmax()) == 2
    assert float(sign[2]) == -1
    assert float(score[7]) == 0, "a channel that never moves belongs to nothing"


def test_a_channel_that_no_example_varies_in_ranks_first_and_finite():
    score, _ = theta(torch.ones(5, 2), torch.tensor([0.0, 1.0]), torch.ones(2))
    assert float(score[0]) == 1e6
    assert float(score[1]) == 0


def test_channels_by_name(generator):
    layer = generator.style_layers[3]
    assert named_channel(generator, f"{layer.name}:2") == layer.offset + 2
    for text in ("b99.conv1:0", layer.name, f"{layer.name}:x", f"{layer.name}:-1", ":1"):
        with pytest.raises(InputError, match=r"expected LAYER:INDEX"):
            named_channel(generator, text)
    with pytest.raises(InputError, match=rf"has {layer.channels} channels"):
        named_channel(generator, f"{layer.name}:{layer.channels}")


# the component --------------------------------------------------------------------------------------------------------


def test_a_direction_comes_back_from_a_pack_to_the_last_bit(pack, generator, tmp_path):
    delta_s, relevance = torch.randn(2, generator.style_channels)
    config = {"method": "gradient", "target": "a hat", "neutral": "a face", "beta": 0.2}
    folder = publish(pack, tmp_path / "out", named.components([NamedDirection("hat-2", delta_s, relevance, config)]),
                     kept=tmp_path)  # fmt: skip
    opened = load_pack(folder)
    assert opened.directions_named == ("hat-2",)
    found = named.read(opened, "hat-2")
    assert torch.equal(found.delta_s, delta_s)
    assert found.relevance is not None
    assert torch.equal(found.relevance, relevance)
    assert found.config == config
    with pytest.raises(InputError, match="its named directions: hat-2"):
        named.read(opened, "cap")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../a"}, "direction name"),
        ({"name": "Hat"}, "direction name"),
        ({"delta_s": torch.full((5,), float("nan"))}, "no finite numbers"),
        ({"delta_s": torch.zeros(5)}, "moves no channel"),
        ({"delta_s": torch.ones(5, 1)}, "expected .5."),
        ({"relevance": torch.ones(4)}, "relevance has shape .4."),
        ({"config": {}}, "method None"),
        ({"config": {"method": "x", "beta": 2}}, "beta 2"),
        ({"config": {"method": "x", "alpha": float("inf")}}, "alpha inf"),
        ({"config": {"method": "x", "target": 3}}, "target 3"),
    ],
)
def test_what_no_pack_may_hold(change, words):
    fields = {"name": "hat", "delta_s": torch.ones(5), "config": {"method": "x"}, **change}
    with pytest.raises(InputError, match=words):
        named.component(NamedDirection(**fields))


def test_a_direction_of_another_generator_is_found_by_verify(pack, tmp_path):
    from styleclip_rt.runtime.training.checkpoints.checks import verify_pack

    with PackWriter(tmp_path / "wrong", "wrong", base=pack.path) as writer:
        writer.add("direction/hat", {"delta_s": torch.ones(7)}, {"method": "x"})
    opened = load_pack(tmp_path / "wrong")
    assert "delta_s has shape [7]" in verify_pack(opened)["direction/hat"]
    with pytest.raises(PackError, match="belongs to another generator"):
        named.read(opened, "hat")
