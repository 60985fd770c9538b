"""Ranger, the optimiser of the published mappers: rectified Adam, looked ahead of, on centralised gradients.

Written from the papers: RAdam (Liu et al. 2020, algorithm 2), LookAhead (Zhang et al. 2019, algorithm 1), gradient
centralisation (Yong et al. 2020, equation 1). Two choices that the papers leave open follow the published optimiser:
rectification sets in above rho = 5, and epsilon is added to the root of the moment before its bias is corrected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...engines.errors import InputError

RECTIFIED_ABOVE = 5.0  # the paper says 4; its authors' code, PyTorch's RAdam and the published optimiser use 5


def centralised(gradient: Tensor) -> Tensor:
    """The gradient of a matrix or kernel [out, ...] minus its mean over all but the first axis; vectors as they are."""
    if gradient.ndim < 2:
        return gradient
    return gradient - gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)


def rectification(step: int, beta1: float, beta2: float) -> tuple[float, bool]:
    """(step size for lr 1, whether the second moment is used) at `step` = 1, 2, ... (RAdam, equations 5 and 6).

    Both biases are corrected in the step size. Before the variance of the second moment is tractable the update is
    plain momentum.
    """
    decayed = beta2**step
    rho_max = 2 / (1 - beta2) - 1
    rho = rho_max - 2 * step * decayed / (1 - decayed)
    unbiased = 1 / (1 - beta1**step)
    if rho <= RECTIFIED_ABOVE:
        return unbiased, False
    r = math.sqrt((rho - 4) * (rho - 2) * rho_max / ((rho_max - 4) * (rho_max - 2) * rho))
    return r * math.sqrt(1 - decayed) * unbiased, True


class Ranger(torch.optim.Optimizer):
    """RAdam steps on centralised gradients; every `k` steps the slow weights follow by `alpha` and are taken over.

    The defaults are those of the published mapper training. `weight_decay` is decoupled: p -= lr * weight_decay * p.
    State of a parameter, all of it in `state_dict`: step, exp_avg, exp_avg_sq, slow (LookAhead's weights).
    Raises InputError for a setting outside its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.5,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        k: int = 6,
        alpha: float = 0.5,
        centralise: bool = True,
    ) -> None:
        valid = lr >= 0 and all(0 <= b < 1 for b in betas) and eps > 0 and k >= 1 and 0 <= alpha <= 1
        if not valid or weight_decay < 0:
            raise InputError(
                f"Ranger got lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}, k {k}, alpha {alpha}; "
                "expected lr and weight_decay from 0, betas in [0, 1), eps above 0, k from 1, alpha in 0..1"
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "k": k, "alpha": alpha, "centralise": centralise})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter with a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            state["slow"] = p.detach().clone()
        state["step"] += 1
        beta1, beta2 = group["betas"]
        g = centralised(gradient) if group["centralise"] else gradient
        state["exp_avg"].lerp_(g, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        size, rectified = rectification(state["step"], beta1, beta2)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        if rectified:
            p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-group["lr"] * size)
        else:
            p.add_(state["exp_avg"], alpha=-group["lr"] * size)
        if state["step"] % group["k"] == 0:
            state["slow"].lerp_(p, group["alpha"])
            p.copy_(state["slow"])
