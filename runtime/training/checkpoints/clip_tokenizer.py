"""CLIP's tokenizers as files of the `tokenizers` library, exact to open_clip's: made from its merges, or taken over.

Character classes are spelled out as ranges. The Unicode tables of `regex`, which open_clip splits words with, and those
of `tokenizers` differ by thousands of letters, and they move with every release of either.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ....engines.errors import MissingDependency, PackError
from .rows import Imported

BOS, EOS = "<start_of_text>", "<end_of_text>"
MERGES = 49152 - 256 - 2  # of the merges in the file; with 2 * 256 bytes and 2 special tokens: 49,408 ids
LETTER_S = "[s\u017f]"
LICENCE = "MIT"  # github.com/openai/CLIP, whose file of merges open_clip ships


def clip_tokenizer(context_length: int) -> Imported:
    """The tokenizer of OpenAI's CLIP (49,408 ids) for rows of `context_length` tokens; eos is pooled, pad is 0."""
    document, ids = bpe_document()
    config = {
        "bos": ids[BOS],
        "eos": ids[EOS],
        "pad": 0,
        "context_length": context_length,
        "clean": "clip",
    }
    return Imported("tokenizer", document.encode(), config, "open_clip BPE", LICENCE)


@cache
def bpe_document() -> tuple[str, dict[str, int]]:
    """(tokenizer.json, {token: id}) from the merges inside open_clip."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    merges = read_merges()
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), BOS, EOS]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, merges, end_of_word_suffix="</w>"))
    # For hosts that do not clean the text as `runtime.tokenizer.clean_text` does; that one leaves this step out.
    space = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), space, normalizers.Strip(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word_pattern()), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])]
    )
    return tokenizer.to_str(), ids


def read_merges() -> list[tuple[str, str]]:
    """The ranked merges of `bpe_simple_vocab_16e6.txt.gz` in the installed open_clip."""
    try:
        import open_clip.tokenizer
    except ImportError as error:
        raise MissingDependency(f"CLIP needs open_clip_torch ({error}); pip install 'styleclip-rt[torch]'") from None
    path = Path(open_clip.tokenizer.default_bpe())
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != MERGES or any(len(pair) != 2 for pair in merges):
        raise PackError(f"{path} does not hold {MERGES} merges; install open_clip_torch again")
    return [(left, right) for left, right in merges]


def byte_alphabet() -> list[str]:
    """One printable character per byte, in the order of CLIP's vocabulary (which is GPT-2's): printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(others)]


def word_pattern() -> str:
    """CLIP's splitting of a cleaned text (lower case, single spaces) into words, for the library's regular expressions.

    Matching there ignores case, and the long s is the one lower-case character that then equals an ASCII letter.
    """
    letters, numbers, others = (class_ranges(each) for each in (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"))
    special = "|".join(token.replace("s", LETTER_S) for token in (BOS, EOS))
    return rf"{special}|'{LETTER_S}|'t|'re|'ve|'m|'ll|'d|[{letters}]+|[{numbers}]|[{others}]+"


@cache
def class_ranges(pattern: str) -> str:
    r"""The characters that a class of `regex` matches without regard to case, as ranges: \x{41}-\x{5a}..."""
    import regex

    halves = (range(0xD800), range(0xE000, 0x110000))  # surrogates are no characters
    return "".join(
        rf"\x{{{ord(run[0]):x}}}-\x{{{ord(run[-1]):x}}}"
        for half in halves
        for run in regex.findall(f"{pattern}+", "".join(map(chr, half)), regex.IGNORECASE)
    )


def taken_over(folder: Mapping[str, bytes], text_cfg: Mapping[str, Any], what: str) -> Imported:
    """The tokenizer of a model whose vocabulary is a Hugging Face repository's, from that repository's files.

    folder: `tokenizer.json` and, where there are some, `tokenizer_config.json` and `special_tokens_map.json`. Raises
    PackError for a file that frames a text otherwise than by one token at each end.
    """
    from tokenizers import Tokenizer

    options = text_cfg.get("tokenizer_kwargs") or {}
    unknown = sorted(options.keys() - {"clean", "strip_sep_token"})
    if unknown or text_cfg.get("tokenizer_mode"):
        raise PackError(f"{what}: the tokenizer's options {unknown or text_cfg['tokenizer_mode']} are not supported")
    try:
        backend = Tokenizer.from_str(folder["tokenizer.json"].decode())
    except Exception as error:  # the library raises plain Exception
        raise PackError(f"{what}: tokenizer.json is not a file of the tokenizers library: {error}") from None
    backend.no_padding()
    backend.no_truncation()
    settings = {**_json(folder, "special_tokens_map.json", what), **_json(folder, "tokenizer_config.json", what)}
    bos, eos = frame(backend, settings, what)
    pad = _token_id(backend, settings.get("pad_token") or "<pad>")
    config = {
        "bos": bos,
        "eos": 0 if options.get("strip_sep_token") else eos,
        "pad": eos if pad is None else pad,
        "context_length": int(text_cfg.get("context_length", 77)),
        "clean": {"lower": "clip"}.get(options.get("clean", "whitespace"), options.get("clean", "whitespace")),
    }
    return Imported("tokenizer", folder["tokenizer.json"], config, "Hugging Face tokenizer.json")


def frame(backend: Any, settings: Mapping[str, Any], what: str) -> tuple[int | None, int]:
    """(bos or None, eos) that a tokenizer puts around a text; the settings of Gemma's kind overrule the file."""
    plain = backend.encode("a", add_special_tokens=False).ids
    framed = backend.encode("a").ids
    at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    before, after = framed[:at], framed[at + len(plain) :]
    for name, ids in (("bos", before), ("eos", after)):
        wanted = settings.get(f"add_{name}_token")
        if wanted is not None:
            token = _token_id(backend, settings.get(f"{name}_token"))
            ids[:] = [token] if wanted and token is not None else []
    if len(before) > 1 or len(after) != 1:
        raise PackError(f"{what}: the tokenizer frames a text by {before} and {after}; expected one token at the end")
    return (before[0] if before else None), after[0]


def _token_id(backend: Any, token: Any) -> int | None:
    """The id of a token given as text or as the object that Hugging Face writes."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return backend.token_to_id(text) if isinstance(text, str) else None


def _json(folder: Mapping[str, bytes], name: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(folder.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise PackError(f"{what}: {name} is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}
