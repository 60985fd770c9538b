"""Export forms of the 2x up-sampling convolution (StyleGAN2, Karras et al. 2020): one function, four ways.

In one dimension, with x the input, W the 3 taps and f the 4 taps of the low-pass filter (sum 2):

    t[j] = sum_i x[i] W[j - 2i],    y[m] = sum_q f[q] t[m + q - 1],    m = 0 .. 2r - 1

| form         | how                                                           | multiply-adds per output pixel    |
|--------------|---------------------------------------------------------------|-----------------------------------|
| `fir`        | transposed 3x3, then a depthwise 4x4 filter                   | 9/4 Ci Co + 16 Co                 |
| `separable`  | transposed 3x3, then depthwise 1x4 and 4x1                    | 9/4 Ci Co + 8 Co                  |
| `transposed` | W and f folded: one transposed 6x6                            | 9 Ci Co                           |
| `polyphase`  | W and f folded: a 3x3 with 4 Co outputs, then depth to space  | 9 Ci Co                           |

Folding: y[m] = sum_i x[i] K[m - 2i] with K[n] = sum_q f[q] W[n + q - 1], six taps, n = -2 .. 3. Output 2a + p reads the
inputs a + e, e = -1, 0, 1, through K[p - 2e]: three taps for each of the two phases, four 3x3 kernels in the plane.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.errors import InputError
from ..runtime.training.networks.stylegan2 import fir_kernel

FORMS = ("fir", "separable", "transposed", "polyphase")
LINE = (0.25, 0.75, 0.75, 0.25)
"""The taps f: [1, 3, 3, 1] / 8, times 2 for the zeros that up-sampling inserts. Exact in float16."""


def convolve(function, x: Tensor, weight: Tensor, **options) -> Tensor:  # type: ignore[no-untyped-def]
    """A convolution of `torch.nn.functional`; float16 on the CPU is summed in float32 and rounded once, as GPUs do it.

    PyTorch's own float16 convolution on a CPU is a hundred times slower; under export the plain call is recorded.
    """
    if x.dtype == torch.float16 and x.device.type == "cpu" and not torch.compiler.is_exporting():
        return function(x.float(), weight.float(), **options).to(torch.float16)
    return function(x, weight, **options)


def six_taps(weight: Tensor) -> Tensor:
    """weight [Co,Ci,3,3] and the filter folded into K [Co,Ci,6,6], taps n = -2 .. 3 in both directions."""
    outputs, inputs = weight.shape[:2]
    planes = weight.reshape(outputs * inputs, 1, 3, 3)
    # The full convolution of W with f; f is symmetric, so correlation and convolution agree.
    folded = F.conv2d(planes, (fir_kernel() * 4)[None, None].to(weight), padding=3)
    return folded.reshape(outputs, inputs, 6, 6)


def phases(taps: Tensor) -> Tensor:
    """K [Co,Ci,6,6] -> the kernel [4 Co,Ci,3,3] whose output, depth to space, is the up-sampled map."""
    order = [[4, 2, 0], [5, 3, 1]]  # K[p - 2e] for e = -1, 0, 1; the tap n lies at n + 2
    parts = [taps[:, :, order[p]][:, :, :, order[q]] for p in (0, 1) for q in (0, 1)]
    return torch.stack(parts, 1).flatten(0, 1)


class UpConvolution(nn.Module):
    """x [N,Ci,r,r] -> [N,Co,2r,2r] in one of FORMS, in the dtype of `weight` [Co,Ci,3,3]."""

    weight: Tensor
    fir: Tensor

    def __init__(self, weight: Tensor, form: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        checked_form(form)
        self.form, outputs = form, weight.shape[0]
        if form == "polyphase":
            kernel, fir = phases(six_taps(weight)), None
        elif form == "transposed":
            kernel, fir = six_taps(weight).transpose(0, 1), None
        elif form == "separable":
            kernel, fir = weight.transpose(0, 1), torch.tensor(LINE).expand(outputs, 1, 1, 4)
        else:
            kernel, fir = weight.transpose(0, 1), (fir_kernel() * 4).expand(outputs, 1, 4, 4)
        self.register_buffer("weight", kernel.detach().contiguous().to(dtype), persistent=False)
        self.register_buffer("fir", None if fir is None else fir.contiguous().to(dtype), persistent=False)
        if form == "separable":
            self.register_buffer("fir_column", self.fir.transpose(2, 3).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The up-sampled convolution; every form gives the same within rounding."""
        if self.form == "polyphase":
            return F.pixel_shuffle(convolve(F.conv2d, x, self.weight, padding=1), 2)
        if self.form == "transposed":
            return convolve(F.conv_transpose2d, x, self.weight, stride=2, padding=2)
        x = convolve(F.conv_transpose2d, x, self.weight, stride=2)
        groups = self.fir.shape[0]
        if self.form == "separable":
            x = convolve(F.conv2d, x, self.fir, padding=(0, 1), groups=groups)
            return convolve(F.conv2d, x, self.fir_column, padding=(1, 0), groups=groups)
        return convolve(F.conv2d, x, self.fir, padding=1, groups=groups)


class UpRgb(nn.Module):
    """rgb [N,3,r,r] -> [N,3,2r,2r], float32: the filter as a transposed convolution, or by phases."""

    weight: Tensor

    def __init__(self, form: str) -> None:
        super().__init__()
        self.by_phases = checked_form(form) == "polyphase"
        fir = fir_kernel() * 4  # taps g[n + 1], n = -1 .. 2
        taps = F.pad(fir, (1, 1, 1, 1)).expand(3, 1, 6, 6)
        kernel = phases(taps) if self.by_phases else fir.expand(3, 1, 4, 4)
        self.register_buffer("weight", kernel.contiguous(), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """The RGB skip at twice the resolution."""
        if self.by_phases:
            return F.pixel_shuffle(F.conv2d(rgb, self.weight, padding=1, groups=3), 2)
        return F.conv_transpose2d(rgb, self.weight, stride=2, padding=1, groups=3)


def checked_form(form: str) -> str:
    """`form`, or InputError that lists the forms."""
    if form not in FORMS:
        raise InputError(f"the form of the up-sampling convolution is {form!r}; expected one of {', '.join(FORMS)}")
    return form


BEST = {"fp32": "fir", "fp16": "fir"}
"""The form that `auto` takes, by precision.

float32: on 2 CPU cores, 1024 px, batch 1, ONNX Runtime and OpenVINO took 1.29 and 0.82 s with fir, 1.52 and 0.83 s with
separable, and longer with polyphase. float16: not measured on a GPU yet; fir has the fewest multiply-adds.
"""


def form_for(form: str, precision: str) -> str:
    """`form`, with "auto" resolved by the recorded table; InputError for an unknown one."""
    if form == "auto":
        return BEST["fp32" if precision == "fp32" else "fp16"]
    return checked_form(form)
