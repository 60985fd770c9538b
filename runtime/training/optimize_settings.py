"""Settings of the latent optimisation: the published preset, ours for small packs, and the published schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ...engines.errors import InputError
from .pack import Pack

SPACES = ("w+", "w", "s")
CHANNELS = ("conv", "all")
FRONT_ENDS = ("raw", "clip")
PRECISIONS = ("fp32", "bf16", "fp16")
RETURNED = ("last", "best")
CHOICES = {
    "space": SPACES,
    "channels": CHANNELS,
    "front_end": FRONT_ENDS,
    "precision": PRECISIONS,
    "returned": RETURNED,
}


@dataclass(frozen=True)
class OptimizeSettings:
    """How a latent is optimised. The defaults are the published ones (Patashnik et al. 2021, section 4, and its code).

    Attributes:
        space: "w+", or "s" for style space, as published; "w" moves all layers of w+ by one offset, which stays closer
            to what a generator draws where its w+ has much room beside that.
        channels: in style space, "conv" moves the channels of the convolutions, as published; "all" those of toRGB too.
        steps, lr: Adam's; the rate of a step is `rate(step, steps, lr)`.
        lambda_clip: weight of D_CLIP = 1 - cos(image, text), which equals 1 - logits / 100 where the scale is 100.
        lambda_directional: weight of 1 - cos(change of the image, change of the text) (StyleGAN-NADA); not published.
        lambda_l2: weight of the SUM of squared changes of the latent, over all of its entries.
        lambda_id: weight of 1 - cos(identity, identity of the start); the published notebook has 0.005.
        whiten: descend in coordinates in which the generator's own w has unit variance (`optimize_start.Whitened`), for
            the spaces of w; lambda_l2 then counts in them. False: in w itself, as published.
        warm: random faces whose CLIP scores give a first step towards the text (`optimize_start.first_step`); each face
            begins at the best of a few points along it. 0: at the face itself, as published.
        front_end: how CLIP sees the picture in the loss: "raw" as published (area average alone, neither clamp nor mean
            and std), or "clip" as CLIP was trained.
        templates: embed the text in the pack's templates; False: the text alone, as published.
        precision: "fp32", or the autocast type of the networks. The latent, Adam and the losses stay in float32.
        patience, tolerance: a face whose loss has not fallen by `tolerance` for `patience` steps stops early;
            0 steps: never, as published.
        returned: "last", the latent of the last evaluated step, as published; "best", that of the least loss.
        batch: faces that are optimised at once; of no influence on a face beyond rounding.
    """

    space: str = "w+"
    channels: str = "conv"
    steps: int = 300
    lr: float = 0.1
    lambda_clip: float = 1.0
    lambda_directional: float = 0.0
    lambda_l2: float = 0.008
    lambda_id: float = 0.0
    whiten: bool = False
    warm: int = 0
    front_end: str = "raw"
    templates: bool = False
    precision: str = "fp32"
    patience: int = 0
    tolerance: float = 1e-4
    returned: str = "last"
    batch: int = 4

    def checked(self) -> OptimizeSettings:
        """The settings; InputError names the first that is out of range."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for name in ("steps", "batch"):
            if not _whole(getattr(self, name)) or getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected a whole number from 1")
        if not _whole(self.warm) or not (self.warm == 0 or 20 <= self.warm <= 65536):
            raise InputError(f"warm is {self.warm!r}; expected a whole number of faces from 20 to 65536, or 0 for none")
        if self.whiten and self.space == "s":
            raise InputError("whiten is for the spaces w and w+, not for style space; leave one of the two out")
        if not _whole(self.patience) or self.patience < 0:
            raise InputError(f"patience is {self.patience!r}; expected a whole number of steps, 0 for no early stop")
        for name in ("lr", "lambda_clip", "lambda_directional", "lambda_l2", "lambda_id", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"{name} is {value!r}; expected a finite number from 0")
        if not self.lambda_clip and not self.lambda_directional:
            raise InputError("lambda_clip and lambda_directional are both 0: nothing drives the edit; set one above 0")
        if self.lr == 0:
            raise InputError("lr is 0, which moves nothing; expected a number above 0")
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    def changed(self, changes: Mapping[str, Any]) -> OptimizeSettings:
        """With those of `changes` that are not None; InputError lists the names for an unknown one."""
        known = {field.name for field in fields(self)}
        unknown = sorted(changes.keys() - known)
        if unknown:
            raise InputError(f"no setting {', '.join(unknown)}; settings: {', '.join(sorted(known))}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None}).checked()


PUBLISHED = OptimizeSettings()
FREE = replace(PUBLISHED, lambda_l2=0.0)
"""The published free generation: from the mean face, loss D_CLIP alone."""

# A narrow generator with a small CLIP: under the published weights w+ leaves what the generator draws, and CLIP's score
# rises by colours and backgrounds with little of the target to be seen. One offset for all layers in coordinates of
# unit variance, a first step seen on random faces, the directional term and a text embedded in the pack's templates
# keep the picture a face, and bring the target.
SMALL = OptimizeSettings(
    space="w",
    steps=40,
    lambda_clip=1.0,
    lambda_directional=2.0,
    lambda_l2=0.0001,
    lambda_id=0.1,
    whiten=True,
    warm=512,
    templates=True,
    batch=16,
)

PRESETS: dict[str, OptimizeSettings] = {"published": PUBLISHED, "small": SMALL}


def default_preset(pack: Pack) -> str:
    """ "published" for generators with the published width of w (512), "small" for narrower ones."""
    return "published" if pack.layout.config.w_dim >= 512 else "small"


def settings_for(pack: Pack, preset: str | None = None, free: bool = False, **changes: Any) -> OptimizeSettings:
    """The settings of a preset (None: the pack's default) with `changes`.

    free: generation from a text; nothing is to be kept of the start, so that the loss is D_CLIP alone unless `changes`
    say otherwise. Raises InputError for an unknown preset or setting.
    """
    name = default_preset(pack) if preset is None else preset
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}; presets: {', '.join(PRESETS)}")
    settings = PRESETS[name]
    if free:
        settings = replace(settings, lambda_clip=1.0, lambda_directional=0.0, lambda_l2=0.0, lambda_id=0.0)
    if changes.get("space") == "s" and changes.get("whiten") is None:  # which the preset may have for w
        settings = replace(settings, whiten=False)
    return settings.changed(changes)


def rate(step: int, steps: int, lr: float) -> float:
    """The published learning rate of step 0 ... steps - 1, with t = step / steps:

    lr * (0.5 - 0.5 cos(pi * min(1, (1 - t) / 0.25))) * min(1, t / 0.05): up in the first 5%, so that the first step
    moves nothing, down in the last 25%.
    """
    t = step / steps
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / 0.25))
    return lr * down * min(1.0, t / 0.05)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
