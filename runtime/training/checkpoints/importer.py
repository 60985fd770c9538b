"""Public checkpoints -> a model pack: each file read as data, recognised by content, converted, and the whole checked.

`import_pack` is the path: one job per file, one component in memory at a time, a pack that appears whole or not at all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ....engines.errors import InputError, PackError
from ...archives import Source, describe, flat_arrays, listed, read_source
from ...templates import STYLECLIP_TEMPLATES
from ..networks.stylegan2 import Generator
from ..pack import Pack, load_pack
from ..pack_format import MANIFEST, atomic_directory
from ..pack_writer import Component, PackWriter, write_component
from . import checks
from .licences import UNKNOWN, hint, licence_of
from .psp_files import compare_generators, generator_inside, options
from .request import Job, Request, jobs_of, pack_name, sample_count
from .rows import Imported

MODULES = {
    "generator": "generators",
    "clip": "clip",
    "inverter": "encoders",
    "identity": "identity",
    "mapper": "mappers",
    "directions": "directions",
    "statistics": "statistics",
}
"""Option -> the module that reads its files, in the order in which a pack is put together."""
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Taken:
    """A component that was imported: its name, format, licence, origin, and what the user should know."""

    component: str
    format: str
    licence: str
    origin: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The pack, what was imported into it, and notes on the whole."""

    pack: Pack
    taken: tuple[Taken, ...]
    notes: tuple[str, ...]


def import_pack(request: Request, progress: Progress = lambda what, size: None) -> Report:
    """Imports all files of the request into the pack `request.out`.

    `progress` is called with each file's name and its bytes when it is done. Raises InputError for a request that names
    nothing or cannot be met, PackError for a file that is not what its option says, is damaged, or does not fit the
    others. In every such case nothing appears and what stood at `out` stays.
    """
    jobs = jobs_of(request)
    base = load_pack(request.base) if request.base else None
    writer = PackWriter(request.out, pack_name(request, base))
    with atomic_directory(request.out, MANIFEST) as folder:
        assembly = Assembly(request, folder, writer)
        if base is not None:
            assembly.carry_over(base)
        for job in jobs:
            assembly.do(job)
            progress(job.path.name if job.path else job.kind, job.size)
        assembly.finish()
    return Report(load_pack(request.out), tuple(assembly.taken), tuple(assembly.notes))


def module_of(kind: str) -> ModuleType:
    """The importer module of an option; imported on use, since CLIP's needs open_clip."""
    return importlib.import_module(f".{MODULES[kind]}", __package__)


def recognised(job: Job, source: Source) -> str:
    """The format of the file under its option; PackError says what it is instead."""
    found = module_of(job.kind).recognises(source)
    if found is not None:
        return str(found)
    others = {kind: name for kind in MODULES if kind != job.kind and (name := _recognises(kind, source))}
    if others:
        is_what = " and ".join(f"{name} (--{kind})" for kind, name in others.items())
        raise PackError(f"{source.path.name} was given with --{job.option}, but it is {is_what}")
    raise PackError(
        f"{source.path.name} was given with --{job.option}, but it is nothing of that kind: it holds "
        f"{describe(source.tree)} with {listed(flat_arrays(source.tree)) or 'no arrays'}"
    )


def _recognises(kind: str, source: Source) -> str | None:
    try:
        found = module_of(kind).recognises(source)
    except PackError:  # of that kind, but broken
        return None
    return None if found is None else str(found)


class Assembly:
    """A pack in the making: components are written to `folder` as they come, and none stays in memory."""

    def __init__(self, request: Request, folder: Path, writer: PackWriter):
        self.request, self.folder, self.writer = request, folder, writer
        self.entries: dict[str, Any] = {}
        self.taken: list[Taken] = []
        self.notes: list[str] = []
        self._pack: Pack | None = None

    @property
    def pack(self) -> Pack:
        """What there is so far, opened as a pack."""
        if self._pack is None:
            self.writer.write_manifest(self.folder, self.entries)
            self._pack = Pack(self.folder)
        return self._pack

    def carry_over(self, base: Pack) -> None:
        """Takes over a base pack, file by file, hashes checked."""
        self.writer.carry_over(base.path)
        for name, part in self.writer.components.items():
            self.entries[name] = write_component(self.folder, name, part)

    def do(self, job: Job) -> None:
        """Reads, checks, converts and writes one job."""
        source = read_source(job.path) if job.path else None
        form = recognised(job, source) if source else ""
        for part in IMPORTS[job.kind](self, job, source):
            self.add(part, source, form)

    def add(self, part: Imported, source: Source | None, form: str) -> None:
        """Writes a component and its entry."""
        origin: dict[str, Any] = {"format": part.format or form}
        if source is not None:
            origin = {"file": source.path.name, "sha256": source.sha256, "bytes": source.bytes, **origin}
        origin |= part.origin
        licence = licence_of(part.component, part.licence, str(origin.get("sha256", "")), self.request.licences)
        source_text = f"imported from {origin['file']}" if "file" in origin else part.format
        component = Component(part.content, part.config, licence, source_text, exact=True, origin=origin)
        self._drop_stale(part.component)
        self.entries[part.component] = write_component(self.folder, part.component, component)
        self._pack = None
        self.taken.append(Taken(part.component, part.format or form, licence, origin, part.notes))

    def _drop_stale(self, component: str) -> None:
        """Notes what of a base pack belonged to a generator or CLIP that is being replaced."""
        if component not in self.entries:
            return
        bound = {"generator": ("statistics", "directions", "inverter", "mapper/"), "clip": ("directions",)}
        new = {taken.component for taken in self.taken}
        stale = [n for n in self.entries if n not in new and n.startswith(bound.get(component, ()))]
        if stale:
            self.notes.append(f"the base pack's {', '.join(stale)} were made for the {component} that was replaced")

    def generator(self) -> Generator:
        """The generator's layers, weights not loaded; InputError where there is none yet."""
        if "generator" not in self.entries:
            raise InputError("this needs a generator: give --generator, or --pack with a pack that has one")
        return self.pack.layout

    def compared(self, source: Source | None, what: str) -> list[str]:
        """Notes on the generator that came inside a file; PackError where pictures of the pack's would differ."""
        inside = generator_inside(source) if source and "generator" in self.entries else None
        if inside is None:
            return []
        try:
            difference = compare_generators(inside, self.pack.tensors("generator"))
        except PackError as error:
            return [f"the generator inside could not be compared with the pack's: {error}"]
        if difference is None or self.request.allow_other_generator or not difference.serious:
            return [str(difference)] if difference else []
        raise PackError(
            f"{source.path.name if source else what}: {difference}. Import the generator that it came with, or take it "
            "all the same with --allow-other-generator"
        )

    def finish(self) -> None:
        """Settles templates, alignment and prompts, has the whole checked, and writes the manifest."""
        unused = set(self.request.licences) - {key for name in self.entries for key in (name, name.split("/")[0])}
        if unused:
            raise InputError(f"--licence names {', '.join(sorted(unused))}; the pack has {', '.join(self.entries)}")
        writer = self.writer
        if "clip" in self.entries and not writer.templates:
            writer.templates = list(STYLECLIP_TEMPLATES)
        if self.request.alignment is not None:
            writer.alignment = {"kind": self.request.alignment}
        self._pack = None
        faults = checks.misfits(self.pack)
        self._pack = None
        if faults:
            raise PackError("the parts do not fit together. " + "; ".join(faults))
        for taken in self.taken:
            if taken.licence == UNKNOWN:
                self.notes.append(
                    f"{taken.component}: its licence is unknown; state it with --licence {taken.component}=TEXT "
                    f"({hint(taken.component)})"
                )


# One reader per kind of job ------------------------------------------------------------------------------------------


def _generator(assembly: Assembly, job: Job, source: Source | None) -> list[Imported]:
    return [module_of("generator").import_generator(source)]


def _clip(assembly: Assembly, job: Job, source: Source | None) -> list[Imported]:
    name = assembly.request.clip_architecture if source else assembly.request.clip
    return list(module_of("clip").import_clip(source, name))


def _inverter(assembly: Assembly, job: Job, source: Source | None) -> list[Imported]:
    part = module_of("inverter").import_inverter(source, assembly.request.inverter_kind)
    if assembly.request.alignment is None and faces_of_ffhq(source):
        assembly.writer.alignment = {"kind": "ffhq"}
    return [replace(part, notes=(*part.notes, *assembly.compared(source, "inverter")))]


def _identity(assembly: Assembly, job: Job, source: Source | None) -> list[Imported]:
    return [module_of("identity").import_identity(source)]


def _mapper(assembly: Assembly, job: Job, source: Source | None) -> list[Imported]:
    layout = assembly.generator()
    part = module_of("mapper").import_mapper(job.name, source, layout.num_ws, layout.config.w_dim)
    name = part.component.removeprefix("mapper/")
    assembly.writer.prompts.setdefault(name, module_of("mapper").prompt_entry(name, part.config))
    return [replace(part, notes=(*part.notes, *assembly.compared(source, "mapper")))]


def _directions(assembly: Assembly, job: Job, source: Source | None) -> list[Imported]:
    layout = assembly.generator()
    width = int(assembly.entries["clip"]["config"]["embed_dim"]) if "clip" in assembly.entries else None
    return [module_of("directions").import_directions(source, layout, width)]


def _statistics(assembly: Assembly, job: Job, source: Source | None) -> list[Imported]:
    module, sigma = module_of("statistics"), assembly.request.sigma
    assembly.generator()
    network = assembly.pack.generator
    if source is not None:
        return [module.import_statistics(source, network, sigma)]
    return [module.compute_statistics(network, sigma, sample_count(str(assembly.request.statistics)))]


def faces_of_ffhq(source: Source | None) -> bool:
    """Whether an encoder was trained on faces in FFHQ's alignment, by the data set in its options."""
    stated = str((options(source) or {}).get("dataset_type", "")) if source else ""
    return stated.startswith(("ffhq", "celeb"))


IMPORTS: dict[str, Callable[[Assembly, Job, Source | None], list[Imported]]] = {
    "generator": _generator,
    "clip": _clip,
    "inverter": _inverter,
    "identity": _identity,
    "mapper": _mapper,
    "directions": _directions,
    "statistics": _statistics,
}
