"""From what the user typed to a unit direction in CLIP space.

A prompt is found in the bundle's table by name, slug or text ("bob-cut", "Bob cut", "a face with a bob-cut"); anything
else is free text against a neutral text. Embeddings are averaged over the bundle's sentence templates and cached.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import threading
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..engines.errors import BundleError, InputError
from . import edits
from .model import Model, Prompt
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..engines.bundle import Bundle

MAX_PROMPT_CHARS = 500
MAX_CACHED = 4096  # texts of one bundle on disk, 3 KB each
DEFAULT_NEUTRAL = "a face"
STYLE_MAPPER = "style_mapper/"


def slug(text: str) -> str:
    """A file-name and lookup form: "Purple hair!" -> "purple-hair"."""
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return "-".join(words)


def resolve(model: Model, text: str | None, neutral: str | None = None) -> Prompt:
    """The prompt that `text` names, else free text. None: the bundle's default. `neutral` replaces the table's.

    Raises InputError for an empty or over-long text, and where no prompt is given and the bundle has no default.
    """
    text = model.default_prompt if text is None else text
    if text is None:
        raise InputError(f"no prompt was given and the bundle {model.name} has no default; give --prompt TEXT")
    for given, label in ((text, "prompt"), (neutral, "neutral")):
        if given is not None:
            _check_text(given, label)
    found = _find(model, text)
    prompt = found or Prompt(name=slug(text) or "prompt", target=text.strip(), neutral=usual_neutral(model))
    return prompt if neutral is None else replace(prompt, neutral=neutral.strip())


def usual_neutral(model: Model) -> str:
    """The neutral text of most prompts of the bundle: what free text is compared with."""
    counts = Counter(prompt.neutral for prompt in model.prompts.values())
    return counts.most_common(1)[0][0] if counts else DEFAULT_NEUTRAL


def is_named(model: Model, text: str) -> bool:
    """Whether `text` names a prompt of the bundle."""
    return _find(model, text) is not None


def mapper_graph(model: Model, prompt: Prompt) -> str:
    """The name of the prompt's mapper graph, "mapper/<name>" or "style_mapper/<name>" (of style space).

    InputError lists the mappers that exist, BundleError for a bundle that names a graph of another kind.
    """
    if prompt.mapper:
        if not prompt.mapper.startswith(("mapper/", STYLE_MAPPER)):
            raise BundleError(f"bundle.json: prompt {prompt.name!r} has mapper {prompt.mapper!r}; export it again")
        return prompt.mapper
    names = sorted(p.name for p in model.prompts.values() if p.mapper)
    there = ", ".join(names) if names else "none"
    raise InputError(f"no mapper for {prompt.name!r} in bundle {model.name}; mappers: {there}. Or use --method global")


def _find(model: Model, text: str) -> Prompt | None:
    if text in model.prompts:
        return model.prompts[text]
    key = _key(text)
    for prompt in model.prompts.values():
        if key and key in (_key(prompt.name), _key(prompt.target)):
            return prompt
    return None


def _key(text: str) -> str:
    """Letters and digits alone, so that "bob-cut", "Bob cut" and "bobcut" agree."""
    return slug(text).replace("-", "")


def _check_text(text: str, label: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the {label} is empty; expected a description such as 'purple hair'")
    if len(text) > MAX_PROMPT_CHARS:
        raise InputError(f"the {label} has {len(text)} characters; at most {MAX_PROMPT_CHARS} are allowed")
    if not text.isprintable() or any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"the {label} {text!r} holds bytes that are no text; expected a line of plain text")


@dataclass(frozen=True)
class TextEmbedding:
    """embedding: [E] float32, unit length; unknown: words of the text that mean nothing to the pack."""

    embedding: NDArray[np.float32]
    unknown: tuple[str, ...] = ()


class TextEncoder:
    """Embeds texts over the bundle's templates with the `encode_text` graph; caches in memory and on disk.

    The cache is keyed by the bundle's manifest (which holds the hash of every file), so a changed bundle starts anew.
    """

    def __init__(self, bundle: Bundle, model: Model, cache: Path | None = None) -> None:
        self._bundle, self._model, self._cache = bundle, model, cache
        self._known: dict[str, TextEmbedding] = {}
        self._tokenizer: Tokenizer | None = None
        self._lock = threading.Lock()

    def delta_t(self, prompt: Prompt) -> NDArray[np.float32]:
        """The prompt's unit direction [E] in CLIP space: normalised(target - neutral)."""
        target, neutral = self.embed(prompt.target), self.embed(prompt.neutral)
        return edits.text_direction(target.embedding, neutral.embedding).astype(np.float32)

    def embed(self, text: str) -> TextEmbedding:
        """The text's embedding, from memory, disk, or one run of the text encoder over all templates."""
        with self._lock:
            if text not in self._known:
                if len(self._known) >= MAX_CACHED:
                    self._known.clear()
                self._known[text] = self._load(text) or self._save(text, self._encode(text))
            return self._known[text]

    def _encode(self, text: str) -> TextEmbedding:
        tokenizer = self._opened_tokenizer()
        tokens = tokenizer.encode([template.replace("{}", text) for template in self._model.templates])
        embeddings = self._bundle.run("encode_text", tokens=tokens)["embedding"]
        mean = edits.prompt_embedding(embeddings).astype(np.float32)
        return TextEmbedding(mean, tokenizer.unknown_words(text))

    def _opened_tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, read once; BundleError for a bundle that was exported without CLIP."""
        if self._tokenizer is None:
            file, tokens = self._model.tokenizer_file, self._model.tokens
            if file is None or tokens is None:
                raise BundleError(f"the bundle {self._model.name} has no text encoder; export it from a pack with CLIP")
            self._tokenizer = Tokenizer.open(self._bundle.file(file), tokens)
        return self._tokenizer

    def _file(self, text: str) -> Path | None:
        return self._cache / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json" if self._cache else None

    def _load(self, text: str) -> TextEmbedding | None:
        """The entry on disk, or None if it is absent or in any way not what `_save` writes."""
        file = self._file(text)
        try:
            entry = json.loads(file.read_text("utf-8")) if file else {}
            embedding = np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4").astype(np.float32)
            unit = embedding.shape == (self._model.embed_dim,) and abs(np.linalg.norm(embedding) - 1) < 1e-3
            unknown = tuple(str(word) for word in entry["unknown"])
            return TextEmbedding(embedding, unknown) if unit and entry["text"] == text else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _save(self, text: str, embedded: TextEmbedding) -> TextEmbedding:
        """Write the entry if the folder can be written and is not full; the cache is never needed."""
        file = self._file(text)
        data = base64.b64encode(embedded.embedding.astype("<f4").tobytes()).decode()
        entry = {"text": text, "unknown": embedded.unknown, "embedding": data}
        if file is not None:
            _write_quietly(file, json.dumps(entry).encode())
        return embedded


def cache_folder(home: Path, manifest: Path) -> Path | None:
    """The text cache of a bundle: home/cache/text/<start of the manifest's SHA-256>; None if unreadable."""
    try:
        return home / "cache" / "text" / hashlib.sha256(manifest.read_bytes()).hexdigest()[:24]
    except OSError:
        return None


def _write_quietly(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in os.scandir(file.parent)) < MAX_CACHED:
            temporary.write_bytes(content)
            os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
