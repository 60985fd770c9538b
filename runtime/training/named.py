"""Named directions of a pack: the component `direction/<name>`, one vector in style space that `edit` serves by name.

A direction of W, W+ or S is one vector here: styles are affine in w layer by layer, so a step in W or in a part of W+
moves them by the same delta_s, whatever the face. Shape alphabet: S style channels, L rows of w+, W width of w.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...engines.errors import InputError, PackError
from .. import edits
from .pack_format import NAME
from .pack_writer import Component

if TYPE_CHECKING:
    from .networks.stylegan2 import Generator
    from .pack import Pack

PREFIX = "direction/"
SOURCE = "styleclip-rt train"


@dataclass(frozen=True)
class NamedDirection:
    """A step in style space: s' = s + alpha * delta_s.

    Attributes:
        name: [a-z0-9][a-z0-9_-]{0,63}.
        delta_s: [S] float32, the whole step for alpha 1, before any threshold.
        relevance: [S] float32 or None. Where it is there, a threshold beta keeps the channels with |relevance| >= beta:
            for delta_s = sigma * relevance / max |relevance| this is section 6 of the StyleCLIP paper, since the
            largest relevance stays the largest under every threshold that keeps a channel.
        config: {"method": ..., its parameters}, and what is recommended: "alpha" (1 where absent), "beta" (None: edit's
            automatic rule), "target" and "neutral" where it was found with texts.
    """

    name: str
    delta_s: Tensor
    relevance: Tensor | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def alpha(self) -> float:
        """The recommended strength."""
        recommended = self.config.get("alpha")
        return 1.0 if recommended is None else float(recommended)

    def step(self, beta: float | None = None) -> tuple[Tensor, float | None]:
        """(delta_s [S] under a threshold, the threshold) as `edit --direction` takes them.

        beta: None for the recommended one, else edit's automatic rule. A direction without a relevance moves all its
        channels and has no threshold: (delta_s, None).
        """
        if self.relevance is None:
            return self.delta_s, None
        chosen = self.config.get("beta") if beta is None else beta
        if chosen is None:
            chosen = edits.suggested_beta(self.relevance.numpy())
        return torch.where(self.relevance.abs() >= chosen, self.delta_s, 0.0), float(chosen)


def component(direction: NamedDirection, licence: str = "Apache-2.0", source: str = SOURCE) -> Component:
    """The component of a pack that holds `direction`, exact in float32; its key is `key(direction)`.

    Raises InputError for a malformed name, shapes that are not [S], values that are not finite, and a zero step.
    """
    check_name(direction.name)
    tensors = {"delta_s": direction.delta_s.detach().float().cpu()}
    if direction.relevance is not None:
        tensors["relevance"] = direction.relevance.detach().float().cpu()
    fault = fault_of(tensors, direction.delta_s.numel()) or config_fault(direction.config)
    if fault:
        raise InputError(f"direction {direction.name!r}: {fault}")
    if not tensors["delta_s"].any():
        raise InputError(f"direction {direction.name!r} moves no channel; it would change no picture")
    return Component(tensors, dict(direction.config), licence, source, exact=True)


def components(directions: Iterable[NamedDirection], licence: str = "Apache-2.0") -> dict[str, Component]:
    """The components of several directions by their names in a pack, as `publish.publish` takes them."""
    return {PREFIX + direction.name: component(direction, licence) for direction in directions}


def from_component(name: str, part: Component) -> NamedDirection:
    """The direction that `component` made the component `name` of; its tensors are not checked again."""
    tensors = part.content
    if not isinstance(tensors, Mapping):
        raise InputError(f"{name} holds {type(tensors).__name__}; expected tensors by name")
    return NamedDirection(name.removeprefix(PREFIX), tensors["delta_s"], tensors.get("relevance"), dict(part.config))


def read(pack: Pack, name: str) -> NamedDirection:
    """The direction `name` of a pack.

    Raises InputError for a name that the pack lacks (the message lists those it has), PackError for tensors that are
    not finite or do not fit the pack's generator.
    """
    if name not in pack.directions_named:
        there = ", ".join(pack.directions_named) or "none"
        raise InputError(f"no direction {name!r} in pack {pack.name!r}; its named directions: {there}")
    tensors = pack.tensors(PREFIX + name)
    sizes = [pack.layout.style_channels] if pack.has("generator") else [len(t) for t in tensors.values() if t.ndim]
    config = pack.config(PREFIX + name)
    fault = fault_of(tensors, next(iter(sizes), 0)) or config_fault(config)
    if fault:
        raise PackError(f"{PREFIX}{name}: {fault}; it belongs to another generator or is damaged")
    return NamedDirection(name, tensors["delta_s"], tensors.get("relevance"), config)


def fault_of(tensors: Mapping[str, Tensor], style_channels: int) -> str:
    """What is wrong with the tensors of a direction for a generator of `style_channels`; "" where nothing is."""
    if "delta_s" not in tensors or tensors.keys() - {"delta_s", "relevance"}:
        return f"holds {sorted(tensors)}; expected delta_s [{style_channels}] and perhaps relevance"
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != (style_channels,):
            return f"{name} has shape {list(tensor.shape)}; expected [{style_channels}]"
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            return f"{name} holds values that are no finite numbers"
    return ""


def config_fault(config: Mapping[str, Any]) -> str:
    """What is wrong with the settings of a direction; "" where nothing is."""
    if not isinstance(config.get("method"), str) or not config["method"]:
        return f"its config has method {config.get('method')!r}; expected a text that says how it was found"
    for key, low, high in (("alpha", -100, 100), ("beta", 0, 1)):
        value = config.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and low <= value <= high):
            return f"its config has {key} {value!r}; expected a number in {low}..{high}, or none"
    for key in ("target", "neutral"):
        if config.get(key) is not None and not (isinstance(config[key], str) and config[key]):
            return f"its config has {key} {config[key]!r}; expected a text, or none"
    return ""


def check_name(name: str) -> None:
    """InputError for a name that no component may have."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"direction name {str(name)[:80]!r} may hold only a-z, 0-9, '-' and '_', at most 64 characters"
        )


def style_step(generator: Generator, step: Tensor) -> Tensor:
    """delta_s [S] (or [N, S]) of a step of w+ [L, W] (or [N, L, W]): the linear part of the affine maps w -> s.

    Exact: styles(w + a * step) = styles(w) + a * delta_s for every w and a, since the maps have no other part that
    depends on w. Computed with the weights alone, so that the biases' size costs no digits.
    """
    rows = step if step.ndim == 3 else step[None]
    parts = []
    with torch.no_grad():
        for layer in generator.style_layers:
            affine = generator.layer(layer.name).affine
            weight = affine.weight.double() * affine.weight_gain  # [C, W]
            parts.append(rows[:, layer.w_index].double() @ weight.T)
    delta_s = torch.cat(parts, 1).float()
    return delta_s if step.ndim == 3 else delta_s[0]
