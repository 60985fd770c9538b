"""`train directions --method gradient`: one prompt as a named direction, or the whole table, into a pack."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...engines.errors import InputError, PackError
from .. import edits
from ..images import write_format, write_image
from ..model import Prompt
from ..prompts import resolve
from ..sheets import contact_sheet
from ..steps import DEFAULT_ALPHA
from .chunks import in_chunks
from .directions import DirectionRecipe, asked_channels
from .directions_finite import FiniteRequest, base_faces, pack_statistics
from .gradient import GradientRecipe, finite_passes, gradient_relevance, gradient_table
from .inputs import pack_model, read_inputs
from .kept import Kept, digests
from .loop import device
from .named import NamedDirection, check_name, from_component
from .named import components as direction_components
from .pack import Pack, Statistics
from .pack_writer import Component
from .pictures import pictures
from .publish import destination, publish
from .texts import PackTexts

SOURCE = "styleclip-rt train directions --method gradient"
SAMPLES = 10_000
"""Latents that sigma is estimated from where a pack has no statistics: within 0.7%, and a second's work."""
PSI = 0.7
KEPT = 1 / 12
"""Share of the channels that a direction keeps where no beta is asked for (docs/directions.md)."""
STEPS = (0.5, 1.0, 1.5)
"""Columns of a preview, in units of the direction's alpha."""


@dataclass(frozen=True)
class GradientRequest:
    """What the command asks for. Without `prompt` the whole table is made.

    preview: photos, latents files and seeds (as digits) to show the edit on; sheet: where. `convention` and `samples`
    only matter for a pack without statistics.
    """

    prompt: str | None = None
    neutral: str | None = None
    recipe: GradientRecipe = field(default_factory=GradientRecipe)
    alpha: float | None = None
    beta: float | None = None
    name: str | None = None
    out: Path | None = None
    preview: tuple[str, ...] = ()
    sheet: Path | None = None
    convention: str = "tf"
    samples: int = SAMPLES


@dataclass(frozen=True)
class GradientPlan:
    """What a run would do, and where it writes; `out` is None where only a preview is asked for."""

    pack: Pack
    request: GradientRequest
    out: Path | None
    prompt: Prompt | None

    @property
    def component(self) -> str:
        """The name of what the run adds to the pack."""
        return "directions" if self.prompt is None else f"direction/{self.request.name or self.prompt.name}"

    def kept(self, out: Path) -> Kept:
        """Where the result waits if the pack `out` cannot be written."""
        stamp = {
            "component": self.component,
            "prompt": None if self.prompt is None else asdict(self.prompt),
            **{name: getattr(self.request, name) for name in ("alpha", "beta", "convention", "samples")},
            "recipe": asdict(self.request.recipe),
            "parts": digests(self.pack, "generator", "clip", "tokenizer", "statistics"),
            "templates": self.pack.templates,
        }
        work = out.absolute().with_name(f"{out.absolute().name}-work")
        return Kept(work / f"gradient-{self.component.rpartition('/')[2]}.safetensors", stamp)

    def to_dict(self) -> dict[str, Any]:
        """For --dry-run: JSON-ready."""
        recipe, width = self.request.recipe, int(self.pack.config("clip")["embed_dim"])
        rows = len(asked_channels(self.pack.layout, recipe.channels))
        passes = recipe.passes() if self.prompt else recipe.images * (1 + width)
        record: dict[str, Any] = {
            "pack": str(self.pack.path),
            "out": None if self.out is None else str(self.out),
            "method": "gradient",
            "component": self.component,
            "channels": recipe.channels,
            "rows": rows,
            "images": recipe.images,
            "passes": passes,
            "finite_passes": finite_passes(DirectionRecipe().images, rows),
            "statistics": "the pack's" if self.pack.has("statistics") else f"measured: {self.request.samples} latents",
        }
        return {
            **record,
            **({} if self.prompt is None else {"target": self.prompt.target, "neutral": self.prompt.neutral}),
        }


def make_plan(pack: Pack, request: GradientRequest) -> GradientPlan:
    """Checks that the pack allows the run, before anything long.

    Raises:
        PackError: no generator or no CLIP. InputError: a shipped pack without `out`, an unfit name or text, a preview
            of a whole table, or a sheet without a face to show.
    """
    needed = ("generator", "clip", "tokenizer") if request.prompt is not None else ("generator", "clip")
    for component in needed:
        if not pack.has(component):
            raise PackError(
                f"pack {pack.name!r} has no {component!r}, which directions by gradients are made with; add it with "
                f"`styleclip-rt pack import --base {pack.path}`"
            )
    if request.prompt is None and (request.preview or request.neutral or request.name):
        raise InputError("a preview, a neutral text and a name belong to one prompt; give --prompt TEXT")
    if bool(request.preview) != (request.sheet is not None):
        raise InputError("a preview needs faces and a file: give --preview PHOTO and --sheet FILE together")
    if request.sheet is not None:
        write_format(request.sheet)
    prompt = None if request.prompt is None else resolve(pack_model(pack), request.prompt, request.neutral)
    if prompt is not None:
        check_name(request.name or prompt.name)
    alone = request.preview and request.out is None
    makes = ("directions", "statistics", "direction/")
    return GradientPlan(pack, request, None if alone else destination(pack, request.out, makes), prompt)


def base_styles(pack: Pack, statistics: Statistics, images: int) -> Tensor:
    """Styles [images,S] of the first base images, those of the finite procedure, where the networks run."""
    generator = pack.generator.to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    w = base_faces(generator, images, float(statistics.config.get("psi", PSI)))
    return in_chunks(generator.styles, w).to(device())


def prompt_direction(plan: GradientPlan, statistics: Statistics) -> NamedDirection:
    """The direction of the plan's prompt: relevance [S], and delta_s before any threshold.

    alpha: asked for, else that of the pack's prompt, else 3. beta: asked for, else what keeps `KEPT` of the channels;
    not that of the pack's prompt, which was chosen for another relevance.
    """
    prompt, request, pack = plan.prompt, plan.request, plan.pack
    if prompt is None:
        raise InputError("a direction belongs to one prompt; give --prompt TEXT")
    delta_t = PackTexts(pack).pair(prompt.target, prompt.neutral).delta_t
    s = base_styles(pack, statistics, request.recipe.images)
    encode = pack.clip.to(device()).encode_image
    found = gradient_relevance(pack.generator, encode, s, delta_t[None], request.recipe, s_std=statistics.s_std)[0]
    alpha = next((a for a in (request.alpha, prompt.alpha) if a is not None), DEFAULT_ALPHA)
    config = {
        **recipe_config(request.recipe, statistics),
        "target": prompt.target,
        "neutral": prompt.neutral,
        "alpha": float(alpha),
        "beta": edits.beta_keeping(found.numpy(), KEPT) if request.beta is None else float(request.beta),
    }
    return NamedDirection(request.name or prompt.name, step_of(found, statistics.s_std), found, config)


def step_of(relevance: Tensor, sigma: Tensor) -> Tensor:
    """delta_s [S] of a relevance [S] before any threshold: section 6 of the paper (`edits.direction` at beta 0)."""
    r = relevance.double()
    largest = r.abs().max()
    return (r / largest * sigma.double() if largest > 0 else r).float()


def recipe_config(recipe: GradientRecipe, statistics: Statistics) -> dict[str, Any]:
    """The part of a component's `config` that says how it was made."""
    return {
        "method": "gradient",
        "images": recipe.images,
        "spread": recipe.spread,
        "channels": recipe.channels,
        "psi": float(statistics.config.get("psi", PSI)),
        "convention": str(statistics.config.get("convention", "unknown")),
    }


def train_gradient(plan: GradientPlan) -> dict[str, Any]:
    """Finds the direction or the table, shows it, and publishes it. Returns a JSON-ready summary.

    What an earlier run found and could not publish is published without looking for it again.

    Raises InputError for texts that mean the same, for gradients that are not finite, and for unreadable previews;
    StyleclipError where the pack cannot be written.
    """
    pack, request = plan.pack, plan.request
    began = time.monotonic()
    faces = previewed(plan)
    finite = FiniteRequest(DirectionRecipe(), convention=request.convention, samples=request.samples)
    statistics, components = pack_statistics(pack, finite)
    components = {name: replace(part, source=SOURCE) for name, part in components.items()}
    record = plan.to_dict()
    kept = None if plan.out is None else plan.kept(plan.out)
    components |= _found(plan, statistics, kept)
    if plan.prompt is not None:
        direction = from_component(plan.component, components[plan.component])
        record |= settings_of(direction)
        if faces is not None and request.sheet is not None:
            record["sheet"] = str(save_preview(plan, direction, faces, request.sheet))
    if kept is not None:
        record["out"] = str(publish(pack, request.out, components, kept=kept))
    return {**record, "seconds": round(time.monotonic() - began, 1)}


def _found(plan: GradientPlan, statistics: Statistics, kept: Kept | None) -> dict[str, Component]:
    """The component that the plan is about: of an earlier run that could not publish it, or found now."""
    earlier = kept.load() if kept else None
    if earlier is not None and plan.component in earlier[0]:
        return {plan.component: earlier[0][plan.component]}
    if plan.prompt is None:
        return {plan.component: table_component(plan, statistics)}
    return direction_components([prompt_direction(plan, statistics)], licence_of(plan.pack))


def settings_of(direction: NamedDirection) -> dict[str, Any]:
    """What is recommended, and how many channels that moves."""
    step, beta = direction.step()
    largest = 0.0 if direction.relevance is None else float(direction.relevance.abs().max())
    return {
        "alpha": direction.alpha,
        "beta": beta,
        "channels_moved": int(step.count_nonzero()),
        "largest": round(largest, 4),
    }


def table_component(plan: GradientPlan, statistics: Statistics) -> Component:
    """The component `directions` by vector-Jacobian products."""
    pack, recipe = plan.pack, plan.request.recipe
    s = base_styles(pack, statistics, recipe.images)
    encode = pack.clip.to(device()).encode_image
    rows = gradient_table(pack.generator, encode, s, recipe, s_std=statistics.s_std)
    return Component({"delta_i_c": rows}, recipe_config(recipe, statistics), licence_of(pack), SOURCE)


def licence_of(pack: Pack) -> str:
    """That of the networks a direction was found with."""
    found = {pack.licences[name] for name in ("generator", "clip")}
    return found.pop() if len(found) == 1 else "unknown"


@dataclass(frozen=True)
class PreviewFaces:
    """Faces to show an edit on: styles [k,S], names, and their photos where they came as such."""

    s: Tensor
    names: tuple[str, ...]
    photos: tuple[Image.Image | None, ...]


def previewed(plan: GradientPlan) -> PreviewFaces | None:
    """The faces of the plan's preview, or None; read before the gradients, so that a bad file costs no time."""
    sources = plan.request.preview
    if not sources:
        return None
    seeds = [int(source) for source in sources if source.isdecimal()]
    inputs = read_inputs(plan.pack, [source for source in sources if not source.isdecimal()], seeds)
    s = in_chunks(plan.pack.generator.to(device()).styles, inputs.w)
    return PreviewFaces(s, inputs.names, inputs.crops)


def save_preview(plan: GradientPlan, direction: NamedDirection, faces: PreviewFaces, path: Path) -> Path:
    """A sheet of the faces: the photo, what the generator makes of it, and the edit at parts of alpha."""
    alpha, beta = direction.alpha, float(direction.config["beta"])
    delta_s = direction.step(beta)[0].numpy()
    alphas = [0.0, *(alpha * step for step in STEPS)]
    moved = torch.from_numpy(np.stack([edits.apply(faces.s.numpy(), delta_s, a) for a in alphas], 1))
    made = pictures(in_chunks(plan.pack.generator.synthesize, moved.flatten(0, 1)))
    rows: list[list[Image.Image | str]] = []
    for i, photo in enumerate(faces.photos):
        rows.append([photo or "no photo", *made[i * len(alphas) : (i + 1) * len(alphas)]])
    labels = ["photo", *(f"alpha {a:.3g}" for a in alphas)]
    title = f"{direction.config['target']}, beta {beta:g}"
    return write_image(contact_sheet(rows, list(faces.names), labels, title), path)
