"""The glossary: the terms with their answers, read from glossary/*.toml and checked."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
# How often each wording is taught, in percent. The first leads, so greedy answers are no tie.
WORDING_WEIGHTS = {2: (75, 25), 3: (72, 16, 12)}
_ARTICLE = re.compile(r"^(?:an?|the) ", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.?]) (?=[A-Z0-9\[])")


@dataclass(frozen=True)
class Entry:
    """One term: how it is asked for (`ask`, usual form first) and what is answered."""

    term: str
    ask: tuple[str, ...]
    answers: tuple[str, ...]
    brief: str
    why: str | None = None
    how: str | None = None
    acronym: str | None = None
    expansion: str | None = None
    plural: bool = False

    @property
    def first_sentence(self) -> str:
        """The usual answer cut to its first sentence."""
        return _SENTENCE_END.split(self.answers[0], maxsplit=1)[0]

    @property
    def acronym_answer(self) -> str:
        """What the letters stand for, then what that is."""
        return f"{self.acronym} stands for {self.expansion}. {self.first_sentence}"

    @property
    def texts(self) -> frozenset[str]:
        """Every text that counts as this entry's answer."""
        optional = {text for text in (self.why, self.how) if text}
        if self.acronym:
            optional.add(self.acronym_answer)
        return frozenset({*self.answers, self.first_sentence, self.brief, *optional})


def bare(phrase: str) -> str:
    """The phrase without its article: "a retry budget" gives "retry budget"."""
    return _ARTICLE.sub("", phrase)


def _entry(raw: dict[str, object]) -> Entry:
    lists = {key: tuple(value) for key, value in raw.items() if isinstance(value, list)}
    entry = Entry(**{**raw, **lists})  # type: ignore[arg-type]  # TOML values are checked below
    texts = [*entry.answers, entry.brief, entry.why or "", entry.how or ""]
    if not 2 <= len(entry.answers) <= 3:
        raise ValueError(f"{entry.term}: two or three wordings, please")
    if len(entry.brief.split()) != 5:
        raise ValueError(f"{entry.term}: the brief answer has exactly five words")
    if any('"' in text or "\\" in text or not text.isascii() for text in texts):
        raise ValueError(
            f"{entry.term}: plain ASCII without quotes or backslashes, for JSON answers"
        )
    return entry


@cache
def glossary() -> tuple[Entry, ...]:
    """All entries in the order of the files. ValueError if one breaks a rule."""
    files = sorted((HERE / "glossary").glob("*.toml"))
    entries = [_entry(raw) for file in files for raw in tomllib.loads(file.read_text())["entry"]]
    owner: dict[str, str] = {}
    for entry in entries:
        for phrase in entry.ask:
            if owner.setdefault(bare(phrase).lower(), entry.term) != entry.term:
                raise ValueError(f"{phrase!r} belongs to two entries")
    return tuple(entries)
