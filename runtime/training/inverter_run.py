"""A whole training of an inverter: from a pack, and photos where there are some, to the pack that holds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...engines.errors import InputError
from ..align import read_alignment
from ..align_frame import Framing, settle
from ..align_models import open_finder
from .inputs import inverter_config
from .inverter import END_TO_END, Faces, InverterNetworks, new_networks, train_inverter
from .inverter_photos import Photos, photo_files, read_photos
from .inverter_presets import InverterPreset, check_preset, encoder_config, named_preset
from .inverter_report import Examiner, InverterScore, Watcher, as_json
from .loop import device
from .networks.e4e import E4EConfig, Encoder4Editing
from .pack import Pack
from .pack_writer import Component
from .publish import destination, publish

USED = ("generator", "identity", "clip")
"""The components that a training sees."""
NEEDS = {"features": "identity", "identity": "identity", "clip": "clip"}


@dataclass(frozen=True)
class InverterRequest:
    """What the user asked for. `changes` and `weights` replace settings of the preset where they are not None.

    `go_on`: start from the pack's own inverter. `align`: None as the pack says, False: the photos are aligned crops.
    """

    out: Path | None = None
    work: Path | None = None
    preset: str = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float | None] = field(default_factory=dict)
    photos: Path | None = None
    align: bool | None = None
    landmark_model: Path | None = None
    go_on: bool = False
    tests: int = 64
    seed: int = 60
    save_every: int | None = None
    validate_every: int | None = None


@dataclass(frozen=True)
class InverterPlan:
    """A request settled for a pack: nothing is left to be refused but single photos."""

    pack: Pack
    request: InverterRequest
    settings: InverterPreset
    config: E4EConfig
    framing: Framing | None
    photo_count: int
    out: Path
    work: Path
    notes: tuple[str, ...]

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        return self.request.validate_every or max(1, min(2000, self.settings.steps // 5))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for --dry-run."""
        return {
            "pack": self.pack.name,
            "out": str(self.out),
            "work": str(self.work),
            "photos": self.photo_count,
            "input_size": self.config.input_size,
            "validate_every": self.validate_every,
            "settings": self.settings.to_dict(),
            "notes": list(self.notes),
        }


def make_plan(pack: Pack, request: InverterRequest) -> InverterPlan:
    """Settles settings, sizes and folders.

    Raises InputError for a setting or folder that cannot be used, PackError for a pack without a generator (or, to go
    on, without an inverter).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("an inverter is trained by one process; start it without torchrun")
    pack.entry("generator")
    settings = named_preset(request.preset, pack.layout.config.resolution)
    if request.go_on:
        settings = replace(settings, warm_steps=0, unlock=(0.0, 0.0))
    settings = replace(settings, **{key: value for key, value in request.changes.items() if value is not None})
    given = {key: value for key, value in request.weights.items() if value is not None}
    settings = replace(settings, weights=replace(settings.weights, **given))
    settings, notes = without_missing(pack, settings)
    check_preset(settings)
    config = going_on(pack) if request.go_on else encoder_config(settings.encoder, pack.layout.config)
    out = destination(pack, request.out, ("inverter",))
    work = request.work or out.absolute().with_name(f"{out.absolute().name}-work")
    framing = framing_of(pack, request, config.input_size) if request.photos is not None else None
    count = len(photo_files(request.photos)) if request.photos is not None else 0
    return InverterPlan(pack, request, settings, config, framing, count, out, work, notes)


def without_missing(pack: Pack, settings: InverterPreset) -> tuple[InverterPreset, tuple[str, ...]]:
    """The settings without the terms whose networks the pack lacks, and a note for each."""
    lacking = [term for term, part in NEEDS.items() if getattr(settings.weights, term) and not pack.has(part)]
    notes = tuple(f"the pack has no {NEEDS[term]!r}: the loss {term!r} is left out" for term in lacking)
    return replace(settings, weights=replace(settings.weights, **dict.fromkeys(lacking, 0.0))), notes


def going_on(pack: Pack) -> E4EConfig:
    """Sizes of the pack's inverter, to be trained on; InputError for one that this training does not fit."""
    config = inverter_config(pack)
    rows = (pack.layout.num_ws, pack.layout.config.w_dim)
    fits = (config.num_ws, config.w_dim) == rows and len(set(config.input_shape)) == 1
    if config.kind != "e4e" or not fits:
        raise InputError(
            f"the inverter of the pack {pack.name!r} is {config.kind} for w+ [{config.num_ws}, {config.w_dim}] at "
            f"{config.input_shape} px; only e4e for w+ {list(rows)} and square pictures can go on. Leave out --continue"
        )
    return config


def framing_of(pack: Pack, request: InverterRequest, size: int) -> Framing:
    """How the photos are framed; InputError where faces have to be aligned and nothing finds them."""
    alignment = read_alignment({"alignment": pack.alignment}, size)
    model = request.landmark_model
    if model is not None and request.align is False:
        raise InputError("--no-align takes the photos as they are; leave out --landmark-model")
    return settle(alignment, size, open_finder(model) if model else None, None, request.align, open_finder)


@dataclass(frozen=True)
class InverterResult:
    """What a training made. `before`: the figures of the pack's own inverter, where it has one of the same size."""

    plan: InverterPlan
    scores: dict[str, InverterScore]
    before: dict[str, InverterScore]
    skipped: dict[str, str]
    sheet: Path
    pack: Path

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **self.plan.to_dict(),
            "out": str(self.pack),
            "scores": as_json(self.scores),
            "before": as_json(self.before),
            "skipped": self.skipped,
            "sheet": str(self.sheet),
        }


class InverterRun:
    """One training of a plan, resumed where the last run stopped."""

    def __init__(self, plan: InverterPlan) -> None:
        self.plan, self.pack, self.settings = plan, plan.pack, plan.settings

    @cached_property
    def photos(self) -> Photos | None:
        """The framed photos of the folder."""
        request, framing = self.plan.request, self.plan.framing
        if request.photos is None or framing is None:
            return None
        return read_photos(request.photos, framing, self.plan.work)

    @cached_property
    def networks(self) -> InverterNetworks:
        """Encoder and discriminator as they start."""
        networks = new_networks(self.pack, self.plan.config, self.settings.psi, self.plan.request.seed)
        if self.plan.request.go_on:
            networks.encoder.load_state_dict(self.pack.inverter.state_dict())
        return networks

    @cached_property
    def watcher(self) -> Watcher:
        """Measures on test pictures."""
        faces = Faces(self.pack.generator.to(device()), self.plan.config.input_size, self.settings, self.photos)
        identity = self.pack.identity.to(device()) if self.pack.has("identity") else None
        examiner = Examiner(faces, identity, self.plan.request.seed + 3, self.plan.request.tests)
        return Watcher(examiner, self.plan.work / "inverter", self.plan.validate_every)

    def stamp(self) -> dict[str, Any]:
        """What the result depends on besides the settings."""
        parts = {name: self.pack.entry(name)["sha256"][:16] for name in USED if self.pack.has(name)}
        if self.plan.request.go_on:
            parts["inverter"] = self.pack.entry("inverter")["sha256"][:16]
        return {**parts, "photos": None if self.photos is None else self.photos.digest}

    def run(self) -> InverterResult:
        """Trains, measures and publishes. Whatever happens, the last checkpoint stays.

        Raises the errors of `read_photos` before the training and those of `loop.train` in it.
        """
        plan, request = self.plan, self.plan.request
        encoder = train_inverter(
            plan.work,
            self.pack,
            self.networks,
            self.settings,
            photos=self.photos,
            stamp=self.stamp(),
            seed=request.seed,
            watch=self.watcher,
            save_every=request.save_every,
        )
        scores, sheet = self.watcher.examine(self.settings.steps, encoder)
        before = self._before()
        skipped = {} if self.photos is None else self.photos.skipped
        return InverterResult(plan, scores, before, skipped, sheet, self._publish(encoder, scores))

    def _before(self) -> dict[str, InverterScore]:
        """The figures of the pack's own inverter on the same pictures; none where it has another size."""
        if not self.pack.has("inverter"):
            return {}
        config, size = inverter_config(self.pack), self.plan.config.input_size
        if config.input_shape != (size, size) or config.num_ws != self.plan.config.num_ws:
            return {}
        return self.watcher.examiner.examine(self.pack.inverter.to(device()))[0]

    def _publish(self, encoder: Encoder4Editing, scores: dict[str, InverterScore]) -> Path:
        plan, licences = self.plan, self.pack.licences
        used = ", ".join(f"{name} ({licences[name]})" for name in USED if name in licences)
        record = {
            "settings": self.settings.to_dict(),
            "seed": plan.request.seed,
            "photos": 0 if self.photos is None else len(self.photos),
            "test": as_json(scores),
        }
        part = Component(
            encoder,
            {**encoder.config.to_dict(), "training": record},
            licence="trained here",
            source=f"styleclip-rt train inverter, on {used} of the pack {self.pack.name}",
        )
        return publish(self.pack, plan.request.out, {"inverter": part}, kept=plan.work / f"{END_TO_END}.safetensors")
