"""`train neighbours` from request to pack: checks before any work, the method, the pack, and a sheet to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...engines.errors import InputError, PackError
from ..images import write_image
from ..prompts import Prompt, resolve, slug
from ..sheets import Cell, check_cells, contact_sheet
from ..steps import checked_alpha
from . import inputs, neighbours_ganspace, neighbours_interfacegan, neighbours_stylespace
from .kept import Kept, digests
from .named import NamedDirection, check_name, components, from_component
from .neighbours import Samples, layer_rows, pictures_of_styles, styles_of
from .pack import Pack
from .pictures import pictures
from .publish import destination, publish

SAMPLES = {"ganspace": 100_000, "interfacegan": 4_000, "stylespace": 2_000}
SHARES = {"interfacegan": 0.1, "stylespace": 0.02}
SHEET_ALPHAS = {"ganspace": (-4, -2, 0, 2, 4), "interfacegan": (-4, -2, 0, 2, 4), "stylespace": (-10, -5, 0, 5, 10)}
OPTIONS = {
    "ganspace": {"components", "layers"},
    "interfacegan": {"prompt", "neutral", "share", "orthogonal_to", "layers"},
    "stylespace": {"prompt", "neutral", "share", "channel", "count", "channels", "rank"},
}
"""What each method takes beside what all take."""
SHEET_SEED = 1000


@dataclass(frozen=True)
class Request:
    """The options of the command; None and () are what was not given."""

    method: str
    out: Path | None = None
    work: Path | None = None
    name: str | None = None
    samples: int | None = None
    psi: float | None = None
    seed: int = 0
    components: int | None = None
    layers: str | None = None
    prompt: str | None = None
    neutral: str | None = None
    share: float | None = None
    orthogonal_to: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    count: int | None = None
    channels: str | None = None
    rank: str | None = None
    faces: int = 3
    alphas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.method not in OPTIONS:
            raise InputError(f"unknown method {self.method!r}; expected one of {', '.join(OPTIONS)}")
        every = set().union(*OPTIONS.values())
        strange = sorted(name for name in every - OPTIONS[self.method] if getattr(self, name) not in (None, ()))
        if strange:
            flags = ", ".join("--" + name.replace("_", "-") for name in strange)
            raise InputError(f"{flags} does not go with --method {self.method}")


@dataclass(frozen=True)
class Plan:
    """A request that was checked against its pack; `prompt` None for methods without a text."""

    pack: Pack
    request: Request
    out: Path
    work: Path
    samples: Samples
    name: str
    names: tuple[str, ...]
    prompt: Prompt | None
    rows: tuple[int, ...]
    alphas: tuple[float, ...]

    @property
    def sheet(self) -> Path:
        """Where the pictures of the directions go."""
        return self.work / f"{self.name}.png"

    @property
    def kept(self) -> Kept:
        """Where the directions wait if the pack cannot be written."""
        shown = {"out", "work", "faces", "alphas"}  # where they go, and how they are drawn
        asked = {key: value for key, value in asdict(self.request).items() if key not in shown}
        others = tuple(f"direction/{name}" for name in self.request.orthogonal_to)
        parts = ("generator", "clip", "tokenizer", "statistics", "directions", *others)
        stamp = {**asked, "prompt": None if self.prompt is None else asdict(self.prompt), "name": self.name}
        stamp["samples"] = asdict(self.samples)
        stamp |= {"parts": digests(self.pack, *parts), "templates": self.pack.templates}
        return Kept(self.work / f"{self.name}.safetensors", stamp)

    def to_dict(self) -> dict[str, Any]:
        """For --dry-run."""
        return {
            "method": self.request.method,
            "pack": self.pack.name,
            "out": str(self.out),
            "work": str(self.work),
            "directions": list(self.names),
            "replaced": [name for name in self.names if name in self.pack.directions_named],
            "prompt": None if self.prompt is None else [self.prompt.target, self.prompt.neutral],
            "layers": list(self.rows),
            "samples": asdict(self.samples),
        }


@dataclass(frozen=True)
class Result:
    """What was made: the pack, its new directions in order, and the sheet."""

    plan: Plan
    directions: tuple[NamedDirection, ...]
    pack: Path

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        found = {direction.name: direction.config for direction in self.directions}
        return {"pack": str(self.pack), "sheet": str(self.plan.sheet), "directions": found}


def make_plan(pack: Pack, request: Request) -> Plan:
    """Everything that can be refused before the work: InputError or PackError says what and why."""
    for part in ("generator", *(("clip", "tokenizer") if _needs_text(request) else ())):
        pack.entry(part)
    if request.rank == "table":
        pack.entry("directions")
    out = destination(pack, request.out, ("direction/",))
    work = request.work or out.absolute().with_name(f"{out.absolute().name}-work")
    prompt = _prompt(pack, request)
    name = request.name or "-".join([request.method, *([slug(prompt.name)] if prompt else [])])[:56]
    psi = request.psi if request.psi is not None else 1.0 if request.method == "ganspace" else inputs.default_psi(pack)
    samples = Samples(request.samples or SAMPLES[request.method], psi, request.seed)
    rows = layer_rows(request.layers, pack.layout.num_ws)
    alphas = tuple(checked_alpha(a) for a in request.alphas or SHEET_ALPHAS[request.method])
    names = _names(pack, request, name)
    for each in names:
        check_name(each)
    check_cells(len(names) * request.faces, len(alphas))
    return Plan(pack, request, out, work, samples, name, names, prompt, rows, alphas)


def run(plan: Plan) -> Result:
    """Finds the directions, draws their sheet and publishes them into the pack, in this order.

    What an earlier run found and could not publish is published without looking for it again. Raises StyleclipError
    where the pack cannot be written.
    """
    earlier = plan.kept.load()
    made = earlier[0] if earlier else components(_find(plan))  # raises for a direction that no pack may hold
    directions = tuple(from_component(name, part) for name, part in made.items())
    write_image(sheet(plan, directions), _folder(plan.sheet))
    return Result(plan, directions, publish(plan.pack, plan.request.out, made, kept=plan.kept))


def sheet(plan: Plan, directions: Sequence[NamedDirection]) -> Image.Image:
    """Every direction on the same few faces, alpha from left to right."""
    faces = inputs.sample(plan.pack, range(SHEET_SEED, SHEET_SEED + plan.request.faces))
    s = styles_of(plan.pack, faces)  # [F, S]
    rows: list[list[Cell]] = []
    for direction in directions:
        for face in s:
            moved = torch.stack([face + alpha * direction.delta_s for alpha in plan.alphas])
            rows.append([*pictures(pictures_of_styles(plan.pack, moved))])
    labels = [d.name if face == 0 else "" for d in directions for face in range(len(s))]
    return contact_sheet(rows, labels, [f"alpha {alpha:g}" for alpha in plan.alphas], plan.name)


def _find(plan: Plan) -> list[NamedDirection]:
    pack, request, share = plan.pack, plan.request, plan.request.share or SHARES.get(plan.request.method, 0.0)
    if plan.prompt is None:
        if request.method == "ganspace":
            return neighbours_ganspace.ganspace(pack, plan.samples, len(plan.names), plan.rows, plan.name)
        numbers = [neighbours_stylespace.named_channel(pack.layout, text) for text in request.channel]
        made = zip(numbers, plan.names, strict=True)
        return [neighbours_stylespace.channel_direction(pack, channel, 1.0, name) for channel, name in made]
    if request.method == "interfacegan":
        orthogonal = request.orthogonal_to
        return [
            neighbours_interfacegan.interfacegan(
                pack, plan.samples, plan.prompt, plan.rows, share, orthogonal, plan.name, plan.work
            )
        ]
    torgb, rank = request.channels != "conv", request.rank or "examples"
    return neighbours_stylespace.stylespace(
        pack, plan.samples, plan.prompt, len(plan.names), rank, share, torgb, plan.name, plan.work
    )


def _needs_text(request: Request) -> bool:
    return request.method == "interfacegan" or (request.method == "stylespace" and not request.channel)


def _prompt(pack: Pack, request: Request) -> Prompt | None:
    """The text pair, of the methods that need one."""
    if not _needs_text(request):
        if request.prompt or request.neutral:
            raise InputError("--channel names the channels; --prompt finds them: give one of the two")
        return None
    if not request.prompt:
        hint = ", or --channel LAYER:INDEX" if request.method == "stylespace" else ""
        raise InputError(f"--method {request.method} needs --prompt TEXT{hint}")
    for name in request.orthogonal_to:
        if name not in pack.directions_named:
            there = ", ".join(pack.directions_named) or "none"
            raise PackError(f"--orthogonal-to {name!r}: no such direction in the pack; its named directions: {there}")
    return resolve(inputs.pack_model(pack), request.prompt, request.neutral)


def _names(pack: Pack, request: Request, name: str) -> tuple[str, ...]:
    """The directions that will be made; StyleSpace may find fewer."""
    if request.method == "interfacegan":
        return (name,)
    if request.channel:
        for text in request.channel:
            neighbours_stylespace.named_channel(pack.layout, text)
        if len(set(request.channel)) < len(request.channel):
            raise InputError("--channel names a channel twice")
        return tuple(f"{name}-{slug(text)}" for text in request.channel)
    count = (request.components or 5) if request.method == "ganspace" else (request.count or 3)
    return tuple(f"{name}-{k}" for k in range(count))


def _folder(file: Path) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent} cannot be made ({error.strerror}); name another --work") from None
    return file
