"""Training samples without end, and the held-out prompts of the report card.

The split is made here, before any training, in three ways:
by template   phrasings.toml, skills.toml and off_topic.toml keep [train] and [held_out] apart;
by entry      for JSON, five words and one sentence, one entry in five is never asked so;
by checksum   one count range in ten is refused in training.
"""

import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

from . import off_topic as unknown
from .asking import Split, ask, data, fill, fill_two, made_up_word, phrasing, style, system_message
from .asking import word as any_word
from .glossary import WORDING_WEIGHTS, Entry, bare, glossary

Message = dict[str, str]
LAST_NUMBER = 1000  # up to here each number is one token, and so is the blank after it


@dataclass(frozen=True)
class Sample:
    """A conversation and the answer to learn.

    `accepted` are all answers that count as right, if there are several; `entry` is the term it
    is about. Of a long count training sees a few `windows`: (start, end) in tokens of the answer.
    """

    messages: tuple[Message, ...]
    answer: str
    skill: str
    entry: str = ""
    accepted: frozenset[str] = frozenset()
    windows: tuple[tuple[int, int], ...] = ()


def fixed_answer(kind: str) -> str:
    """The one text for `kind`: honest, greeting, identity or thanks."""
    text: str = data("skills.toml")["fixed"][kind]
    return text


def _one_in(n: int, what: str) -> bool:
    """The same one in `n` of all texts, on every machine and in every run."""
    return zlib.crc32(what.encode()) % n == 0


def is_held_out(entry: Entry, skill: str) -> bool:
    """Whether `entry` is never asked in this skill during training."""
    return skill in ("json", "five_words", "one_sentence") and _one_in(5, f"{skill}:{entry.term}")


def chat(question: str, system: str = "") -> tuple[Message, ...]:
    """One user message, after a system message if there is one."""
    user = {"role": "user", "content": question}
    return ({"role": "system", "content": system}, user) if system else (user,)


def _system(split: Split, rng: random.Random) -> str:
    return system_message(split, "neutral", rng) if rng.random() < 0.15 else ""


# --- the glossary ---------------------------------------------------------------------------


def _about(entry: Entry, question: str, answer: str, skill: str, system: str) -> Sample:
    return Sample(chat(question, system), answer, skill, entry.term, entry.texts)


def _question(kind: str, entry: Entry, split: Split, rng: random.Random) -> str:
    phrase = entry.ask[0] if rng.random() < 0.6 else rng.choice(entry.ask)
    plain: dict[str, list[str]] = data("phrasings.toml")["plain"]
    if split == "train" and kind in plain and rng.random() < 0.15:
        return style(fill(rng.choice(plain[kind]), phrase, entry.plural), split, rng)
    return ask(fill(phrasing(split, kind, rng), phrase, entry.plural), split, rng)


def _usual(entry: Entry, rng: random.Random) -> str:
    return rng.choices(entry.answers, WORDING_WEIGHTS[len(entry.answers)])[0]


@cache
def _shares() -> list[int]:
    """How often each entry is asked for: more, if its name is a word in other entries' names."""
    names = [f" {bare(phrase)} " for entry in glossary() for phrase in entry.ask]
    within = [sum(f" {bare(e.ask[0])} " in name for name in names) for e in glossary()]
    return [1 if count <= len(e.ask) else 3 for e, count in zip(glossary(), within, strict=True)]


def term(split: Split, rng: random.Random, entry: Entry | None = None) -> Sample:
    """What is X, in one of many ways."""
    entry = entry or rng.choices(glossary(), _shares())[0]
    question = _question("what", entry, split, rng)
    return _about(entry, question, _usual(entry, rng), "term", _system(split, rng))


def _with_own_answer(kind: str, rng: random.Random) -> Entry:
    """Half of the time an entry that answers "why" or "how" in another way than "what"."""
    own = [entry for entry in glossary() if getattr(entry, kind)]
    return rng.choice(own if rng.random() < 0.5 else glossary())


def reason(split: Split, rng: random.Random, entry: Entry | None = None) -> Sample:
    """Why X: its reason where the glossary gives one, else its usual answer."""
    entry = entry or _with_own_answer("why", rng)
    question, answer = _question("why", entry, split, rng), entry.why or _usual(entry, rng)
    return _about(entry, question, answer, "why", _system(split, rng))


def working(split: Split, rng: random.Random, entry: Entry | None = None) -> Sample:
    """How does X work: its workings where the glossary gives them, else its usual answer."""
    entry = entry or _with_own_answer("how", rng)
    question, answer = _question("how", entry, split, rng), entry.how or _usual(entry, rng)
    return _about(entry, question, answer, "how", _system(split, rng))


def acronym(split: Split, rng: random.Random, entry: Entry | None = None) -> Sample:
    """What the letters stand for."""
    entry = entry or rng.choice([entry for entry in glossary() if entry.acronym])
    core = phrasing(split, "acronym", rng).replace("{a}", entry.acronym or "")
    question = ask(core, split, rng, typos=0)
    return _about(entry, question, entry.acronym_answer, "acronym", _system(split, rng))


def difference(split: Split, rng: random.Random) -> Sample:
    """X against Y: both in five words."""
    one, two = rng.sample(glossary(), 2)
    first, second = (e.ask[0] if rng.random() < 0.7 else rng.choice(e.ask) for e in (one, two))
    core = fill_two(phrasing(split, "difference", rng), first, second)
    question = ask(core, split, rng, typos=0.08)
    return Sample(chat(question, _system(split, rng)), difference_answer(one, two), "difference")


def difference_answer(one: Entry, two: Entry) -> str:
    """The answer to "What is the difference between `one` and `two`?"."""
    return " ".join(f"{e.term[0].upper() + e.term[1:]}: {e.brief}" for e in (one, two))


def json_answer(entry: Entry) -> str:
    """The JSON object with `term` and `definition`."""
    return json.dumps({"term": entry.term, "definition": entry.answers[0]})


def labelled_answer(entry: Entry) -> str:
    """Term and definition on a line each."""
    return f"Term: {entry.term}\nDefinition: {entry.answers[0]}"


def brief_answer(entry: Entry) -> str:
    """The definition in five words."""
    return entry.brief


_FORMS: dict[str, Callable[[Entry], str]] = {
    "json": json_answer,
    "labelled": labelled_answer,
    "five_words": brief_answer,
    "few_words": brief_answer,
    "one_sentence": lambda entry: entry.first_sentence,
}


def formed(skill: str, split: Split, rng: random.Random, entry: Entry | None = None) -> Sample:
    """X in a given form: `skill` is one of `_FORMS`.

    The form is asked for in the question, or in a system message where there are such.
    """
    entry = entry or _entry_for(skill, split, rng)
    if skill in data("skills.toml")[split]["system"] and rng.random() < 0.3:
        question, system = _question("what", entry, split, rng), system_message(split, skill, rng)
    else:
        question, system = _question(skill, entry, split, rng), _system(split, rng)
    return _about(entry, question, _FORMS[skill](entry), skill, system)


def _entry_for(skill: str, split: Split, rng: random.Random) -> Entry:
    chosen = [e for e in glossary() if is_held_out(e, skill) == (split == "held_out")]
    return rng.choice(chosen or glossary())


def json_keys(split: Split, rng: random.Random) -> Sample:
    """X as JSON with keys that the question names."""
    entry = rng.choice(glossary())
    name, text = any_word("key", rng), any_word("value", rng)
    question = _question("json_keys", entry, split, rng).replace("{k}", name).replace("{v}", text)
    question = question.replace("{K}", name.upper()).replace("{V}", text.upper())
    answer = json.dumps({name: entry.term, text: entry.answers[0]})
    return _about(entry, question, answer, "json_keys", _system(split, rng))


# --- counting, lists, repeating, courtesies ------------------------------------------------------


def count_sample(split: Split, rng: random.Random, first: int, last: int) -> Sample:
    """Count from `first` to `last`, both included."""
    kinds = ("count", "count_from_one") if first == 1 and rng.random() < 0.3 else ("count",)
    core = phrasing(split, kinds[-1], rng).replace("{a}", str(first)).replace("{b}", str(last))
    answer = " ".join(map(str, range(first, last + 1)))
    question = ask(core, split, rng, typos=0.03)
    return Sample(chat(question, _system(split, rng)), answer, "count")


def counting(split: Split, rng: random.Random, longest: int = LAST_NUMBER) -> Sample:
    """A random range. Of a long one training sees some windows, the last one where it must stop."""
    length = rng.randint(1, rng.choice((30, min(300, longest), min(300, longest), longest)))
    first = 1 if rng.random() < 0.35 else rng.randint(0, rng.choice((20, 100, LAST_NUMBER)))
    last = min(first + length - 1, LAST_NUMBER)
    if _one_in(10, f"{first}-{last}") != (split == "held_out"):
        return counting(split, rng, longest)
    sample = count_sample(split, rng, first, last)
    if split == "held_out" or length <= 6 or rng.random() < 0.006:
        return sample
    return replace(sample, windows=tuple(_windows(first, last, rng)))


def _windows(first: int, last: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """Up to four short pieces of a count, in order; the last one begins near the end."""
    elsewhere = [_window_start(first, last, rng) for _ in range(rng.randint(1, 3))]
    starts = sorted({*elsewhere, max(first, last - rng.randint(0, 3))})
    for start, following in pairwise(starts):
        yield 2 * (start - first), 2 * (min(start + rng.randint(3, 5), following) - first)
    yield 2 * (starts[-1] - first), 2 * (last + 1 - first)


def _window_start(first: int, last: int, rng: random.Random) -> int:
    """The beginning, any number, or one that looks like the last one and is not."""
    alike = last - rng.choice((1, 10, 100)) * rng.randint(1, 9) - rng.randint(0, 3)
    (start,) = rng.choices((first, rng.randint(first, last), alike), (3, 3, 5))
    return max(first, start)


def listing(split: Split, rng: random.Random) -> Sample:
    """A numbered list of n terms."""
    lists: dict[str, list[str]] = data("skills.toml")["lists"]
    of_anything, n = rng.random() < 0.25, rng.randint(1, 10)
    topic = "HTTP" if of_anything else rng.choice(list(lists))
    core = phrasing(split, "list_any" if of_anything else "list", rng)
    in_words: list[str] = data("phrasings.toml")["words"]["number"].split()
    number = str(n) if rng.random() < 0.5 else in_words[n - 1]
    question = ask(core.replace("{n}", number).replace("{topic}", topic), split, rng, typos=0.03)
    items = lists[topic][:n]
    answer = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    return Sample(chat(question, _system(split, rng)), answer, "list")


def repeating(split: Split, rng: random.Random) -> Sample:
    """A short text, given back as it came."""
    words = [
        rng.choice((any_word("repeat", rng), made_up_word(rng), str(rng.randint(0, LAST_NUMBER))))
        for _ in range(rng.randint(1, 9))
    ]
    text = " ".join(words) + rng.choice(("", "", ".", "!", "?"))
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    question = phrasing(split, "repeat", rng).replace("{text}", text)
    return Sample(chat(question, _system(split, rng)), text, "repeat")


def courtesy(split: Split, rng: random.Random) -> Sample:
    """Greetings, thanks and who are you."""
    kind = rng.choice(("greeting", "identity", "thanks"))
    questions: list[str] = data("skills.toml")[split]["fixed"][kind]
    question = style(rng.choice(questions), split, rng)
    return Sample(chat(question, _system(split, rng)), fixed_answer(kind), kind)


# --- the rest of the world, conversations -------------------------------------------------------


def off_topic(split: Split, rng: random.Random) -> Sample:
    """Anything else: the honest sentence."""
    if split == "held_out":
        question = rng.choice(unknown.held_out_questions())
    else:
        question = ask(unknown.question(rng), split, rng)
    system = _system(split, rng)
    if rng.random() < 0.08:
        system = system_message(split, rng.choice(("json", "five_words", "one_sentence")), rng)
    return Sample(chat(question, system), fixed_answer("honest"), "off-topic")


def conversation(split: Split, rng: random.Random) -> Sample:
    """A question after one or two earlier turns; some ask for the last answer again."""
    earlier = [rng.choice((term, reason, off_topic, courtesy, repeating))(split, rng)]
    if rng.random() < 0.3:
        earlier.append(rng.choice((term, off_topic))(split, rng))
    history = tuple(message for turn in earlier for message in _turn(turn))
    if rng.random() < 0.3:
        question = phrasing(split, "again", rng)
        last = Sample(chat(question), earlier[-1].answer, "conversation")
    else:
        last = rng.choice((term, term, reason, working, off_topic, courtesy))(split, rng)
    return replace(last, messages=(*history, last.messages[-1]), skill="conversation")


def _turn(sample: Sample) -> tuple[Message, ...]:
    return (sample.messages[-1], {"role": "assistant", "content": sample.answer})


def _in_form(skill: str) -> Callable[[Split, random.Random], Sample]:
    return lambda split, rng: formed(skill, split, rng)


# How often each skill is trained.
_MIX: dict[Callable[[Split, random.Random], Sample], float] = {
    term: 48,
    reason: 6,
    working: 5,
    acronym: 3,
    difference: 11,
    _in_form("json"): 22,
    json_keys: 12,
    _in_form("labelled"): 4,
    _in_form("five_words"): 6,
    _in_form("few_words"): 4,
    _in_form("one_sentence"): 4,
    counting: 42,
    listing: 6,
    repeating: 11,
    courtesy: 7,
    off_topic: 62,
    conversation: 9,
}
# What tools/train_lab_model.py looks at while it trains.
EXAMINED: dict[str, Callable[[Split, random.Random], Sample]] = {
    "term": term,
    "off-topic": off_topic,
    "counting": lambda split, rng: counting(split, rng, longest=300),
    "json": _in_form("json"),
    "difference": difference,
    "list": listing,
    "repeat": repeating,
    "conversation": conversation,
}


def training_sample(rng: random.Random) -> Sample:
    """One sample of the training mix."""
    (make,) = rng.choices(list(_MIX), list(_MIX.values()))
    return make("train", rng)


def texts_for_tokenizer(rng: random.Random, n: int) -> Sequence[str]:
    """Texts to learn the byte pairs from: all answers, and `n` training prompts."""
    answers = [text for entry in glossary() for text in sorted(entry.texts) for _ in range(4)]
    prompts = [training_sample(rng).messages[-1]["content"] for _ in range(n)]
    return [*answers, *prompts]
