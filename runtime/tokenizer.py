"""Text to the token rows of CLIP's text encoder, read from a Hugging Face `tokenizers` file: no torch, no transformers.

A row is bos, the text's ids, eos, then pad up to T; eos is the position that CLIP pools.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..engines.errors import BundleError, InputError
from .model import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# A word that falls into pieces shorter than this on average was not in the texts that the pack's CLIP learnt from.
# (OpenAI's vocabulary of 49,408 keeps rare words in pieces of 3 letters and more.)
MIN_MEAN_PIECE = 3.0
_WORD = re.compile(r"[^\W\d_]+")


class Tokenizer:
    """Encodes texts for one bundle."""

    def __init__(self, backend: Backend, tokens: Tokens) -> None:
        self._backend = backend
        self._tokens = tokens

    @classmethod
    def open(cls, path: str | Path, tokens: Tokens) -> Tokenizer:
        """Read `tokenizer.json`; BundleError if the library cannot."""
        from tokenizers import Tokenizer as Backend

        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for every fault of the file
            raise BundleError(f"{path} is no tokenizers file ({error}); export the bundle again") from error
        backend.no_padding()
        backend.no_truncation()
        # A prompt that spells out "<|endoftext|>" must stay text: it would move the position that CLIP pools.
        backend.encode_special_tokens = True
        return cls(backend, tokens)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Token rows [K, T] int64 of K texts; InputError for a text that is empty or longer than T - 2 tokens."""
        rows = np.full((len(texts), self._tokens.context_length), self._tokens.pad, dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = self._ids(text)
            row[: len(ids) + 2] = [self._tokens.bos, *ids, self._tokens.eos]
        return rows

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of `text` that mean nothing to the pack: they fall into crumbs, or into the unknown token."""
        return tuple(dict.fromkeys(word for word in _WORD.findall(text) if self._is_crumbs(word)))

    def _ids(self, text: str) -> list[int]:
        room = self._tokens.context_length - 2
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if not ids:
            raise InputError(f"the text {text!r} has no token; expected a description such as 'a face with glasses'")
        if len(ids) > room:
            raise InputError(
                f"the text {text[:60]!r} has {len(ids)} tokens; at most {room} fit. Make the prompt shorter"
            )
        return ids

    def _is_crumbs(self, word: str) -> bool:
        pieces = self._backend.encode(word, add_special_tokens=False).tokens
        if not pieces:
            return True
        if any(piece in _unknown_tokens(self._backend) for piece in pieces):
            return True
        return len(pieces) > 1 and len(word) / len(pieces) < MIN_MEAN_PIECE


def _unknown_tokens(backend: Backend) -> set[str]:
    """The spellings of the unknown token: the model's own, and the usual ones."""
    own = getattr(backend.model, "unk_token", None)
    return {str(own or "<unk>"), "<unk>", "[UNK]"}
