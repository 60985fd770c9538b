"""Which layers of a generator run in float16: ranges measured, tensors scaled, islands of float32 where that fails.

`settle` is the whole decision. It compares float16, rounded at every tensor, with float32 on sampled faces and on edits
at |alpha| = 10; while a limit is missed, the layer with the largest error of its own becomes an island.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..engines.errors import InputError
from ..engines.gate import MIN_PSNR_DB
from ..runtime.training.networks.stylegan2 import Generator, Layer
from .precision_layers import TypedSynthesis, key, scale_for
from .ranges import Samples, batches, measure

PRECISIONS = ("fp32", "fp16", "auto")
MARGIN_DB = 3.0
"""Islands are added until the samples pass by this much, so that other faces pass as well."""
HALF_MAX = 65504.0
HEADROOM = 8.0
"""Measured values of float16 tensors stay under HALF_MAX / HEADROOM: what was sampled is not all there is."""


@dataclass(frozen=True)
class Choice:
    """A generator's float16 form: islands in the order of the layers, scales by tensor, and what was measured.

    psnr_db: {"plain": dB, "edited": dB} of the worst sample. ranges: as `ranges.measure`.
    """

    islands: tuple[str, ...]
    scales: dict[str, float]
    ranges: dict[str, dict[str, float]]
    psnr_db: dict[str, float] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        """Whether the samples are inside the limits."""
        return all(self.psnr_db[name] >= limit for name, limit in MIN_PSNR_DB.items())

    def as_json(self) -> dict[str, Any]:
        """The `precision` entry of a graph; figures with four digits."""
        ranges = {layer: {k: digits(v) for k, v in row.items()} for layer, row in self.ranges.items()}
        scaled = {name: scale for name, scale in self.scales.items() if scale != 1.0}
        return {"type": "fp16", "islands": list(self.islands), "scales": scaled, "ranges": ranges}


def checked_precision(precision: str) -> str:
    """`precision`, or InputError that lists what is possible."""
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    return precision


def settle(generator: Generator, samples: Samples, form: str = "fir") -> Choice:
    """Scales and islands with which float16 passes its limits on `samples`; at the worst every layer is an island."""
    ranges = measure(generator, samples.all(), form)
    scales = {name: scale_for(row["output"]) for name, row in ranges.items() if "output" in row}
    islands = out_of_range(generator, ranges, scales)
    order = [layer.name for layer in generator.style_layers]
    queue, step = None, 1
    while True:
        psnr_db = accuracy(generator, samples, TypedSynthesis(generator, form, islands, scales))
        choice = Choice(tuple(name for name in order if name in islands), scales, ranges, psnr_db)
        enough = all(psnr_db[name] >= limit + MARGIN_DB for name, limit in MIN_PSNR_DB.items())
        if enough or len(islands) == len(order):
            return choice
        queue = queue or worst_first(generator, samples, TypedSynthesis(generator, form, (), scales))
        islands |= set([name for name in queue if name not in islands][:step])
        step *= 2  # at most log2(layers) rounds; a layer too many costs little, a round costs minutes at 1024 px


def out_of_range(generator: Generator, ranges: dict[str, dict[str, float]], scales: dict[str, float]) -> set[str]:
    """Layers with a float16 tensor that the scales do not bring under HALF_MAX / HEADROOM."""
    islands, scale = set(), scales["const"]
    for layer in generator.style_layers:
        row = ranges[layer.name]
        held = [row[quantity] / scale for quantity in ("product", "sum") if quantity in row]
        if "output" in row:
            held += [row["output"] / scales[layer.name], row["demodulation"] * scale / scales[layer.name]]
        if not all(value <= HALF_MAX / HEADROOM for value in held):  # NaN is out of range, too
            islands.add(layer.name)
        scale = scales.get(layer.name, scale)
    return islands


@torch.no_grad()
def accuracy(generator: Generator, samples: Samples, typed: TypedSynthesis) -> dict[str, float]:
    """{"plain", "edited"}: PSNR in dB of the worst picture of `typed` against the generator in float32."""
    figures = {}
    for name, styles in (("plain", samples.plain), ("edited", samples.edited)):
        parts = batches(generator, styles)
        figures[name] = min(min(picture_psnr(typed(s), generator.synthesize(s))) for s in parts)
    return figures


def picture_psnr(image: Tensor, reference: Tensor) -> list[float]:
    """PSNR in dB of every picture [N,3,R,R], peak to peak 2, of what is shown: both clipped to -1..1.

    A picture that is not finite has -inf; equal ones 200.
    """
    shown, expected = image.clamp(-1, 1).double(), reference.clamp(-1, 1).double()
    error = (shown - expected).square().mean((1, 2, 3))
    error = torch.where(torch.isfinite(image).flatten(1).all(1), error, math.inf)
    return [200.0 if e == 0 else min(200.0, 10 * math.log10(4 / e)) if e < math.inf else -math.inf for e in error]


@torch.no_grad()
def worst_first(generator: Generator, samples: Samples, typed: TypedSynthesis) -> list[str]:
    """Layer names by the error that float16 makes in them alone, largest first.

    Every layer reads the exact input of the float32 network; the error is relative to the layer's own output, so a
    fault is seen where it arises and not where it ends up.
    """
    exact = TypedSynthesis(generator)
    errors: dict[str, float] = dict.fromkeys(typed.names, 0.0)
    compare = local_errors(exact, typed, errors)
    for s in batches(generator, samples.all()):
        compare(s)
    return sorted(errors, key=lambda name: -errors[name])


def local_errors(exact: TypedSynthesis, typed: TypedSynthesis, errors: dict[str, float]) -> Callable[[Tensor], None]:
    """A function of s that raises `errors` by layer to max over samples of rms(difference) / rms(output)."""

    def compare(s: Tensor) -> None:
        plain, unit = exact.styles(s), typed.styles(s)
        states, _ = exact.states(s)
        x, source = states[typed.names[0]][0], "const"
        for name in typed.names:
            ours, theirs = typed.layers[key(name)], exact.layers[key(name)]
            expected = theirs(x, *plain[name])
            scale = typed.scale(name) if isinstance(ours.layer, Layer) else 1.0
            got = ours(x / typed.scale(source), *unit[name]).float() * scale
            error = rms(got - expected) / rms(expected).clamp(min=1e-12)
            found = float(torch.nan_to_num(error, nan=math.inf).amax())
            errors[name] = max(errors[name], found)
            if isinstance(ours.layer, Layer):
                x, source = expected, name

    return compare


def rms(x: Tensor) -> Tensor:
    """Root mean square of every sample, [N]."""
    return x.double().square().flatten(1).mean(1).sqrt()


def digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
