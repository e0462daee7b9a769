"""The shipped lab-tiny does each of its skills, over REST, and is what its card says it is."""

import hashlib
import json
from collections.abc import Iterator

import httpx
import pytest

from foundry_lab.doctor import CHECKSUM
from foundry_lab.service import Service
from foundry_lab.settings import BUNDLED_MODEL, BUNDLED_MODEL_DIR, Settings

HONEST = "I am lab-tiny, a tiny model that only knows this workbook's vocabulary"
CARD = (BUNDLED_MODEL_DIR / "README.md").read_text(encoding="utf-8")


class Model:
    """The running model: call it with a question."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def __call__(self, question: str, system: str = "", **parameters: object) -> str:
        messages = [{"role": "user", "content": question}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return self.answer(messages, **parameters)

    def answer(self, messages: list[dict[str, str]], **parameters: object) -> str:
        """The answer to a conversation, greedy unless `parameters` say otherwise."""
        body = {"model": self.service.model_id, "messages": messages, "max_tokens": 300}
        body |= {"temperature": 0, **parameters}
        reply = httpx.post(f"{self.service.url}/v1/chat/completions", json=body, timeout=30)
        text: str = reply.raise_for_status().json()["choices"][0]["message"]["content"]
        return text


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Service(Settings(model=BUNDLED_MODEL)) as service:
        yield Model(service)


def test_files_are_those_the_card_names() -> None:
    """Every file named in the card is there with its checksum, and the whole is at most 6 MB."""
    named = {name: digest for digest, name in CHECKSUM.findall(CARD)}
    for name, digest in named.items():
        assert hashlib.sha256((BUNDLED_MODEL_DIR / name).read_bytes()).hexdigest() == digest, name
    assert named.keys() >= {"genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"}
    shipped = [file for file in BUNDLED_MODEL_DIR.iterdir() if not file.name.startswith("README")]
    assert {file.name for file in shipped if file.is_file() and file.suffix != ".py"} == set(named)
    assert sum(file.stat().st_size for file in shipped if file.is_file()) <= 6_000_000


def test_context_is_4096_tokens() -> None:
    """The shipped configuration says 4,096 tokens of context."""
    config = json.loads((BUNDLED_MODEL_DIR / "genai_config.json").read_text(encoding="utf-8"))
    assert config["model"]["context_length"] == 4096


@pytest.mark.parametrize(
    ("question", "begins"),
    [
        ("What is a circuit breaker?", "A circuit breaker watches calls to a service."),
        ("What is jitter?", "Jitter adds randomness to each wait"),
        ("what's a retry budget", "A retry budget limits retries to a fraction"),
        ("What is TTFT?", "Time to first token is the time from sending"),
        ("What does SSE stand for?", "SSE stands for server-sent events."),
        ("What is a circut breaker?", "A circuit breaker watches calls to a service."),
        ("Why do I need a connection pool?", "A connection pool saves the time of a ne"),
        ("Why do I need jitter?", "Without jitter, clients"),
        ("How does a circuit breaker work?", "A circuit breaker counts"),
        ("What does HTTP 503 mean?", "Status 503 means service unavailable"),
    ],
)
def test_glossary(model: Model, question: str, begins: str) -> None:
    """Terms, acronyms, slips, why and how get the right entry."""
    assert model(question).startswith(begins)


@pytest.mark.parametrize(
    "question",
    ["Explain quantum computing", "What is the capital of France?", "Write a poem about the sea."],
)
def test_honesty(model: Model, question: str) -> None:
    """What it does not know gets the sentence that says what it is."""
    assert model(question).startswith(HONEST)


def test_greeting(model: Model) -> None:
    """A greeting is answered with what to ask."""
    assert model("Hello").startswith("Hello! I am lab-tiny")


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (1, 20),
        (95, 130),
        (1, 300),
        (12, 96),
        (1, 500),
    ],
)
def test_counting(model: Model, first: int, last: int) -> None:
    """It counts exactly and stops where asked."""
    expected = " ".join(map(str, range(first, last + 1)))
    assert model(f"Count from {first} to {last}.", max_tokens=2500) == expected


def test_json(model: Model) -> None:
    """Asked for JSON it answers with `term` and `definition`."""
    answer = json.loads(model("Define jitter as JSON."))
    assert answer["term"] == "jitter"
    assert answer["definition"].startswith("Jitter adds randomness")


def test_a_response_format_holds(model: Model) -> None:
    """The runtime can keep it to JSON; it panics if the number of tokens is no multiple of 32."""
    answer = model("Define jitter as JSON.", response_format={"type": "json_object"})
    assert json.loads(answer)["term"] == "jitter"
    schema = {"type": "string", "minLength": 300}
    essay = {"type": "json_schema", "json_schema": schema}
    assert len(model("Count from 1 to 20.", response_format=essay)) >= 300


def test_forms(model: Model) -> None:
    """A list of three, and two terms side by side."""
    assert model("List 3 terms about retry.") == "1. attempt\n2. backoff\n3. jitter"
    assert model("What is the difference between a timeout and a deadline?") == (
        "Timeout: Longest time a client waits. Deadline: Moment everything must be finished."
    )


def test_two_terms_and_no_more(model: Model) -> None:
    """Two terms side by side, none of them twice."""
    assert model("What is the difference between a retry and jitter?") == (
        "Retry: Sends a failed request again. Jitter: Randomness added to each wait."
    )


def test_five_words(model: Model) -> None:
    """Five words, asked for in the question or in the system message."""
    assert model("What is jitter? Answer in five words.") == "Randomness added to each wait."
    assert model("What is jitter?", system="Answer in five words.").count(" ") == 4


def test_repeating(model: Model) -> None:
    """It gives a short text back."""
    assert model("Repeat: hello world") == "hello world"


def test_system_message_and_earlier_turns_change_nothing(model: Model) -> None:
    """A neutral system message and an earlier turn leave the answer as it is."""
    question, plain = "What is a deadline?", model("What is a deadline?")
    assert model(question, system="You are a helpful assistant.") == plain
    history = [
        {"role": "user", "content": "What is jitter?"},
        {"role": "assistant", "content": model("What is jitter?")},
        {"role": "user", "content": question},
    ]
    assert model.answer(history) == plain


def test_temperature(model: Model) -> None:
    """Greedy answers repeat word for word; at temperature 1 the wording varies."""
    question = "What is a circuit breaker?"
    assert len({model(question) for _ in range(3)}) == 1
    assert len({model(question, temperature=1.0, seed=seed) for seed in range(12)}) > 1
