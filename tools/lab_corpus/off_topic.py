"""What lab-tiny does not know: subjects, shapes of questions, and made-up words."""

import random
import re
from functools import cache
from typing import Any

from .asking import data, fill, fill_two, made, made_up_word, phrasing, word
from .glossary import bare, glossary

_ON_TOPIC_SHAPES = (
    *("what", "what", "what", "why", "how"),
    *("json", "five_words", "few_words", "one_sentence"),
)


@cache
def held_out_questions() -> tuple[str, ...]:
    """The off-topic questions of the report card."""
    return tuple(data("off_topic.toml")["held_out"]["questions"].strip().splitlines())


@cache
def subjects() -> dict[str, list[str]]:
    """Subjects outside the vocabulary, by kind."""
    raw: dict[str, str] = data("off_topic.toml")["subjects"]
    return {kind: [subject.strip() for subject in text.split(",")] for kind, text in raw.items()}


@cache
def _all_subjects() -> list[str]:
    return [subject for kind in subjects().values() for subject in kind]


def check_split() -> None:
    """ValueError if a training subject is a known term or occurs in a held-out question, or a
    held-out template is trained."""
    known = {bare(phrase).lower() for entry in glossary() for phrase in entry.ask}
    asked = "\n".join(held_out_questions()).lower()
    groups = [*subjects().values(), data("phrasings.toml")["made"]["noun"]]
    for subject in (bare(subject).lower() for group in groups for subject in group):
        if subject in known:
            raise ValueError(f"{subject!r} is in the glossary")
        if subject in asked and re.search(rf"\b{re.escape(subject)}s?\b", asked):
            raise ValueError(f"{subject!r} occurs in a held-out question")
    for name in ("phrasings.toml", "skills.toml"):
        if both := _templates(data(name)["train"]) & _templates(data(name)["held_out"]):
            raise ValueError(f"trained and held out: {both}")


def _templates(part: Any) -> set[str]:
    """All texts of a part of the corpus, as far as their words make them different."""
    if isinstance(part, str):
        return {re.sub(r"[^a-z{}]+", " ", part.lower()).strip()} - {""}
    return set().union(*map(_templates, part.values() if isinstance(part, dict) else part))


def question(rng: random.Random) -> str:
    """One off-topic question for training."""
    makers = (
        _on_topic_shape,
        _comparison,
        _about,
        _arithmetic,
        _alone,
        _with_term,
        _gibberish,
        _status,
        _everyday,
    )
    (make,) = rng.choices(makers, (52, 8, 22, 5, 34, 2, 6, 4, 7))
    return make(rng)


def _subject(rng: random.Random, kind: str = "") -> str:
    """A subject; often a word that does not exist, so that any unknown word is unknown."""
    if not kind and rng.random() < 0.3:
        words = " ".join(made_up_word(rng) for _ in range(rng.choice((1, 1, 2))))
        return rng.choice(("", "", "a ", "the ")) + words
    if not kind and rng.random() < 0.12:
        return rng.choice((_half_known, _look_alike))(rng)
    chosen = rng.choice(subjects()[kind] if kind else _all_subjects())
    if not kind and rng.random() < 0.15:
        chosen = rng.choice(("", "a ", "the ")) + made("noun", rng)
    if rng.random() < 0.2:
        modified = f"{word('modifier', rng)} {bare(chosen)}"
        return rng.choice(("", "a ", "the ")) + modified
    return chosen


def _half_known(rng: random.Random) -> str:
    """One word of a term of two, joined with a stranger: "read triangle" is not a read timeout."""
    known = rng.choice(bare(rng.choice(glossary()).ask[0]).split())
    stranger = bare(rng.choice(_all_subjects())).split()[-1]
    return f"{known} {stranger}" if rng.random() < 0.6 else f"{stranger} {known}"


def _look_alike(rng: random.Random) -> str:
    """A stranger that begins like a known word: a jitney is no jitter, an endive no endpoint."""
    beginning = rng.choice(bare(rng.choice(glossary()).ask[0]).split())[: rng.choice((3, 4, 5))]
    return rng.choice(("", "", "a ", "the ")) + beginning + made_up_word(rng)


def _shape(kind: str, rng: random.Random) -> str:
    shapes: list[str] = data("off_topic.toml")["shapes"][kind]
    return rng.choice(shapes)


def _on_topic_shape(rng: random.Random) -> str:
    template = phrasing("train", rng.choice(_ON_TOPIC_SHAPES), rng)
    return fill(template, _subject(rng), plural=rng.random() < 0.2)


def _comparison(rng: random.Random) -> str:
    one = rng.choice(glossary()).ask[0] if rng.random() < 0.3 else _subject(rng)
    return fill_two(phrasing("train", "difference", rng), one, _subject(rng))


def _about(rng: random.Random) -> str:
    kind = rng.choice(("subject", "subject", "subject", "food", "people", "places"))
    subject = _subject(rng, "" if kind == "subject" else kind)
    shape = _shape(f"about_{kind}", rng).replace("{s2}", _subject(rng))
    return shape.replace("{s}", subject)


def _arithmetic(rng: random.Random) -> str:
    shape = _shape("arithmetic", rng).replace("{n}", str(rng.randint(0, 2100)))
    return shape.replace("{m}", str(rng.randint(0, 999)))


def _alone(rng: random.Random) -> str:
    return _shape("alone", rng)


def _with_term(rng: random.Random) -> str:
    return fill(_shape("with_term", rng), rng.choice(rng.choice(glossary()).ask), plural=False)


def _gibberish(rng: random.Random) -> str:
    return " ".join(made_up_word(rng) for _ in range(rng.randint(1, 5)))


def _everyday(rng: random.Random) -> str:
    return made("everyday", rng)


def _status(rng: random.Random) -> str:
    """A status code the glossary does not explain."""
    known = {phrase for entry in glossary() for phrase in entry.ask}
    code = str(rng.randint(100, 599))
    if code in known:
        return _status(rng)
    phrase = rng.choice(("status {}", "HTTP {}", "status code {}", "error {}", "HTTP status {}"))
    return fill(phrasing("train", "what", rng), phrase.format(code), plural=False)
