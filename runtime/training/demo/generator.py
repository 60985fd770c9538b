"""The generator's two stages: synthesis taught to draw (w -> picture), then mapping taught the prior (z -> w).

w is a fixed rotation of the factors' code (`factors.code`), so a style vector is affine in what is drawn. The toRGB
styles stay constant: StyleCLIP's directions never touch toRGB channels, so colour has to live in the convolutions.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..inverter_losses import gradients
from ..loop import device, fast_bfloat16, load_stage, rng_for, save_atomically, train
from ..networks.stylegan2 import SQRT2, FullyConnected, Generator, GeneratorConfig, Mapping
from . import factors as fx
from .dataset import RenderedFaces

CONFIG = GeneratorConfig(
    resolution=64, z_dim=128, w_dim=128, mapping_layers=6, channels={4: 128, 8: 128, 16: 128, 32: 64, 64: 32}
)
STEPS_MAPPING, STEP_WIDTH = 16_000, 0.018
CLASS_NOISE = (0.5,) * 6 + (0.0, 0.0, 0.35, 0.0)  # of hair styles; glasses, beard, hat, lipstick


@dataclass(frozen=True)
class Pass:
    """One pass of the synthesis training: at `size` px, in bfloat16 where `half` and the machine has it.

    `sparsity` is the weight of `spread`; `style_noise` the scale of `style_noise`, which leaves the share `quiet` of a
    batch alone; `detail` the extra weight of edges and thin lines in the loss; `blur` the share with `blurred` classes.
    """

    name: str
    size: int
    steps: int
    batch: int
    lr: float
    half: bool
    sparsity: float = 0.0
    style_noise: float = 0.0
    quiet: float = 0.0
    detail: float = 0.0
    blur: float = 0.0


PASSES = (
    Pass("generator-32", 32, 2500, 32, 5e-3, True),
    Pass("generator-64", 64, 9000, 16, 4e-3, True),
    Pass("generator-64-again", 64, 5000, 16, 3e-3, True, 0.5),
    Pass("generator-fine", 64, 800, 16, 6e-4, False, 0.5),
    Pass("generator-noise", 64, 1600, 16, 2.5e-3, True, 0.3, 1.0),
    Pass("generator-detail", 64, 9000, 16, 3e-3, True, 0.3, 1.0, quiet=0.5, detail=3.0),
    Pass("generator-crisp", 64, 1500, 16, 8e-4, False, 0.3, 1.0, quiet=0.75, detail=8.0),
    Pass("generator-classes", 64, 3000, 16, 2e-3, True, 2.0, 0.7, quiet=0.4, detail=5.0, blur=0.7),
)


def code_rotation(w_dim: int = CONFIG.w_dim) -> Tensor:
    """Orthonormal rows [D, W] that carry a code into w; fixed by a seed, part of the recipe."""
    width = fx.code(fx.sample_factors(1, np.random.default_rng(0))).shape[1]
    gaussian = np.random.default_rng(20_26).standard_normal((w_dim, width))
    return torch.from_numpy(np.linalg.qr(gaussian)[0].T.astype(np.float32))


def w_from_codes(codes: Tensor) -> Tensor:
    """codes [N, D] -> w [N, W]."""
    return codes @ code_rotation().to(codes)


def new_generator() -> Generator:
    """A fresh generator whose toRGB styles are the constant 1."""
    torch.manual_seed(0)
    generator = Generator(CONFIG)
    for layer in generator.style_layers:
        if layer.kind == "torgb":
            affine = generator.layer(layer.name).affine
            nn.init.zeros_(affine.weight)
            affine.requires_grad_(False)
    generator.mapping_network.requires_grad_(False)
    return generator.to(memory_format=torch.channels_last)


def _weight_map(size: int) -> Tensor:
    """Loss weights [1, 1, size, size], mean 1: eyes, brows and mouth count about four times the background."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[:, None] * 0.88 - 0.06, axis[None, :] * 0.88
    eyes = torch.exp(-(((y + 0.04) / 0.16) ** 4)) * torch.exp(-((x / 0.46) ** 4))
    mouth = torch.exp(-(((y - 0.44) / 0.15) ** 4)) * torch.exp(-((x / 0.34) ** 4))
    weight = 1 + 3.0 * eyes + 3.0 * mouth
    return (weight / weight.mean())[None, None]


def _detail(target: Tensor) -> Tensor:
    """Where a picture [N, 3, H, W] has edges and thin lines: [N, 1, H, W], 0 (flat) to nearly 1."""
    contrast = (target - F.avg_pool2d(target, 5, 1, 2, count_include_pad=False)).abs().mean(1, keepdim=True)
    return contrast / (contrast + 0.1)


def drawing_loss(image: Tensor, target: Tensor, detail: float = 0.0) -> dict[str, Tensor]:
    """L1 on pixels (face weighted), on their gradients, and at half and quarter size; images in -1..1.

    `detail` weighs edges and thin lines up to 1 + detail times: a nose is a line of few pixels, and L1 drops it first.
    """
    weight = _weight_map(image.shape[-1]).to(image)
    if detail:
        weight = weight * (1 + detail * _detail(target))
    error = (image - target).abs()
    l1 = (error * weight).mean()
    edges = sum(
        ((a - b).abs() * w).mean()
        for a, b, w in zip(gradients(image), gradients(target), (weight[..., 1:, :], weight[..., :, 1:]), strict=True)
    )
    coarse = sum(F.l1_loss(F.avg_pool2d(image, k), F.avg_pool2d(target, k)) for k in (2, 4))
    return {"loss": l1 + 0.6 * edges + 0.5 * coarse, "l1": error.mean()}


def _synthesize_at(generator: Generator, s: Tensor, size: int) -> Tensor:
    """The picture of styles s [N, S] at a lower resolution: the RGB skip of the block of that size."""
    return generator.run_blocks(s, s, None, 0, generator.config.resolutions.index(size) + 1)[1]


def _draw_and_compare(
    generator: Generator, w: Tensor, target: Tensor, noise: Tensor, half: bool, detail: float
) -> dict[str, Tensor]:
    with torch.autocast(device().type, torch.bfloat16, enabled=half):
        s = generator.styles(generator.broadcast(w)) + noise
        image = _synthesize_at(generator, s, target.shape[-1])
    return drawing_loss(image.float(), target, detail)


def spread(generator: Generator, rotation: Tensor, scale: Tensor) -> Tensor:
    """How many entries of the code a convolution's style channel listens to, from 0 (one) to 1 (all alike); a scalar.

    The mean over channels of |m|_1 / (|m|_2 sqrt(D)), where m is a channel's affine weight seen in code space times the
    code's standard deviation `scale` [D]. Channels that listen to few factors move few things when a direction moves
    them, which is what StyleSpace (Wu et al. 2021) finds in generators trained on photographs.
    """
    rows = []
    for layer in generator.style_layers:
        if layer.kind == "conv":
            affine = generator.layer(layer.name).affine
            m = affine.weight * affine.weight_gain @ rotation.T * scale  # [C, D]
            rows.append(m.abs().sum(1) / (m.norm(dim=1) + 1e-6) / m.shape[1] ** 0.5)
    return torch.cat(rows).mean()


def style_noise(s_std: Tensor, count: int, scale: float, rng: np.random.Generator, quiet: float = 0.0) -> Tensor:
    """Perturbations of style vectors [count, S], in multiples of each channel's standard deviation s_std [S].

    The share `quiet` of the vectors stays as it is: what the faces look like is learned from those.

    A little on every channel and three deviations on one in fifty. Styles are affine in the code, so without it S is a
    thin slice of its space, and a single channel that leaves the slice draws artefacts. A generator that has seen such
    noise takes a lone channel as weak evidence for what the channel stands for: it moves the picture along the faces.
    """
    size = (count, len(s_std))
    dense = rng.standard_normal(size, dtype=np.float32) * rng.random((count, 1), dtype=np.float32) * 0.5
    sparse = rng.standard_normal(size, dtype=np.float32) * (rng.random(size, dtype=np.float32) < 0.02) * 3.0
    loud = np.float32(scale) * (rng.random((count, 1), dtype=np.float32) >= quiet)
    return torch.from_numpy((dense + sparse) * loud).to(s_std) * s_std


@torch.no_grad()
def _s_std(generator: Generator, codes: NDArray[np.float32]) -> Tensor:
    w = w_from_codes(torch.from_numpy(codes).to(device()))
    return generator.styles(generator.broadcast(w)).std(0)


def _codes(
    faces: RenderedFaces, index: NDArray[np.int64], blur: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The codes of some faces, the share `blur` of them with blurred classes and colours past their corners."""
    if not blur:
        return faces.codes[index]
    n = len(index)
    noise = rng.standard_normal((n, fx.BLURRED)) * rng.random((n, 1)) * 0.8
    moved = fx.blurred(fx.take(faces.factors, index), noise.astype(np.float32))
    moved = fx.past_corner(moved, rng.integers(0, 6, n), rng.random(n, dtype=np.float32) * 0.8)
    return np.where(rng.random((n, 1)) < blur, fx.code(moved), faces.codes[index])


def _train_pass(work: Path, generator: Generator, plan: Pass, seed: int, scale: float) -> Generator:
    faces, rotation = RenderedFaces.training(work), code_rotation().to(device())
    s_std = _s_std(generator.to(device()), faces.codes[:4000])
    code_std = torch.from_numpy(faces.codes[:4000].std(0)).to(device())
    draw = torch.compile(_draw_and_compare, disable=shutil.which("c++") is None)
    half = plan.half and fast_bfloat16(device())

    def step(i: int) -> dict[str, Tensor]:
        rng = rng_for(seed, i)
        index = np.sort(rng.integers(0, len(faces), plan.batch))
        noise = style_noise(s_std, plan.batch, plan.style_noise, rng, plan.quiet)
        target = faces.batch(index).to(device())
        w = torch.from_numpy(_codes(faces, index, plan.blur, rng)).to(device()) @ rotation
        if plan.size < target.shape[-1]:
            target = F.avg_pool2d(target, target.shape[-1] // plan.size)
        losses = draw(generator, w, target, noise, half, plan.detail)
        if plan.sparsity:
            losses["spread"] = spread(generator, rotation, code_std)
            losses["loss"] = losses["loss"] + plan.sparsity * losses["spread"]
        return losses

    steps = max(4, int(plan.steps * scale))
    return train(plan.name, work, generator, step, steps=steps, lr=plan.lr, ema=0.998)


def train_synthesis(work: Path, seed: int = 10, scale: float = 1.0) -> Generator:
    """32 px; 64 px in bfloat16, twice (with a warm restart); a polish in float32; then noisy styles."""
    generator = new_generator()
    for i, plan in enumerate(PASSES):
        generator.load_state_dict(_train_pass(work, generator, plan, seed + i, scale).state_dict())
    return generator.eval()


def factors_of_z(z: Tensor) -> fx.Factors:
    """The face that a latent stands for: the first UNIFORMS entries of the normalised z, through the normal CDF.

    The next BLURRED entries blur hair style and hat by CLASS_NOISE: how clearly they are chosen varies from face to
    face, as it does in generators trained on photographs, so that one sigma of a style is a larger part of the way.
    """
    unit = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
    uniform = torch.special.ndtr(unit[:, : fx.UNIFORMS])
    factors = fx.factors_from_uniform(uniform.clamp(0, 1 - 1e-6).cpu().numpy())
    noise = unit[:, fx.UNIFORMS : fx.UNIFORMS + fx.BLURRED].cpu().numpy()
    return fx.blurred(factors, noise * np.array(CLASS_NOISE, np.float32))


def _first_units() -> Tensor:
    """Ramps on the normalised z that the code is made of: rows (column, low, high).

    A steep one for every class boundary, a wide one (close to the normal CDF) for every smooth factor, and a nearly
    linear one for every number that blurs a class.
    """
    steps = [(column, float(torch.special.ndtri(torch.tensor(edge)))) for column, edge in fx.thresholds()]
    rows = [(column, t - STEP_WIDTH / 2, t + STEP_WIDTH / 2) for column, t in steps]
    rows += [(column, -1.35, 1.35) for column in fx.smooth_columns()]
    rows += [(fx.UNIFORMS + i, -3.0, 3.0) for i in range(fx.BLURRED)]
    return torch.tensor(rows)


def _set(layer: FullyConnected, weight: Tensor, bias: Tensor) -> None:
    """The first rows of a mapping layer, given as they act; the layer's gains and the activation's are divided out."""
    rows = layer.weight[: len(weight)].zero_()
    rows[:, : weight.shape[1]] = weight / layer.weight_gain / SQRT2
    layer.bias[: len(bias)] = bias / layer.bias_gain / SQRT2


def _pair(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Units x and -x, from which the next layer recovers x: lrelu(x) - lrelu(-x) = 1.2 x."""
    return torch.cat([weight, -weight]), torch.cat([bias, -bias])


@torch.no_grad()
def informed_start(mapping: Mapping, samples: int = 60_000) -> Mapping:
    """Starts the mapping as an affine map of ramps on z, exactly; training then learns what is not affine in them.

    With ramps f(z) and the least-squares fit w = A f + b over `samples` draws: layer 0 holds the two ends of a ramp,
    layer 1 the ramps as pairs (f, -f), the layers up to the last but two pass the pairs on, the last but one computes
    -(A f + b), and the last undoes the activations, since lrelu(-5 lrelu(-x)) = x. Regression from noise finds steep
    class boundaries very slowly, which shows as half a hat or a ghost of a mohawk.
    """
    rows = _first_units()
    count, width, device_ = len(rows), CONFIG.w_dim, mapping.w_avg.device
    layers = [getattr(mapping, f"fc{i}") for i in range(mapping.depth)]
    column, low, high = rows[:, 0].long(), rows[:, 1], rows[:, 2]
    for layer in layers:
        layer.bias.zero_()
    ends = F.one_hot(column, CONFIG.z_dim).float()
    _set(layers[0], torch.cat([ends, ends]), -torch.cat([low, high]))
    slope = torch.diag(1.25 / (high - low))  # lrelu(x - low) - lrelu(x - high) climbs by 0.8 (high - low)
    _set(layers[1], *_pair(torch.cat([slope, -slope], 1), torch.full((count,), -0.75)))
    half = torch.eye(count) / 1.2
    for layer in layers[2:-2]:
        _set(layer, *_pair(torch.cat([half, -half], 1), torch.zeros(count)))
    z = torch.from_numpy(rng_for(19, 0).standard_normal((samples, CONFIG.z_dim), dtype=np.float32)).to(device_)
    x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
    for layer in layers[:-2]:
        x = F.leaky_relu(layer(x), 0.2) * SQRT2
    ramps = (x[:, :count] - x[:, count : 2 * count]) / 1.2
    known = torch.cat([ramps, torch.ones_like(ramps[:, :1])], 1).double()
    target = w_from_codes(torch.from_numpy(fx.code(factors_of_z(z))).to(device_)).double()
    fit = torch.linalg.lstsq(known, target).solution.float()  # [count + 1, W]
    _set(layers[-2], -torch.cat([fit[:-1].T, -fit[:-1].T], 1) / 1.2, -fit[-1])
    _set(layers[-1], -5 * torch.eye(width, device=device_), torch.zeros(width, device=device_))
    return mapping


def train_mapping(work: Path, generator: Generator, seed: int = 20, scale: float = 1.0) -> Generator:
    """Mapping z -> w by regression on unlimited draws, then w_avg; the synthesis stays as it is."""
    rotation, mapping = code_rotation().to(device()), informed_start(generator.mapping_network).to(device())
    mapping.requires_grad_(True)

    def step(i: int) -> dict[str, Tensor]:
        z = torch.from_numpy(rng_for(seed, i).standard_normal((512, CONFIG.z_dim), dtype=np.float32))
        target = torch.from_numpy(fx.code(factors_of_z(z))).to(device()) @ rotation
        error = mapping(z.to(device())) - target
        return {"loss": error.square().mean() + 0.3 * error.abs().mean(), "nmse": error.square().mean() / target.var()}

    # The rate looks large because the layers' equalised rate divides it by 100 (lr_mul of the mapping, as published).
    steps = max(4, int(STEPS_MAPPING * scale))
    trained = train("mapping", work, mapping, step, steps=steps, lr=0.4, ema=0.998, warmup=200)
    with torch.no_grad():
        z = torch.from_numpy(rng_for(seed + 1, 0).standard_normal((50_000, CONFIG.z_dim), dtype=np.float32))
        trained.w_avg.copy_(trained(z.to(device())).mean(0))
    generator.mapping_network.load_state_dict(trained.state_dict())
    return generator.eval().requires_grad_(False)


def train_generator(work: Path, scale: float = 1.0) -> Generator:
    """Both stages; the result is `work/generator.pt`."""
    if (work / "generator.pt").exists():
        return load_generator(work)
    generator = train_mapping(work, train_synthesis(work, scale=scale), scale=scale)
    state = {"step": 0, "model": generator.state_dict(), "ema": None, "optimizer": None}
    save_atomically(state, work / "generator.pt")
    return generator


def load_generator(work: Path) -> Generator:
    """The finished generator of a work folder, mapping included."""
    generator = load_stage(work, "generator", Generator(CONFIG))
    return generator.requires_grad_(False)
