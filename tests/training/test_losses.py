"""The losses against their definitions, term by term."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.training.losses import (
    ImageLoss,
    LossWeights,
    clip_loss,
    directional_clip_loss,
    identity_loss,
    latent_l2,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_clip_loss_is_one_minus_cosine() -> None:
    image, text = unit(5, 8), unit(8, seed=1)
    assert torch.isclose(clip_loss(image, text), 1 - (image @ text).mean())
    assert clip_loss(image, image).abs() < 1e-6


def test_directional_loss_is_zero_along_the_text_and_two_against_it() -> None:
    source, delta_t = unit(4, 8), unit(8, seed=1)
    assert directional_clip_loss(source + 0.3 * delta_t, source, delta_t).abs() < 1e-5
    assert torch.isclose(directional_clip_loss(source - 0.3 * delta_t, source, delta_t), torch.tensor(2.0), atol=1e-5)


def test_directional_loss_of_an_unchanged_image_has_a_finite_gradient() -> None:
    source = unit(4, 8)
    edited = source.clone().requires_grad_()
    directional_clip_loss(edited, source, unit(8, seed=1)).backward()
    assert edited.grad is not None
    assert edited.grad.isfinite().all()


def test_latent_l2_reductions() -> None:
    delta_w = torch.full((2, 3, 4), 0.5)
    assert torch.isclose(latent_l2(delta_w), torch.tensor(0.25))
    assert torch.isclose(latent_l2(delta_w, "sum"), torch.tensor(3.0))
    with pytest.raises(InputError, match="'mean'"):
        latent_l2(delta_w, "max")


def test_identity_loss_stops_the_gradient_of_the_source() -> None:
    edited, source = unit(3, 6).requires_grad_(), unit(3, 6, seed=1).requires_grad_()
    identity_loss(edited, source).backward()
    assert edited.grad is not None
    assert source.grad is None


def test_image_loss_is_the_weighted_sum_of_its_terms() -> None:
    def encode(image: Tensor) -> Tensor:
        return functional.normalize(image.flatten(1), dim=-1)

    weights = LossWeights(clip=0.7, directional=0.4, l2=0.2, identity=0.3)
    loss = ImageLoss(encode, unit(12), unit(12, seed=1), weights, identify=encode)
    terms = loss(torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2), torch.randn(2, 4, 5))
    expected = sum(getattr(weights, name) * value for name, value in terms.items() if name != "loss")
    assert set(terms) == {"loss", "clip", "directional", "l2", "identity"}
    assert torch.isclose(terms["loss"], torch.as_tensor(expected))


def test_terms_without_weight_are_left_out() -> None:
    loss = ImageLoss(lambda image: functional.normalize(image.flatten(1), dim=-1), unit(12), unit(12), LossWeights())
    terms = loss(torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2), torch.zeros(2, 4, 5))
    assert set(terms) == {"loss", "clip", "l2"}
