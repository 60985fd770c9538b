"""CLIP's vocabulary in the serving path against open_clip's tokenizer, on ten thousand odd strings."""

# ruff: noqa: RUF001 (strings that look like others are the point)

from __future__ import annotations

import json
import random
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open_clip", reason="the reference tokenizer needs the extra 'torch'")

from styleclip_rt.engines.errors import BundleError, InputError
from styleclip_rt.runtime.model import Tokens, read_model
from styleclip_rt.runtime.tokenizer import Tokenizer, clean_text
from styleclip_rt.runtime.training.checkpoints.clip_tokenizer import clip_tokenizer

SEED, COUNT = 20240917, 10_000
ENTITIES = [
    "&amp;",
    "&lt;",
    "&amp;lt;",
    "&#39;",
    "&#x27;",
    "&nbsp;",
    "&eacute;",
    "&#769;",
    "&#0;",
    "&#xD800;",
    "&bogus;",
]
MOJIBAKE = ["schÃ¶n", "donâ€™t", "âœ”", "Ã\xa0", "l’humanitÃ©", "ï»¿x", "â€œquotedâ€\x9d", "ðŸ˜€"]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "☃️", "🇩🇪", "👍🏽", "1️⃣", "⌘"]
SCRIPTS = [
    "Straße",
    "ŒUVRE",
    "ΟΔΟΣ",
    "İstanbul",
    "ıgdır",
    "שלום",
    "مرحبا",
    "مُحَمَّد",
    "हिन्दी",
    "한국어",
    "日本語テキスト",
    "ﬁﬂﬃ",
    "ＦＵＬＬ",
    "ſtraſe",
    "'ſ",
    "Ⅷ",
    "½",
    "²",
    "१२३",
    "𝔘𝔫𝔦",
    "Ǆ",
    "ậ",
    "a\u0301\u0323",
    "Å",
]
APOSTROPHES = ["he's", "IT'S", "don't", "we're", "I'VE", "i'm", "you'll", "she'd", "'s't're", "rock'n'roll", "’s"]
SPACES = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1f",
    "\x85",
    "\xa0",
    "\u1680",
    "\u2003",
    "\u2028",
    "\u200b",
    "\u3000",
    "\ufeff",
    "\u180e",
    "\u2060",
]
CONTROLS = [
    "\x00",
    "\x01",
    "\x07",
    "\x1b[31m",
    "\x7f",
    "\x9b",
    "\u202e",
    "\u200f",
    "\ufffd",
    "\ufffe",
    "\ud800",
    "\udfff",
]
SPECIALS = [
    "<start_of_text>",
    "<end_of_text>",
    "<END_OF_TEXT>",
    "!<end_of_text>",
    "<ſtart_of_text>",
    "<|endoftext|>",
    "<|startoftext|>",
    "</w>",
    "a</w>",
    "<unk>",
    "Ġ",
    "<end_of_text>x",
]
PIECES = [
    *ENTITIES,
    *MOJIBAKE,
    *EMOJI,
    *SCRIPTS,
    *APOSTROPHES,
    *SPACES,
    *CONTROLS,
    *SPECIALS,
    "a photo of a face",
    "__",
]


def odd_strings(seed: int = SEED, count: int = COUNT) -> list[str]:
    """Empty, blank, very long and mixed texts; any code point of Unicode, assigned or not, surrogates included."""
    rng = random.Random(seed)
    planes = [(0x20, 0x7E), (0x80, 0x24F), (0x250, 0xFFFF), (0x1F000, 0x1FAFF), (0, 0x10FFFF), (0x10000, 0x3FFFF)]

    def word() -> str:
        low, high = rng.choice(planes)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))

    makers = [
        lambda: "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 8))),
        lambda: " ".join(rng.choice([rng.choice(PIECES), word()]) for _ in range(rng.randint(1, 8))),
        word,
        lambda: "".join(rng.choice(string.printable) for _ in range(rng.randint(1, 40))),
        lambda: "".join(rng.choice(SPACES) for _ in range(rng.randint(0, 6))) + rng.choice(PIECES) + rng.choice(SPACES),
        lambda: rng.choice(["a", "ab", "é", "字", "!?", "0"]) * rng.randint(1, 90) + word(),
    ]
    fixed = ["", " ", *PIECES, "x" * 5000, "word " * 2000, "é" * 3000, "&amp;" * 400]
    return fixed + [rng.choice(makers)() for _ in range(count - len(fixed))]


@pytest.fixture(scope="module")
def reference():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    imported = clip_tokenizer(77)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(imported.content)
    return path, imported.config


@pytest.fixture(scope="module")
def tokenizer(written):
    return Tokenizer.open(written[0], Tokens(**written[1]))


def test_ten_thousand_odd_strings_have_open_clips_ids(tokenizer, reference):
    texts = odd_strings()
    assert len(texts) == COUNT
    assert len(set(texts)) > 0.85 * COUNT
    wrong = [text for text in texts if tokenizer.token_ids(text) != reference.encode(text)]
    assert wrong == []


def test_rows_are_open_clips_with_long_texts_cut_and_empty_ones_kept(tokenizer, reference):
    texts = ["", " \t", "a photo of a face", *odd_strings(seed=1, count=400)]
    rows = tokenizer.encode(texts, strict=False)
    assert rows.dtype == np.int64
    assert rows.shape == (len(texts), 77)
    assert np.array_equal(rows, reference(texts).numpy())
    lengths = [len(reference.encode(text)) for text in texts]
    assert min(lengths) == 0
    assert max(lengths) > 75


def test_every_character_is_classed_as_open_clip_does(tokenizer, reference):
    """Each code point between two letters: a letter joins the word, a number or a mark splits it."""
    codes = [*range(0x20, 0x3000), *range(0xA000, 0xD800, 3), *range(0xF900, 0x11FFF), *range(0x1D000, 0x1FB00, 3)]
    texts = [f"a{chr(code)}b" for code in codes if not 0xD800 <= code <= 0xDFFF]
    joined = [" ".join(texts[i : i + 50]) for i in range(0, len(texts), 50)]
    assert [text for text in joined if tokenizer.token_ids(text) != reference.encode(text)] == []


def test_strict_rows_refuse_what_would_not_be_embedded(tokenizer):
    assert tokenizer.encode(["a face"])[0, :5].tolist() == [49406, 320, 1710, 49407, 0]
    with pytest.raises(InputError, match="no token"):
        tokenizer.encode(["\u200b \x00"[1:]])
    with pytest.raises(InputError, match="76 tokens; at most 75"):
        tokenizer.encode(["a " * 76])
    with pytest.raises(InputError, match="special token '<end_of_text>'"):
        tokenizer.encode(["a face <END_of_text> with glasses"])
    assert tokenizer.encode(["a " * 75])[0, -1] == 49407


def test_words_that_the_vocabulary_lacks_are_named(tokenizer):
    assert tokenizer.unknown_words("A face with Glasses") == ()
    assert tokenizer.unknown_words("a qzxvk face") == ("qzxvk",)


def test_the_file_alone_gives_the_ids_of_plain_texts(written, reference):
    """A host with nothing but the tokenizers library: case, spacing, bos and eos come from the file."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(written[0]))
    for text in ["A photo of  a FACE with glasses.", "don't you, 3 times", "naïve café"]:
        assert backend.encode(text).ids == [49406, *reference.encode(text), 49407]
    assert backend.get_vocab_size() == 49408


def test_cleanings_equal_open_clips():
    from open_clip.tokenizer import get_clean_fn

    for text in odd_strings(seed=2, count=500):
        for ours, theirs in (("clip", "lower"), ("whitespace", "whitespace"), ("canonicalize", "canonicalize")):
            assert clean_text(text, ours) == get_clean_fn(theirs)(text)
        assert clean_text(text, None) == text


def test_the_serving_path_reads_it_without_torch(written):
    path, config = written
    source = f"""
import sys
for name in ("torch", "open_clip", "regex", "transformers"):
    sys.modules[name] = None
from styleclip_rt.runtime.model import Tokens
from styleclip_rt.runtime.tokenizer import Tokenizer
print(Tokenizer.open({str(path)!r}, Tokens(**{config!r})).encode(["He\\u2019s a  caf&eacute;"])[0, :8].tolist())
"""
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[49406, 797, 568, 320, 15304, 49407, 0, 0]"


def test_a_bundle_names_the_cleaning_and_only_known_ones():
    manifest = {
        "name": "x",
        "model": {"resolution": 8, "num_ws": 4, "z_dim": 4, "w_dim": 4, "style_channels": 8, "layers": []},
        "tokens": {"bos": None, "eos": 1, "pad": 1, "context_length": 64, "clean": "canonicalize"},
    }
    assert read_model(manifest).tokens == Tokens(None, 1, 1, 64, "canonicalize")
    manifest["tokens"]["clean"] = "boil"
    with pytest.raises(BundleError, match="clean is 'boil'"):
        read_model(json.loads(json.dumps(manifest)))
    del manifest["tokens"]["bos"]
    with pytest.raises(BundleError, match="bos is None"):
        read_model(manifest)


def test_rows_without_bos(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "face": 3}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    rows = Tokenizer.open(tmp_path / "tokenizer.json", Tokens(None, 1, 1, 4, "canonicalize")).encode(
        ["A_face!", "a face a"]
    )
    assert rows.tolist() == [[2, 3, 1, 1], [2, 3, 2, 1]]
