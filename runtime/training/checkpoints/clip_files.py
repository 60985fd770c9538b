"""Files of CLIP weights as flat arrays under open_clip's names: what a file is, and what its tensors tell of it."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....engines.errors import PackError
from ...archives import Source, flat_arrays, members
from .clip_transformers import FORMAT as TRANSFORMERS
from .clip_transformers import as_open_clip, is_transformers
from .rows import Array

OPENAI, OPEN_CLIP = "OpenAI CLIP", "open_clip"
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")  # buffers that only OpenAI's modules have
HOLDERS = ("state_dict", "model_state_dict", "model", "module")  # of training checkpoints
WRAPPERS = re.compile(r"(?:module|_orig_mod|model|clip|clip_model)\.")
MAX_PROGRAM_BYTES = 64 << 20

FOREIGN = (
    (r"text_model\.|vision_model\.", "the library transformers, without one of its towers; both are needed"),
    (r"(?:params/)?(?:img|txt)/", "big_vision (JAX); fetch the conversion for open_clip, such as timm/ViT-B-16-SigLIP"),
    (
        r"image_encoder\.model\.",
        "Apple's MobileCLIP; fetch its conversion, such as MobileCLIP-S1-OpenCLIP",
    ),
    (r"(?:conv1|transformer\.resblocks)\.", "one tower alone; both the image's and the text's are needed"),
)
"""Layouts that are not open_clip's, by the start of a key."""


@dataclass(frozen=True)
class ClipFile:
    """Weights of CLIP. arrays: by open_clip's names. transformers: the file has those of the library transformers."""

    source: Source
    arrays: Mapping[str, Array]
    transformers: bool = False

    @property
    def openai(self) -> bool:
        """Whether OpenAI's program made the weights; it leaves three sizes among them."""
        return all(mark in self.arrays for mark in OPENAI_MARKS)

    @property
    def format(self) -> str:
        """What the file was recognised as."""
        return TRANSFORMERS if self.transformers else OPENAI if self.openai else OPEN_CLIP

    @property
    def quick_gelu(self) -> bool | None:
        """The activation, where the file can tell: from the program in a TorchScript archive, or as OpenAI's."""
        told = activation_of(self.source.path) if self.source.kind == "torchscript" else None
        return told if told is not None else (True if self.openai else None)

    def shape(self, *names: str) -> tuple[int, ...] | None:
        """Shape of the first of these tensors that is there."""
        return next((tuple(self.arrays[name].shape) for name in names if name in self.arrays), None)

    @property
    def custom_text(self) -> bool:
        """Whether the text tower is a part of its own (`text.*`)."""
        return any(key.startswith("text.") for key in self.arrays)


def recognises(source: Source) -> str | None:
    """ "OpenAI CLIP", "open_clip" or "transformers CLIP" for weights of a whole CLIP, else None."""
    arrays = _state(source)
    if is_transformers(arrays):
        return TRANSFORMERS
    return ClipFile(source, arrays).format if _is_clip(arrays) else None


def read_clip(source: Source) -> ClipFile:
    """The weights in a file; PackError that says what the file holds where that is no CLIP in open_clip's layout."""
    arrays = _state(source)
    if is_transformers(arrays):
        return ClipFile(source, as_open_clip(arrays, source.path.name), transformers=True)
    if _is_clip(arrays):
        return ClipFile(source, arrays)
    for start, layout in FOREIGN:
        if any(re.match(start, key) for key in arrays):
            raise PackError(f"{source.path.name} holds CLIP weights in the layout of {layout}")
    shown = ", ".join(sorted(arrays)[:3]) or "no tensor"
    raise PackError(f"{source.path.name} is no CLIP: it holds {shown} ...; expected open_clip's or OpenAI's weights")


def activation_of(path: Path) -> bool | None:
    """True for QuickGELU, x * sigmoid(1.702 x), and False for GELU in the program text of a TorchScript archive.

    The text is searched, never run. None where it names neither or both.
    """
    found = {b"torch.sigmoid(": False, b"torch.gelu(": False}
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [entry for entry in archive.infolist() if entry.filename.endswith(".py")]
            if sum(entry.file_size for entry in texts) > MAX_PROGRAM_BYTES:
                return None
            for text in map(archive.read, texts):
                found = {word: seen or word in text for word, seen in found.items()}
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, EOFError):
        return None
    quick, plain = found.values()
    return quick if quick != plain else None


def _state(source: Source) -> dict[str, Array]:
    """The tensors of the model in a file, without the names of wrappers around it."""
    tree = source.tree
    for holder in HOLDERS:
        inner = members(tree).get(holder)
        if members(inner):
            tree = inner
            break
    return _unwrapped(flat_arrays(tree))


def _unwrapped(arrays: dict[str, Array]) -> dict[str, Array]:
    """Keys without a prefix that all share ("module." of parallel training, "_orig_mod." of compiled modules)."""
    while arrays and (match := WRAPPERS.match(next(iter(arrays)))):
        start = match.group()
        if not all(key.startswith(start) for key in arrays):
            break
        arrays = {key.removeprefix(start): array for key, array in arrays.items()}
    return arrays


def _is_clip(arrays: Mapping[str, Any]) -> bool:
    words = ("token_embedding.weight", "embeddings.word_embeddings.weight", "shared.weight", "embed_tokens.weight")
    return any(key.startswith("visual.") for key in arrays) and any(key.endswith(words) for key in arrays)
