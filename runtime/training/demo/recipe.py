"""The recipe of the embedded pack: every stage from drawn faces to the finished `toyfaces` pack, in order.

Each stage leaves its checkpoint in the work folder and returns at once when that is finished, so a killed run continues
where it stopped. Directions, mappers and their settings see only the generator, CLIP and the identity network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ....engines.errors import InputError
from ...templates import STYLECLIP_TEMPLATES
from ..directions import DirectionRecipe, direction_table
from ..loop import device, load_stage, save_atomically
from ..mapper import MapperNetworks, train_mapper
from ..pack import load_pack
from ..pack_writer import PackWriter
from ..statistics import StyleStatistics, latent_batches, style_statistics
from ..texts import TextPair
from .clip_stage import load_clip, train_clip
from .dataset import RenderedFaces
from .evaluate import write_prompts
from .generator import load_generator, train_generator
from .identity_stage import load_identity, train_identity
from .inverter_stage import load_inverter, train_inverter
from .judge import JudgeNet, train_judge
from .scores import judged
from .settings import CANDIDATES, choose_settings, choose_strengths
from .vocabulary import token_config

MAPPERS = ("bob-cut", "purple-hair", "glasses", "surprised")
PSI = 1.0  # the faces are drawn from a product of classes: their mean is no face, so nothing is truncated towards it
DIRECTION_IMAGES, DIRECTION_SIGMAS = 32, 5.0
DIRECTIONS = {"images": DIRECTION_IMAGES, "sigmas": DIRECTION_SIGMAS, "channels": "conv"}
LICENCE, SOURCE = "Apache-2.0", "styleclip-rt demo train"


def _faces(work: Path, scale: float) -> None:
    RenderedFaces.training(work)


def _statistics(work: Path, scale: float) -> None:
    path = work / "statistics.pt"
    if path.exists():
        return
    generator = load_generator(work)
    samples = max(100, int(100_000 * scale))
    measured = style_statistics(generator, generator.config.z_dim, samples=samples, psi=PSI, device=device())
    parts = {"w_mean": measured.w_mean, "s_mean": measured.s_mean, "s_std": measured.s_std}
    save_atomically({**parts, "config": measured.config()}, path)


def _load_statistics(work: Path) -> StyleStatistics:
    state = torch.load(work / "statistics.pt", weights_only=True)
    config = state["config"]
    parts = (state["w_mean"], state["s_mean"], state["s_std"], config["samples"], config["psi"], config["cutoff"])
    return StyleStatistics(*parts, config["seed"])


def _directions(work: Path, scale: float) -> None:
    """delta_i_c over the first images of the statistics; `directions.pt` keeps finished rows while it runs."""
    if (work / "directions.done.pt").exists():
        return
    generator, clip = load_generator(work).to(memory_format=torch.channels_last), load_clip(work).to(device())
    recipe = DirectionRecipe(max(2, int(DIRECTION_IMAGES * min(1.0, scale))), DIRECTION_SIGMAS)
    z = next(latent_batches(recipe.images, generator.config.z_dim, seed=5))
    base_w = generator.broadcast(generator.mapping(z.to(device()), PSI))
    table = direction_table(
        generator, clip.encode_image, _load_statistics(work), base_w, recipe, checkpoint=work / "directions.pt"
    )
    save_atomically({"delta_i_c": table}, work / "directions.done.pt")


def _settings(work: Path, scale: float) -> None:
    """Texts, alpha and beta of the named prompts, chosen on a set of faces that no report uses."""
    path = work / "prompts.json"
    if path.exists():
        return
    assemble(work, work / "draft", {}, mappers=())
    subject = judged(load_pack(work / "draft"))
    chosen = choose_settings(subject, scale=scale, memory=work / "settings.json")
    path.write_text(json.dumps(chosen, indent=1) + "\n")


def _mappers(work: Path, scale: float) -> None:
    """The mappers of MAPPERS, each trained against its prompt's first pair of texts."""
    subject = judged(load_pack(work / "draft"))
    networks = MapperNetworks(subject.generator, subject.clip.encode_image, subject.identity)
    for name in MAPPERS:
        targets, neutrals = CANDIDATES[name]
        train_mapper(name, work, networks, TextPair(subject.embed(targets[0]), subject.embed(neutrals[0])), scale=scale)


def _load_mapper(work: Path, name: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Weights and config of a trained mapper, as a pack stores them."""
    from ..mapper import mapper_config, preset
    from ..networks.mapper import LevelsMapper

    config = mapper_config(load_generator(work), preset(name))
    mapper = load_stage(work, f"mapper-{name}", LevelsMapper(config))
    return mapper.state_dict(), config.to_dict()


def assemble(work: Path, out: Path, prompts: dict[str, dict[str, object]], mappers: tuple[str, ...] = MAPPERS) -> Path:
    """Writes the pack `out` from the checkpoints of `work`; replaces a pack that is there already."""
    clip, statistics = load_clip(work), _load_statistics(work)
    with PackWriter(out, "toyfaces") as writer:
        writer.add("generator", load_generator(work))
        writer.add("clip", clip)
        writer.add("tokenizer", work / "tokenizer.json", token_config(work / "tokenizer.json"))
        for name, load in (("inverter", load_inverter), ("identity", load_identity)):
            if (work / f"{name}.pt").exists():
                writer.add(name, load(work))
        moments = {"w_mean": statistics.w_mean, "s_mean": statistics.s_mean, "s_std": statistics.s_std}
        writer.add("statistics", moments, statistics.config())
        table = torch.load(work / "directions.done.pt", weights_only=True)
        writer.add("directions", table, DIRECTIONS)
        writer.add("judge", load_stage(work, "judge", JudgeNet()).state_dict())
        for name in mappers:
            writer.add(f"mapper/{name}", *_load_mapper(work, name))
        writer.templates = list(STYLECLIP_TEMPLATES)
        writer.prompts = prompts
    return out


def _pack(work: Path, scale: float) -> None:
    """The finished pack; the mappers' strengths are chosen on the selection faces as well."""
    prompts = json.loads((work / "prompts.json").read_text())
    subject = judged(load_pack(assemble(work, work / "pack", prompts)))
    for name, strength in choose_strengths(subject, scale=scale).items():
        prompts[name] |= {"strength": strength, "mapper": f"mapper/{name}"}
    write_prompts(subject.pack, prompts)


def copy_pack(pack: Path, out: Path) -> Path:
    """The same pack in another folder; it appears there whole or not at all."""
    return PackWriter(out, load_pack(pack).name, base=pack).publish()


STAGES: dict[str, Callable[[Path, float], object]] = {
    "faces": _faces,
    "judge": lambda work, scale: train_judge(work, scale=scale),
    "clip": lambda work, scale: train_clip(work, scale=scale),
    "generator": train_generator,
    "identity": lambda work, scale: train_identity(work, scale=scale),
    "inverter": lambda work, scale: train_inverter(work, scale=scale),
    "statistics": _statistics,
    "directions": _directions,
    "settings": _settings,
    "mappers": _mappers,
    "pack": _pack,
}


def run(work: Path, stages: tuple[str, ...] = (), scale: float = 1.0) -> Path:
    """Runs the named stages (default: all, in order) and returns the folder of the finished pack.

    Args:
        scale: factor on every stage's steps; below 1 for a smoke run whose pack is no good.
    Raises:
        InputError: for an unknown stage, naming the valid ones.
    """
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise InputError(f"unknown stage {', '.join(unknown)}; expected some of: {', '.join(STAGES)}")
    for name, stage in STAGES.items():
        if not stages or name in stages:
            stage(work, scale)
    return work / "pack"
