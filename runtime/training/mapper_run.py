"""A whole training of a mapper: from a prompt and a pack to the pack that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ...engines.errors import InputError
from ..prompts import DEFAULT_NEUTRAL, is_named, resolve, usual_neutral
from .checkpoints.mappers import PUBLISHED as PUBLISHED_MAPPERS
from .checkpoints.mappers import published_name
from .inputs import pack_model
from .loop import device
from .loop_ranks import ranks
from .loop_store import SafetensorsStore
from .losses import LossWeights
from .mapper import MapperNetworks, mapper_config, train_mapper
from .mapper_faces import FaceSet, FaceSources, face_set
from .mapper_presets import MapperPreset, named_preset
from .mapper_report import Examiner, MapperScore, Watcher, open_board
from .networks.mapper import LatentMapper
from .pack import Pack
from .pack_format import NAME
from .pack_writer import Component
from .publish import destination, publish
from .texts import PackTexts, TextPair

USED = ("generator", "clip", "tokenizer", "identity")
"""The components that a training sees."""


@dataclass(frozen=True)
class MapperRequest:
    """What the user asked for. `changes` and `weights` replace settings of the preset where they are not None."""

    prompt: str
    neutral: str | None = None
    name: str | None = None
    out: Path | None = None
    work: Path | None = None
    preset: str = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float | None] = field(default_factory=dict)
    sources: FaceSources = field(default_factory=FaceSources)
    seed: int = 40
    save_every: int | None = None
    validate_every: int | None = None
    tensorboard: bool = True


@dataclass(frozen=True)
class MapperPlan:
    """A request settled for a pack: nothing is left to be refused but the faces."""

    pack: Pack
    request: MapperRequest
    name: str
    target: str
    neutral: str
    settings: MapperPreset
    out: Path
    work: Path
    notes: tuple[str, ...] = ()

    @property
    def component(self) -> str:
        """The mapper's name in the pack."""
        return f"mapper/{self.name}"

    @property
    def validate_every(self) -> int:
        """Steps between validations: five times in a run, or as published, whichever is more often."""
        return self.request.validate_every or max(1, min(2000, self.settings.steps // 5))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for --dry-run."""
        return {
            "prompt": self.name,
            "target": self.target,
            "neutral": self.neutral,
            "pack": self.pack.name,
            "out": str(self.out),
            "component": self.component,
            "work": str(self.work),
            "validate_every": self.validate_every,
            "settings": self.settings.to_dict(),
            "notes": list(self.notes),
        }


def make_plan(pack: Pack, request: MapperRequest) -> MapperPlan:
    """Settles names, texts, settings and folders.

    Raises InputError for a text, a name or a setting that cannot be used, and for an `out` that would lose what it
    holds; PackError for a pack without a generator or CLIP.
    """
    for component in USED[:3]:
        pack.entry(component)
    name, target, neutral = settle_prompt(pack, request.prompt, request.neutral, request.name)
    settings = named_preset(request.preset, name, pack.layout.config.resolution)
    settings = replace(settings, **{key: value for key, value in request.changes.items() if value is not None})
    settings = replace(settings, weights=_weights(settings.weights, request.weights))
    notes = []
    if settings.weights.identity and not pack.has("identity"):
        settings = replace(settings, weights=replace(settings.weights, identity=0.0))
        notes.append("the pack has no identity network: the identity loss is left out")
    mapper_config(pack.layout, settings)
    ranks().check_batch(settings.batch)
    out = destination(pack, request.out, (f"mapper/{name}",))
    work = request.work or out.absolute().with_name(f"{out.absolute().name}-work")
    return MapperPlan(pack, request, name, target, neutral, settings, out, work, tuple(notes))


def settle_prompt(pack: Pack, text: str, neutral: str | None, name: str | None) -> tuple[str, str, str]:
    """(name, target, neutral) of a prompt of the pack, of a published mapper, or of free text, in this order."""
    model = pack_model(pack)
    known = None if is_named(model, text) else published_name(text)
    if known:
        found = (known, PUBLISHED_MAPPERS[known].target, neutral or DEFAULT_NEUTRAL)
    else:
        prompt = resolve(model, text, neutral)
        found = (prompt.name, prompt.target, prompt.neutral or usual_neutral(model))
    name = name or found[0]
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a mapper; give --name with a-z, 0-9, '-' and '_', at most 64 characters"
        )
    return (name, *found[1:])


def _weights(weights: LossWeights, changes: Mapping[str, float | None]) -> LossWeights:
    return replace(weights, **{key: value for key, value in changes.items() if value is not None})


@dataclass(frozen=True)
class MapperResult:
    """What a training made. `seconds`: time in training, over all runs of it."""

    plan: MapperPlan
    faces: FaceSet
    score: MapperScore
    seconds: float
    sheet: Path
    pack: Path

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **self.plan.to_dict(),
            "faces": self.faces.origin,
            "face_count": self.faces.count,
            "test_faces": len(self.faces.test),
            **self.score.to_dict(),
            "seconds": round(self.seconds, 1),
            "sheet": str(self.sheet),
            "log": str(self.plan.work / f"mapper-{self.plan.name}.jsonl"),
            "out": str(self.pack),
            "notes": [*self.plan.notes, *self.faces.notes],
        }


class MapperRun:
    """One training of a plan, resumed where the last run stopped."""

    def __init__(self, plan: MapperPlan) -> None:
        self.plan, self.pack, self.settings = plan, plan.pack, plan.settings

    @cached_property
    def text(self) -> TextPair:
        """Embeddings of the prompt pair."""
        return PackTexts(self.pack).pair(self.plan.target, self.plan.neutral)

    @cached_property
    def faces(self) -> FaceSet:
        """Training and test faces."""
        return face_set(self.pack, self.plan.request.sources, self.settings, self.plan.request.seed)

    @cached_property
    def networks(self) -> MapperNetworks:
        """The pack's networks, CLIP behind the front-end of the loss."""
        encode = partial(self.pack.clip.to(device()).encode_image, front_end=self.settings.front_end)
        identity = self.pack.identity.to(device()) if self.pack.has("identity") else None
        return MapperNetworks(self.pack.generator.to(device()), encode, identity)

    @cached_property
    def store(self) -> SafetensorsStore:
        """The checkpoint, with everything that the result depends on as its settings."""
        settings = self.settings.to_dict()
        if self.settings.schedule == "constant":
            settings.pop("steps")  # a run at a constant rate can be continued with more steps
        entries = {name: self.pack.entry(name)["sha256"][:16] for name in USED if self.pack.has(name)}
        texts = {"target": self.plan.target, "neutral": self.plan.neutral}
        faces = {"faces": self.faces.digest or "sampled", "seed": self.plan.request.seed}
        path = self.plan.work / f"mapper-{self.plan.name}.safetensors"
        return SafetensorsStore(path, {**texts, **faces, **settings, **entries})

    def run(self) -> MapperResult | None:
        """Trains, measures and publishes; None in all processes but the first.

        Raises the errors of `face_set` and `PackTexts` before the training, those of `loop.train` in it. Whatever
        happens, the last checkpoint stays.
        """
        plan, request = self.plan, self.plan.request
        faces, text = self.faces, self.text
        watcher = self._watcher() if ranks().first else None
        mapper = train_mapper(
            plan.name,
            plan.work,
            self.networks,
            text,
            self.settings,
            seed=request.seed,
            faces=faces.draw,
            store=self.store,
            watch=watcher,
            save_every=request.save_every,
            log_every=10 if self.settings.steps <= 2000 else 50,
        )
        if watcher is None:
            return None
        score, sheet = watcher.examine(max(self.settings.steps, self.store.step), mapper)
        return MapperResult(plan, faces, score, self.store.seconds, sheet, self._publish(mapper, score))

    def _watcher(self) -> Watcher:
        folder = self.plan.work / f"mapper-{self.plan.name}"
        board = open_board(folder / "tensorboard", self.store.done()) if self.plan.request.tensorboard else None
        examiner = Examiner(self.networks, self.pack.clip.encode_image, self.text.target, self.faces.test)
        return Watcher(examiner, folder, self.plan.name, self.plan.validate_every, board)

    def _publish(self, mapper: LatentMapper, score: MapperScore) -> Path:
        plan, licences = self.plan, self.pack.licences
        used = ", ".join(f"{name} ({licences[name]})" for name in USED if name != "tokenizer" and name in licences)
        record = {
            "target": plan.target,
            "neutral": plan.neutral,
            "seed": plan.request.seed,
            "faces": self.faces.digest or "sampled",
            "settings": self.settings.to_dict(),
            "test": score.to_dict(),
        }
        part = Component(
            mapper,
            {**mapper.config.to_dict(), "description": plan.target, "training": record},
            licence="trained here",
            source=f"styleclip-rt train mapper, on {used} of the pack {self.pack.name}",
        )
        entry: dict[str, Any] = {"mapper": plan.component, "strength": 1.0}
        if plan.name not in self.pack.prompts:
            entry = {"target": plan.target, "neutral": plan.neutral, **entry}
        return publish(self.pack, plan.request.out, {plan.component: part}, {plan.name: entry}, kept=self.store.path)
