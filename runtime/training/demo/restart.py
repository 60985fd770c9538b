"""A pack of the recipe as its checkpoints: what it took hours to train is the start of the next change.

`checkpoints_from` writes what a pack holds as the finished checkpoints of the stages that made it, `forget` removes one
of them and everything that was made from it; the next run then trains exactly what is missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ....engines.errors import InputError
from ..loop import save_atomically
from ..mapper import mapper_config, preset
from ..networks.arcface import ArcFaceConfig
from ..networks.e4e import E4EConfig
from ..networks.stylegan2 import Generator
from ..pack import Pack, generator_config
from ..pack_format import atomic_directory
from . import identity_stage, inverter_stage
from .clip_stage import ClipTraining, clip_config
from .generator import CONFIG as GENERATOR
from .generator import PASSES, code_rotation
from .judge import JudgeNet
from .recipe import DIRECTIONS, MAPPERS, PSI, assemble

FINISHED = 10**9
"""The step of a checkpoint that no stage goes on from, whatever its number of steps or `--scale`."""

_SYNTHESIS = [plan.name for plan in PASSES]
MADE_FROM: dict[str, tuple[str, ...]] = {
    "judge": (),
    "clip": (),
    **{name: tuple(_SYNTHESIS[max(0, i - 1) : i]) for i, name in enumerate(_SYNTHESIS)},
    "mapping": (),
    "generator": (_SYNTHESIS[-1], "mapping"),
    "identity": (),
    "inverter-w": (),
    "inverter": ("inverter-w", "generator"),
    "statistics": ("generator",),
    "directions": ("generator", "clip", "statistics"),
    "settings": ("directions", "judge", "identity"),
    "mappers": ("generator", "clip", "identity"),
    "pack": ("settings", "mappers", "inverter"),
}
"""Every checkpoint of the recipe, in order, and the ones that it was made from."""

_FILES: dict[str, tuple[str, ...]] = {
    "clip": ("clip.*", "tokenizer.json"),
    "directions": ("directions.*",),
    "settings": ("settings.json", "prompts.json", "draft"),
    "mappers": ("mapper-*",),
    "pack": ("pack",),
}

Config = dict[str, Any]
Writer = Callable[[Pack, Path], None]


def check_names(names: tuple[str, ...]) -> None:
    """Raises InputError for a name that no checkpoint has; the message lists them."""
    if unknown := [name for name in names if name not in MADE_FROM]:
        raise InputError(f"no checkpoint {', '.join(unknown)}; expected some of: {', '.join(MADE_FROM)}")


def forget(work: Path, name: str) -> list[str]:
    """Removes the checkpoint `name` and all that were made from it; returns their names, in the recipe's order.

    Raises:
        InputError: no checkpoint of that name; the message lists them.
    """
    check_names((name,))
    gone = [name]
    for later, parents in MADE_FROM.items():
        if later not in gone and set(parents) & set(gone):
            gone.append(later)
    for checkpoint in gone:
        for pattern in _FILES.get(checkpoint, (f"{checkpoint}.*",)):
            for path in work.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return gone


def checkpoints_from(pack: Pack, work: Path) -> tuple[list[str], dict[str, str]]:
    """Writes what `pack` holds into `work` as finished checkpoints; all of them or none.

    A component that the recipe as it stands would build differently is left out, so that it is trained anew.

    Returns:
        (components taken, {component left out: why}).
    Raises:
        InputError: `work` is not empty. PackError: a file of the pack is damaged.
    """
    if work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise InputError(f"{work} is not empty; name a new folder, or leave out --from to go on with what is there")
    taken: list[str] = []
    left: dict[str, str] = {}
    with atomic_directory(work, "generator.pt") as folder:
        for component, write in _WRITERS.items():
            if why := _misfit(pack, component) or _orphan(component, left):
                left[component] = why
            else:
                write(pack, folder)
                taken.append(component)
        _settings(pack, folder, taken)
    return taken, {name: why for name, why in left.items() if pack.has(name)}


# What is written ------------------------------------------------------------------------------------------------------


def _save(work: Path, name: str, model: nn.Module) -> None:
    """One network as the finished checkpoint of a stage."""
    state = model.state_dict()
    save_atomically({"step": FINISHED, "model": state, "ema": state, "optimizer": None}, work / f"{name}.pt")


def _report(pack: Pack, work: Path, name: str) -> None:
    """Stands where the stage's measurements would: they are those of the pack."""
    origin = {"taken_from": pack.name, "sha256": pack.sha256}
    (work / f"{name}.json").write_text(json.dumps(origin, indent=1) + "\n")


def _judge(pack: Pack, work: Path) -> None:
    net = JudgeNet()
    net.load_state_dict(pack.judge)
    _save(work, "judge", net)
    _report(pack, work, "judge")


def _clip(pack: Pack, work: Path) -> None:
    """CLIP with fresh heads: the pack has none, and a finished stage does not use them."""
    training = ClipTraining(len(code_rotation()))
    training.clip.load_state_dict(pack.clip.state_dict())
    _save(work, "clip", training)
    shutil.copyfile(pack.file("tokenizer"), work / "tokenizer.json")
    _report(pack, work, "clip")


def _generator(pack: Pack, work: Path) -> None:
    """The finished generator, as itself and as every pass that led to it."""
    for name in (*_SYNTHESIS, "generator"):
        _save(work, name, pack.generator)
    _save(work, "mapping", pack.generator.mapping_network)


def _identity(pack: Pack, work: Path) -> None:
    training = identity_stage.IdentityTraining()
    training.net.load_state_dict(pack.identity.state_dict())
    _save(work, "identity", training)
    _report(pack, work, "identity")


def _inverter(pack: Pack, work: Path) -> None:
    for name in ("inverter-w", "inverter"):
        _save(work, name, pack.inverter)
    _report(pack, work, "inverter")


def _statistics(pack: Pack, work: Path) -> None:
    save_atomically({**pack.tensors("statistics"), "config": pack.config("statistics")}, work / "statistics.pt")


def _directions(pack: Pack, work: Path) -> None:
    save_atomically(pack.tensors("directions"), work / "directions.done.pt")


def _mapper(name: str) -> Writer:
    return lambda pack, work: _save(work, f"mapper-{name}", pack.mapper(name))


_WRITERS: dict[str, Writer] = {
    "judge": _judge,
    "clip": _clip,
    "generator": _generator,
    "identity": _identity,
    "inverter": _inverter,
    "statistics": _statistics,
    "directions": _directions,
    **{f"mapper/{name}": _mapper(name) for name in MAPPERS},
}


def _settings(pack: Pack, work: Path, taken: list[str]) -> None:
    """The draft that mappers train with, and the chosen settings of the prompts without what the last stage adds."""
    if not {"judge", "clip", "generator", "identity", "statistics", "directions"} <= set(taken):
        return
    assemble(work, work / "draft", {}, mappers=())
    added = ("strength", "mapper")
    prompts = {name: {k: v for k, v in entry.items() if k not in added} for name, entry in pack.prompts.items()}
    (work / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")


# What the recipe would build ------------------------------------------------------------------------------------------


def _misfit(pack: Pack, component: str) -> str:
    """Why the recipe would not make this component as it is; "" where it would."""
    needed = (component, "tokenizer") if component == "clip" else (component,)
    if lacking := [name for name in needed if not pack.has(name)]:
        return f"the pack has no {lacking[0]}"
    wanted = _plain(_wanted(component))
    found = _plain(_READERS.get(component, dict)(pack.config(component)))
    keys = [key for key in wanted if found.get(key) != wanted[key]]  # what the recipe does not set has no say
    return "; ".join(f"{key} is {found.get(key)}, the recipe has {wanted[key]}" for key in keys)


def _orphan(component: str, left: dict[str, str]) -> str:
    """Why a component goes with one that is left out; "" where it was made from none of them."""
    parents = MADE_FROM["mappers" if component.startswith("mapper/") else component]
    return next((f"it was made with the {parent}" for parent in parents if parent in left), "")


_READERS: dict[str, Callable[[Config], Any]] = {
    "generator": generator_config,
    "identity": ArcFaceConfig.from_dict,
    "inverter": E4EConfig.from_dict,
}


def _wanted(component: str) -> Any:
    """The config that the recipe gives a component; empty where it has none."""
    if component.startswith("mapper/"):
        return mapper_config(Generator(GENERATOR), preset(component.removeprefix("mapper/")))
    configs: dict[str, Any] = {
        "generator": GENERATOR,
        "clip": clip_config(),
        "identity": identity_stage.CONFIG,
        "inverter": inverter_stage.CONFIG,
        "statistics": {"psi": PSI, "cutoff": None},
        "directions": DIRECTIONS,
    }
    return configs.get(component, {})


def _plain(config: Any) -> Config:
    """A config as JSON holds it."""
    return dict(json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config)))
