"""The words of the captions: one entry a fact, with its weight and its phrases.

"is": words before the noun. "with": things after "with". "state": words after the noun. `facts.py` says when each
is true.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """Phrases of one fact, and how often it is picked relative to the others."""

    weight: float
    adjectives: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    states: tuple[str, ...] = ()


TABLE = """
hair_color=black 2.2
  is: black-haired
  with: black hair, jet black hair, raven hair
  state: who has black hair
hair_color=brown 2.2
  is: brown-haired, brunette, brunet
  with: brown hair, brunette hair, chestnut hair
  state: who has brown hair
hair_color=blond 2.2
  is: blond, blonde, blond-haired
  with: blond hair, blonde hair, fair hair, golden hair, yellow hair
  state: who has blond hair
hair_color=red 2.2
  is: red-haired, ginger, redheaded
  with: red hair, ginger hair, orange hair, auburn hair
  state: who has red hair
hair_color=grey 2.2
  is: grey-haired, gray-haired, silver-haired
  with: grey hair, gray hair, silver hair, white hair
  state: who has grey hair
hair_color=purple 2.2
  is: purple-haired, violet-haired
  with: purple hair, violet hair, lilac hair, dyed purple hair
  state: who has purple hair
hair_style=bald 1.6
  is: bald, bald-headed
  with: a bald head, no hair, a shaved head
  state: without hair
hair_style=short 1.2
  is: short-haired
  with: short hair, short cropped hair, a short haircut, a short hairstyle
hair_style=bob-cut 2.4
  with: a bob-cut, a bob cut, a bob haircut, a bob, a bob-cut hairstyle, bob-cut hair, a bobcut
  with: chin-length hair, a bowl cut
hair_style=long 1.6
  is: long-haired
  with: long hair, long straight hair, a long hairstyle, long flowing hair
hair_style=afro 2.2
  is: afro-haired, curly-haired
  with: an afro, afro hair, an afro hairstyle, curly hair, big curly hair, frizzy hair, an afro haircut
hair_style=mohawk 2.2
  with: a mohawk, a mohawk hairstyle, a mohawk haircut, mohawk hair, a mohican, punk hair
hair_volume=high 0.35
  with: voluminous hair, thick hair, big hair
hair_volume=low 0.35
  with: thin hair, flat hair, fine hair
glasses=yes 2.4
  is: bespectacled
  with: glasses, eyeglasses, spectacles, a pair of glasses
  state: wearing glasses, wearing eyeglasses, in glasses
glasses=no 0.5
  with: no glasses
  state: without glasses, not wearing glasses
frame=round 0.4
  with: round glasses, circular glasses
  state: wearing round glasses
frame=square 0.4
  with: square glasses, rectangular glasses
  state: wearing square glasses
frame=black 0.4
  with: black glasses, dark glasses frames
frame=red 0.4
  with: red glasses, red glasses frames
beard=yes 2.4
  is: bearded, unshaven
  with: a beard, a full beard, facial hair, a moustache and a beard
  state: with a beard
beard=no 0.5
  is: clean-shaven, beardless, shaved
  with: no beard, a clean shave
  state: without a beard
beard=long 0.4
  with: a long beard, a bushy beard
beard=short 0.4
  with: a short beard, a trimmed beard
hat=yes 2.6
  with: a hat, a cap, a hat on
  state: wearing a hat, in a hat, wearing a cap, with a hat on the head
hat=no 0.4
  is: bareheaded
  with: no hat
  state: without a hat
hat=tall 0.4
  with: a tall hat, a top hat
  state: in a tall hat
hat=low 0.4
  with: a low hat, a flat hat
  state: in a low hat
hat=red 0.7
  with: a red hat
  state: wearing a red hat
hat=blue 0.7
  with: a blue hat
  state: wearing a blue hat
hat=green 0.7
  with: a green hat
  state: wearing a green hat
hat=black 0.7
  with: a black hat
  state: wearing a black hat
hat=yellow 0.7
  with: a yellow hat
  state: wearing a yellow hat
expression=neutral 0.8
  is: serious, calm, expressionless, neutral
  with: a neutral expression, a calm face, a straight face
  state: not smiling
expression=smiling 2.2
  is: smiling, happy, cheerful, grinning, laughing
  with: a smile, a big smile, a happy expression, a grin, a smiling mouth
  state: smiling, smiling happily
expression=surprised 2.2
  is: surprised, shocked, astonished, amazed
  with: a surprised look, a surprised expression, a shocked face, wide open eyes
  state: looking surprised
expression=angry 1.8
  is: angry, mad, furious, grumpy, frowning
  with: an angry expression, an angry look, a frown, an angry face
  state: looking angry, frowning
smile=broad 0.3
  with: a broad smile, a very happy smile
smile=slight 0.3
  with: a slight smile, a small smile
mouth=open 0.5
  is: open-mouthed
  with: an open mouth, a wide open mouth
teeth=shown 0.4
  with: white teeth, teeth showing
  state: showing teeth
brows=raised 0.3
  with: raised eyebrows
lipstick=yes 2.4
  is: made-up
  with: lipstick, red lipstick, red lips, makeup, make-up, bright lips
  state: wearing lipstick, wearing makeup, with lipstick on
lipstick=no 0.4
  with: no lipstick, no makeup, natural lips, pale lips
  state: without lipstick, without makeup
lipstick=pink 0.4
  with: pink lipstick, pink lips
lipstick=dark 0.3
  with: dark red lipstick
lips=full 0.3
  with: full lips, thick lips
lips=thin 0.3
  with: thin lips
age=old 2.0
  is: old, elderly, aged, wrinkled
  with: wrinkles, an old face, wrinkled skin, an aged face
  state: of old age
age=young 0.9
  is: young, youthful
  with: a young face, smooth skin, no wrinkles
  state: without wrinkles
skin=light 1.0
  is: pale, light-skinned, fair-skinned
  with: light skin, pale skin, fair skin
skin=medium 1.0
  is: tanned
  with: tan skin, tanned skin, olive skin, medium skin
skin=dark 1.0
  is: dark-skinned, brown-skinned
  with: dark skin, brown skin, a dark complexion
eyes=brown 0.8
  is: brown-eyed
  with: brown eyes, dark eyes
eyes=hazel 0.4
  with: hazel eyes
eyes=green 0.8
  is: green-eyed
  with: green eyes
eyes=blue 0.8
  is: blue-eyed
  with: blue eyes
gaze=left 0.3
  with: the head turned left
  state: looking left, looking to the left
gaze=right 0.3
  with: the head turned right
  state: looking right, looking to the right
gaze=front 0.2
  state: looking straight ahead, facing forward
face_width=high 0.22
  with: a wide face, a broad face, a round face
face_width=low 0.22
  with: a narrow face, a thin face, a slim face
face_height=high 0.22
  with: a long face, a tall face
face_height=low 0.22
  with: a short face
eye_spacing=high 0.22
  with: wide-set eyes, eyes far apart
eye_spacing=low 0.22
  with: close-set eyes, eyes close together
eye_size=high 0.22
  with: big eyes, large eyes
eye_size=low 0.22
  with: small eyes, tiny eyes
eye_height=high 0.22
  with: low eyes, a high forehead
eye_height=low 0.22
  with: high eyes, a low forehead
nose_width=high 0.22
  with: a wide nose, a big nose, a broad nose
nose_width=low 0.22
  with: a narrow nose, a thin nose, a small nose
nose_length=high 0.22
  with: a long nose
nose_length=low 0.22
  with: a short nose
mouth_width=high 0.22
  with: a wide mouth, a big mouth
mouth_width=low 0.22
  with: a narrow mouth, a small mouth
mouth_height=high 0.22
  with: a short chin, a low mouth
mouth_height=low 0.22
  with: a long chin, a high mouth
brow_thickness=high 0.22
  with: thick eyebrows, bushy eyebrows, heavy brows
brow_thickness=low 0.22
  with: thin eyebrows, fine eyebrows
"""


def split_words(text: str) -> tuple[str, ...]:
    """Phrases parted by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse(table: str) -> dict[str, Words]:
    """{fact: Words} of a table such as TABLE: "name weight" lines, each followed by indented "kind: phrases" lines."""
    rows: dict[str, tuple[float, dict[str, tuple[str, ...]]]] = {}
    name = ""
    for line in table.strip().splitlines():
        if line.startswith(" "):
            kind, _, phrases = line.strip().partition(":")
            rows[name][1][kind] = rows[name][1].get(kind, ()) + split_words(phrases)
        else:
            name, weight = line.split()
            rows[name] = (float(weight), {})
    return {
        name: Words(weight, kinds.get("is", ()), kinds.get("with", ()), kinds.get("state", ()))
        for name, (weight, kinds) in rows.items()
    }


WORDS = parse(TABLE)

# Families that only differ by a colour's name.
PATTERNS = parse(
    """
hair_hint 0.35
  with: a touch of {} in the hair, {} highlights, a tinge of {} in the hair
background 0.7
  with: a {} background, a {} wall behind
  state: on a {} background, in front of a {} wall, against a {} background
shirt 0.6
  with: a {} shirt, {} clothes, a {} top
  state: in a {} shirt, wearing a {} shirt, wearing {} clothes
background=dark 0.5
  with: a dark background
background=light 0.5
  with: a light background, a bright background
shirt=dark 0.5
  with: a dark shirt
shirt=light 0.5
  with: a light shirt, a bright shirt
"""
)
