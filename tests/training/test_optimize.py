"""Latent optimisation on the shipped pack: the loss is the published one, faces are independent of one another."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.prompts import Prompt
from styleclip_rt.runtime.training import losses
from styleclip_rt.runtime.training.inputs import Inputs, mean_face, read_inputs
from styleclip_rt.runtime.training.optimize import optimize
from styleclip_rt.runtime.training.optimize_loss import SHORT, Evaluation, Objective, along
from styleclip_rt.runtime.training.optimize_settings import PUBLISHED, rate, settings_for
from styleclip_rt.runtime.training.optimize_start import STEPS, Whitened, random_z
from styleclip_rt.runtime.training.optimize_state import State
from styleclip_rt.runtime.training.pack import Pack, load_pack
from styleclip_rt.runtime.training.texts import PackTexts

PURPLE = Prompt("purple-hair", "a face with purple hair", "a face with hair")
SHORT_RUN = replace(PUBLISHED, steps=6)


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack("toyfaces")


@pytest.fixture(scope="module")
def w(pack: Pack) -> Tensor:
    return read_inputs(pack, [], seeds=[1, 2, 3]).w


# The loss ------------------------------------------------------------------------------------------------------------


def published_loss(pack: Pack, w: Tensor, start: Tensor, lambda_id: float) -> Tensor:
    """The published loss of one face, written as the published code has it: upsampling, pooling, logits."""
    image, original = pack.generator(w), pack.generator(start)
    size = pack.clip.image_size
    seen = functional.avg_pool2d(functional.interpolate(image, scale_factor=7.0), image.shape[-1] * 7 // size)
    text = PackTexts(pack).embed(PURPLE.target, alone=True)
    encoded = functional.normalize(pack.clip.model.visual(seen), dim=-1)  # type: ignore[operator, union-attr]
    c_loss = 1 - (100 * encoded @ text) / 100
    i_loss = 1 - (pack.identity(image) * pack.identity(original)).sum()
    return c_loss.sum() + 0.008 * ((start - w) ** 2).sum() + lambda_id * i_loss


def test_the_loss_and_its_gradient_are_the_published_ones(pack: Pack, w: Tensor) -> None:
    objective = Objective(pack, PURPLE, replace(PUBLISHED, lambda_id=0.005))
    moved = w[:2] + 0.1 * torch.randn(w[:2].shape, generator=torch.Generator().manual_seed(0))
    found = objective.evaluate(moved, objective.start(w[:2]), 1.0)
    for i in range(2):
        leaf = moved[i : i + 1].clone().requires_grad_()
        expected = published_loss(pack, leaf, w[i : i + 1], 0.005)
        (gradient,) = torch.autograd.grad(expected, leaf)
        assert float(found.total[i]) == pytest.approx(float(expected.detach()), abs=1e-5)
        assert (found.gradient[i] - gradient[0]).abs().max() < 1e-4 * gradient.abs().max()


def test_the_terms_are_those_of_the_losses_module(pack: Pack, w: Tensor) -> None:
    objective = Objective(pack, PURPLE, replace(PUBLISHED, lambda_id=1.0, lambda_directional=1.0, templates=True))
    moved, start = w + 0.2, objective.start(w)
    terms = objective.evaluate(moved, start, 1.0).terms
    images, originals = pack.generator(moved), pack.generator(w)
    embedded = objective.embed(images)
    assert float(terms["clip"].mean()) == pytest.approx(float(losses.clip_loss(embedded, objective.target)), abs=1e-5)
    assert float(terms["l2"].mean()) == pytest.approx(float(losses.latent_l2(moved - w, "sum")), rel=1e-5)
    identity = losses.identity_loss(pack.identity(images), pack.identity(originals))
    assert float(terms["identity"].mean()) == pytest.approx(float(identity), abs=1e-5)
    assert objective.delta_t is not None
    directional = losses.directional_clip_loss(embedded, start.embedding, objective.delta_t)
    assert float(terms["directional"].mean()) == pytest.approx(float(directional), abs=1e-5)


def test_the_two_front_ends_differ_where_clip_normalises(pack: Pack, w: Tensor) -> None:
    """toyfaces has mean and std 0.5, so that both see the same; OpenAI's values must make a difference."""
    raw = Objective(pack, PURPLE, PUBLISHED).embed(pack.generator(w))
    assert torch.allclose(Objective(pack, PURPLE, replace(PUBLISHED, front_end="clip")).embed(pack.generator(w)), raw)
    other = load_pack("toyfaces")
    other.clip.preprocess.std.fill_(0.27)
    changed = Objective(other, PURPLE, replace(PUBLISHED, front_end="clip")).embed(pack.generator(w))
    assert (changed - raw).abs().max() > 0.01
    assert torch.allclose(Objective(other, PURPLE, PUBLISHED).embed(pack.generator(w)), raw)


def test_the_gradient_flows_through_the_raw_front_end_at_another_size(pack: Pack, w: Tensor) -> None:
    image = pack.generator(w[:1])
    large = functional.interpolate(image, scale_factor=2.0).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(pack.clip.encode_image(large, "raw").sum(), large)
    assert gradient.shape == large.shape
    assert float((gradient.abs().sum((0, 1)) > 0).float().mean()) > 0.9  # a rectifier may shut a few pixels out


def test_the_change_counts_in_proportion_where_it_is_short() -> None:
    direction = functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(1)), dim=0)
    change = torch.stack([0 * direction, SHORT / 2 * direction, 3 * direction, -direction]).requires_grad_()
    cosine = along(change, direction)
    assert torch.allclose(cosine, torch.tensor([0.0, 0.5, 1.0, -1.0]), atol=1e-6)
    (gradient,) = torch.autograd.grad(cosine.sum(), change)
    assert gradient.isfinite().all()
    assert gradient.norm(dim=1).max() <= 1 / SHORT + 1e-4


# The descent ---------------------------------------------------------------------------------------------------------


def test_it_equals_adam_of_torch_with_the_published_schedule(pack: Pack, w: Tensor) -> None:
    start = w[:1]
    latent = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=0.1)
    seen = latent
    for i in range(SHORT_RUN.steps):
        optimizer.param_groups[0]["lr"] = rate(i, SHORT_RUN.steps, 0.1)
        seen = latent.detach().clone()
        loss = published_loss(pack, latent, start, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = optimize(pack, start, "purple-hair", SHORT_RUN)[0]
    assert found.w is not None
    # The latent of the last step, before its update. Adam divides by the gradient's size and so magnifies rounding.
    assert (found.w - seen).abs().mean() < 0.01 * (found.w - start).abs().mean()
    assert found.after["loss"] == pytest.approx(float(loss.detach()), abs=5e-3)


def test_the_update_is_torch_adams_bit_for_bit() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5)
    leaf, state = x.clone().requires_grad_(), State.fresh(x, {}, 1.0)
    optimizer = torch.optim.Adam([leaf], lr=0.1, foreach=False)
    for i in range(20):
        gradient = torch.randn(3, 2, 5)
        optimizer.param_groups[0]["lr"], leaf.grad = rate(i, 20, 0.1), gradient
        optimizer.step()
        state.update(gradient, torch.arange(3), replace(PUBLISHED, steps=20))
        state.step += 1
        assert torch.equal(leaf.detach(), state.latent)
    assert torch.equal(optimizer.state[leaf]["exp_avg"], state.first)
    assert torch.equal(optimizer.state[leaf]["exp_avg_sq"], state.second)


def test_the_gradient_of_a_face_does_not_see_the_others(pack: Pack, w: Tensor) -> None:
    objective = Objective(pack, PURPLE, replace(PUBLISHED, lambda_id=0.1))
    start = objective.start(w)
    batch = objective.evaluate(w + 0.1, start, 1.0)
    for i in range(len(w)):
        index = torch.tensor([i])
        alone = objective.evaluate(w[index] + 0.1, start.take(index), 1.0)
        assert (alone.gradient - batch.gradient[index]).abs().max() < 1e-4 * alone.gradient.abs().max()
        assert float(alone.total) == pytest.approx(float(batch.total[i]), abs=1e-5)


def test_a_batch_equals_single_runs(pack: Pack, w: Tensor) -> None:
    settings = replace(SHORT_RUN, lambda_id=0.1)
    together = optimize(pack, w, "purple-hair", settings)
    for i, one in enumerate(together):
        alone = optimize(pack, w[i : i + 1], "purple-hair", settings)[0]
        assert one.w is not None
        assert alone.w is not None
        assert (one.w - alone.w).abs().mean() < 0.01 * (one.w - w[i]).abs().mean()
        assert one.after["loss"] == pytest.approx(alone.after["loss"], abs=5e-3)
    in_pieces = optimize(pack, w, "purple-hair", replace(settings, batch=2))
    assert [r.name for r in in_pieces] == ["face0000", "face0001", "face0002"]
    assert in_pieces[2].after["loss"] == pytest.approx(together[2].after["loss"], abs=5e-3)


@pytest.mark.parametrize("channels", ["conv", "all"])
def test_style_space_moves_the_channels_that_it_should(pack: Pack, w: Tensor, channels: str) -> None:
    settings = replace(SHORT_RUN, space="s", channels=channels)
    found = optimize(pack, w[:2], "purple-hair", settings)
    start = pack.generator.styles(w[:2])
    moved = torch.cat([r.s for r in found]) != start
    for layer in pack.layout.style_layers:
        part = moved[:, layer.offset : layer.offset + layer.channels]
        assert bool(part.any()) == (channels == "all" or layer.kind == "conv"), layer.name
    change = torch.cat([r.s for r in found]) - start
    assert [r.after["l2"] for r in found] == pytest.approx(change.square().sum(1).tolist(), rel=1e-4)
    assert all(r.w is None and r.after["loss"] < r.before["loss"] for r in found)


def test_one_offset_for_all_layers(pack: Pack, w: Tensor) -> None:
    latent = w[:1] + torch.randn(w[:1].shape, generator=torch.Generator().manual_seed(2))
    found = optimize(pack, latent, "purple-hair", replace(SHORT_RUN, space="w", lambda_l2=0.0))[0]
    assert found.w is not None
    change = found.w - latent
    assert change.abs().max() > 0.2
    assert (change - change[:, :1]).abs().max() < 1e-5
    assert found.after["loss"] < found.before["loss"]


def test_the_loss_falls_and_the_score_rises(pack: Pack, w: Tensor) -> None:
    for result in optimize(pack, w, "purple-hair", settings_for(pack, steps=12)):
        assert result.after["loss"] < result.before["loss"] - 0.2
        assert result.clip_after > result.clip_before + 0.2
        assert result.identity is not None
        assert 0 < result.identity < 1


def test_identity_is_kept_where_it_counts(pack: Pack, w: Tensor) -> None:
    loose, tight = (
        optimize(pack, w, "beard", replace(PUBLISHED, steps=10, lambda_id=weight, lambda_l2=0.0)) for weight in (0, 3.0)
    )
    assert sum(r.identity or 0 for r in tight) > sum(r.identity or 0 for r in loose) + 0.05
    assert tight[0].after["identity"] == pytest.approx(1 - (tight[0].identity or 0), abs=0.03)


def test_whitened_coordinates_have_unit_variance_and_lead_back_to_w(pack: Pack, w: Tensor) -> None:
    whitened = Whitened(pack.generator)
    assert torch.allclose(whitened.w(whitened.of(w)), w, atol=1e-4)
    z = torch.randn(4096, pack.generator.config.z_dim, generator=torch.Generator().manual_seed(1))
    drawn = whitened.of(pack.generator.mapping_network(z))
    covariance = torch.cov(drawn.T)
    variances = torch.linalg.eigvalsh(covariance)
    assert variances[-1] < 1.5
    assert (variances > 0.7).sum() >= 40  # every direction that the generator draws along, some 55 of 128
    assert drawn.mean(0).abs().max() < 0.1


def test_a_whitened_descent_has_the_gradient_of_its_own_coordinates(pack: Pack, w: Tensor) -> None:
    """By the chain rule dL/dp = dL/dw C^(1/2), all layers alike in the space w, and the l2 term counts in p."""
    plain = replace(PUBLISHED, space="w", lambda_l2=0.0)
    white, direct = Objective(pack, PURPLE, replace(plain, whiten=True)), Objective(pack, PURPLE, plain)
    assert white.whitened is not None
    p = white.latent_of(w)
    found = white.evaluate(p, white.start(p), 1.0)
    gradient = direct.evaluate(w, direct.start(w), 1.0).gradient @ white.whitened.root
    assert (found.gradient - gradient).abs().max() < 1e-3 * gradient.abs().max()
    moved = white.evaluate(p + 0.1, white.start(p), 1.0)
    assert float(moved.terms["l2"][0]) == pytest.approx(0.01 * p[0].numel(), rel=1e-3)


@pytest.mark.parametrize("space", ["w", "s"])
def test_the_first_step_leads_from_the_mean_of_all_to_that_of_the_best(pack: Pack, w: Tensor, space: str) -> None:
    settings = replace(PUBLISHED, space=space, lambda_directional=1.0, lambda_l2=0.0, templates=True, warm=64)
    objective = Objective(pack, PURPLE, settings)
    assert objective.step is not None
    faces = objective.latent_of(pack.generator.broadcast(pack.generator.mapping_network(random_z(pack.generator, 64))))
    with torch.no_grad():
        scores = objective.embed(objective.render(faces)) @ objective.delta_t
    expected = faces[scores.topk(3).indices].mean(0) - faces.mean(0)
    if objective.mask is not None:
        expected = expected * objective.mask
        assert (objective.step[objective.mask == 0] == 0).all()
    assert torch.allclose(objective.step, expected, atol=1e-4)


def test_each_face_begins_at_its_best_point_along_the_first_step(pack: Pack, w: Tensor) -> None:
    objective = Objective(pack, PURPLE, replace(PUBLISHED, lambda_directional=2.0, lambda_l2=0.0005, warm=64))
    start = objective.start(w)
    latent, before = objective.first(start)
    losses = torch.stack([objective.evaluate(w + k * objective.step, start, 1.0).total for k in STEPS])
    for i, k in enumerate(losses.argmin(0).tolist()):
        assert torch.allclose(latent[i], w[i] + STEPS[k] * objective.step, atol=1e-5)
    assert torch.allclose(before["loss"], losses[0], atol=1e-5)
    assert before["l2"].tolist() == [0, 0, 0]
    alone, _ = objective.first(start.take(torch.tensor([1])))
    assert torch.allclose(alone[0], latent[1])


def test_the_record_compares_with_the_face_itself_not_with_where_the_descent_began(pack: Pack, w: Tensor) -> None:
    settings = settings_for(pack, steps=1)
    for result in optimize(pack, w[:1], "purple-hair", settings):
        assert result.before["l2"] == 0
        assert result.after["l2"] > 1  # one evaluation at the best point of the first step
        assert result.after["loss"] < result.before["loss"]
        assert result.w is not None
        assert torch.allclose(pack.generator.styles(result.w), result.s, atol=1e-4)


def test_free_generation_starts_at_the_mean_face(pack: Pack) -> None:
    found = optimize(
        pack, Inputs(mean_face(pack), ("mean",), (None,)), "glasses", settings_for(pack, free=True, steps=8)
    )[0]
    assert torch.equal(found.start_w[0, 0], pack.generator.mapping_network.w_avg)
    assert found.after["loss"] == found.after["clip"] < found.before["clip"] - 0.1


def test_the_best_step_is_returned_where_asked_for(pack: Pack, w: Tensor) -> None:
    wild = replace(SHORT_RUN, lr=2.0, steps=8, returned="best")
    best, last = (
        optimize(pack, w, "purple-hair", wild),
        optimize(pack, w, "purple-hair", replace(wild, returned="last")),
    )
    for b, x in zip(best, last, strict=True):
        assert b.history == x.history
        assert b.after["loss"] == min(b.history) == b.history[b.returned_step]
        assert x.after["loss"] == x.history[-1]
    assert any(b.after["loss"] < x.after["loss"] for b, x in zip(best, last, strict=True))


def test_a_face_without_progress_stops_and_the_others_go_on(pack: Pack, w: Tensor) -> None:
    state = State.fresh(w, {}, 1.0)
    settings = replace(PUBLISHED, patience=2, tolerance=0.05)
    for totals in ([1.0, 1.0, 1.0], [0.9, 0.98, 0.9], [0.8, 0.96, 0.86]):
        active = state.active
        total = torch.tensor(totals)[active]
        state.record(Evaluation(total, {"clip": total}, torch.zeros_like(w), 1.0), active, settings)
        state.step += 1
    assert state.stopped.tolist() == [-1, 2, -1]
    assert state.active.tolist() == [0, 2]
    stopped = optimize(pack, w, "purple-hair", replace(PUBLISHED, steps=30, patience=1, tolerance=0.5))
    assert all(r.stopped and r.steps < 30 and len(r.history) == r.steps for r in stopped)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_stay_in_float32_under_autocast(pack: Pack, w: Tensor, precision: str) -> None:
    settings = replace(PUBLISHED, precision=precision, lambda_id=0.1, lambda_directional=1.0, warm=20)
    objective = Objective(pack, PURPLE, settings)
    found = objective.evaluate(w[:1] + 0.1, objective.start(w[:1]), 1.0)
    assert {term.dtype for term in (found.total, found.gradient, *found.terms.values())} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_descends_as_float32_does(pack: Pack, w: Tensor, precision: str) -> None:
    settings = replace(PUBLISHED, steps=4, precision=precision)
    low, full = (
        optimize(pack, w[:1], "purple-hair", settings)[0],
        optimize(pack, w[:1], "purple-hair", replace(settings, precision="fp32"))[0],
    )
    assert low.s.dtype == torch.float32
    assert low.history != full.history  # it does compute in another precision
    assert low.after["loss"] == pytest.approx(full.after["loss"], abs=0.1)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_optimised_is_refused(pack: Pack, w: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"expected \[n, 10, 128\], n > 0"):
        optimize(pack, w[:, :3], "purple-hair", SHORT_RUN)
    with pytest.raises(InputError, match="n > 0"):
        optimize(pack, w[:0], "purple-hair", SHORT_RUN)
    with pytest.raises(InputError, match="not finite"):
        optimize(pack, w * math.nan, "purple-hair", SHORT_RUN)
    with pytest.raises(InputError, match="prompt is empty"):
        optimize(pack, w, "  ", SHORT_RUN)
    bare = load_pack("toyfaces")
    monkeypatch.setattr(bare, "components", tuple(c for c in bare.components if c != "identity"))
    with pytest.raises(InputError, match=r"lambda_id is 0.1, and the pack toyfaces has no identity network"):
        optimize(bare, w, "purple-hair", replace(SHORT_RUN, lambda_id=0.1))
    assert optimize(bare, w[:1], "purple-hair", replace(SHORT_RUN, steps=1))[0].identity is None


def test_words_that_clip_does_not_know_are_noted(pack: Pack, w: Tensor) -> None:
    notes = optimize(pack, w[:1], "a face with zygomorphic qqq", replace(SHORT_RUN, steps=1))[0].notes
    assert any("does not know" in note and "expect a weak" in note for note in notes)
