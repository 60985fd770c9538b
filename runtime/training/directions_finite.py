"""`train directions --method finite`: the table of a pack by finite differences, with what it needs, into a pack."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engines.errors import PackError
from .checkpoints.statistics import SAMPLES, SEED, compute_statistics, drawn
from .directions import BLOCK, DirectionRecipe, DirectionTable, asked_channels, blocks_of, measure_directions
from .directions_predicted import passes_for
from .directions_render import Front
from .loop import device
from .networks.clip import Clip
from .networks.stylegan2 import Generator
from .pack import Pack, Statistics
from .pack_writer import Component
from .publish import destination, publish

SOURCE = "styleclip-rt train directions"
PLANNED = ("out", "renders", "gradient_passes", "blocks")
"""What only a plan has: a finished run says how much it took."""
PSI = 0.7
"""StyleCLIP's truncation of the base images, where the pack's statistics name none."""


@dataclass(frozen=True)
class FiniteRequest:
    """What the command asks for; `convention` and `samples` only matter for a pack without statistics."""

    recipe: DirectionRecipe
    out: Path | None = None
    work: Path | None = None
    block: int = BLOCK
    convention: str = "tf"
    samples: int = SAMPLES


@dataclass(frozen=True)
class FinitePlan:
    """What a run would do, and where it writes."""

    pack: Pack
    request: FiniteRequest
    out: Path
    work: Path

    def to_dict(self) -> dict[str, Any]:
        """For --dry-run: JSON-ready."""
        recipe, layout = self.request.recipe, self.pack.layout
        asked = asked_channels(layout, recipe.channels)
        there = self.pack.has("statistics")
        return {
            "pack": str(self.pack.path),
            "out": str(self.out),
            "work": str(self.work),
            "method": "finite",
            "channels": recipe.channels,
            "rows": len(asked),
            "blocks": len(blocks_of(layout, asked, self.request.block)),
            "images": recipe.images,
            "sigmas": recipe.sigmas,
            "tolerance": recipe.tolerance,
            "cumulative": recipe.cumulative,
            "render_at": recipe.render_at or "full",
            "renders": 2 * recipe.images * len(asked),
            "gradient_passes": passes_for(recipe.tolerance, recipe.images, len(asked)),
            "statistics": "the pack's" if there else f"measured: {self.request.convention}, {self.request.samples}",
        }


def check_parts(pack: Pack) -> None:
    """PackError for a pack without a generator or CLIP."""
    for component in ("generator", "clip"):
        if not pack.has(component):
            raise PackError(
                f"pack {pack.name!r} has no {component!r}, which channel directions are made with; add it with "
                f"`styleclip-rt pack import --base {pack.path}`"
            )


def make_plan(pack: Pack, request: FiniteRequest) -> FinitePlan:
    """Checks that the pack allows the run, before anything long; PackError names what it lacks."""
    check_parts(pack)
    out = destination(pack, request.out, ("directions", "statistics"))
    work = request.work or out.with_name(f"{out.name}-work")
    return FinitePlan(pack, request, out, work)


def base_faces(generator: Generator, images: int, psi: float) -> Tensor:
    """w+ [images,L,W]: the first faces of StyleCLIP's W.npy, z of RandomState(5), truncated to `psi` in every layer."""
    w = torch.cat(list(drawn(generator, images, SEED)))
    w_avg = generator.mapping_network.w_avg
    return generator.broadcast(w_avg + psi * (w - w_avg))


def pack_statistics(pack: Pack, request: FiniteRequest) -> tuple[Statistics, dict[str, Component]]:
    """The pack's statistics, or new ones and the component that holds them."""
    if pack.has("statistics"):
        return pack.statistics, {}
    made = compute_statistics(pack.generator, request.convention, request.samples)
    content = made.content
    if isinstance(content, bytes):
        raise PackError("statistics came as bytes; expected tensors")
    found = Statistics(content["w_mean"], content["s_mean"], content["s_std"], made.config)
    return found, {"statistics": Component(content, made.config, made.licence, SOURCE)}


def front_of(clip: Clip) -> Front:
    """What CLIP does to a picture before it looks."""
    return Front(clip.image_size, clip.preprocess.interpolation)


def train_finite(plan: FinitePlan) -> dict[str, Any]:
    """Measures the table and publishes the pack. Returns a JSON-ready summary; resumable in the plan's work folder.

    Raises:
        InputError: embeddings that are not finite. StyleclipError: a full disk. The checkpoint stays.
    """
    pack, request, recipe = plan.pack, plan.request, plan.request.recipe
    began, home, checkpoint = time.monotonic(), device(), plan.work / "directions.pt"
    statistics, components = pack_statistics(pack, request)
    generator, clip = pack.generator, pack.clip
    psi = float(statistics.config.get("psi", PSI))
    base_w = base_faces(generator, recipe.images, psi).to(home)
    table = measure_directions(
        generator.to(home).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        clip.to(home).encode_image,
        statistics,
        base_w,
        recipe,
        front=front_of(clip),
        checkpoint=checkpoint,
        block=request.block,
    )
    licences = {pack.licences[name] for name in ("generator", "clip")}
    components["directions"] = Component(
        {"delta_i_c": table.rows},
        directions_config(recipe, statistics, psi, table),
        licences.pop() if len(licences) == 1 else "unknown",
        SOURCE,
    )
    path = publish(pack, request.out, components, kept=checkpoint)
    return summary(plan, table, str(path), round(time.monotonic() - began, 1))


def directions_config(
    recipe: DirectionRecipe, statistics: Statistics, psi: float, table: DirectionTable
) -> dict[str, Any]:
    """The `config` of the component: how the table was made."""
    return {
        "method": "finite",
        "images": recipe.images,
        "sigmas": recipe.sigmas,
        "channels": recipe.channels,
        "tolerance": recipe.tolerance,
        "cumulative": recipe.cumulative,
        "render_at": recipe.render_at or "full",
        "psi": psi,
        "seed": SEED,
        "convention": str(statistics.config.get("convention", "unknown")),
        "mean_images": round(mean_images(table), 2),
    }


def mean_images(table: DirectionTable) -> float:
    """Images a row, over the rows of channels that move; the others are not rendered."""
    seen = table.images[table.rows.any(1)].double()
    return float(seen.mean()) if len(seen) else 0.0


def summary(plan: FinitePlan, table: DirectionTable, path: str, seconds: float) -> dict[str, Any]:
    """What the command prints."""
    used, recipe = mean_images(table), plan.request.recipe
    return {
        **{key: value for key, value in plan.to_dict().items() if key not in PLANNED},
        "mean_images": round(used, 2),
        "images_saved": round(1 - used / recipe.images, 4),
        "moving": int(table.rows.any(1).sum()),
        "seconds": seconds,
        "pack": path,
    }
