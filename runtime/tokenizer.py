"""Text to the token rows of CLIP's text encoder, read from a Hugging Face `tokenizers` file: no torch, no transformers.

A row is bos, the text's ids, eos, then pad up to T; eos is the position that CLIP pools. CLIP's own cleaning of a text
cannot be said in such a file, so it is done here, before; `tokens.clean` of a bundle says which cleaning.
"""

from __future__ import annotations

import html
import json
import re
import string
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
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_text(text: str, kind: str | None) -> str:
    """A text as CLIP's tokenizers see it: mojibake mended, HTML entities resolved, white space collapsed; then by kind.

    "clip" (OpenAI's): lower case. "whitespace": as it is. "canonicalize" (SigLIP): lower case, "_" as a space, no ASCII
    punctuation. None: the text unchanged.
    """
    if kind is None:
        return text
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if kind == "canonicalize":
        text = text.strip().replace("_", " ").translate(_NO_PUNCTUATION).lower()
    text = " ".join(text.split())
    return text.lower() if kind == "clip" else text


class Tokenizer:
    """Encodes texts for one bundle."""

    def __init__(self, backend: Backend, tokens: Tokens) -> None:
        self._backend = backend
        self._tokens = tokens
        special = {backend.id_to_token(id_): id_ for id_ in (tokens.bos, tokens.eos) if id_ is not None}
        self._special = special if tokens.clean == "clip" else {}

    @classmethod
    def open(cls, path: str | Path, tokens: Tokens) -> Tokenizer:
        """Read `tokenizer.json`; BundleError if the library cannot."""
        from tokenizers import Tokenizer as Backend

        try:
            document = Path(path).read_text(encoding="utf-8")
            # The normaliser of CLIP's file serves hosts without the cleaning; after it, it would do too much.
            backend = Backend.from_str(_without_normaliser(document) if tokens.clean == "clip" else document)
        except Exception as error:  # the library raises plain Exception for every fault of the file
            raise BundleError(f"{path} is no tokenizers file ({error}); export the bundle again") from error
        backend.no_padding()
        backend.no_truncation()
        # A prompt that spells out "<|endoftext|>" must stay text: it would move the position that CLIP pools.
        backend.encode_special_tokens = True
        return cls(backend, tokens)

    def encode(self, texts: Sequence[str], strict: bool = True) -> NDArray[np.int64]:
        """Token rows [K, T] int64 of K texts.

        `strict` refuses, with InputError, what would embed something else than the caller wrote: a text without
        tokens, one longer than its row, one that spells out a special token. Without it the rows are open_clip's: an
        empty text is bos and eos, a long one is cut and ends in eos (OpenAI's `truncate=True`).
        """
        rows = np.full((len(texts), self._tokens.context_length), self._tokens.pad, dtype=np.int64)
        start = [] if self._tokens.bos is None else [self._tokens.bos]
        room = self._tokens.context_length - len(start) - 1
        for row, text in zip(rows, texts, strict=True):
            ids = self.token_ids(text)
            if strict:
                self._check(text, ids, room)
            row[: len(start) + min(len(ids), room) + 1] = [*start, *ids[:room], self._tokens.eos]
        return rows

    def token_ids(self, text: str) -> list[int]:
        """The text's ids, without bos and eos, of any length; for CLIP's vocabulary exactly open_clip's."""
        text = clean_text(text, self._tokens.clean)
        if self._tokens.clean != "clip":
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        return [id_ for piece in self._pieces(text) for id_ in self._piece_ids(piece)]

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of `text` that mean nothing to the pack: they fall into crumbs, or into the unknown token."""
        return tuple(dict.fromkeys(word for word in _WORD.findall(text) if self._is_crumbs(word)))

    def _pieces(self, text: str) -> list[str]:
        """The words of a cleaned text, their bytes as the characters of the vocabulary."""
        return [piece for piece, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]

    def _piece_ids(self, piece: str) -> list[int]:
        """In open_clip a special token that stands as a word of its own is that token; the library would cut it up."""
        if piece in self._special:
            return [self._special[piece]]
        return [token.id for token in self._backend.model.tokenize(piece)]

    def _check(self, text: str, ids: list[int], room: int) -> None:
        """InputError for a text whose row would not hold it."""
        if not ids:
            raise InputError(f"the text {text!r} has no token; expected a description such as 'a face with glasses'")
        if len(ids) > room:
            raise InputError(
                f"the text {text[:60]!r} has {len(ids)} tokens; at most {room} fit. Make the prompt shorter"
            )
        if spelled := [name for name, id_ in self._special.items() if id_ in ids]:
            raise InputError(f"the text {text[:60]!r} spells out the special token {spelled[0]!r}; leave it out")

    def _is_crumbs(self, word: str) -> bool:
        pieces = [self._backend.id_to_token(id_) for id_ in self.token_ids(word)]
        if not pieces:
            return True
        if any(piece in _unknown_tokens(self._backend) for piece in pieces):
            return True
        return len(pieces) > 1 and len(word) / len(pieces) < MIN_MEAN_PIECE


def _without_normaliser(document: str) -> str:
    return json.dumps({**json.loads(document), "normalizer": None})


def _unknown_tokens(backend: Backend) -> set[str]:
    """The spellings of the unknown token: the model's own, and the usual ones."""
    own = getattr(backend.model, "unk_token", None)
    return {str(own or "<unk>"), "<unk>", "[UNK]"}
