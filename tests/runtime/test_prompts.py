"""Prompt lookup, templates, tokenizer and the text cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from styleclip_rt.engines.errors import BundleError, InputError
from styleclip_rt.runtime import edits, prompts
from styleclip_rt.runtime.model import Tokens, read_model
from styleclip_rt.runtime.templates import STYLECLIP_TEMPLATES
from styleclip_rt.runtime.tokenizer import Tokenizer

TOKENS = Tokens(bos=1, eos=2, pad=0, context_length=16)


@pytest.fixture
def model(bundle_folder: Path):
    return read_model(json.loads((bundle_folder / "bundle.json").read_text()))


@pytest.fixture
def tokenizer(bundle_folder: Path) -> Tokenizer:
    return Tokenizer.open(bundle_folder / "tokenizer.json", TOKENS)


def test_the_templates_are_openais_without_many():
    assert len(STYLECLIP_TEMPLATES) == len(set(STYLECLIP_TEMPLATES)) == 79
    assert all(template.count("{}") == 1 for template in STYLECLIP_TEMPLATES)
    assert "a photo of many {}." not in STYLECLIP_TEMPLATES
    assert {"a bad photo of a {}.", "itap of my {}.", "a tattoo of the {}."} <= set(STYLECLIP_TEMPLATES)


def test_a_bundle_without_templates_takes_styleclips(bundle_folder: Path):
    manifest = json.loads((bundle_folder / "bundle.json").read_text())
    del manifest["templates"]
    assert read_model(manifest).templates == STYLECLIP_TEMPLATES


@pytest.mark.parametrize(
    "text", ["bob-cut", "Bob cut", "bobcut", " BOB-CUT ", "a face with a bob-cut", "A face with a bob cut"]
)
def test_names_slugs_and_texts_find_the_prompt(model, text):
    assert prompts.resolve(model, text).name == "bob-cut"


def test_free_text_is_compared_with_the_usual_neutral(model):
    prompt = prompts.resolve(model, "  Sunglasses, red ")
    assert (prompt.name, prompt.target, prompt.neutral) == ("sunglasses-red", "Sunglasses, red", "a face")
    assert prompt.alpha is prompt.beta is prompt.mapper is None


def test_the_default_prompt_and_a_neutral_of_ones_own(model):
    prompt = prompts.resolve(model, None, "a portrait")
    assert (prompt.name, prompt.neutral, prompt.alpha) == ("bob-cut", "a portrait", 3.0)


@pytest.mark.parametrize("text", ["", "   ", "\n", "x" * 501, "a\0b", "a\udce4b", "two\nlines"])
def test_texts_that_are_no_prompt(model, text):
    with pytest.raises(InputError):
        prompts.resolve(model, text)
    with pytest.raises(InputError):
        prompts.resolve(model, "glasses", neutral=text)


def test_text_in_any_script_is_a_prompt(model):
    assert prompts.resolve(model, "violette Haare, größer").name == "violette-haare-grösser"
    assert prompts.resolve(model, "紫色の髪").target == "紫色の髪"
    assert prompts.resolve(model, "!?").name == "prompt"


def test_no_mapper_lists_the_mappers(model):
    assert prompts.mapper_graph(model, model.prompts["glasses"]) == "mapper/glasses"
    with pytest.raises(InputError, match="mappers: glasses"):
        prompts.mapper_graph(model, model.prompts["bob-cut"])


@pytest.mark.parametrize(
    "change",
    [{"model": 3}, {"tokens": {}}, {"name": ""}, {"templates": ["no slot"]}, {"prompts": {"a": {"target": "x"}}},
     {"prompts": {"a": "x"}}, {"prompts": {"a": {"target": "x", "neutral": "y", "alpha": "3"}}},
     {"prompts": {"a": {"target": "x", "neutral": "y", "beta": float("nan")}}}],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_is_not_one_is_a_bundle_error(bundle_folder: Path, change):
    manifest = json.loads((bundle_folder / "bundle.json").read_text())
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_model(manifest | change)


# Tokenizer ------------------------------------------------------------------------------------------------------------


def test_rows_are_bos_text_eos_pad(tokenizer):
    rows = tokenizer.encode(["a face", "a face with glasses"])
    assert (rows.shape, rows.dtype) == ((2, 16), np.int64)
    assert rows[0, 0] == rows[1, 0] == TOKENS.bos
    assert rows[0, 3] == rows[1, 5] == TOKENS.eos
    assert (rows[0, 4:] == TOKENS.pad).all()
    np.testing.assert_array_equal(rows[0, 1:3], rows[1, 1:3])


def test_texts_too_long_or_without_a_token(tokenizer):
    assert tokenizer.encode(["face " * 14])[0, -1] == TOKENS.eos
    with pytest.raises(InputError, match="15 tokens; at most 14"):
        tokenizer.encode(["face " * 15])
    with pytest.raises(InputError, match="no token"):
        tokenizer.encode([" "])


def test_special_tokens_in_a_prompt_stay_text(tokenizer):
    row = tokenizer.encode(["face <eos>"])[0]
    assert list(row).count(TOKENS.eos) == 1
    assert row[2] != TOKENS.eos


def test_words_that_fall_into_crumbs_are_unknown(tokenizer):
    assert tokenizer.unknown_words("a face with Purple hair, 20 glasses!") == ()
    assert tokenizer.unknown_words("a giraffe with a zebra giraffe") == ("giraffe", "zebra")
    assert tokenizer.unknown_words("ψυχή") == ("ψυχή",)


def test_a_broken_tokenizer_file_is_a_bundle_error(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizers file"):
        Tokenizer.open(tmp_path / "tokenizer.json", TOKENS)


# Embedding and cache --------------------------------------------------------------------------------------------------


def test_an_embedding_is_the_normalised_mean_over_templates(editor):
    embedded = editor.text.embed("a face with glasses")
    texts = ["a photo of a face with glasses.", "the portrait of a face with glasses."]
    tokenizer = Tokenizer.open(editor.bundle.file("tokenizer.json"), editor.model.tokens)
    out = editor.bundle.run("encode_text", tokens=tokenizer.encode(texts))["embedding"]
    np.testing.assert_allclose(embedded.embedding, edits.prompt_embedding(out), atol=1e-6)
    assert np.linalg.norm(embedded.embedding) == pytest.approx(1, abs=1e-6)


def test_texts_are_encoded_once_per_bundle(bundle_folder: Path, opened, home: Path):
    from styleclip_rt.runtime.editor import Editor

    first = Editor.open(bundle_folder)
    delta_t = first.text.delta_t(first.model.prompts["glasses"])
    first.text.delta_t(first.model.prompts["glasses"])
    second = Editor.open(bundle_folder)
    np.testing.assert_array_equal(second.text.delta_t(second.model.prompts["glasses"]), delta_t)
    assert [bundle.runs["encode_text"] for bundle in opened] == [2, 0]
    assert len(list((home / "cache").rglob("*.json"))) == 2


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[]", b'{"embedding": "AAAA", "text": "a face", "unknown": []}', b"\xff"]
)
def test_a_damaged_cache_entry_is_encoded_anew(bundle_folder: Path, opened, home: Path, damage):
    from styleclip_rt.runtime.editor import Editor

    expected = Editor.open(bundle_folder).text.embed("a face").embedding
    (entry,) = (home / "cache").rglob("*.json")
    entry.write_bytes(damage)
    np.testing.assert_array_equal(Editor.open(bundle_folder).text.embed("a face").embedding, expected)
    assert opened[1].runs["encode_text"] == 1


def test_a_cache_that_cannot_be_written_is_no_error(bundle_folder: Path, opened, home: Path):
    from styleclip_rt.runtime.editor import Editor

    home.write_text("a file where the folder should be")
    assert Editor.open(bundle_folder).text.embed("a face").embedding.shape == (16,)


def test_a_changed_bundle_starts_a_new_cache(bundle_folder: Path, opened):
    from styleclip_rt.runtime.editor import Editor

    Editor.open(bundle_folder).text.embed("a face")
    manifest = bundle_folder / "bundle.json"
    manifest.write_text(manifest.read_text().replace("a photo of {}.", "a face {}."))
    Editor.open(bundle_folder).text.embed("a face")
    assert opened[1].runs["encode_text"] == 1
