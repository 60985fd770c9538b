"""Ranger against the papers' recurrences in plain numpy, and against PyTorch's RAdam where it is nothing else."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError  # noqa: E402
from styleclip_rt.runtime.training.ranger import Ranger, centralised, rectification  # noqa: E402

STEPS = 40


def gradients(shape, seed):
    return np.random.default_rng(seed).standard_normal((STEPS, *shape)) + 0.3


def straight_line(start, grads, lr, beta1, beta2, eps, k, alpha, decay):
    """One weight, the published algorithm as it reads, in float64."""
    weight, slow = start.copy(), start.copy()
    m, v = np.zeros_like(start), np.zeros_like(start)
    rho_inf = 2 / (1 - beta2) - 1
    for t, gradient in enumerate(grads, start=1):
        g = gradient - gradient.mean(axis=1, keepdims=True) if gradient.ndim == 2 else gradient
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**t)
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        weight = weight - lr * decay * weight
        if rho > 5:
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            weight = weight - lr * r * m_hat * math.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)
        else:
            weight = weight - lr * m_hat
        if t % k == 0:
            slow = slow + alpha * (weight - slow)
            weight = slow.copy()
    return weight


def run(optimizer, parameters, grads):
    for step in range(STEPS):
        for parameter, values in zip(parameters, grads, strict=True):
            parameter.grad = torch.from_numpy(values[step]).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.01], ids=["plain", "decayed"])
@pytest.mark.parametrize(("beta2", "k", "alpha"), [(0.999, 6, 0.5), (0.9, 4, 0.8)], ids=["published", "other"])
def test_equals_the_recurrences(beta2, k, alpha, decay):
    shapes = [(5, 7), (4,)]
    starts = [np.random.default_rng(9).standard_normal(shape) for shape in shapes]
    parameters = [torch.nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    grads = [gradients(shape, i) for i, shape in enumerate(shapes)]
    run(Ranger(parameters, lr=0.5, betas=(0.95, beta2), weight_decay=decay, k=k, alpha=alpha), parameters, grads)
    for parameter, start, values in zip(parameters, starts, grads, strict=True):
        expected = straight_line(start, values, 0.5, 0.95, beta2, 1e-5, k, alpha, decay)
        assert np.abs(parameter.detach().numpy() - expected).max() < 1e-10
        assert np.abs(expected - start).max() > 0.1


def test_without_its_additions_it_is_radam():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)) for _ in range(2))
    grads = [gradients((3, 4), 5)]
    run(Ranger([ours], lr=0.1, betas=(0.9, 0.95), eps=1e-8, k=10**6, centralise=False), [ours], grads)
    run(torch.optim.RAdam([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-8), [theirs], grads)
    assert torch.allclose(ours, theirs, atol=1e-10)


def test_rectification_sets_in_at_the_sixth_step_of_the_published_betas():
    assert [rectification(t, 0.95, 0.999)[1] for t in range(1, 8)] == [False] * 5 + [True] * 2


def test_centralised_rows_sum_to_nothing_and_vectors_stay():
    assert centralised(torch.randn(3, 4, 2, 2)).sum((1, 2, 3)).abs().max() < 1e-5
    vector = torch.randn(4)
    assert centralised(vector) is vector


def test_a_state_dict_carries_the_slow_weights():
    """Stopped between two LookAhead steps and loaded into a new optimiser, it goes on exactly."""
    first = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    grads = torch.from_numpy(gradients((3, 4), 2)).float()
    whole, optimizer = first, Ranger([first])
    for gradient in grads[:8]:
        whole.grad = gradient
        optimizer.step()
    resumed = torch.nn.Parameter(whole.detach().clone())
    other = Ranger([resumed])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, by in ((whole, optimizer), (resumed, other)):
        for gradient in grads[8:]:
            parameter.grad = gradient
            by.step()
    assert torch.equal(whole, resumed)


def test_a_closure_is_called_with_gradients_on():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Ranger([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (weight * torch.tensor([[1.0, 2.0], [3.0, 5.0]])).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 11.0
    assert not torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"betas": (1.0, 0.9)}, {"k": 0}, {"alpha": 2.0}, {"eps": 0}], ids=str)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(InputError, match="expected lr"):
        Ranger([torch.nn.Parameter(torch.ones(1))], **wrong)
