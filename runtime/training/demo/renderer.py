"""Draws faces from factors: signed distances, anti-aliased by one pixel, composed from back to front.

Coordinates are x (right) and y (down), the head about one unit wide; the picture shows x in -0.88..0.88 and y in
-0.94..0.82. Lengths and radii are in the same unit. Everything is a batch: parameters have shape [n, 1, 1], coverage
masks [n, H, W] in 0..1, the canvas [n, 3, H, W] in 0..1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .factors import Factors, take

ZOOM, CENTRE_Y = 0.88, -0.06
MOUTH_Y, EYE_Y, BROW_Y, NOSE_Y = 0.47, 0.02, -0.185, 0.26


class _Sheet:
    """A batch of canvases with the parameters of the faces drawn on them."""

    def __init__(self, f: Factors, size: int) -> None:
        self.f = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in f.items()}
        axis = (torch.arange(size) + 0.5) / size * 2 - 1
        self.y, self.x = axis[None, :, None] * ZOOM + CENTRE_Y, axis[None, None, :] * ZOOM
        self.soft = 2.2 * ZOOM / size
        n = len(self.f["age"])
        self.canvas = torch.zeros(n, 3, size, size)

    def __getitem__(self, name: str) -> Tensor:
        return self.f[name][:, None, None]

    def color(self, name: str) -> Tensor:
        return self.f[name][:, :, None, None]

    def cover(self, distance: Tensor) -> Tensor:
        """Coverage 0..1 of a signed distance (negative inside)."""
        return (0.5 - distance / self.soft).clamp(0, 1)

    def paint(self, color: Tensor, alpha: Tensor) -> None:
        self.canvas = torch.lerp(self.canvas, color.expand_as(self.canvas), alpha.unsqueeze(1).expand_as(self.canvas))

    def ellipse(self, cx: Tensor | float, cy: Tensor | float, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Signed distance of an axis-aligned ellipse, first order (exact on the outline)."""
        dx, dy = self.x - cx, self.y - cy
        k0 = torch.sqrt((dx / a) ** 2 + (dy / b) ** 2 + 1e-9)
        k1 = torch.sqrt((dx / (a * a)) ** 2 + (dy / (b * b)) ** 2 + 1e-9)
        return k0 * (k0 - 1) / k1

    def box(self, cx: Tensor | float, cy: Tensor | float, a: Tensor | float, b: Tensor | float, r: float) -> Tensor:
        """Signed distance of a box with half sides a, b and corner radius r."""
        qx, qy = (self.x - cx).abs() - a + r, (self.y - cy).abs() - b + r
        outside = torch.sqrt(qx.clamp_min(0) ** 2 + qy.clamp_min(0) ** 2 + 1e-9)
        return outside + torch.maximum(qx, qy).clamp_max(0) - r

    def segment(self, ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor, radius: Tensor | float) -> Tensor:
        """Signed distance of a line from a to b, drawn with a round pen."""
        px, py, dx, dy = self.x - ax, self.y - ay, bx - ax, by - ay
        t = ((px * dx + py * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
        return torch.sqrt((px - t * dx) ** 2 + (py - t * dy) ** 2 + 1e-9) - radius


def _rgb(*value: float) -> Tensor:
    return torch.tensor(value)[None, :, None, None]


def _geometry(s: _Sheet) -> dict[str, Tensor]:
    return {
        "dx": 0.05 * s["gaze"],
        "fw": 0.47 + 0.045 * s["face_width"],
        "fh": 0.60 + 0.045 * s["face_height"],
        "ex": 0.215 + 0.022 * s["eye_spacing"],
        "ey": EYE_Y + 0.02 * s["eye_height"],
        "es": 1.0 + 0.16 * s["eye_size"],
        "nw": 0.085 + 0.025 * s["nose_width"],
        "nl": NOSE_Y + 0.03 * s["nose_length"],
        "mw": 0.195 + 0.03 * s["mouth_width"],
        "my": MOUTH_Y + 0.02 * s["mouth_height"],
        "bt": 0.030 + 0.011 * s["brow_thickness"],
    }


def _background(s: _Sheet) -> None:
    s.canvas = (s.color("background_rgb") * (1.04 - 0.14 * s.y.unsqueeze(1))).expand_as(s.canvas).clamp(0, 1)


def _hair_color(s: _Sheet) -> Tensor:
    """Hair colour with a soft sheen on the crown and darker tips."""
    sheen = 1.0 + 0.22 * torch.exp(-(((s.y + 0.52) / 0.14) ** 2) - (s.x / 0.45) ** 2) - 0.14 * (s.y + 0.2)
    return (s.color("hair_rgb") * sheen.unsqueeze(1) + 0.03).clamp(0, 1)


def _styles(s: _Sheet) -> dict[str, Tensor]:
    names = ("bald", "short", "bob", "long", "afro", "mohawk")
    return {name: s.f["hair_style"][:, i, None, None] for i, name in enumerate(names)}


def _below_hat(s: _Sheet) -> Tensor:
    """1 everywhere, but 0 above the brim on a head with a hat."""
    return 1 - s["hat"] * s.cover(s.y + 0.40)


def _back_hair(s: _Sheet, g: dict[str, Tensor]) -> None:
    v, style = 0.05 * (s["hair_volume"] * 2 - 1), _styles(s)
    bob = s.cover(s.box(0.0, -0.06, g["fw"] + 0.15 + v, 0.62 + 0 * v, 0.28))
    long = s.cover(s.box(0.0, 0.30, g["fw"] + 0.16 + v, 1.02 + 0 * v, 0.34))
    afro = s.cover(s.ellipse(0.0, -0.22, 0.80 + v, 0.74 + v))
    alpha = (style["bob"] * bob + style["long"] * long + style["afro"] * afro) * _below_hat(s)
    s.paint(_hair_color(s) * 0.78, alpha)


def _bust(s: _Sheet, g: dict[str, Tensor]) -> None:
    s.paint(s.color("skin_rgb") * 0.80, s.cover(s.box(0.0, 0.80, 0.19 + 0 * g["fw"], 0.30, 0.06)))
    shade = 1.0 - 0.16 * s.x.abs().unsqueeze(1)
    s.paint(s.color("shirt_rgb") * shade, s.cover(s.ellipse(0.0, 1.36, 0.92, 0.52)))
    s.paint(s.color("skin_rgb") * 0.86, s.cover(s.ellipse(0.0, 0.84, 0.20, 0.13)))


def _head(s: _Sheet, g: dict[str, Tensor]) -> Tensor:
    skin = s.color("skin_rgb")
    for side in (-1, 1):
        s.paint(skin * 0.88, s.cover(s.ellipse(side * (g["fw"] + 0.005), 0.09, 0.075, 0.125)))
    distance = s.ellipse(0.0, 0.12, g["fw"], g["fh"])
    dx = (s.x - g["dx"]) / g["fw"]
    shade = 1.05 - 0.17 * dx.abs() ** 2.2 - 0.09 * ((s.y - 0.1) / g["fh"]).clamp_min(0) ** 2
    s.paint((skin * shade.unsqueeze(1)).clamp(0, 1), s.cover(distance))
    blush = torch.exp(-((((s.x - g["dx"]).abs() - 0.29) / 0.11) ** 2) - ((s.y - 0.25) / 0.09) ** 2)
    s.paint(_rgb(0.90, 0.38, 0.36), 0.20 * blush * s.cover(distance))
    return distance


def _wrinkles(s: _Sheet, g: dict[str, Tensor]) -> None:
    dx, ink = g["dx"], torch.zeros_like(s.canvas[:, 0])
    for side in (-1, 1):
        fold = s.segment(dx + side * 0.125, g["nl"] + 0.01, dx + side * 0.245, g["my"] - 0.02, 0.016)
        bag = s.segment(
            dx + side * (g["ex"] - 0.09), g["ey"] + 0.125, dx + side * (g["ex"] + 0.09), g["ey"] + 0.125, 0.014
        )
        crow = s.segment(
            dx + side * (g["ex"] + 0.155), g["ey"] - 0.01, dx + side * (g["ex"] + 0.215), g["ey"] - 0.05, 0.013
        )
        for line in (fold, bag, crow):
            ink = torch.maximum(ink, s.cover(line))
    for y in (-0.27, -0.34):
        ink = torch.maximum(ink, s.cover(s.segment(dx - 0.2, dx * 0 + y, dx + 0.2, dx * 0 + y, 0.013)))
    s.paint(s.color("skin_rgb") * 0.52, 0.85 * ink * s["age"])


def _beard(s: _Sheet, g: dict[str, Tensor], face: Tensor) -> None:
    length = 0.10 * s["beard_length"]
    jaw = torch.minimum(face - 0.02, s.ellipse(0.0, 0.42, g["fw"] * 0.80, 0.34 + length))
    clear = s.ellipse(g["dx"], 0.06, g["fw"] * 0.80, 0.335)
    beard = torch.maximum(torch.maximum(jaw, -clear), -s.y)  # below the ears: the crown is no beard
    moustache = s.ellipse(g["dx"], g["my"] - 0.085, g["mw"] * 1.05, 0.05)
    alpha = torch.maximum(s.cover(beard), s.cover(moustache))
    s.paint((s.color("hair_rgb") * 0.72 + 0.01).clamp(0, 1), s["beard"] * alpha)


def _mouth(s: _Sheet, g: dict[str, Tensor]) -> None:
    pose = s.f["pose"][:, :, None, None]
    curve, opening, teeth = pose[:, 0], pose[:, 1], pose[:, 2]
    width = g["mw"] * (1 + 0.22 * curve.clamp_min(0) - 0.38 * (opening - 0.6).clamp_min(0) * 2)
    u = ((s.x - g["dx"]) / width).clamp(-1.2, 1.2)
    profile = (1 - u * u).clamp_min(0)
    middle = g["my"] - 0.085 * curve * (u * u - 0.45)
    gap = 0.115 * opening * profile
    lip = (0.030 + 0.012 * s["lip_fullness"] + 0.016 * s["lipstick"]) * profile.sqrt()
    ends = (u.abs() - 1) * width
    outer = torch.maximum((s.y - middle).abs() - gap - lip, ends)
    inner = torch.maximum((s.y - middle).abs() - gap, ends)
    s.paint(s.color("lip_rgb"), s.cover(outer))
    s.paint(_rgb(0.20, 0.03, 0.05), s.cover(inner) * (opening > 0.05))
    line = torch.maximum((s.y - middle).abs() - 0.009, ends + 0.02)
    s.paint(_rgb(0.25, 0.06, 0.07), 0.8 * s.cover(line) * (opening <= 0.3))
    smile = torch.maximum(inner + 0.008, s.y - middle - 0.6 * gap)
    s.paint(_rgb(0.97, 0.96, 0.94), s.cover(smile) * (teeth > 0.5))


def _nose(s: _Sheet, g: dict[str, Tensor]) -> None:
    dark, dx = s.color("skin_rgb") * 0.66, g["dx"]
    s.paint(
        dark,
        0.55 * s.cover(s.segment(dx * 1.5 + 0.035, dx * 0 + 0.06, dx * 1.5 + g["nw"] * 0.8, g["nl"] - 0.02, 0.014)),
    )
    s.paint(dark, 0.9 * s.cover(s.ellipse(dx * 1.5, g["nl"], g["nw"], 0.026)))
    s.paint(
        (s.color("skin_rgb") * 1.10).clamp(0, 1),
        0.8 * s.cover(s.ellipse(dx * 1.5, g["nl"] - 0.035, g["nw"] * 0.72, 0.034)),
    )


def _eyes(s: _Sheet, g: dict[str, Tensor]) -> None:
    opening = s.f["pose"][:, 5, None, None]
    a, b = 0.122 * g["es"], 0.078 * g["es"] * (1 + 0.55 * opening)
    for side in (-1, 1):
        cx = g["dx"] + side * g["ex"]
        eye = s.ellipse(cx, g["ey"], a, b)
        s.paint(_rgb(0.10, 0.06, 0.06), s.cover(torch.maximum(eye - 0.028, s.y - g["ey"])))
        s.paint(_rgb(0.97, 0.97, 0.98), s.cover(eye))
        inside = s.cover(eye)
        look = cx + 0.35 * g["dx"]
        s.paint(s.color("eye_rgb"), inside * s.cover(s.ellipse(look, g["ey"], 0.066, 0.066)))
        s.paint(_rgb(0.03, 0.03, 0.04), inside * s.cover(s.ellipse(look, g["ey"], 0.034, 0.034)))
        s.paint(_rgb(1.0, 1.0, 1.0), 0.9 * inside * s.cover(s.ellipse(look + 0.026, g["ey"] - 0.026, 0.016, 0.016)))


def _brows(s: _Sheet, g: dict[str, Tensor]) -> None:
    raised, slant = s.f["pose"][:, 3, None, None], s.f["pose"][:, 4, None, None]
    y = BROW_Y + 0.02 * s["eye_height"] - 0.075 * raised - 0.02 * (g["es"] - 1)
    color = s.color("hair_rgb") * 0.62
    for side in (-1, 1):
        inner, outer = g["dx"] + side * (g["ex"] - 0.115), g["dx"] + side * (g["ex"] + 0.125)
        distance = s.segment(inner, y + 0.085 * slant, outer, y - 0.045 * slant + 0.01, g["bt"])
        s.paint(color, s.cover(distance))


def _front_hair(s: _Sheet, g: dict[str, Tensor]) -> None:
    v, style = 0.04 * (s["hair_volume"] * 2 - 1), _styles(s)
    dome = s.ellipse(0.0, 0.06, g["fw"] + 0.075 + v, g["fh"] + 0.07 + v)
    opening = s.ellipse(0.0, 0.30, g["fw"] * 0.90, 0.63)
    cap = torch.maximum(dome, -opening)
    short = torch.maximum(cap, s.y - 0.02)
    curtain = torch.maximum(
        s.box(0.0, -0.06, g["fw"] + 0.15 + v, 0.62, 0.28), -s.box(0.0, 0.49, g["fw"] * 0.80, 0.68, 0.04)
    )
    long = torch.maximum(s.box(0.0, 0.30, g["fw"] + 0.16 + v, 1.02, 0.34), -s.ellipse(0.0, 0.52, g["fw"] * 0.86, 0.88))
    afro = torch.maximum(s.ellipse(0.0, -0.22, 0.80 + v, 0.74 + v), -s.ellipse(0.0, 0.34, g["fw"] * 0.97, 0.66))
    mohawk = s.ellipse(0.0, -0.60, 0.155 + v, 0.37 + v)
    color, visible = _hair_color(s), _below_hat(s)
    shaved = s.cover(torch.maximum(s.ellipse(0.0, 0.12, g["fw"], g["fh"]), -s.ellipse(0.0, 0.36, g["fw"] * 1.02, 0.68)))
    s.paint(color * 0.8, 0.35 * shaved * style["mohawk"])
    parts = {"short": short, "bob": curtain, "long": long, "afro": afro, "mohawk": mohawk}
    alpha = torch.zeros_like(s.canvas[:, 0])
    for name, distance in parts.items():
        alpha = alpha + style[name] * s.cover(distance)
    s.paint(color, alpha * visible)


def _glasses(s: _Sheet, g: dict[str, Tensor]) -> None:
    ink = torch.zeros_like(s.canvas[:, 0])
    round_ = s["frame_shape"]
    for side in (-1, 1):
        cx = g["dx"] + side * (0.225 + 0 * g["ex"])
        lens = torch.lerp(s.box(cx, EYE_Y + 0.02, 0.185, 0.135, 0.05), s.ellipse(cx, EYE_Y + 0.02, 0.18, 0.155), round_)
        s.paint(_rgb(0.85, 0.93, 1.0), 0.14 * s["glasses"] * s.cover(lens))
        ink = torch.maximum(ink, s.cover(lens.abs() - 0.024))
        start = g["dx"] + side * 0.40
        ink = torch.maximum(
            ink, s.cover(s.segment(start, EYE_Y + 0 * start, side * (g["fw"] + 0.01), EYE_Y + 0 * start, 0.02))
        )
    ink = torch.maximum(
        ink, s.cover(s.segment(g["dx"] - 0.05, g["dx"] * 0 + EYE_Y, g["dx"] + 0.05, g["dx"] * 0 + EYE_Y, 0.02))
    )
    s.paint(s.color("frame_rgb"), ink * s["glasses"])


def _hat(s: _Sheet, g: dict[str, Tensor]) -> None:
    height = 0.06 * (s["hat_height"] * 2 - 1)
    top = -0.80 - height
    crown = s.box(0.0, (top - 0.30) / 2, g["fw"] + 0.02, (-0.30 - top) / 2, 0.14)
    crown = torch.maximum(crown, s.y + 0.36)
    color = s.color("hat_rgb")
    shade = 1.08 - 0.25 * s.x.abs().unsqueeze(1)
    s.paint(color * shade, s["hat"] * s.cover(crown))
    band = torch.maximum(crown, -(s.y + 0.50))
    s.paint(color * 0.45, s["hat"] * s.cover(band))
    s.paint((color * 1.05).clamp(0, 1), s["hat"] * s.cover(s.box(0.0, -0.37, g["fw"] + 0.24, 0.062, 0.06)))


def _draw(f: Factors, size: int) -> Tensor:
    s = _Sheet(f, size)
    g = _geometry(s)
    _background(s)
    _back_hair(s, g)
    _bust(s, g)
    face = _head(s, g)
    _beard(s, g, face)
    _wrinkles(s, g)
    _nose(s, g)
    _mouth(s, g)
    _eyes(s, g)
    _brows(s, g)
    _front_hair(s, g)
    _glasses(s, g)
    _hat(s, g)
    return s.canvas


def render(f: Factors, size: int = 64, chunk: int = 64) -> NDArray[np.uint8]:
    """Pictures of the faces: uint8 [n, size, size, 3], sRGB, deterministic."""
    n = len(f["age"])
    out = np.empty((n, size, size, 3), np.uint8)
    with torch.no_grad():
        for start in range(0, n, chunk):
            part = slice(start, min(start + chunk, n))
            image = _draw(take(f, part), size).clamp(0, 1)
            out[part] = (image * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return out
