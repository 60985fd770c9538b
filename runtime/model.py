"""What the runtime reads out of a bundle's manifest: sizes, tokens, templates and prompts, checked once at opening."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..engines.errors import BundleError, InputError
from .resolutions import checked_resolutions
from .templates import STYLECLIP_TEMPLATES

T = TypeVar("T")

DIRECTION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
CLEANINGS = ("clip", "whitespace", "canonicalize")  # see `tokenizer.clean_text`


@dataclass(frozen=True)
class StyleLayer:
    """One modulated layer: channels `offset` to `offset + channels` of the style vector, driven by w[:, w_index]."""

    name: str
    kind: str
    w_index: int
    offset: int
    channels: int

    @property
    def resolution(self) -> int:
        """Pixels of the layer's block: 32 for "b32.conv0"; 0 for a name of another form."""
        side = self.name.partition(".")[0][1:]
        return int(side) if side.isdecimal() else 0


@dataclass(frozen=True)
class Tokens:
    """Special token ids and the length T of a token row: bos (None: none), text, eos, then pad.

    clean: how a text is cleaned before the file sees it (one of `CLEANINGS`); None: not at all.
    """

    bos: int | None
    eos: int
    pad: int
    context_length: int
    clean: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt of the bundle: the pair of texts, and the settings that were measured to work for it.

    resolutions: of the layers that its direction moves, see `resolutions.py`; None: all.
    """

    name: str
    target: str
    neutral: str
    alpha: float | None = None
    beta: float | None = None
    mapper: str | None = None
    strength: float = 1.0
    resolutions: str | None = None

    @property
    def label(self) -> str:
        """What the user calls it."""
        return self.target


@dataclass(frozen=True)
class Direction:
    """A named direction of the bundle: a fixed step in style space, and what was recommended for it.

    row, relevance_row: its rows in the bundle's table of directions; without the second it takes no threshold.
    alpha: strength. method: how it was found. target, neutral: the texts it was found with, where there were any.
    """

    name: str
    row: int
    relevance_row: int | None = None
    alpha: float = 1.0
    beta: float | None = None
    method: str = "unknown"
    target: str | None = None
    neutral: str | None = None

    @property
    def label(self) -> str:
        """What the user calls it."""
        return self.name


DEFAULT_PSI = 0.7  # StyleCLIP's truncation, for a bundle that records none


@dataclass(frozen=True)
class Model:
    """Sizes in pixels or channels; every shape of the runtime derives from these.

    None, and 0 for the generator's, mean that the bundle lacks that part.
    """

    name: str
    resolution: int
    num_ws: int
    z_dim: int
    w_dim: int
    style_channels: int
    embed_dim: int | None
    invert_size: int | None
    identify_size: int | None
    alignment: str
    layers: tuple[StyleLayer, ...]
    tokens: Tokens | None
    tokenizer_file: str | None
    templates: tuple[str, ...]
    prompts: Mapping[str, Prompt]
    default_prompt: str | None
    psi: float = DEFAULT_PSI
    invert_shape: tuple[int, int] | None = None  # (height, width) where the inverter's picture is not a square
    directions: Mapping[str, Direction] = field(default_factory=dict)
    direction_table: str | None = None  # a listed file, see `named`


def read_model(manifest: Mapping[str, Any]) -> Model:
    """The runtime's view of `bundle.json`; BundleError names the first field that is missing or of the wrong kind."""
    model = _table(manifest, "model")
    return Model(
        name=_text(manifest, "name"),
        **_generator(model),
        embed_dim=_if_there(model, "clip", lambda: _size(_table(model, "clip"), "embed_dim")),
        invert_size=_if_there(model, "invert_size", lambda: _size(model, "invert_size")),
        identify_size=_if_there(model, "identify_size", lambda: _size(model, "identify_size")),
        alignment=str(_table(manifest, "alignment", {}).get("kind", "none")),
        layers=_layers(model),
        tokens=_if_there(manifest, "tokens", lambda: read_tokens(_table(manifest, "tokens"))),
        tokenizer_file=_if_there(manifest, "tokenizer", lambda: _text(manifest, "tokenizer")),
        templates=_templates(manifest),
        prompts={name: _prompt(name, entry) for name, entry in _table(manifest, "prompts", {}).items()},
        default_prompt=manifest.get("default_prompt"),
        psi=_psi(model),
        invert_shape=_if_there(model, "invert_shape", lambda: _shape(model, "invert_shape")),
        directions={name: _direction(name, entry) for name, entry in _table(manifest, "directions", {}).items()},
        direction_table=_if_there(manifest, "direction_table", lambda: _text(manifest, "direction_table")),
    )


def _generator(model: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of the generator, all of them; or all 0 where the bundle has none of them."""
    names = ("resolution", "num_ws", "z_dim", "w_dim", "style_channels")
    there = any(name in model for name in names)
    return {name: _size(model, name) if there else 0 for name in names}


def _psi(model: Mapping[str, Any]) -> float:
    psi = model.get("psi", DEFAULT_PSI)
    if isinstance(psi, bool) or not isinstance(psi, (int, float)) or not -2 <= psi <= 2:
        raise BundleError(f"bundle.json: model.psi is {psi!r}; expected a number in -2..2")
    return float(psi)


def read_tokens(tokens: Mapping[str, Any]) -> Tokens:
    """Tokens from their table in a manifest; `bos` may be null but not absent, since some vocabularies have none.

    Raises BundleError for a value that is missing or out of range.
    """
    bos = None if "bos" in tokens and tokens["bos"] is None else _index(tokens, "bos")
    clean = _field(tokens, "clean", lambda v: v is None or v in CLEANINGS, f"null or one of {', '.join(CLEANINGS)}")
    return Tokens(bos, _index(tokens, "eos"), _index(tokens, "pad"), _size(tokens, "context_length"), clean)


def _layers(model: Mapping[str, Any]) -> tuple[StyleLayer, ...]:
    try:
        return tuple(
            StyleLayer(str(e["name"]), str(e["kind"]), int(e["w_index"]), int(e["offset"]), int(e["channels"]))
            for e in model.get("layers", ())
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"bundle.json: model.layers has an entry that is not a style layer ({error!r})") from error


def _templates(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    templates = tuple(manifest.get("templates") or STYLECLIP_TEMPLATES)
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise BundleError(f"bundle.json: template {template!r} must be a text with one {{}} for the prompt")
    return templates


def _prompt(name: str, entry: Any) -> Prompt:
    if not isinstance(entry, Mapping):
        raise BundleError(f"bundle.json: prompt {name!r} must be a table with 'target' and 'neutral'")
    where = f"prompts.{name}"
    alpha, beta = (_number(entry, key, where) for key in ("alpha", "beta"))
    strength = _number(entry, "strength", where)
    mapper = entry.get("mapper")
    return Prompt(
        name=name,
        target=_text(entry, "target", where),
        neutral=_text(entry, "neutral", where),
        alpha=alpha,
        beta=beta,
        mapper=str(mapper) if mapper else None,
        strength=1.0 if strength is None else strength,
        resolutions=_if_there(entry, "resolutions", lambda: _range(entry, "resolutions", where)),
    )


def _direction(name: str, entry: Any) -> Direction:
    if not DIRECTION_NAME.fullmatch(name) or not isinstance(entry, Mapping):
        raise BundleError(
            f"bundle.json: direction {name[:80]!r} must be a table under a name of a-z, 0-9, '-' and '_'; "
            "export the bundle again"
        )
    where = f"directions.{name}"
    alpha, beta = (_number(entry, key, where) for key in ("alpha", "beta"))
    return Direction(
        name=name,
        row=_index(entry, "row", where),
        relevance_row=_if_there(entry, "relevance_row", lambda: _index(entry, "relevance_row", where)),
        alpha=1.0 if alpha is None else alpha,
        beta=beta,
        method=_text(entry, "method", where),
        target=_if_there(entry, "target", lambda: _text(entry, "target", where)),
        neutral=_if_there(entry, "neutral", lambda: _text(entry, "neutral", where)),
    )


def _field(table: Mapping[str, Any], key: str, check: Callable[[Any], bool], expected: str, where: str = "") -> Any:
    value = table.get(key)
    if not check(value):
        path = f"{where}.{key}" if where else key
        raise BundleError(f"bundle.json: {path} is {value!r}; expected {expected}. Export the bundle again.")
    return value


def _if_there(table: Mapping[str, Any], key: str, read: Callable[[], T]) -> T | None:
    """What `read` reads, or None where the field is absent or null."""
    return None if table.get(key) is None else read()


def _table(table: Mapping[str, Any], key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    if default is not None and table.get(key) is None:
        return default
    return _field(table, key, lambda v: isinstance(v, Mapping), "a table")  # type: ignore[no-any-return]


def _text(table: Mapping[str, Any], key: str, where: str = "") -> str:
    return str(_field(table, key, lambda v: isinstance(v, str) and bool(v), "a text", where))


def _range(table: Mapping[str, Any], key: str, where: str) -> str | None:
    try:
        return checked_resolutions(table[key])
    except InputError as error:
        raise BundleError(f"bundle.json: {where}.{key}: {error}. Export the bundle again.") from None


def _shape(table: Mapping[str, Any], key: str) -> tuple[int, int]:
    value = _field(table, key, lambda v: isinstance(v, list) and len(v) == 2, "two positive whole numbers")
    height, width = (_size({key: side}, key) for side in value)
    return height, width


def _size(table: Mapping[str, Any], key: str) -> int:
    return int(_field(table, key, lambda v: type(v) is int and 0 < v < 1_000_000, "a positive whole number"))


def _index(table: Mapping[str, Any], key: str, where: str = "") -> int:
    return int(_field(table, key, lambda v: type(v) is int and v >= 0, "a whole number from 0", where))


def _number(table: Mapping[str, Any], key: str, where: str) -> float | None:
    """A finite number, or None where the field is absent or null."""
    value = _field(table, key, lambda v: v is None or (type(v) in (int, float) and abs(v) < 1e6), "a number", where)
    return None if value is None else float(value)
