"""StyleCLIP's latent mappers into a pack: LevelsMapper, SingleMapper, and the two style-space mappers.

What a file is, its keys say; its options must agree. The 14 published names are known, with the spellings that users
type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ....engines.errors import InputError, PackError
from ...archives import Source
from ..networks.mapper import GROUP_BOUNDS, MapperConfig, build_mapper, is_torgb
from ..pack_format import NAME
from ..pack_writer import state_of
from .psp_files import LEFT_OUT, file_arrays, has_key, options, shape_of
from .rows import Array, Imported, Row, convert

DEPTH = 4  # equalised layers of every published mapper; entry 0 of their Sequential is the normalisation
ALL = ("coarse", "medium", "fine")
SOURCE_GROUPS = {"coarse": "course_mapping", "medium": "medium_mapping", "fine": "fine_mapping"}  # "course": theirs
KEYS = {
    "levels": r"mapper\.(course|medium|fine)_mapping\..*",
    "single": r"mapper\.mapping\..*",
    "style": r"mapper\.mapper_\d+\..*",
}
FORMATS = {"levels": "LevelsMapper", "single": "SingleMapper"}


@dataclass(frozen=True)
class Published:
    """A published mapper: what it makes, and its layer groups. The neutral text of all is "a face"."""

    target: str
    groups: tuple[str, ...] = ALL
    aliases: tuple[str, ...] = ()


SHAPE = ("coarse", "medium")  # trained with --no_fine_mapper, so that colours stay
PUBLISHED = {
    "afro": Published("a face with an afro", SHAPE, ("afro hair", "afro hairstyle")),
    "angry": Published("an angry face", SHAPE, ("angry face",)),
    "beyonce": Published("the face of Beyonce"),
    "bobcut": Published("a face with a bob-cut", SHAPE, ("bob cut", "bob hairstyle")),
    "bowlcut": Published("a face with a bowl cut", SHAPE, ("bowl cut", "bowl hairstyle")),
    "curly_hair": Published("a face with curly hair", SHAPE, ("curly",)),
    "depp": Published("the face of Johnny Depp", ALL, ("johnny depp",)),
    "hilary_clinton": Published("the face of Hillary Clinton", ALL, ("hillary clinton", "clinton", "hillary")),
    "mohawk": Published("a face with a mohawk", SHAPE, ("mohawk hairstyle",)),
    "purple_hair": Published("a face with purple hair", ALL, ("purple",)),
    "surprised": Published("a surprised face", SHAPE, ("surprised face",)),
    "taylor_swift": Published("the face of Taylor Swift", ALL, ("taylor", "swift")),
    "trump": Published("the face of Donald Trump", ALL, ("donald trump",)),
    "zuckerberg": Published("the face of Mark Zuckerberg", ALL, ("mark zuckerberg",)),
}
"""The 14 mappers of the StyleCLIP repository, under the names of their files; groups as its notebook runs them."""


def published_name(name: str) -> str | None:
    """The published mapper that `name` means: "bob-cut" and "Bob cut" are bobcut; None for any other."""
    wanted = letters(name)
    for key, entry in PUBLISHED.items():
        if wanted in {letters(text) for text in (key, *entry.aliases)}:
            return key
    return None


def letters(text: str) -> str:
    """Letters and digits alone, folded."""
    return "".join(c for c in text.casefold() if c.isalnum())


def component_name(name: str) -> str:
    """The name of a mapper in a pack: the published one, else `name` itself; InputError where a pack cannot hold it."""
    key = published_name(name) or name.strip().casefold().replace(" ", "-")
    if not NAME.fullmatch(key):
        raise InputError(f"mapper name {name!r} may hold only a-z, 0-9, '-' and '_', at most 64 characters")
    return key


def prompt_entry(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The pack's prompt of a mapper: texts of the table, else those that it was trained with, else its name."""
    known = PUBLISHED.get(name)
    target = known.target if known else str(config.get("description") or re.sub(r"[-_]+", " ", name))
    return {"target": target, "neutral": "a face", "strength": 1.0}


def recognises(source: Source) -> str | None:
    """The class of the mapper in the file, or None."""
    arrays = file_arrays(source)
    for kind, pattern in KEYS.items():
        if has_key(arrays, pattern):
            return format_of(kind, any(is_torgb(index) for index in style_entries(arrays)))
    return None


def format_of(kind: str, torgb: bool) -> str:
    """The class's name in the original."""
    return FORMATS.get(kind) or ("FullStyleSpaceMapper" if torgb else "WithoutToRGBStyleSpaceMapper")


def import_mapper(name: str, source: Source, num_ws: int, w_dim: int) -> Imported:
    """The mapper of a StyleCLIP checkpoint, for a generator with w+ [num_ws, w_dim], as component `mapper/<name>`.

    The file's options (class, size, groups that are off) must agree with its keys; the published table is only compared
    and disagreements become notes. Raises PackError, and InputError for a name that a pack cannot hold.
    """
    key = component_name(name)
    what, arrays, opts = f"{source.path.name} as mapper {key!r}", file_arrays(source), options(source)
    kind = kind_of(arrays, opts or {}, what)
    check_size(opts or {}, num_ws, what)
    config = READ[kind](arrays, opts or {}, num_ws, w_dim, what)
    with torch.device("meta"):
        expected = {entry: tuple(tensor.shape) for entry, tensor in state_of(build_mapper(config)).items()}
    content = convert(arrays, [*LEFT_OUT, *mapper_rows(config)], expected, what)
    notes = [] if opts is not None else ["the file holds no options: the layer groups are those that it has weights of"]
    notes += [
        f"the group {group} has no layers at this size; its weights are left out" for group in without_layers(config)
    ]
    described = config.to_dict()
    if opts and isinstance(opts.get("description"), str):
        described["description"] = opts["description"]
    if key in PUBLISHED:
        notes += published_notes(key, config)
    return Imported(f"mapper/{key}", content, described, format_of(kind, config.torgb), notes=tuple(notes))


def kind_of(arrays: Mapping[str, Array], opts: Mapping[str, Any], what: str) -> str:
    """The kind that the keys show; PackError where they show none or several, or where the options name another."""
    kinds = [kind for kind, pattern in KEYS.items() if has_key(arrays, pattern)]
    if len(kinds) != 1:
        found = " and ".join(kinds) if kinds else "no mapper"
        raise PackError(f"{what}: its keys hold {found}; expected one of StyleCLIP's mappers, under mapper.*")
    stated = "style" if opts.get("work_in_stylespace") else opts.get("mapper_type")
    if stated is not None and stated not in (kinds[0], FORMATS.get(kinds[0])):
        raise PackError(f"{what}: its options say {stated!r}, its keys are those of a {kinds[0]!r} mapper")
    return kinds[0]


def check_size(opts: Mapping[str, Any], num_ws: int, what: str) -> None:
    """PackError where the options name a generator of another size than that of the pack."""
    size = opts.get("stylegan_size")
    if isinstance(size, int) and size > 0 and 2 * (size.bit_length() - 1) - 2 != num_ws:
        raise PackError(
            f"{what}: trained for a generator of {size} px ({2 * (size.bit_length() - 1) - 2} layers); the pack's has "
            f"{num_ws} layers. Import the generator that belongs to it"
        )


def read_levels(
    arrays: Mapping[str, Array], opts: Mapping[str, Any], num_ws: int, w_dim: int, what: str
) -> MapperConfig:
    """Groups by keys; PackError where an option `no_<group>_mapper` says otherwise."""
    there = {group: has_key(arrays, rf"mapper\.{name}\..*") for group, name in SOURCE_GROUPS.items()}
    wrong = [g for g, on in there.items() if (flag := opts.get(f"no_{g}_mapper")) is not None and bool(flag) == on]
    if wrong:
        flags = ", ".join(f"no_{group}_mapper is {opts[f'no_{group}_mapper']}" for group in wrong)
        raise PackError(f"{what}: the option {flags}, but the file has {'' if there[wrong[0]] else 'no '}such weights")
    return MapperConfig(num_ws, w_dim, there["coarse"], there["medium"], there["fine"])


def read_single(
    arrays: Mapping[str, Array], opts: Mapping[str, Any], num_ws: int, w_dim: int, what: str
) -> MapperConfig:
    """One mapper over all layers."""
    return MapperConfig(num_ws, w_dim, kind="single")


def read_style(
    arrays: Mapping[str, Array], opts: Mapping[str, Any], num_ws: int, w_dim: int, what: str
) -> MapperConfig:
    """Widths of the entries by their weights; a toRGB entry without a mapper is as wide as the entry before it."""
    found = style_entries(arrays)
    torgb = any(is_torgb(index) for index in found)
    count = num_ws + num_ws // 2 - 1
    expected = [index for index in range(count) if torgb or not is_torgb(index)]
    if found != expected:
        raise PackError(
            f"{what}: it has mappers for entries {found} of style space; expected {expected}, for {num_ws} layers of w+"
        )
    widths: list[int] = []
    for index in range(count):
        key = f"mapper.mapper_{index}.mapping.1.weight"
        widths.append(shape_of(arrays, key, what, 2)[0] if index in found else widths[-1])
    return MapperConfig(num_ws, w_dim, kind="style", channels=tuple(widths), torgb=torgb)


READ = {"levels": read_levels, "single": read_single, "style": read_style}


def style_entries(arrays: Mapping[str, Array]) -> list[int]:
    """Indices of the entries of style space that have a mapper, in order."""
    matches = (re.fullmatch(r"mapper\.mapper_(\d{1,4})\..*", key) for key in arrays)
    return sorted({int(match[1]) for match in matches if match})


def mapper_rows(config: MapperConfig) -> list[Row]:
    """Their keys -> ours, layer by layer: their first entry is the normalisation, which has no weights."""
    if config.kind == "levels":
        bounds = config.bounds()
        places = {f"mapper.{name}": f"groups.{group}" for group, name in SOURCE_GROUPS.items() if group in bounds}
    elif config.kind == "single":
        places = {"mapper.mapping": "mapper"}
    else:
        places = {f"mapper.mapper_{index}": f"entries.{index}" for index in config.edited()}
    left_out = [Row(rf"mapper\.{SOURCE_GROUPS[group]}\..*", None) for group in without_layers(config)]
    return left_out + [
        Row(rf"{re.escape(theirs)}\.mapping\.{layer + 1}\.(weight|bias)", rf"{ours}.layers.{layer}.\1")
        for theirs, ours in places.items()
        for layer in range(DEPTH)
    ]


def without_layers(config: MapperConfig) -> list[str]:
    """Groups that are on and hold no layer of a small generator: their weights move nothing."""
    on = [group for group in GROUP_BOUNDS if getattr(config, group)] if config.kind == "levels" else []
    return [group for group in on if group not in config.bounds()]


def published_notes(key: str, config: MapperConfig) -> list[str]:
    """What the user should know where a file under a published name is not as that one was published."""
    if config.kind != "levels":
        return [f"{key} is published as a LevelsMapper; this file holds another kind and was taken as it is"]
    groups = tuple(group for group in GROUP_BOUNDS if getattr(config, group))
    if groups == PUBLISHED[key].groups:
        return []
    usual = ", ".join(PUBLISHED[key].groups)
    return [f"{key} is published with the groups {usual}; this file has {', '.join(groups)}, and was taken as it is"]
