"""Trains the small vocabulary of the embedded pack's CLIP on its own captions.

Byte-level BPE: no text is unknown, a strange word only falls into crumbs. Ids follow OpenAI's CLIP: eos is the highest
id, because CLIP pools at the argmax of the tokens; bos stands before it; pad is 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ...templates import STYLECLIP_TEMPLATES
from .captions import captions
from .factors import sample_factors
from .facts import FACTS, scores

VOCABULARY, CONTEXT_LENGTH, CAPTIONS = 960, 32, 30_000
PAD, BOS, EOS = "<|pad|>", "<|startoftext|>", "<|endoftext|>"

# A few hundred plain words, so that everyday prompts outside the captions do not fall into single letters.
PLAIN_ENGLISH = """
the of and to in is you that it he she was for on are as with his her they at be this have from or one had by word but
not what all were we when your can said there use an each which do how their if will up other about out many then them
these so some would make like him into time has look two more write go see number no way could people my than first
water been call who its now find long down day did get come made may part picture photo image drawing painting style
hair hairstyle haircut curly straight wavy blue green pink orange yellow white bright colorful makeup eyeliner goatee
mustache sad crying tired young child baby woman man girl boy king queen actor singer celebrity zombie vampire elf
""".split()  # noqa: SIM905


def corpus(seed: int, count: int = CAPTIONS) -> list[str]:
    """The texts that the vocabulary learns from: captions, every phrase of every fact, templates, plain words."""
    rng = np.random.default_rng(seed)
    texts = captions(scores(sample_factors(count, rng)), np.zeros(count, np.int64), rng).texts
    for fact in FACTS:
        phrases = (*fact.words.adjectives, *fact.words.things, *fact.words.states)
        texts += [phrase for phrase in phrases for _ in range(count // 600)]
    texts += [template.format("") for template in STYLECLIP_TEMPLATES for _ in range(count // 300)]
    return texts + [word for word in PLAIN_ENGLISH for _ in range(count // 3000)]


def new_tokenizer() -> Tokenizer:
    """An untrained byte-level BPE: NFC, lower case, single spaces; every word starts with its space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_vocabulary(work: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """Train the vocabulary and write `work/tokenizer.json`; returns its path. Same seed, same bytes."""
    path = work / "tokenizer.json"
    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=[PAD], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(seed, max(3000, int(CAPTIONS * min(1.0, scale)))), trainer)
    tokenizer.add_special_tokens([BOS, EOS])
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def token_config(path: Path) -> dict[str, int]:
    """The `config` entry of the tokenizer in pack.json: ids of bos, eos and pad, and T."""
    special = {"bos": BOS, "eos": EOS, "pad": PAD}
    vocabulary: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    return {**{name: vocabulary[token] for name, token in special.items()}, "context_length": CONTEXT_LENGTH}


class Encoder:
    """Batches of texts to token rows for training; longer captions are cut, as CLIP's own tokenizer does."""

    def __init__(self, path: Path) -> None:
        self.backend = Tokenizer.from_file(str(path))
        self.config = token_config(path)
        self.vocab_size = self.backend.get_vocab_size()

    def __call__(self, texts: list[str], *, full: bool = False) -> np.ndarray:
        """Token rows int64 [n, T']: T' is the longest row here, or the whole context where `full`."""
        bos, eos, pad, context = (self.config[k] for k in ("bos", "eos", "pad", "context_length"))
        pieces = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        rows = [[bos, *piece.ids[: context - 2], eos] for piece in pieces]
        out = np.full((len(rows), context if full else max(map(len, rows))), pad, np.int64)
        for row, ids in zip(out, rows, strict=True):
            row[: len(ids)] = ids
        return out
