"""From the parts of an edit to vectors: what each prompt, mapper or named direction adds to the latents of a face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..engines.errors import InputError
from . import edits
from .model import Direction, Model, Prompt
from .prompts import mapper_graph
from .resolutions import resolution_mask
from .steps import Step, settled, too_high

if TYPE_CHECKING:
    from .editor import Editor

F32 = NDArray[np.float32]
Steps = tuple[Step, ...]


def text_directions(editor: Editor, steps: Sequence[Step]) -> F32:
    """Unit directions delta_t [Q, E] in CLIP space of those steps that are prompts."""
    found = [editor.text.delta_t(step.prompt) for step in steps if isinstance(step.prompt, Prompt)]
    return np.stack(found) if found else np.zeros((0, editor.model.embed_dim or 1), dtype=np.float32)


def unknown_words(editor: Editor, steps: Sequence[Step]) -> tuple[str, ...]:
    """A note that names the words of the prompts that the bundle's CLIP does not know; () where it knows them all."""
    prompts = [step.prompt for step in steps if isinstance(step.prompt, Prompt)]
    texts = dict.fromkeys(text for prompt in prompts for text in (prompt.target, prompt.neutral))
    words = list(dict.fromkeys(word for text in texts for word in editor.text.embed(text).unknown))
    unknown = ", ".join(map(repr, words))
    return (f"the bundle's CLIP does not know {unknown}: expect a weak or random edit",) if words else ()


def moves(editor: Editor, steps: Steps, delta_t: F32 | None = None) -> tuple[Steps, F32]:
    """(steps with "auto" thresholds resolved, delta_s [P, S]) of prompts and named directions, in their order.

    delta_t: of `text_directions`, if it is there already. InputError where a threshold leaves no channel.
    """
    delta_t = text_directions(editor, steps) if delta_t is None else delta_t
    prompts = tuple(step for step in steps if isinstance(step.prompt, Prompt))
    found = iter(zip(*prompt_directions(editor, prompts, delta_t), strict=True) if prompts else ())
    pairs = [editor.named.step(step) if isinstance(step.prompt, Direction) else next(found) for step in steps]
    return tuple(step for step, _ in pairs), np.stack([delta_s for _, delta_s in pairs])


def prompt_directions(editor: Editor, steps: Steps, delta_t: F32) -> tuple[Steps, F32]:
    """(steps with "auto" thresholds resolved, delta_s [P, S]) of P prompts; delta_t [P, E].

    Raises InputError where a threshold, or the layers that may move, leave no channel.
    """
    asked = [float(step.beta) if step.beta not in (None, "auto") else 0.0 for step in steps]
    out = editor.bundle.run("direction", delta_t=delta_t, beta=np.array(asked, dtype=np.float32))
    relevance, delta_s = list(out["relevance"]), list(out["delta_s"])
    for i, step in enumerate(steps):
        if step.resolutions is not None:
            mask = resolution_mask(editor.model, step.resolutions)
            delta_s[i] = edits.within(delta_s[i], relevance[i], asked[i], mask)
            relevance[i] = np.where(mask, relevance[i], np.float32(0))
            if not relevance[i].any():
                where = f"resolutions {step.resolutions}"
                raise InputError(f"no style channel in {where} answers to {step.prompt.label!r}; widen the range")
    if any(step.beta == "auto" for step in steps):
        steps = tuple(settled(step, r) for step, r in zip(steps, relevance, strict=True))
        return prompt_directions(editor, steps, delta_t)
    for step, r, moved in zip(steps, relevance, delta_s, strict=True):
        if not moved.any():
            raise InputError(too_high(step, r))
    return steps, np.stack(delta_s)


def mapped(editor: Editor, steps: Steps, w: F32, s: F32) -> tuple[Steps, list[F32]]:
    """(steps, what each adds): of prompts what their mappers say, [1, L, W] or [1, S]; of named ones delta_s [1, S]."""
    settled: list[Step] = []
    deltas: list[F32] = []
    for step in steps:
        if isinstance(step.prompt, Direction):
            step, delta_s = editor.named.step(step)
            deltas.append(delta_s[None])
        else:
            deltas.append(editor.map_latents(mapper_graph(editor.model, step.prompt), w, s))
        settled.append(step)
    return tuple(settled), deltas


def fused_mapper(model: Model, steps: Steps) -> str:
    """The graph that makes the whole edit if it is one mapper alone, else ""."""
    if len(steps) > 1 or isinstance(steps[0].prompt, Direction):
        return ""
    return "edit_" + mapper_graph(model, steps[0].prompt).removeprefix("style_")
