"""English captions of rendered faces: random subsets of what a picture shows, in random order, words and frames.

`captions` says something true of every face; `matches` tells which captions are true of which faces, so that the
contrastive loss never pushes a face away from words that fit it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...templates import STYLECLIP_TEMPLATES
from .augment import BLURRY, BRIGHT, DARK, PIXELATED
from .factors import ATTRIBUTES, Factors
from .facts import FACTS, Fact, named, scores

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Words of a template that say something of the picture's quality: true only after that damage (see `augment`).
QUALITY: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("blurry", (BLURRY,)), ("pixelated", (PIXELATED,)), ("low resolution", (BLURRY, PIXELATED)), ("bright", (BRIGHT,)),
    ("dark", (DARK,)),
)  # fmt: skip
COUNT_P = (0.03, 0.34, 0.32, 0.21, 0.10)  # how many facts a caption states
TEMPLATE_P = 0.5
NOUNS = (
    "face", "face", "face", "face", "face", "person", "person", "person", "portrait", "head", "human face", "someone",
    "man", "woman", "guy", "lady", "human", "character", "somebody", "portrait of a person", "portrait of a face",
)  # fmt: skip
_STYLES = {
    "bob-cut": ("a {} bob-cut", "a {} bob cut", "a {} bob", "a bob-cut of {} hair"),
    "long": ("long {} hair",),
    "short": ("short {} hair",),
    "afro": ("a {} afro", "curly {} hair"),
    "mohawk": ("a {} mohawk", "a {} mohawk hairstyle"),
}
_WEIGHTS = np.array([fact.words.weight for fact in FACTS], np.float32)
_COLOR_OF = {named(f"hair_color={c}"): c for c in ATTRIBUTES["hair_color"]}
_STYLE_OF = {named(f"hair_style={s}"): forms for s, forms in _STYLES.items()}


def _qualities(template: str) -> tuple[int, ...]:
    return tuple(k for k, (word, _) in enumerate(QUALITY) if f" {word} " in f" {template} ")


_TEMPLATE_QUALITIES = [_qualities(template) for template in STYLECLIP_TEMPLATES]
_PLAIN = [t for t, q in zip(STYLECLIP_TEMPLATES, _TEMPLATE_QUALITIES, strict=True) if not q]
_DAMAGED = [(t, q) for t, q in zip(STYLECLIP_TEMPLATES, _TEMPLATE_QUALITIES, strict=True) if q]


@dataclass(frozen=True)
class Captions:
    """Texts of n faces and what they claim: stated bool [n, len(FACTS) + len(QUALITY)]."""

    texts: list[str]
    stated: Mask


def holds(score: Array, condition: NDArray[np.int64]) -> Mask:
    """What is not contradicted by n pictures: scores [n, F], condition [n] -> bool [n, F + len(QUALITY)]."""
    quality = np.stack([np.isin(condition, kinds) for _, kinds in QUALITY], 1)
    return np.concatenate([score >= 0, quality], 1)


def matches(held: Mask, stated: Mask) -> Mask:
    """Which caption is true of which picture: held [n, K], stated [m, K] -> bool [n, m]."""
    return (~held).astype(np.float32) @ stated.T.astype(np.float32) < 0.5


def pick_facts(score: Array, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """A random few of the facts that each picture clearly shows, in random order (Gumbel top-k by weight)."""
    keys = np.log(_WEIGHTS) + rng.gumbel(size=score.shape).astype(np.float32)
    order = np.argsort(-np.where(score >= 1, keys, -np.inf), axis=1)
    counts = np.minimum(rng.choice(len(COUNT_P), len(score), p=COUNT_P), (score >= 1).sum(1))
    return [rng.permutation(row[:count]) for row, count in zip(order, counts, strict=True)]


def captions(score: Array, condition: NDArray[np.int64], rng: np.random.Generator) -> Captions:
    """One caption a picture, from `scores(factors)` [n, F] and the damage done to it (CLEAN where none) [n]."""
    texts = []
    stated = np.zeros((len(score), len(FACTS) + len(QUALITY)), bool)
    for row, chosen in enumerate(pick_facts(score, rng)):
        text = phrase(chosen.tolist(), rng)
        stated[row, chosen] = True
        if rng.random() < TEMPLATE_P:
            template, claimed = pick_template(int(condition[row]), rng)
            text = fill(template, text, rng)
            stated[row, [len(FACTS) + k for k in claimed]] = True
        texts.append(text)
    return Captions(texts, stated)


def caption(f: Factors, index: int, rng: np.random.Generator) -> str:
    """One caption of one clean face."""
    one = {name: value[index : index + 1] for name, value in f.items()}
    return captions(scores(one), np.zeros(1, np.int64), rng).texts[0]


def pick_template(condition: int, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A template that is true of a picture with this damage, and the qualities it claims."""
    fitting = [(t, q) for t, q in _DAMAGED if all(condition in QUALITY[k][1] for k in q)]
    if fitting and rng.random() < 0.6:
        return fitting[rng.integers(len(fitting))]
    return _PLAIN[rng.integers(len(_PLAIN))], ()


def fill(template: str, text: str, rng: np.random.Generator) -> str:
    """The template with the text in it; a doubled article ("a photo of a a face") stays in two cases of five, because
    StyleCLIP fills its templates with whole phrases."""
    first, _, rest = text.partition(" ")
    if first in ("a", "an", "the") and rest and rng.random() < 0.6:
        text = rest
    return template.format(text)


def _one(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _merge_hair(chosen: list[int], things: list[str], rng: np.random.Generator) -> list[int]:
    """Joins hair colour and style into one thing ("a purple bob-cut") in half of the cases; returns what is left."""
    color = next((k for k in chosen if k in _COLOR_OF), None)
    style = next((k for k in chosen if k in _STYLE_OF), None)
    if color is None or style is None or rng.random() < 0.4:
        return chosen
    word = _COLOR_OF[color]
    things.append(_one(_STYLE_OF[style], rng).format("blonde" if word == "blond" and rng.random() < 0.4 else word))
    return [k for k in chosen if k not in (color, style)]


def phrase(chosen: list[int], rng: np.random.Generator) -> str:
    """A caption that states exactly these facts (indices into FACTS)."""
    adjectives: list[str] = []
    things: list[str] = []
    states: list[str] = []
    for k in _merge_hair(chosen, things, rng):
        fact = FACTS[k]
        homes = [(words, home) for words, home in _homes(fact, adjectives, things, states) if words]
        words, home = homes[int(rng.integers(len(homes)))]
        home.append(_one(words, rng))
    kind = rng.random()
    if kind < 0.2 and (adjectives or things or states):
        return _bare([*adjectives, *things, *states], rng)
    if kind < 0.3 and (adjectives or things):
        return _sentence(adjectives, things, states, rng)
    return _noun_phrase(adjectives, things, states, rng)


def _homes(
    fact: Fact, adjectives: list[str], things: list[str], states: list[str]
) -> list[tuple[tuple[str, ...], list[str]]]:
    """The words of a fact and the list that each kind goes to; things count twice, they read best."""
    words = fact.words
    return [(words.adjectives, adjectives), (words.things, things), (words.things, things), (words.states, states)]


def _with_article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def _joined(parts: list[str], rng: np.random.Generator) -> str:
    if len(parts) < 2:
        return "".join(parts)
    last = " and " if rng.random() < 0.7 else ", "
    return ", ".join(parts[:-1]) + last + parts[-1]


def _bare(parts: list[str], rng: np.random.Generator) -> str:
    """ "purple hair", "a bob-cut, smiling": no noun, articles dropped now and then."""
    if rng.random() < 0.35:
        parts = [part.removeprefix("a ").removeprefix("an ") for part in parts]
    return _joined(parts, rng)


def _sentence(adjectives: list[str], things: list[str], states: list[str], rng: np.random.Generator) -> str:
    """ "the person is smiling and has a beard", "someone who has purple hair"."""
    subject = _one(("the person", "this person", "the face", "someone who", "a person who", "this face"), rng)
    clauses = []
    if adjectives:
        clauses.append("is " + _joined(adjectives, rng))
    if things:
        clauses.append("has " + _joined(things, rng))
    return f"{subject} {' and '.join(clauses)} {' '.join(states)}".strip()


def _noun_phrase(adjectives: list[str], things: list[str], states: list[str], rng: np.random.Generator) -> str:
    """ "an old face with glasses and a beard on a blue background"."""
    noun = _one(NOUNS, rng)
    head = ", ".join(adjectives) if len(adjectives) > 1 and rng.random() < 0.5 else " ".join(adjectives)
    if noun.startswith("some"):
        text = f"{noun} {head}".strip()
    else:
        text = _with_article(f"{head} {noun}".strip())
        text = text.partition(" ")[2] if rng.random() < 0.12 else text
    if things:
        text += _one((" with ", " with ", " with ", " who has "), rng) + _joined(things, rng)
    return " ".join([text, *states])
