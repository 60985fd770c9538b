"""How mappers are trained: the published settings, and those of the embedded pack."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ...engines.errors import InputError
from .checkpoints.mappers import PUBLISHED as PUBLISHED_MAPPERS
from .checkpoints.mappers import published_name
from .losses import LossWeights
from .networks.mapper import KINDS
from .ranger import Ranger

GROUPS = ("coarse", "medium", "fine")
OPTIMIZERS = ("adam", "ranger")
PUBLISHED_SIZE = 256  # px: the smallest generators that the published settings were used for


@dataclass(frozen=True)
class MapperPreset:
    """How one mapper is trained.

    `kind`: "levels", "single" or "style" (of style space; `torgb`: its toRGB layers too). `groups` are the layer groups
    of w+ that may move: colours need the fine layers, shapes do without them and then keep colours in place. `psi` is
    the truncation of sampled training faces; `jitter` is the standard deviation of the noise per layer that is added to
    them, in units of the standard deviation of W: inverted photographs have layers that differ, samples have not, and
    the mapper's normalisation over layers sees nothing else. `gain` scales the last layers at the start: below 1,
    training starts next to the unedited face and the loss is smooth there. `front_end`: what CLIP sees of a picture,
    "clip" (as it was trained) or "raw" (StyleCLIP's loss). The rate is for equalised layers, which divide it by 100.
    """

    weights: LossWeights = field(default_factory=lambda: LossWeights(clip=0.4, directional=1.0, l2=0.2, identity=0.1))
    groups: tuple[str, ...] = GROUPS
    steps: int = 300
    batch: int = 12
    lr: float = 3.0
    psi: float = 1.0
    jitter: float = 0.05
    kind: str = "levels"
    torgb: bool = False
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    schedule: str = "cosine"
    warmup: int = 50
    ema: float | None = 0.98
    gain: float = 0.1
    front_end: str = "clip"

    def check(self) -> None:
        """InputError for a name or a number that cannot be trained with."""
        for value, names, what in (
            (self.kind, KINDS, "mapper kind"),
            (self.optimizer, OPTIMIZERS, "optimizer"),
            (self.front_end, ("clip", "raw"), "front end"),
        ):
            if value not in names:
                raise InputError(f"{what} is {value!r}; expected one of {', '.join(names)}")
        if set(self.groups) - set(GROUPS) or not self.groups:
            raise InputError(f"mapper groups {self.groups}: expected one or more of {', '.join(GROUPS)}")
        if min(self.steps, self.batch) < 1 or not self.lr > 0:
            raise InputError(f"steps {self.steps}, batch {self.batch}, lr {self.lr}: expected numbers above 0")

    def make_optimizer(self) -> Any:
        """What `loop.train` makes the optimiser with."""
        if self.optimizer == "ranger":
            return partial(Ranger, betas=self.betas, eps=self.eps)
        return partial(torch.optim.AdamW, betas=self.betas, eps=self.eps, weight_decay=0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what this kind of mapper does not use."""
        settings = asdict(self) | {"groups": list(self.groups), "betas": list(self.betas)}
        settings.pop("groups" if self.kind != "levels" else "torgb")
        if self.kind == "single":
            settings.pop("torgb")
        return settings


PUBLISHED = MapperPreset(
    LossWeights(clip=1.0, l2=0.8, identity=0.1),
    steps=50_000,
    batch=2,
    lr=0.5,
    jitter=0.0,
    optimizer="ranger",
    betas=(0.95, 0.999),
    eps=1e-5,
    schedule="constant",
    warmup=1,
    ema=None,
    gain=1.0,
    front_end="raw",
)
"""StyleCLIP's own settings, for generators of the published size."""

# Settings of the embedded pack: a few hundred steps in place of 50,000, so the rate is higher than the published one
# (the mapper's equalised layers divide it by 100). The directional term keeps other attributes in place; it ignores how
# far an edit goes, so that D_CLIP stays in the sum to drive it home. With D_CLIP and L2 alone, other attributes follow.
PRESETS: dict[str, MapperPreset] = {
    "bob-cut": MapperPreset(),
    "purple-hair": MapperPreset(),
    "glasses": MapperPreset(steps=240),
    "surprised": MapperPreset(steps=240),
}


def preset(name: str) -> MapperPreset:
    """The embedded pack's preset of a prompt, or the default one for a prompt without its own."""
    return PRESETS.get(name, MapperPreset())


def published_preset(name: str) -> MapperPreset:
    """The published settings, with the layer groups of the published mapper that `name` means, if it means one."""
    key = published_name(name)
    return replace(PUBLISHED, groups=PUBLISHED_MAPPERS[key].groups) if key else PUBLISHED


def named_preset(preset_name: str, prompt: str, resolution: int) -> MapperPreset:
    """The preset `preset_name` ("published", "toyfaces", or "auto": by the generator's size) for a prompt's name."""
    if preset_name == "auto":
        preset_name = "published" if resolution >= PUBLISHED_SIZE else "toyfaces"
    makers = {"published": published_preset, "toyfaces": preset}
    if preset_name not in makers:
        raise InputError(f"preset is {preset_name!r}; expected auto, {' or '.join(makers)}")
    return makers[preset_name](prompt)
