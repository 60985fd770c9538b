"""Captions say what the picture shows; the vocabulary spells them and is read by the runtime's tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from styleclip_rt.runtime.model import Tokens
from styleclip_rt.runtime.tokenizer import Tokenizer
from styleclip_rt.runtime.training.demo.augment import BLURRY, CLEAN, CONDITIONS
from styleclip_rt.runtime.training.demo.captions import QUALITY, caption, captions, fill, holds, matches, phrase
from styleclip_rt.runtime.training.demo.factors import ATTRIBUTES, Factors, labels, sample_factors
from styleclip_rt.runtime.training.demo.facts import FACTS, named, scores
from styleclip_rt.runtime.training.demo.vocabulary import CONTEXT_LENGTH, VOCABULARY, Encoder, train_vocabulary
from styleclip_rt.runtime.training.demo.words import WORDS, parse

N = 600


@pytest.fixture(scope="module")
def faces() -> Factors:
    return sample_factors(N, np.random.default_rng(1))


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_vocabulary(tmp_path_factory.mktemp("vocabulary"), scale=0.2)


def test_every_caption_is_true_of_its_own_face(faces: Factors) -> None:
    condition = np.random.default_rng(2).integers(0, len(CONDITIONS), N)
    said = captions(scores(faces), condition, np.random.default_rng(3))
    assert matches(holds(scores(faces), condition), said.stated).diagonal().all()


def test_captions_follow_the_seed(faces: Factors) -> None:
    clean = np.full(N, CLEAN)
    first, again, other = (captions(scores(faces), clean, np.random.default_rng(s)).texts for s in (4, 4, 5))
    assert first == again
    assert first != other
    assert len(set(first)) > 0.9 * N
    assert caption(faces, 7, np.random.default_rng(4))


@pytest.mark.parametrize("attribute", ["glasses", "beard", "hat", "lipstick", "expression", "age"])
def test_facts_of_an_attribute_exclude_each_other_and_agree_with_the_labels(faces: Factors, attribute: str) -> None:
    score = scores(faces)
    columns = [named(f"{attribute}={value}") for value in ATTRIBUTES[attribute]]
    assert (score[:, columns].argmax(1) == labels(faces)[attribute]).all()
    assert ((score[:, columns] >= 0).sum(1) == 1).all()


def test_bald_heads_have_no_hair_colour(faces: Factors) -> None:
    bald = faces["hair_style"].argmax(1) == 0
    columns = [named(f"hair_color={color}") for color in ATTRIBUTES["hair_color"]]
    assert bald.any()
    assert (scores(faces)[bald][:, columns] < 0).all()


def test_every_fact_is_said_of_some_face_and_has_words(faces: Factors) -> None:
    many = scores(sample_factors(6000, np.random.default_rng(6)))
    assert [fact.name for fact, column in zip(FACTS, many.T, strict=True) if not (column >= 1).any()] == []
    assert all(fact.words.adjectives or fact.words.things or fact.words.states for fact in FACTS)
    assert set(WORDS) <= {fact.name for fact in FACTS}, "a row of the word table that no fact reads"


def test_a_phrase_states_its_facts_in_words() -> None:
    texts = [
        phrase([named("hair_color=purple"), named("hair_style=bob-cut")], np.random.default_rng(s)) for s in range(40)
    ]
    colour = ("purple", "violet", "lilac")
    assert all(any(word in text for word in colour) for text in texts)
    assert any("purple bob" in text for text in texts)


def test_quality_words_only_follow_damage(faces: Factors) -> None:
    said = captions(scores(faces), np.full(N, CLEAN), np.random.default_rng(8))
    assert not said.stated[:, len(FACTS) :].any()
    assert not any("blurry" in text for text in said.texts)
    hurt = captions(scores(faces), np.full(N, BLURRY), np.random.default_rng(8))
    blurry = [word for word, _ in QUALITY].index("blurry")
    assert hurt.stated[:, len(FACTS) + blurry].sum() == sum("blurry photo" in text for text in hurt.texts) > 0


def test_a_caption_is_no_match_for_a_face_that_contradicts_it(faces: Factors) -> None:
    score = scores(faces)
    with_glasses = np.zeros((1, len(FACTS) + len(QUALITY)), bool)
    with_glasses[0, named("glasses=yes")] = True
    match = matches(holds(score, np.full(N, CLEAN)), with_glasses)[:, 0]
    assert (match == (labels(faces)["glasses"] == 1)).all()


def test_templates_keep_a_doubled_article_now_and_then() -> None:
    texts = {fill("a photo of a {}.", "a face", np.random.default_rng(seed)) for seed in range(30)}
    assert texts == {"a photo of a face.", "a photo of a a face."}


def test_the_word_table_continues_a_kind_on_a_second_line() -> None:
    words = parse("fact 0.5\n  with: a, b\n  with: c\n  is: d")["fact"]
    assert (words.weight, words.things, words.adjectives) == (0.5, ("a", "b", "c"), ("d",))


def test_vocabulary_is_reproducible_and_keeps_clips_order_of_ids(tokenizer_file: Path, tmp_path: Path) -> None:
    assert train_vocabulary(tmp_path, scale=0.2).read_bytes() == tokenizer_file.read_bytes()
    encoder = Encoder(tokenizer_file)
    assert encoder.vocab_size == VOCABULARY
    assert (encoder.config["pad"], encoder.config["eos"]) == (0, VOCABULARY - 1)  # argmax pooling finds eos


def test_training_and_runtime_tokenize_alike(tokenizer_file: Path, faces: Factors) -> None:
    encoder = Encoder(tokenizer_file)
    runtime = Tokenizer.open(tokenizer_file, Tokens(**encoder.config))
    texts = captions(scores(faces), np.full(N, CLEAN), np.random.default_rng(9)).texts
    texts = [t for t in texts if len(encoder.backend.encode(t).ids) <= CONTEXT_LENGTH - 2]
    assert len(texts) > 0.97 * N
    assert (runtime.encode(texts) == encoder(texts, full=True)).all()
    assert (runtime.encode(["A  Face with GLASSES "]) == runtime.encode(["a face with glasses"])).all()


def test_prompt_words_are_known_and_nonsense_is_not(tokenizer_file: Path) -> None:
    runtime = Tokenizer.open(tokenizer_file, Tokens(**Encoder(tokenizer_file).config))
    prompt = (
        "a surprised elderly face with purple hair, a bob-cut, glasses, a beard, a hat, a mohawk, an afro and lipstick"
    )
    assert runtime.unknown_words(prompt) == ()
    assert runtime.unknown_words("a face with qxzvkjw") == ("qxzvkjw",)
