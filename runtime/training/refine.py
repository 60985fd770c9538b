"""Refines inverted photos by optimisation: w+ moves from what the encoder found towards the pixels of the photo.

The encoder's w edits well because it stays where the mapping puts faces; a free optimisation finds any picture and
edits badly (Tov et al. 2021, the trade-off of distortion and editability). So going away from the encoder's w costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ...engines.errors import InputError, PackError
from .. import images
from .inverter_losses import edge_loss, psnr_db
from .loop import device
from .losses import identity_loss
from .networks.clip import area_resize
from .networks.stylegan2 import Generator
from .pack import Pack, load_pack
from .pictures import pictures, tensor_of

SPREAD_SAMPLES, SPREAD_SEED = 1000, 17
SAME_DB = 32.0  # engines in float16 draw within 40 dB of the pack, another generator far below this


@dataclass(frozen=True)
class RefineSettings:
    """How photos are refined.

    `lr` and the distance are in units of the standard deviation of W. Weights: `edges` of the gradients at three sizes
    (lines in their places), `identity` where the pack has the network, `distance` of the mean squared distance to the
    encoder's w. At those of the default a photo moves by 0.1 to 0.2 standard deviations.
    """

    steps: int = 100
    lr: float = 0.05
    pixels: float = 1.0
    edges: float = 0.5
    identity: float = 0.1
    distance: float = 0.02


@dataclass(frozen=True)
class Refined:
    """What came of it. w: [N,L,W] float32 on the CPU; psnr_db_before, psnr_db: [N] at the photo's size.

    distance: [N], root mean square of what w moved, in standard deviations of W; 0 where no step improved the picture.
    """

    w: Tensor
    psnr_db_before: Tensor
    psnr_db: Tensor
    distance: Tensor


def refine(pack: Pack, photo: Tensor, w: Tensor, steps: int = 100, settings: RefineSettings | None = None) -> Tensor:
    """w+ [N,L,W] closer to photos [N,3,I,I'] in -1..1 (the inverter's pictures) than the encoder's w [N,L,W].

    Raises InputError, PackError; see `refined`.
    """
    return refined(pack, photo, w, replace(settings or RefineSettings(), steps=steps)).w


def refined(pack: Pack, photo: Tensor, w: Tensor, settings: RefineSettings | None = None) -> Refined:
    """The same with what it was worth. A photo whose picture did not come closer keeps the encoder's w.

    Raises:
        InputError: shapes that do not fit the pack's generator or each other; a value or a loss that is not finite.
        PackError: a pack without a generator.
    """
    settings = settings or RefineSettings()
    check_inputs(pack, photo, w)
    home = device()
    generator = pack.generator.to(home)
    photo, w = photo.to(home, torch.float32), w.to(home, torch.float32)
    spread = w_spread(generator)
    identify = pack.identity.to(home) if settings.identity and pack.has("identity") else None
    found = _optimise(generator, identify, photo, w, spread, settings)
    with torch.no_grad():
        before, after = (psnr_db(draw(generator, x, photo), photo) for x in (w, found))
        better = after > before
        found = torch.where(better[:, None, None], found, w)
        distance = ((found - w) / spread).square().mean((1, 2)).sqrt()
    return Refined(found.cpu(), before.cpu(), torch.maximum(after, before).cpu(), distance.cpu())


def check_inputs(pack: Pack, photo: Tensor, w: Tensor) -> None:
    """InputError unless photo [N,3,I,I'] and w [N,L,W] are finite, of one N, and w fits the pack's generator."""
    layout = pack.layout
    rows = (layout.num_ws, layout.config.w_dim)
    if w.ndim != 3 or tuple(w.shape[1:]) != rows:
        raise InputError(f"w is {list(w.shape)}; expected [N, {rows[0]}, {rows[1]}] for the pack {pack.name!r}")
    if photo.ndim != 4 or photo.shape[1] != 3 or len(photo) != len(w):
        raise InputError(f"photo is {list(photo.shape)}; expected [{len(w)}, 3, I, I] in -1..1, one for each w")
    if not (torch.isfinite(photo).all() and torch.isfinite(w).all()):
        raise InputError("photo or w holds values that are not finite")


@torch.no_grad()
def w_spread(generator: Generator) -> Tensor:
    """The standard deviation of W, root mean square over its width; a scalar, the same on every machine."""
    z = torch.randn(SPREAD_SAMPLES, generator.config.z_dim, generator=torch.Generator().manual_seed(SPREAD_SEED))
    w = generator.mapping(z.to(generator.mapping_network.w_avg))
    return w.var(0).mean().sqrt().clamp_min(1e-6)


def draw(generator: Generator, w: Tensor, photo: Tensor) -> Tensor:
    """Pictures of w [N,L,W] as the photos [N,3,H,W'] show them: by area averages, the middle where H and W' differ."""
    image, (height, width) = generator(w), photo.shape[-2:]
    side = max(height, width)
    if image.shape[-1] != side:
        image = area_resize(image, side)
    top, left = (side - height) // 2, (side - width) // 2
    return image[..., top : top + height, left : left + width]


def _optimise(
    generator: Generator, identify: nn.Module | None, photo: Tensor, w: Tensor, spread: Tensor, settings: RefineSettings
) -> Tensor:
    """Adam on w+ in units of its spread, with a short warm-up and a linear end."""
    offset = torch.zeros_like(w, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=settings.lr, betas=(0.9, 0.99))
    wanted = None if identify is None else identify(photo)
    with tqdm(total=settings.steps, desc="refine", unit="step", delay=2.0, mininterval=1.0) as bar:
        for step in range(settings.steps):
            optimizer.param_groups[0]["lr"] = settings.lr * _rate(step, settings.steps)
            image = draw(generator, w + spread * offset, photo)
            loss = settings.pixels * functional.mse_loss(image, photo)
            loss = loss + settings.edges * edge_loss(image, photo) + settings.distance * offset.square().mean()
            if identify is not None and wanted is not None:
                loss = loss + settings.identity * identity_loss(identify(image), wanted)
            if not torch.isfinite(loss):
                raise InputError(f"refining: the loss is {float(loss.detach())} at step {step}; take a lower rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.update()
    return (w + spread * offset).detach()


def _rate(step: int, steps: int) -> float:
    """The share of the rate at a step: up over 5 steps, down over the last 30%."""
    return min(1.0, (step + 1) / 5, (steps - step) / max(1.0, 0.3 * steps))


# For `styleclip-rt invert`, which runs on a bundle --------------------------------------------------------------------


def refine_photo(
    pack: str | None,
    made_from: Mapping[str, Any],
    crop: Image.Image,
    w: NDArray[np.float32],
    drawn: Image.Image,
    steps: int,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """w [1,L,W] of a crop refined with the pack that a bundle was made from, and what to report.

    Args:
        pack: name or folder; None: the one of the bundle's name.
        made_from: the bundle's field `pack`.
        crop: the inverter's picture. w: what the bundle's encoder found. drawn: what the bundle draws of it.
    Raises:
        PackError: no such pack. InputError: it is not the bundle's.
    """
    opened = pack_of_bundle(pack, made_from)
    notes = check_same(opened, made_from, w, drawn)
    found = refined(opened, tensor_of([crop]), torch.from_numpy(w), RefineSettings(steps=steps))
    record = {"steps": steps, "pack": str(opened.path), "distance": round(float(found.distance[0]), 4), "notes": notes}
    return found.w.numpy(), record


def pack_of_bundle(pack: str | None, made_from: Mapping[str, Any]) -> Pack:
    """The pack that the user named, else the one whose name the bundle records."""
    name = pack or str(made_from.get("name", ""))
    try:
        return load_pack(name)
    except PackError as error:
        if pack is not None:
            raise
        raise PackError(f"refining needs the pack that the bundle was made from: {error}; name it by --pack") from None


def check_same(pack: Pack, made_from: Mapping[str, Any], w: NDArray[np.float32], drawn: Image.Image) -> list[str]:
    """Notes on a pack that is not byte for byte the bundle's; InputError for one that draws other pictures.

    A pack changes whenever something is trained into it, and its generator may still be the one of the bundle.
    """
    if pack.sha256 == made_from.get("sha256"):
        return []
    rows = (pack.layout.num_ws, pack.layout.config.w_dim)
    apart = 0.0
    if tuple(w.shape[1:]) == rows and drawn.width == pack.layout.config.resolution:
        with torch.no_grad():
            image = pack.generator.to(device())(torch.from_numpy(w).to(device()))
        apart = images.psnr_db(pictures(image)[0], drawn)
    if apart < SAME_DB:
        raise InputError(
            f"the pack {str(pack.path)!r} is not the one that the bundle was made from ({made_from.get('name')!r}, "
            f"SHA-256 {str(made_from.get('sha256'))[:12]}): it draws another picture of the same w; give that by --pack"
        )
    return [f"the pack {pack.name!r} has changed since the export; its generator still draws what the bundle draws"]
