"""How people write: phrasings, openings and closings, lower case, missing marks, slips."""

import random
import re
import tomllib
from functools import cache
from typing import Any, Literal

from .glossary import HERE, bare, glossary

Split = Literal["train", "held_out"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@cache
def data(name: str) -> dict[str, Any]:
    """One of the corpus files, such as phrasings.toml."""
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


def phrasing(split: Split, kind: str, rng: random.Random) -> str:
    """One template of a kind, from one side of the split; for training half of them made up."""
    if split == "train" and kind in _MADE and rng.random() < 0.5:
        return made(kind, rng)
    templates: list[str] = data("phrasings.toml")[split][kind]
    return rng.choice(templates)


_MADE = {"what", "why", "how"}
_SENTENCES = _MADE | {"everyday"}


def made(kind: str, rng: random.Random) -> str:
    """A text by the grammar in phrasings.toml."""

    def one(name: re.Match[str]) -> str:
        return made_up_word(rng) if name[1] == "made-up" else made(name[1], rng)

    texts: list[str] = data("phrasings.toml")["made"][kind]
    text = re.sub(r"<([a-z0-9-]+)>", one, rng.choice(texts))
    return text[:1].upper() + text[1:] if kind in _SENTENCES else text


def system_message(split: Split, kind: str, rng: random.Random) -> str:
    """A system message: neutral, or one that asks for a form of answer.

    A neutral one may name terms; what it is asked for stands in the user's message all the same.
    """
    if split == "train" and kind == "neutral" and rng.random() < 0.7:
        one, other = (bare(rng.choice(rng.choice(glossary()).ask)) for _ in range(2))
        return made("system", rng).replace("{t}", one).replace("{u}", other)
    messages: list[str] = data("skills.toml")[split]["system"][kind]
    return rng.choice(messages)


def fill(template: str, phrase: str, plural: bool) -> str:
    """Put a noun phrase into a template."""
    text = template.replace("{x}", phrase).replace("{t}", bare(phrase))
    return text.replace("{be}", "are" if plural else "is")


def fill_two(template: str, one: str, two: str) -> str:
    """Put two noun phrases into a template that compares."""
    text = template.replace("{tx}", bare(one)).replace("{ty}", bare(two))
    return text.replace("{x}", one).replace("{y}", two)


def typo(text: str, rng: random.Random) -> str:
    """One slip inside a word of four letters or more: dropped, doubled, swapped or wrong."""
    places = [i for i in range(1, len(text) - 2) if text[i - 1 : i + 3].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    slips = (
        text[:i] + text[i + 1 :],
        text[:i] + text[i] + text[i:],
        text[:i] + text[i + 1] + text[i] + text[i + 2 :],
        text[:i] + rng.choice(_LETTERS) + text[i + 1 :],
    )
    return rng.choice(slips)


def style(text: str, split: Split, rng: random.Random) -> str:
    """Lower case, capitals, no end mark: as people type."""
    draw = rng.random()
    if draw < 0.30:
        text = text.lower()
    elif draw < (0.36 if split == "train" else 0.32):  # other tokens, so it takes more of them
        text = text.upper()
    elif draw < 0.85:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25:
        text = text.rstrip("?.! ") or text
    return text


def ask(core: str, split: Split, rng: random.Random, typos: float = 0.15) -> str:
    """A core question with perhaps an opening, a closing and slips."""
    opening = phrasing(split, "opening", rng) if rng.random() < 0.4 else ""
    closing = phrasing(split, "closing", rng) if rng.random() < 0.3 else ""
    if split == "train" and rng.random() < 0.12:
        opening = made("aside", rng) + " "
    if split == "train" and rng.random() < 0.2:
        closing = " " + made("aside", rng)
    if opening and not core[:2].isupper() and rng.random() < 0.8:
        core = core[0].lower() + core[1:]
    if rng.random() < typos:
        core = typo(core, rng)
        if rng.random() < 0.3:
            core = typo(core, rng)
    return style(opening + core + closing, split, rng)


def word(kind: str, rng: random.Random) -> str:
    """A word or syllable of [words] in phrasings.toml; "-" stands for nothing."""
    text: str = data("phrasings.toml")["words"][kind]
    return rng.choice(text.split()).replace("-", "")


def made_up_word(rng: random.Random) -> str:
    """A word that does not exist, one to three syllables long."""
    syllables = [
        word("onset", rng) + word("vowel", rng) + word("coda", rng)
        for _ in range(rng.randint(1, 3))
    ]
    return "".join(syllables) + word("ending", rng)
