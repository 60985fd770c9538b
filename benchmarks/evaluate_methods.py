"""The methods under comparison: each takes faces and gives back where in latent space they are afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..engines.errors import InputError, StyleclipError
from ..runtime import edits
from ..runtime.model import Prompt
from ..runtime.prompts import resolve
from ..runtime.steps import DEFAULT_ALPHA
from ..runtime.training import named
from ..runtime.training.chunks import in_chunks
from ..runtime.training.demo.scores import JudgeScorer
from ..runtime.training.inputs import pack_model, sample
from ..runtime.training.loop import device
from ..runtime.training.optimize import optimize
from ..runtime.training.optimize_settings import settings_for
from ..runtime.training.outcomes import ATTRIBUTES, ClipScorer, Panel, Scorer
from ..runtime.training.pack import Pack
from ..runtime.training.subject import Faces, Moved, Subject
from ..runtime.training.texts import PackTexts

CONV = "global (conv)"
"""The same table with the rows of toRGB channels left out, where it has any: the published form of the method."""
PACKS_OWN = "default"
"""The preset of optimisation that the pack's size decides."""
REFERENCE_FACES, REFERENCE_SEED = 128, 2_000_000
"""Random faces that CLIP's scores are measured against; in no report and no search."""


@dataclass(frozen=True)
class Ways:
    """What is compared.

    methods: of `_MAKERS`. presets: of the optimisation, by name, `PACKS_OWN` among them. directions: named directions
    of the pack, all of them where none is named. alphas: their strengths, each one's own where none is given.
    optimize_faces: optimisation, which takes hundreds of passes a face, is run on the first so many alone.
    """

    methods: tuple[str, ...]
    presets: tuple[str, ...] = (PACKS_OWN,)
    directions: tuple[str, ...] = ()
    alphas: tuple[float, ...] = ()
    optimize_faces: int | None = None

    def with_strength(self) -> Ways:
        """Those whose strength can be varied, each named direction once."""
        return replace(self, methods=tuple(m for m in self.methods if m != "optimize"), alphas=self.alphas[:1])

    def faces_for(self, method: str, faces: Faces) -> Faces:
        """The faces that a method is tried on."""
        few = self.optimize_faces if method.startswith("optimize") else None
        return faces if few is None else faces.take(np.arange(min(few, len(faces))))


@dataclass(frozen=True)
class Edit:
    """One way to follow a prompt. alpha: strength; `faces -> Moved` at any strength; `settings` for the table."""

    prompt: Prompt
    method: str
    alpha: float
    move: Callable[[Faces, float], Moved]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method, with the strength where one direction may stand there at several."""
        return f"{self.method}, alpha {self.alpha:g}" if self.method.startswith(named.PREFIX) else self.method


def prompts_of(pack: Pack, asked: Sequence[str]) -> list[Prompt]:
    """The prompts that were asked for, by name or as free text; all named ones without any.

    Raises InputError for a pack without prompts where none was asked for.
    """
    if not asked and not pack.prompts:
        raise InputError(f"the pack {pack.name!r} names no prompts; give some with --prompt TEXT")
    model = pack_model(pack)
    found = [resolve(model, text) for text in asked or list(pack.prompts)]
    return list({prompt.name: _with_mapper(pack, prompt) for prompt in found}.values())


def _with_mapper(pack: Pack, prompt: Prompt) -> Prompt:
    """The prompt with the name of its mapper in the pack, and the mapper's strength."""
    entry = pack.prompts.get(prompt.name, {})
    name = str(entry.get("mapper") or prompt.name).rpartition("/")[2]
    return replace(prompt, mapper=name if name in pack.mappers else None, strength=float(entry.get("strength") or 1.0))


def clip_scorer(pack: Pack, prompts: Sequence[Prompt]) -> ClipScorer:
    """CLIP's own opinion of every prompt, measured against random faces of the pack."""
    texts, encode = PackTexts(pack), pack.clip.to(device()).encode_image
    generator = pack.generator.to(device())
    w = sample(pack, range(REFERENCE_SEED, REFERENCE_SEED + REFERENCE_FACES))
    reference = in_chunks(lambda part: encode(generator(part).clamp(-1, 1)), w)
    asked = {prompt.name: texts.pair(prompt.target, prompt.neutral) for prompt in prompts}
    return ClipScorer(encode, reference, asked, {name: texts.pair(*pair) for name, pair in ATTRIBUTES.items()})


def scorer_of(pack: Pack, prompts: Sequence[Prompt], clip: ClipScorer) -> Scorer:
    """The judge for the prompts that it knows, where the pack has one; CLIP's own opinion for the others."""
    judge = JudgeScorer.of(pack) if pack.has("judge") else None
    if judge is None:
        return clip
    return judge if all(judge.knows(prompt.name) for prompt in prompts) else Panel([judge, clip])


def opinion(scorer: Scorer, prompt: str) -> str:
    """Who scored a prompt: "judge" or "CLIP"."""
    return (scorer.member(prompt) if isinstance(scorer, Panel) else scorer).opinion


def edits_of(subject: Subject, prompt: Prompt, ways: Ways) -> tuple[list[Edit], dict[str, str]]:
    """The edits of one prompt in those ways, and why others are left out: {"prompt, method": reason}."""
    found: list[Edit] = []
    left_out: dict[str, str] = {}
    for method in ways.methods:
        try:
            found += _MAKERS[method](subject, prompt, ways)
        except StyleclipError as error:
            left_out[f"{prompt.name}, {method}"] = str(error)
    return found, left_out


def tables_of(subject: Subject) -> dict[str, Subject]:
    """The subject by name of its table of directions: "global", and `CONV` where toRGB channels have rows as well."""
    table = subject.directions
    conv = conv_rows(subject, table)
    return {"global": subject} | ({} if np.array_equal(conv, table) else {CONV: subject.with_directions(conv)})


def conv_rows(subject: Subject, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """The table [S,E] with the rows of toRGB channels at zero."""
    rows = table.copy()
    for layer in subject.generator.style_layers:
        if layer.kind != "conv":
            rows[layer.offset : layer.offset + layer.channels] = 0
    return rows


def settled_beta(subject: Subject, prompt: Prompt) -> float:
    """The prompt's own beta, else StyleCLIP's automatic rule."""
    if prompt.beta is not None:
        return float(prompt.beta)
    return edits.suggested_beta(subject.relevance(prompt.target, prompt.neutral, prompt.resolutions))


def global_edit(subject: Subject, prompt: Prompt, name: str = "global", beta: float | None = None) -> Edit:
    """A global direction at the prompt's settings, or at another threshold."""
    beta = settled_beta(subject, prompt) if beta is None else beta
    delta_s = subject.direction(prompt.target, prompt.neutral, beta, prompt.resolutions)
    alpha = DEFAULT_ALPHA if prompt.alpha is None else float(prompt.alpha)
    settings = {"beta": round(beta, 4), "resolutions": prompt.resolutions, "channels": int(np.count_nonzero(delta_s))}
    return Edit(prompt, name, alpha, partial(_shifted, subject, delta_s), settings)


def _global(subject: Subject, prompt: Prompt, ways: Ways) -> list[Edit]:
    return [global_edit(table, prompt, name) for name, table in tables_of(subject).items()]


def mapper_edit(subject: Subject, prompt: Prompt) -> Edit:
    """The prompt's trained mapper; InputError for a prompt without one."""
    name = prompt.mapper or prompt.name
    subject.mapper(name)
    return Edit(prompt, "mapper", prompt.strength, lambda faces, alpha: subject.mapped(faces, name, alpha))


def optimize_edit(subject: Subject, prompt: Prompt, preset: str = PACKS_OWN) -> Edit:
    """Latent optimisation of each face by a preset; it has no strength."""
    own = preset == PACKS_OWN
    settings = settings_for(subject.pack, None if own else preset)
    asked = prompt.name if prompt.name in subject.pack.prompts else prompt.target

    def move(faces: Faces, alpha: float) -> Moved:
        done = optimize(subject.pack, faces.w, asked, settings, neutral=prompt.neutral)
        s = torch.cat([face.s for face in done])
        return Moved(s, None if done[0].w is None else torch.cat([face.w for face in done if face.w is not None]))

    name = "optimize" if own else f"optimize ({preset})"
    return Edit(prompt, name, 1.0, move, {"alpha": None, "steps": settings.steps})


def direction_edits(subject: Subject, prompt: Prompt, ways: Ways) -> list[Edit]:
    """Named directions of the pack, served as `edit --direction` serves them, at each strength.

    The prompt says what is looked for; a direction does not follow it. InputError for a pack without directions.
    """
    names = ways.directions or subject.pack.directions_named
    if not names:
        raise InputError(
            f"the pack {subject.pack.name!r} has no named direction; `train neighbours` and `train directions --method "
            "gradient` make some"
        )
    found = []
    for name in names:
        direction = named.read(subject.pack, name)
        step, beta = direction.step()
        delta_s = step.numpy()
        settings = {"beta": beta, "channels": int(np.count_nonzero(delta_s))}
        for alpha in ways.alphas or (direction.alpha,):
            move = partial(_shifted, subject, delta_s)
            found.append(Edit(prompt, named.PREFIX + name, alpha, move, settings))
    return found


def _shifted(subject: Subject, delta_s: NDArray[np.float32], faces: Faces, alpha: float) -> Moved:
    return subject.shifted(faces, delta_s, alpha)


_MAKERS: dict[str, Callable[[Subject, Prompt, Ways], list[Edit]]] = {
    "global": _global,
    "mapper": lambda subject, prompt, ways: [mapper_edit(subject, prompt)],
    "optimize": lambda subject, prompt, ways: [optimize_edit(subject, prompt, preset) for preset in ways.presets],
    "direction": direction_edits,
}
