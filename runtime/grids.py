"""Contact sheets of edits: alpha x beta of one prompt (Figure 6 of the paper), or prompts and directions x alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..engines.errors import InputError
from . import edits, images, sheets
from .editor import F32, Editor
from .moves import mapped, moves, text_directions
from .slider import shared_renderer
from .steps import Beta, Step, checked_alpha, checked_beta, plan

DEFAULT_ALPHAS = (-3.0, -1.5, 0.0, 1.5, 3.0, 4.5, 6.0)
NOTHING_LEFT = "no channel\nleft"


@dataclass(frozen=True)
class Row:
    """A row of a sheet. styles: [A, S] of its cells, None where beta leaves no channel; channels: how many move."""

    label: str
    step: Step
    styles: F32 | None
    channels: int


@dataclass(frozen=True)
class Grid:
    """A finished sheet, and what its rows are."""

    image: Image.Image
    rows: tuple[Row, ...]
    alphas: tuple[float, ...]


def beta_grid(
    editor: Editor,
    face: F32,
    prompt: str | None = None,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    betas: Sequence[Beta] | None = None,
    neutral: str | None = None,
    direction: str | None = None,
    resolutions: str | None = None,
) -> Grid:
    """Figure 6: one prompt (or named direction) on latents w [1, L, W] or s [1, S]; alpha left to right, beta down.

    betas: None takes half, one, one and a half and two times the recommended threshold. Raises InputError if no beta
    leaves a channel.
    """
    step = plan(
        editor.model, prompt, None, betas[0] if betas else None, neutral, direction=direction, resolutions=resolutions
    )[0]
    delta_t = text_directions(editor, (step,))
    steps = _beta_steps(editor, step, delta_t, betas)
    alphas = _checked(alphas, len(steps))
    s = editor.styles_of(face)
    label = "{name}" if step.beta is None else "beta {beta:g}"
    rows = tuple(_direct_row(editor, step, delta_t, s, alphas, label) for step in steps)
    if all(row.styles is None for row in rows):
        moves(editor, (steps[0],), delta_t)  # raises, naming the largest relevance and a workable beta
    neutral = step.prompt.neutral
    return _grid(editor, rows, alphas, step.prompt.label[:80] + (f"  (neutral: {neutral[:40]})" if neutral else ""))


def _beta_steps(editor: Editor, step: Step, delta_t: F32, betas: Sequence[Beta] | None) -> list[Step]:
    """The step with each beta; one alone for a named direction that takes none."""
    if step.beta is None:
        return [step]
    if betas is None:
        settled = moves(editor, (step,), delta_t)[0][0]
        betas = [round(float(settled.beta or 0) * factor, 4) for factor in (0.5, 1, 1.5, 2)]
    return [replace(step, beta=checked_beta(beta)) for beta in betas]


def prompt_grid(
    editor: Editor,
    face: F32,
    prompts: Sequence[str] | None,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    betas: Sequence[Beta | None] | Beta | None = None,
    neutrals: Sequence[str | None] | str | None = None,
    method: str = "global",
    directions: Sequence[str] | None = None,
    resolutions: Sequence[str | None] | str | None = None,
) -> Grid:
    """Prompts, then named directions, from top to bottom, alpha (or a mapper's strength) from left to right.

    On latents w [1, L, W], or styles s [1, S], which no mapper takes.
    """
    steps = plan(editor.model, prompts, None, betas, neutrals, method, directions, resolutions)
    alphas = _checked(alphas, len(steps))
    if method == "mapper":
        rows = tuple(_mapped_row(editor, step, editor.checked_face(face, method), alphas) for step in steps)
    else:
        s = editor.styles_of(face)
        rows = tuple(_direct_row(editor, t, text_directions(editor, (t,)), s, alphas, "{name}") for t in steps)
    return _grid(editor, rows, alphas, "")


def _direct_row(editor: Editor, step: Step, delta_t: F32, s: F32, alphas: Sequence[float], label: str) -> Row:
    """Cells of one prompt, or named direction, and beta; s [1, S], delta_t of `text_directions`."""
    try:
        (step,), delta_s = moves(editor, (step,), delta_t)
    except InputError:
        return Row(label.format(beta=step.beta, name=step.prompt.name[:40]), step, None, 0)
    cells = s + np.array(alphas, dtype=np.float32)[:, None] * delta_s  # [A, S]
    name = label.format(beta=step.beta, name=step.prompt.name[:40])
    return Row(name, step, cells, len(edits.channels(delta_s[0])))


def _mapped_row(editor: Editor, step: Step, w: F32, alphas: Sequence[float]) -> Row:
    s = editor.styles(w)
    (step,), (delta,) = mapped(editor, (step,), w, s)  # [1, L, W] or [1, S]
    cells = np.concatenate([editor.moved_styles(w, [delta], [alpha]) for alpha in alphas])
    return Row(step.prompt.name[:40], step, cells, int(np.count_nonzero(np.ptp(cells, axis=0))))


def _grid(editor: Editor, rows: tuple[Row, ...], alphas: tuple[float, ...], title: str) -> Grid:
    """Synthesise all cells in batches and lay them out."""
    wanted = [row.styles for row in rows if row.styles is not None]
    pictures = iter(synthesize_all(editor, np.concatenate(wanted))) if wanted else iter(())
    cells: list[list[sheets.Cell]] = [
        [NOTHING_LEFT if row.styles is None else next(pictures) for _ in alphas] for row in rows
    ]
    labels = [row.label for row in rows]
    return Grid(sheets.contact_sheet(cells, labels, [f"alpha {a:g}" for a in alphas], title), rows, alphas)


def synthesize_all(editor: Editor, s: F32) -> list[Image.Image]:
    """Pictures of style vectors s [M, S], any M, a batch at a time; what they share is computed once."""
    return [images.image_from_u8(image_u8) for image_u8 in shared_renderer(editor, s).all(s)]


def _checked(alphas: Sequence[float], rows: int) -> tuple[float, ...]:
    sheets.check_cells(rows, len(alphas))
    return tuple(checked_alpha(alpha) for alpha in alphas)
