"""CLIP into a pack: files of open_clip and OpenAI, or open_clip's published weights by name; towers and tokenizer.

The activation is settled by the file, by the name of the published weights or by a config beside the file; where none
of them tells, the import stops and names the choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ....engines.errors import InputError, PackError
from ...archives import Source, read_source
from ..networks.clip import clip_config, square_size
from .clip_architectures import (
    FRONT_END,
    Architecture,
    expected_shapes,
    fits,
    from_json,
    grid_of,
    matching,
    named,
    openai_architecture,
    split_name,
    tags_of,
)
from .clip_files import OPENAI_MARKS, ClipFile, read_clip, recognises
from .clip_tokenizer import clip_tokenizer, taken_over
from .clip_transformers import described
from .rows import Imported, Row, convert

__all__ = ["import_clip", "import_clip_by_name", "recognises"]

HUB = "hf-hub:"
SIDECAR = "open_clip_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
MAX_TOKENIZER_BYTES = 64 << 20
CLIP_VOCABULARY, CONTEXT = 49408, 77

Fetch = Callable[..., str]

_TEXT = r"(text_projection|positional_embedding|token_embedding|transformer|ln_final|cls_emb)(\b.*)"
_SCALAR = r"(logit_scale|logit_bias)"


def import_clip(source: Source | str | None, architecture: str | None = None) -> tuple[Imported, Imported]:
    """(clip, tokenizer) from a file, or from the name of published weights (see `import_clip_by_name`).

    source: the file as read, the name, or None where `architecture` is the name. architecture: "NAME", "NAME/TAG" or a
    path to an `open_clip_config.json`, needed where a file leaves the network open. Raises PackError and InputError
    that say what is missing.
    """
    if isinstance(source, Source):
        file = read_clip(source)
        return from_file(file, choose(file, architecture), source.path.parent)
    if source is not None and architecture is not None:
        raise InputError(f"{source!r} is no file, and a name needs no architecture beside it; give one of the two")
    name = source or architecture
    if name is None:
        raise InputError("no CLIP named; expected a file, or a name such as ViT-B-32/openai")
    return import_clip_by_name(name)


def import_clip_by_name(name: str, fetch: Mapping[str, Fetch] | None = None) -> tuple[Imported, Imported]:
    """(clip, tokenizer) of "NAME/TAG", "NAME" or "hf-hub:OWNER/REPOSITORY", downloaded by open_clip and read by us.

    A name alone means OpenAI's weights where they exist (those of StyleCLIP), or the only ones there are. `fetch`
    stands in for open_clip's downloads in tests. Raises InputError for an unknown name, PackError when offline.
    """
    fetch = fetch or _open_clip_downloads()
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        sidecar = _download(name, lambda: fetch["file"](repository, SIDECAR))
        found = replace(from_json(sidecar), name=name)
        weights = _download(name, lambda: fetch["file"](repository))
    else:
        base, tag = split_name(name)
        name = f"{base}/{tag or _usual_tag(base)}"
        found = named(name)
        entry = tags_of(base)[str(found.pretrained)]
        weights = _download(name, lambda: fetch["tag"](entry), entry)
        repository = found.tokenizer or ""
    folder = _tokenizer_folder(repository, fetch) if found.tokenizer else weights.parent
    file = read_clip(source := read_source(weights))
    origin = {"name": name, "file": weights.name, "sha256": source.sha256, "bytes": source.bytes}
    clip, tokenizer = from_file(file, _by_content(file, found), folder)
    return replace(clip, origin=origin), replace(tokenizer, origin=origin)


def _tokenizer_folder(repository: str, fetch: Mapping[str, Fetch]) -> Path:
    """Where the tokenizer's files of a Hugging Face repository lie, once fetched; only the first must be there."""
    first, *others = TOKENIZER_FILES
    folder = _download(repository, lambda: fetch["file"](repository, first)).parent
    for file in others:
        with suppress(PackError):
            _download(repository, partial(fetch["file"], repository, file))
    return folder


def _usual_tag(name: str) -> str:
    tags = tags_of(name)
    if "openai" in tags or len(tags) == 1:
        return "openai" if "openai" in tags else next(iter(tags))
    known = ", ".join(f"{name}/{tag}" for tag in tags)
    raise InputError(
        f"{name} has several published weights; expected one of {known}"
        if tags
        else f"open_clip publishes no weights of {name}; give a file of weights, and the name as its architecture"
    )


def choose(file: ClipFile, architecture: str | None) -> Architecture:
    """The network of a file: as told, else as the config beside it says, else as its tensors show.

    What the file itself shows (activation of OpenAI's archives, sizes of the position embeddings) overrules a name.
    """
    shapes = {name: tuple(array.shape) for name, array in file.arrays.items()}
    if architecture is not None:
        found = named(architecture)
        return _by_content(file, found)
    sidecar = file.source.path.parent / SIDECAR
    if sidecar.is_file():
        found = _by_content(file, from_json(sidecar))
        if fits(found.config, _in_layout(file, found)):
            return found
    if file.transformers and (beside := described(file.source.path.parent)) is not None:
        return _by_content(file, beside)
    if file.openai:
        return _openai(file, shapes)
    return _by_content(file, _only_match(file, shapes))


def _openai(file: ClipFile, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    try:
        return _by_content(file, openai_architecture(shapes))
    except (KeyError, IndexError, TypeError) as error:
        raise PackError(f"{file.source.path.name} as {file.format}: tensor {error} is missing or misshapen") from None


def _only_match(file: ClipFile, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The one architecture of the registry with the file's tensors; PackError that names the choices or the way out."""
    names = matching(shapes)
    if file.quick_gelu is not None:
        names = [name for name in names if bool(named(name).config.get("quick_gelu")) == file.quick_gelu] or names[:1]
    if len(names) == 1:
        found = named(names[0])
        return found.with_config(f"the architecture is {names[0]}, the only one of open_clip's with these tensors")
    what = file.source.path.name
    if names:
        raise PackError(
            f"{what} fits {' and '.join(names)}, which have the same tensors and another activation or front-end; the "
            "file cannot tell. Say which one by --clip-architecture (the '-quickgelu' one for OpenAI's, MetaCLIP's and "
            "DFN's weights; the other for most of LAION's and DataComp's)"
        )
    raise PackError(
        f"{what}: no architecture of open_clip has its tensors. Give --clip-architecture NAME, or the path of its "
        f"{SIDECAR}"
    )


def _by_content(file: ClipFile, found: Architecture) -> Architecture:
    """The architecture with what the file shows: activation, input size and length of a row."""
    quick = bool(found.config.get("quick_gelu", False))
    if file.quick_gelu is not None and file.quick_gelu != quick:
        names = {True: "QuickGELU", False: "GELU"}
        note = f"the activation is {names[file.quick_gelu]}, as in the file; {found.name} would have {names[quick]}"
        found = found.with_config(note, quick_gelu=file.quick_gelu)
    vision, text = dict(found.config["vision_cfg"]), dict(found.config["text_cfg"])
    size, length = _image_size(file, vision), _context_length(file, text)
    if size != vision.get("image_size", 224):
        note = f"the input is {size} px, as the file's position embeddings; {found.name} has {vision.get('image_size')}"
        found = found.with_config(note, vision_cfg={**vision, "image_size": size})
    if length != text.get("context_length", CONTEXT):
        note = f"rows have {length} tokens, as in the file; {found.name} has {text.get('context_length', CONTEXT)}"
        found = found.with_config(note, text_cfg={**text, "context_length": length})
    return found.with_config(init_logit_bias=0.0 if "logit_bias" in file.arrays else None)  # only whether there is one


def _image_size(file: ClipFile, vision: Mapping[str, Any]) -> Any:
    """The input size by a native tower's grid of positions; the config's for a tower of timm."""
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    positions = file.shape("visual.positional_embedding")
    if positions and isinstance(size, int) and isinstance(patch, int) and patch > 0:
        return size if size // patch == grid_of(positions) else grid_of(positions) * patch
    positions = file.shape("visual.attnpool.positional_embedding")
    return 32 * grid_of(positions) if positions else size


def _context_length(file: ClipFile, text: Mapping[str, Any]) -> int:
    positions = file.shape("text.positional_embedding", "positional_embedding")
    stated = int(text.get("context_length", CONTEXT))
    return positions[0] - int(bool(text.get("embed_cls"))) if positions else stated


def _in_layout(file: ClipFile, found: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes of a file under the names that an architecture has for them."""
    custom = clip_config(found.config)["custom_text"]
    shapes = {}
    for name, array in file.arrays.items():
        plain = name.removeprefix("text.")
        is_text = plain != name or name.split(".")[0] in _TEXT_ROOTS
        shapes[("text." + plain if custom else plain) if is_text else name] = tuple(array.shape)
    return shapes


_TEXT_ROOTS = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final", "cls_emb")


def from_file(file: ClipFile, found: Architecture, folder: Path) -> tuple[Imported, Imported]:
    """(clip, tokenizer) of weights whose architecture is known; the tokenizer of another vocabulary is in `folder`."""
    settings = clip_config(found.config)
    settings["vision_cfg"]["image_size"] = square_size(settings["vision_cfg"])  # stated, whatever open_clip's default
    settings["text_cfg"] = {"context_length": CONTEXT, "vocab_size": CLIP_VOCABULARY, **settings["text_cfg"]}
    front = {key: found.config[key] for key in FRONT_END}
    config = {**settings, **front, "architecture": found.name, "pretrained": found.pretrained}
    what = f"{file.source.path.name} as {found.name} of {file.format}"
    tensors = convert(file.arrays, rows(file, bool(settings["custom_text"])), expected_shapes(config), what)
    notes = found.notes
    if any(key.startswith("text_decoder.") for key in file.arrays):
        notes = (*notes, "the caption decoder of CoCa is left out: nothing here uses it")
    clip = Imported("clip", tensors, config, file.format, notes=notes)
    return clip, _tokenizer(found, folder, what)


def rows(file: ClipFile, custom_text: bool) -> list[Row]:
    """The file's names -> open_clip's, in the layout of the network that is built: a text tower apart, or not."""
    bias = "logit_bias" in file.arrays
    return [
        Row(r".*\bnum_batches_tracked", None),
        Row("|".join(OPENAI_MARKS), None),
        Row(r"(.*\.)?attn_mask", None),  # computed from the length of a row
        Row(r"text\.transformer\.embeddings\.position_ids", None),
        Row(r"text_decoder\..*", None),
        Row(_SCALAR if bias else "logit_scale", r"\g<0>", lambda array: np.reshape(array, ())),
        Row(_TEXT, r"text.\1\2" if custom_text else r"\1\2"),
        Row(r"text\.(.*)", r"text.\1" if custom_text else r"\1"),
        Row(r"(visual\..*)", r"\1"),
    ]


def _tokenizer(found: Architecture, folder: Path, what: str) -> Imported:
    """CLIP's own tokenizer, or that of the architecture's vocabulary from `folder`."""
    text = found.config["text_cfg"]
    if found.tokenizer is None:
        if int(text.get("vocab_size", CLIP_VOCABULARY)) < CLIP_VOCABULARY:
            raise PackError(
                f"{what}: its vocabulary has {text['vocab_size']} ids, CLIP's has {CLIP_VOCABULARY}; nothing names its "
                "tokenizer"
            )
        return clip_tokenizer(int(text.get("context_length", CONTEXT)))
    files = {}
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file() and path.stat().st_size <= MAX_TOKENIZER_BYTES:
            files[name] = path.read_bytes()
    if TOKENIZER_FILES[0] not in files:
        raise PackError(
            f"{what}: its vocabulary is that of {found.tokenizer} on Hugging Face; put the tokenizer.json and "
            f"tokenizer_config.json of that repository into {folder}, beside the weights"
        )
    return taken_over(files, text, what)


def _open_clip_downloads() -> dict[str, Fetch]:
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

    return {"tag": download_pretrained, "file": download_pretrained_from_hf}


def _download(name: str, fetch: Callable[[], str], entry: Mapping[str, Any] | None = None) -> Path:
    """The local path of a download; PackError that says where the file is to be had by hand."""
    try:
        path = Path(fetch())
        if path.is_file():
            return path
        reason = "open_clip names no file"
    except Exception as error:  # whatever the network and the hub's client raise
        reason = str(error).split("\n")[0][:200]
    places = [entry["url"]] if entry and entry.get("url") else []
    if repository := (entry.get("hf_hub") if entry else name.removeprefix(HUB)):
        places.append(f"https://huggingface.co/{repository}")
    raise PackError(
        f"{name} cannot be fetched ({reason}). Fetch the file by hand from {' or '.join(places)}, then give its path "
        f"in place of the name, and {name} as its architecture"
    )
