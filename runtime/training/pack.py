"""Model packs: `load_pack` gives lazily built float32 networks, `save_pack` writes fp16 weights atomically.

The file format is `pack_format`; the writer is `pack_writer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...engines.errors import InputError, PackError
from .networks.arcface import ArcFace, ArcFaceConfig
from .networks.clip import Clip
from .networks.e4e import E4EConfig, Encoder4Editing
from .networks.mapper import LatentMapper, MapperConfig, build_mapper
from .networks.stylegan2 import Generator, GeneratorConfig
from .pack_format import MANIFEST, NAME, check_file, check_header, read_manifest
from .pack_writer import PackWriter, save_pack, state_of
from .swap import recover

__all__ = ["Pack", "PackWriter", "Statistics", "load_pack", "save_pack"]

Network = TypeVar("Network", bound=nn.Module)
DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True)
class Statistics:
    """Moments over sampled latents: w_mean [W], s_mean [S], s_std [S], all float32; `config` says how sampled."""

    w_mean: Tensor
    s_mean: Tensor
    s_std: Tensor
    config: dict[str, Any]


def load_pack(pack: str | Path) -> Pack:
    """Opens a pack by folder or by the name of one that ships inside the package ("toyfaces").

    Only the manifest is read here; each component is checked and loaded on first use. Raises PackError.
    """
    return Pack(resolve_pack(pack))


def resolve_pack(pack: str | Path) -> Path:
    """The folder that `pack` names; PackError lists the shipped names when there is none."""
    recover(Path(pack).absolute(), MANIFEST)
    if Path(pack).is_dir():
        return Path(pack)
    if NAME.fullmatch(str(pack)) and (DATA / str(pack) / "pack.json").is_file():
        return DATA / str(pack)
    shipped = sorted(path.parent.name for path in DATA.glob("*/pack.json"))
    raise PackError(
        f"no pack at {str(pack)!r}; expected a folder with pack.json or a shipped name: {shipped or 'none'}"
    )


def generator_config(config: dict[str, Any]) -> GeneratorConfig:
    """GeneratorConfig from its JSON form; PackError where a key is missing, unknown or of the wrong kind."""
    try:
        return GeneratorConfig.from_dict(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackError(f"generator config {config} cannot be read: {error!r}") from None


def load_state(module: nn.Module, tensors: dict[str, Tensor], component: str) -> None:
    """Copies `tensors` into `module`; PackError names every missing, unknown and misshapen tensor at once."""
    expected = state_of(module, keep_vars=True)
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    problems = [("missing", missing), ("unknown", unknown), ("wrong shape", shapes)]
    text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems if names)
    if text:
        raise PackError(f"{component} does not fit its config. {text}")
    for name, tensor in expected.items():
        tensor.data = tensors[name].to(tensor.dtype)  # in place of a copy: weights stay mapped from their file


class SkipInit(TorchFunctionMode):
    """While it is on, weights are allocated and not drawn: `load_state` replaces every one of them anyway.

    Memory that nothing touches is never resident, so that a network costs its weights once.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class Pack:
    """A model pack on disk. Networks are float32, in eval mode, without gradients, and built on first use."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest, self.sha256 = read_manifest(path)
        self.name: str = self.manifest["name"]
        self.components: tuple[str, ...] = tuple(self.manifest["components"])
        self.templates: list[str] = list(self.manifest["templates"])
        self.prompts: dict[str, dict[str, Any]] = dict(self.manifest["prompts"])
        self.alignment: dict[str, Any] = dict(self.manifest["alignment"])

    def has(self, component: str) -> bool:
        """Whether the pack holds the component."""
        return component in self.components

    def entry(self, component: str) -> dict[str, Any]:
        """The component's entry of the manifest; PackError lists what the pack holds."""
        if not self.has(component):
            raise PackError(
                f"pack {self.name!r} has no {component!r}; it holds {', '.join(self.components) or 'nothing'}"
            )
        return self.manifest["components"][component]

    def config(self, component: str) -> dict[str, Any]:
        """The component's config; an empty dict where it has none."""
        return dict(self.entry(component).get("config", {}))

    def file(self, component: str) -> Path:
        """The component's file, after its path, size and SHA-256 were checked."""
        return check_file(self.path, component, self.entry(component))

    def tensors(self, component: str) -> dict[str, Tensor]:
        """All tensors of a component; floating ones as float32."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.file(component)
        check_header(path)
        try:
            stored = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise PackError(f"{component}: {path.name} is not a safetensors file: {error}") from None
        return {name: t.float() if t.is_floating_point() else t for name, t in stored.items()}

    def network(self, component: str, build: Callable[[dict[str, Any]], Network]) -> Network:
        """Builds a network from its config and fills it from its file."""
        with SkipInit():
            module = build(self.config(component))
        load_state(module, self.tensors(component), component)
        return module.eval().requires_grad_(False)

    @cached_property
    def layout(self) -> Generator:
        """The generator without its weights (on torch's meta device): its config, style layers and sizes."""
        with torch.device("meta"):
            return Generator(generator_config(self.config("generator")))

    def release(self, *components: str) -> None:
        """Drops the loaded networks of `components` (all without arguments); the next use loads them again."""
        for name in components or self.components:
            self.__dict__.pop(name, None)

    @cached_property
    def generator(self) -> Generator:
        """The StyleGAN2 generator."""
        return self.network("generator", lambda config: Generator(generator_config(config)))

    @cached_property
    def clip(self) -> Clip:
        """CLIP with its image front-ends."""
        return self.network("clip", Clip)

    @cached_property
    def inverter(self) -> Encoder4Editing:
        """The encoder image -> w+."""
        return self.network("inverter", lambda config: Encoder4Editing(E4EConfig.from_dict(config)))

    @cached_property
    def identity(self) -> ArcFace:
        """The identity network."""
        return self.network("identity", lambda config: ArcFace(ArcFaceConfig.from_dict(config)))

    @cached_property
    def statistics(self) -> Statistics:
        """Latent moments; PackError when one is missing or does not fit the generator."""
        tensors, sizes = self.tensors("statistics"), self.layout
        expected = {"w_mean": sizes.config.w_dim, "s_mean": sizes.style_channels, "s_std": sizes.style_channels}
        wrong = [name for name, size in expected.items() if name not in tensors or tensors[name].shape != (size,)]
        if wrong:
            raise PackError(f"statistics: {wrong} missing or misshapen; expected {expected}")
        return Statistics(tensors["w_mean"], tensors["s_mean"], tensors["s_std"], self.config("statistics"))

    @cached_property
    def directions(self) -> Tensor:
        """Channel directions delta_i_c [S,E]; rows of toRGB channels are zero."""
        tensors = self.tensors("directions")
        shape = (self.layout.style_channels, int(self.config("clip")["embed_dim"]))
        if "delta_i_c" not in tensors or tensors["delta_i_c"].shape != shape:
            found = {name: list(t.shape) for name, t in tensors.items()}
            raise PackError(f"directions: holds {found}; expected delta_i_c {list(shape)}")
        return tensors["delta_i_c"]

    @property
    def mappers(self) -> tuple[str, ...]:
        """Names of the prompts with a trained mapper."""
        return tuple(name.removeprefix("mapper/") for name in self.components if name.startswith("mapper/"))

    @property
    def directions_named(self) -> tuple[str, ...]:
        """Names of the directions that `edit --direction` serves; `named.read` gives one."""
        return tuple(name.removeprefix("direction/") for name in self.components if name.startswith("direction/"))

    def mapper(self, name: str) -> LatentMapper:
        """The trained mapper of a prompt; InputError lists the names that exist."""
        if name not in self.mappers:
            raise InputError(f"no mapper {name!r} in pack {self.name!r}; it holds {', '.join(self.mappers) or 'none'}")
        return self.network(f"mapper/{name}", lambda config: build_mapper(MapperConfig.from_dict(config)))

    @cached_property
    def judge(self) -> dict[str, Tensor]:
        """Raw tensors of the attribute classifier (demonstration packs only); its config is `config("judge")`."""
        return self.tensors("judge")

    @property
    def licences(self) -> dict[str, str]:
        """Licence of every component."""
        return {name: str(entry.get("licence", "unknown")) for name, entry in self.manifest["components"].items()}

    def verify(self) -> None:
        """Checks path, size and SHA-256 of every file; raises PackError at the first that differs."""
        for component in self.components:
            self.file(component)
