"""Directions by gradients: what every style channel means to CLIP, all channels at once, without a table of renders.

The finite procedure (`directions`) moves one channel at a time, as far as +-5 sigma, and takes the unit direction in
which CLIP's embedding goes. A backward pass gives v^T J for one v and ALL channels, with J = dE/ds [E,S] the Jacobian
of the embedding E(G(s)). But a slope at a face sees no edge: where nothing of a pair of glasses is drawn yet, a small
step towards them changes no pixel that is theirs. So the gradient is that of the SMOOTHED embedding

    F(s) = mean over n faces and over u ~ N(0, 1)^S of E(G(s + spread sigma u)),    dF/ds = mean of J at those points

every channel at a random place within its own spread. By Stein's lemma spread sigma_c dF/ds_c = mean of E u_c: the
slope of the best straight line through finite moves of that size, of all channels at a time. The J of a point is
divided by its length over all channels, lest the few points at an edge decide alone. Without spread it is the limit of
the finite procedure for small moves: every column J_c at unit length for each face, then averaged.

A relevance is a cosine, <J_c, delta_t> / |J_c|, so the gradient of <E, delta_t> alone is not enough: a channel that
moves the whole picture has a large one. The lengths |J_c| come from a few probes more. The embeddings of faces span few
dimensions, hence the probes are their principal components, delta_t, and random vectors for what remains (as Hutch++,
Meyer et al. 2021, estimates a trace). With E unit vectors as probes the same function gives the whole table exactly.

Shape alphabet: n images, S style channels, E CLIP width, P prompts, m probes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ...engines.errors import InputError
from .directions import CHANNELS, asked_channels
from .directions_stop import unit
from .jacobian import ImageEncoder, around, chunk_size, embed, principal_components, pullbacks
from .networks.stylegan2 import Generator


@dataclass(frozen=True)
class GradientRecipe:
    """What a relevance by gradients depends on, besides the networks.

    `spread`: how far around the faces gradients are taken, in standard deviations of each channel; 0: at the faces.
    `components` and `random` are the probes that measure how far a channel moves the embedding at all. `channels`:
    "conv", as in the published tables, or "all", toRGB among them.
    """

    images: int = 64
    spread: float = 1.0
    components: int = 8
    random: int = 4
    channels: str = "conv"
    seed: int = 5

    def __post_init__(self) -> None:
        if self.images < 1 or self.components < 0 or self.random < 0 or self.components + self.random < 1:
            raise InputError(
                f"{self.images} images, {self.components} components, {self.random} random probes: expected at least "
                "one image and one probe"
            )
        if not 0 <= self.spread < float("inf"):
            raise InputError(f"spread {self.spread}: expected 0 or more standard deviations")
        if self.channels not in CHANNELS:
            raise InputError(f"channels {self.channels!r}: expected one of {', '.join(CHANNELS)}")

    def passes(self, prompts: int = 1) -> int:
        """Passes through generator and CLIP for `prompts` texts: two forward an image, and a backward one a probe.

        A backward pass counts as one: the weights are frozen, so that it multiplies as often as the forward pass.
        """
        return self.images * (2 + self.components + self.random + prompts)


def finite_passes(images: int, rows: int) -> int:
    """Passes of the finite procedure without early stop: both signs of every channel on every image."""
    return 2 * images * rows


def scattered(s: Tensor, s_std: Tensor | None, recipe: GradientRecipe) -> Tensor:
    """Where the gradients are taken: s [n,S], each channel moved at random by `spread` of its s_std [S].

    The same for the same recipe. InputError for a spread without s_std.
    """
    if not recipe.spread:
        return s
    if s_std is None:
        raise InputError("gradients around the faces need the standard deviations of the styles; give s_std")
    return around(s, s_std, recipe.spread, recipe.seed)


def mean_rows(
    generator: Generator,
    encode_image: ImageEncoder,
    s: Tensor,
    probes: Tensor,
    *,
    alike: bool,
    chunk: int | None = None,
) -> Tensor:
    """Rows of the channels as the probes see them, averaged over the images, at unit length.

    alike: every row is at unit length for each image first (GetFs at first order). Without it the rows of an image are
    so as a whole: an image counts as the next one, and for a channel by its share in what moves the embedding there.

    s [n,S], probes [m,E] -> [S,m] float32 on the CPU; the row of a channel that moves no embedding is zero. With the
    unit vectors of E as probes these are the rows delta_i_c of a table.
    """
    total = torch.zeros(s.shape[1], len(probes), dtype=s.dtype)
    size = chunk or chunk_size(generator)
    passes = len(s) * len(probes)
    with tqdm(total=passes, desc="gradients", unit="pass", disable=None, smoothing=0.1, leave=False) as bar:
        for part in s.split(size):
            rows = torch.zeros(len(part), *total.shape, dtype=s.dtype)
            for i, gradient in enumerate(pullbacks(generator, encode_image, part, probes)):
                rows[:, :, i] = gradient.cpu()
                bar.update(len(part))
            for row in rows:
                total += unit(row) if alike else unit(row.flatten()).view_as(row)
    return unit(total).float()


def probe_matrix(embeddings: Tensor, delta_t: Tensor, recipe: GradientRecipe) -> Tensor:
    """The probes for texts: embeddings [n,E] of the images, delta_t [P,E] -> [m,E] float64.

    First an orthonormal basis: principal components, then what every delta_t adds to it. Then random vectors of the
    complement, scaled so that the square of a row's length is an unbiased estimate of |J_c|^2. <J_c, delta_t> is
    exact: delta_t lies in the basis.
    """
    basis = principal_components(embeddings, recipe.components)
    for text in delta_t.double():
        rest = text - basis.T @ (basis @ text)
        if rest.norm() > 1e-6:
            basis = torch.cat([basis, (rest / rest.norm())[None]])
    wanted = recipe.random + recipe.components  # components that the images do not span are made up for
    count = max(recipe.random, wanted - len(basis) + len(delta_t))
    rng = torch.Generator().manual_seed(recipe.seed)
    noise = torch.randn(count, basis.shape[1], generator=rng, dtype=torch.float64)
    noise = (noise - noise @ basis.T @ basis) / max(count, 1) ** 0.5
    return torch.cat([basis, noise])


def gradient_relevance(
    generator: Generator,
    encode_image: ImageEncoder,
    s: Tensor,
    delta_t: Tensor,
    recipe: GradientRecipe | None = None,
    *,
    s_std: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Relevance of every style channel to texts: the first order of `edits.relevance` with a finite table.

    Args:
        encode_image: image [N,3,R,R] in -1..1 -> unit embedding [N,E], differentiable, with CLIP's own front-end.
        s: [n,S] styles of at least `recipe.images` base images, on the generator's device.
        delta_t: unit text directions [P,E].
        s_std: [S], which a spread is counted in; a channel that never moves gets no relevance.
    Returns:
        [P,S] float32 on the CPU, cosines of the table's scale; zero for channels that were not asked for.
    Raises:
        InputError: fewer images than the recipe asks for; a spread without s_std; gradients that are not finite.
    """
    recipe = recipe or GradientRecipe()
    s = scattered(_enough(s, recipe), s_std, recipe)
    probes = probe_matrix(embed(generator, encode_image, s, chunk=chunk), delta_t, recipe)
    rows = mean_rows(generator, encode_image, s, probes, alike=not recipe.spread, chunk=chunk)
    coordinates = (probes @ delta_t.double().T).float()  # [m,P]; zero at the random probes
    return (rows @ coordinates).T * _movable(generator, recipe, s_std)


def gradient_table(
    generator: Generator,
    encode_image: ImageEncoder,
    s: Tensor,
    recipe: GradientRecipe | None = None,
    *,
    s_std: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The whole table delta_i_c by E backward passes an image: cheaper than two renders a channel where E < 2 S.

    Arguments and errors as for `gradient_relevance`. Returns float32 [S,E] on the CPU: unit rows, zero for channels
    that were not asked for and for those that move no embedding.
    """
    recipe = recipe or GradientRecipe()
    s = scattered(_enough(s, recipe), s_std, recipe)
    width = embed(generator, encode_image, s[:1]).shape[1]
    rows = mean_rows(generator, encode_image, s, torch.eye(width), alike=not recipe.spread, chunk=chunk)
    return rows * _movable(generator, recipe, s_std)[:, None]


def _enough(s: Tensor, recipe: GradientRecipe) -> Tensor:
    if len(s) < recipe.images:
        raise InputError(f"{len(s)} base images came; the recipe asks for {recipe.images}")
    return s[: recipe.images]


def _movable(generator: Generator, recipe: GradientRecipe, s_std: Tensor | None) -> Tensor:
    """1 for the channels that were asked for and that move, else 0: [S] float32."""
    mask = torch.zeros(generator.style_channels)
    mask[asked_channels(generator, recipe.channels)] = 1.0
    return mask if s_std is None else mask * (s_std.cpu() > 0)
