"""Measure the shipped lab-tiny on the shipped runtime, over REST, and write its model card.

    .venv/bin/python tools/report_card.py            # print the card
    .venv/bin/python tools/report_card.py --write    # and put it into foundry_lab/model/README.md

All prompts are held out of training (tools/lab_corpus/samples.py makes the split).
It takes some minutes.
"""

import argparse
import hashlib
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy
import onnxruntime
from lab_corpus import off_topic as unknown
from lab_corpus import samples
from lab_corpus.glossary import Entry, glossary
from lab_corpus.samples import Sample

from foundry_lab.health import memory_of
from foundry_lab.service import Service
from foundry_lab.settings import BUNDLED_MODEL, BUNDLED_MODEL_DIR, Settings

CARD = BUNDLED_MODEL_DIR / "README.md"
SEED = 7
PHRASINGS_PER_ENTRY = 10
MOST_MISSES_SHOWN = 6


@dataclass
class Score:
    """How many of the prompts of one kind were answered right, and which were not."""

    name: str
    target: str = ""
    n: int = 0
    right: int = 0
    misses: list[tuple[str, str]] = field(default_factory=list)

    def add(self, question: str, answer: str, is_right: bool) -> None:
        """Count one answer."""
        self.n += 1
        self.right += is_right
        if not is_right:
            self.misses.append((question, answer))

    @property
    def share(self) -> float:
        """Right answers of all, from 0 to 1."""
        return self.right / self.n if self.n else 0.0

    def __str__(self) -> str:
        return f"{self.name}: {self.right} of {self.n} ({self.share:.1%})"


class Asker:
    """Puts samples to the running service, greedily."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.http = httpx.Client(base_url=service.url, timeout=60)

    def __call__(self, sample: Sample, max_tokens: int = 300, temperature: float = 0) -> str:
        """The model's answer to the sample's messages."""
        body = {
            "model": self.service.model_id,
            "messages": sample.messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        reply = self.http.post("/v1/chat/completions", json=body).raise_for_status().json()
        text: str = reply["choices"][0]["message"]["content"]
        return text

    def score(self, name: str, asked: Iterable[Sample], target: str = "", most: int = 300) -> Score:
        """Ask each sample; right is what equals one of its accepted answers."""
        score = Score(name, target)
        for sample in asked:
            answer = self(sample, most)
            wanted = sample.accepted or {sample.answer}
            score.add(_transcript(sample), answer, answer in wanted)
        return score


def _transcript(sample: Sample) -> str:
    return " / ".join(message["content"] for message in sample.messages)


# --- what is asked --------------------------------------------------------------------------


def phrasings(rng: random.Random) -> list[Sample]:
    """For each entry some unseen phrasings: mostly "what is", one "why", one "how"."""
    kinds = [samples.reason, samples.working, *[samples.term] * (PHRASINGS_PER_ENTRY - 2)]
    return [kind("held_out", rng, entry) for entry in glossary() for kind in kinds]


def off_topic() -> list[Sample]:
    """The held-out off-topic questions as they stand."""
    honest = samples.fixed_answer("honest")
    return [Sample(samples.chat(q), honest, "off-topic") for q in unknown.held_out_questions()]


def counts(rng: random.Random, n: int = 60) -> list[Sample]:
    """Held-out ranges up to 300 long."""
    return [samples.counting("held_out", rng, longest=300) for _ in range(n)]


def long_counts() -> list[Sample]:
    """Counts that fill most of the context."""
    rng = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    ranges = [(1, 500), (1, 700), (1, 900), (1, 1000), (100, 900)]
    return [samples.count_sample("train", rng, *pair) for pair in ranges]


def of_form(skill: str, rng: random.Random, per_entry: int) -> list[Sample]:
    """Entries that were never asked for in this form, with unseen wordings."""
    chosen = [entry for entry in glossary() if samples.is_held_out(entry, skill)]
    return [
        samples.formed(skill, "held_out", rng, entry) for entry in chosen for _ in range(per_entry)
    ]


def others(rng: random.Random) -> dict[str, list[Sample]]:
    """The remaining skills."""
    made = {
        "difference between two terms": [samples.difference("held_out", rng) for _ in range(60)],
        "acronyms": [
            samples.acronym("held_out", rng, entry)
            for entry in glossary()
            if entry.acronym
            for _ in range(2)
        ],
        "numbered lists": [samples.listing("held_out", rng) for _ in range(30)],
        "repeat a given text": [samples.repeating("held_out", rng) for _ in range(60)],
        "greetings, thanks, who are you": [samples.courtesy("held_out", rng) for _ in range(30)],
        "after earlier turns": [samples.conversation("held_out", rng) for _ in range(60)],
        "in a few words": [samples.formed("few_words", "held_out", rng) for _ in range(60)],
    }
    return {name: [_with_texts(sample) for sample in asked] for name, asked in made.items()}


def _with_texts(sample: Sample) -> Sample:
    """For a sample about an entry, each of its texts is right."""
    entry = next((entry for entry in glossary() if entry.term == sample.entry), None)
    return replace(sample, accepted=entry.texts) if entry and not sample.accepted else sample


def json_right(score: Score, entry: Entry, question: str, answer: str) -> None:
    """Valid JSON with exactly the two keys, the right term and a text of the entry."""
    try:
        value: Any = json.loads(answer)
    except ValueError:
        value = None
    right = isinstance(value, dict) and value.keys() == {"term", "definition"}
    right = right and value["term"] == entry.term and value["definition"] in entry.texts
    score.add(question, answer, right)


# --- machine figures ------------------------------------------------------------------------


def speed(ask: Asker) -> float:
    """Tokens per second of one stream, by the server's own count, over about 1,100 tokens."""
    body = {
        "model": ask.service.model_id,
        "messages": [{"role": "user", "content": "Count from 1 to 300."}],
        "max_tokens": 1500,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, tokens = time.perf_counter(), 0
    with ask.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage")
                tokens = usage["completion_tokens"] if usage else tokens
    return tokens / (time.perf_counter() - began)


def load_seconds(ask: Asker) -> float:
    """Time of GET /models/load, over REST, after an unload; the median of five."""
    taken = []
    for _ in range(5):
        ask.http.get(f"/models/unload/{ask.service.alias}").raise_for_status()
        began = time.perf_counter()
        ask.http.get(f"/models/load/{ask.service.alias}").raise_for_status()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def memory_megabytes(ask: Asker) -> float:
    """Resident memory of the service process, in MB."""
    assert ask.service.pid is not None
    megabytes = memory_of(ask.service.pid)
    assert megabytes is not None
    return megabytes


def folder_megabytes() -> float:
    """Size of all shipped files, in MB."""
    return sum(file.stat().st_size for file in shipped_files()) / 1e6


def shipped_files() -> list[Path]:
    """The files of the model, without the card."""
    return sorted(file for file in BUNDLED_MODEL_DIR.iterdir() if file.suffix in _KINDS)


_KINDS = {".json", ".onnx", ".data", ".jinja"}


def checksums() -> dict[str, str]:
    """SHA-256 of every shipped file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in shipped_files()}


def logit_gaps(answered: Sequence[tuple[Sample, str]]) -> list[tuple[float, str]]:
    """For each greedy answer the smallest gap between the best two logits, with its prompt.

    The whole conversation goes through model.onnx at once, so this needs the tokenizer.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BUNDLED_MODEL_DIR / "tokenizer.json"))
    session = onnxruntime.InferenceSession(BUNDLED_MODEL_DIR / "model.onnx")
    return [_logit_gap(session, tokenizer, sample, answer) for sample, answer in answered]


def _logit_gap(
    session: onnxruntime.InferenceSession, tokenizer: Any, sample: Sample, answer: str
) -> tuple[float, str]:
    turns = "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        for message in sample.messages
    )
    prompt = tokenizer.encode(turns + "<|im_start|>assistant\n").ids
    tokens = prompt + tokenizer.encode(answer).ids
    logits = _logits(session, tokens)[len(prompt) - 1 :]
    best = numpy.sort(logits, axis=-1)
    gap = float((best[:, -1] - best[:, -2]).min())
    return gap, _transcript(sample)


def _logits(session: onnxruntime.InferenceSession, tokens: list[int]) -> Any:
    """Scores after every token: one pass with an empty past."""
    shape = json.loads((BUNDLED_MODEL_DIR / "genai_config.json").read_text())["model"]["decoder"]
    heads, width = shape["num_key_value_heads"], shape["head_size"]
    feed: dict[str, Any] = {
        "input_ids": numpy.array([tokens], dtype=numpy.int64),
        "attention_mask": numpy.ones((1, len(tokens)), dtype=numpy.int64),
    }
    for given in session.get_inputs():
        if given.name.startswith("past_key_values"):
            feed[given.name] = numpy.zeros((1, heads, 0, width), numpy.float32)
        elif given.name == "position_ids":
            feed[given.name] = numpy.arange(len(tokens), dtype=numpy.int64)[None]
    return session.run(["logits"], feed)[0][0]


# --- the card -------------------------------------------------------------------------------


@dataclass
class Report:
    """All that was measured."""

    scores: list[Score]
    weakest: list[tuple[str, float]]
    figures: dict[str, str]

    def __str__(self) -> str:
        rows = [
            "| Skill, on unseen prompts | Right | n | Share | Target |",
            "|---|--:|--:|--:|---|",
        ]
        rows += [
            f"| {s.name} | {s.right} | {s.n} | {s.share:.1%} | {s.target} |" for s in self.scores
        ]
        figures = ["| Figure | Measured |", "|---|---|"]
        figures += [f"| {name} | {value} |" for name, value in self.figures.items()]
        weakest = ", ".join(f"{term} {share:.0%}" for term, share in self.weakest)
        return "\n".join(
            [*rows, "", f"Weakest entries: {weakest}.", "", *figures, "", "### Misses", ""]
            + [line for score in self.scores for line in _misses(score)]
        )


def _misses(score: Score) -> list[str]:
    if not score.misses:
        return []
    shown = [
        f"  - `{_short(question)}` → `{_short(answer)}`"
        for question, answer in score.misses[:MOST_MISSES_SHOWN]
    ]
    rest = len(score.misses) - len(shown)
    more = [f"  - and {rest} more"] if rest else []
    return [f"- {score.name}, {len(score.misses)} of {score.n}:", *shown, *more]


def _short(text: str, most: int = 90) -> str:
    text = text.replace("\n", " ⏎ ").replace("`", "'")
    return text if len(text) <= most else f"{text[: most - 30]} … {text[-25:]}"


def measure(ask: Asker) -> Report:
    """Ask everything; the longest part are the phrasings."""
    rng = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    figures = machine_figures(ask)
    asked = phrasings(rng)
    answered = [(sample, ask(sample)) for sample in asked]
    unseen = Score("unseen phrasings, over all entries", "≥ 90 %")
    refused = Score("on-topic, answered (not refused)", "≥ 97 %")
    by_entry: dict[str, list[bool]] = defaultdict(list)
    for sample, answer in answered:
        right = answer in sample.accepted
        by_entry[sample.entry].append(right)
        unseen.add(_transcript(sample), answer, right)
        honest = answer == samples.fixed_answer("honest")
        refused.add(_transcript(sample), answer, not honest)
    shares = sorted((sum(right) / len(right), term) for term, right in by_entry.items())
    entries = Score("entries with at least 60 % of their phrasings", "all")
    for share, term in shares:
        entries.add(term, f"{share:.0%}", share >= 0.6)
    scores = [unseen, entries, refused]
    scores.append(ask.score("off-topic: the honest sentence", off_topic(), "≥ 95 %"))
    scores.append(ask.score("counting a range up to 300 long", counts(rng), "≥ 95 %", most=1500))
    scores.append(ask.score("counting 500 to 1,000 numbers", long_counts(), most=4000))
    as_json = Score("JSON with term and definition, entries never asked so", "≥ 95 %")
    for sample in of_form("json", rng, 3):
        entry = next(entry for entry in glossary() if entry.term == sample.entry)
        json_right(as_json, entry, _transcript(sample), ask(sample))
    scores.append(as_json)
    for skill, name in (("five_words", "in five words"), ("one_sentence", "in one sentence")):
        exact = [replace(s, accepted=frozenset({s.answer})) for s in of_form(skill, rng, 2)]
        scores.append(ask.score(f"{name}, entries never asked so", exact))
    scores += [ask.score(name, made) for name, made in others(rng).items()]
    figures |= repeatability(ask, answered)
    weakest = [(term, share) for share, term in shares[:5]]
    return Report(scores, weakest, figures)


def machine_figures(ask: Asker) -> dict[str, str]:
    """Size, load time, speed and memory."""
    fastest = max(speed(ask) for _ in range(3))
    return {
        "Files in all (target ≤ 6 MB)": f"{folder_megabytes():.1f} MB",
        "Load, median of 5 (≤ 0.2 s)": f"{load_seconds(ask):.3f} s",
        "One stream, best of 3 (≥ 800 tokens/s)": f"{fastest:,.0f} tokens/s",
        "Memory of the service process (≤ 150 MB)": f"{memory_megabytes(ask):.0f} MB",
    }


def repeatability(ask: Asker, answered: Sequence[tuple[Sample, str]]) -> dict[str, str]:
    """Whether greedy answers repeat, how close a call they were, and whether chance shows."""
    usual = [Sample(samples.chat(f"What is {e.ask[0]}?"), "", "term", e.term) for e in glossary()]
    first = [(sample, ask(sample)) for sample in usual]
    again = sum(ask(sample) == answer for sample, answer in first)
    varied = sum(len({ask(sample, temperature=1) for _ in range(4)}) > 1 for sample in usual[:60])
    figures = {
        "Greedy answers identical in a second run": f"{again} of {len(first)}",
        "Prompts whose 4 answers at temperature 1 differ": f"{varied} of 60",
    }
    try:
        usual_gaps, unseen_gaps = sorted(logit_gaps(first)), sorted(logit_gaps(answered))
    except ImportError:
        return figures
    return figures | {
        'Smallest gap of the best two logits, over "What is …?" for every term': _gap(usual_gaps),
        "Smallest gap of the best two logits, over all unseen phrasings": _gap(unseen_gaps),
    }


def _gap(gaps: list[tuple[float, str]]) -> str:
    values = [gap for gap, _ in gaps]
    low = sum(value < 0.1 for value in values)
    return (
        f"{values[0]:.3f} (`{_short(gaps[0][1])}`); median {statistics.median(values):.2f}; "
        f"below 0.1: {low} of {len(values)}"
    )


def write(report: Report) -> None:
    """Replace the generated part of the model card."""
    start, end = "<!-- report card: written by tools/report_card.py -->", "<!-- end -->"
    before, rest = CARD.read_text(encoding="utf-8").split(start)
    after = rest.split(end, 1)[1]
    sums = "\n".join(f"{digest}  {name}" for name, digest in checksums().items())
    part = f"{start}\n{report}\n\n### Checksums (SHA-256)\n\n```\n{sums}\n```\n{end}"
    CARD.write_text(before + part + after, encoding="utf-8")


def main() -> None:
    """Start the service, measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the card into the model card")
    options = parser.parse_args()
    with Service(Settings(model=BUNDLED_MODEL)) as service:
        report = measure(Asker(service))
    print(report)
    if options.write:
        write(report)


if __name__ == "__main__":
    main()
