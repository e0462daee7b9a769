"""Graders for the exercises of lesson 01: raw HTTP."""

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple

import httpx

from foundry_lab.checks.bench import Wrong, attempt, expect, service, value_of
from foundry_lab.faults import Always, Drip, FaultProxy, HtmlPage, Script, Seen, Stall, Status

__all__ = ["GRADERS"]

CHAT = "/v1/chat/completions"
PATIENCE = 60.0
"""Seconds for an answer of a few tokens, of whatever model."""


def _body(**more: Any) -> dict[str, Any]:
    question = {"role": "user", "content": "What is jitter?"}
    body = {"model": service().model_id, "messages": [question], "max_tokens": 5, "temperature": 0}
    return {**body, **more}


# 01-1


def chat_bytes(written: Callable[..., Any]) -> None:
    """01-1: three requests of the learner's bytes, over one connection to the real service."""
    address = httpx.URL(service().url)
    host, path = address.netloc.decode(), f"{address.path.rstrip('/')}{CHAT}"
    requests = {}
    for most, prompt in enumerate(
        ("What is jitter?", "Wie heißt „Jitter“ auf Deutsch?", 'Say "no",\nthen stop.'), 2
    ):
        tried = f"the bytes of the request that asks {prompt!r}, for {most} tokens at most"
        given = value_of(written, host, path, service().model_id, prompt, most, tried=tried)
        expect(
            isinstance(given, bytes),
            tried=tried,
            expected="bytes",
            happened=f"a value of type {type(given).__name__}",
            look="the b in front of what lesson 01 prints in section 1, and how it got there",
        )
        _look_at_head(given, host, path, tried)
        requests[prompt] = given, most
    _converse((address.host, address.port or 80), requests)


def _look_at_head(given: bytes, host: str, path: str, tried: str) -> None:
    head, blank, body = given.partition(b"\r\n\r\n")
    expect(
        blank,
        tried=tried,
        expected="a blank line between the headers and the body",
        happened="there is none"
        + ("; the lines end with a line feed alone" if b"\n\n" in given else ""),
        look="section 1: how each line of a request ends, the empty one too",
    )
    first, *lines = head.decode("latin-1").split("\r\n")
    expect(
        first == f"POST {path} HTTP/1.1",
        tried=tried,
        expected=f"a first line with the method POST, the path {path} and the version HTTP/1.1",
        happened=f"it is {first!r}",
        look="the first line of the request in section 1",
    )
    headers = {name.strip().lower(): text.strip() for name, _, text in _parts(lines)}
    expect(
        headers.get("host") == host,
        tried=tried,
        expected=f"a header Host that names {host}",
        happened=f"Host is {headers['host']!r}" if "host" in headers else "there is no Host",
        look="section 1: which header HTTP/1.1 wants in every request",
    )
    said = headers.get("content-length", "nothing")
    expect(
        said != str(len(body.rstrip())) or said == str(len(body)),
        tried=tried,
        expected="a request that ends with its body",
        happened=f"behind the body stands {body[len(body.rstrip()) :]!r}, which Content-Length, "
        f"{said}, leaves out",
        look="the last bytes: a body has no line end of its own",
    )
    expect(
        said == str(len(body)),
        tried=tried,
        expected=f"Content-Length with the size of the body, which is {len(body)} bytes",
        happened=f"Content-Length says {said}",
        look="what it counts: text and bytes are not the same length",
    )


def _parts(lines: Sequence[str]) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in lines]


def _converse(address: tuple[str, int], requests: Mapping[str, tuple[bytes, int]]) -> None:
    with socket.create_connection(address, timeout=PATIENCE) as wire:
        for prompt, (sent, most) in requests.items():
            tried = f"send the request that asks {prompt!r}, all on one connection"
            try:
                wire.sendall(sent)
                with HTTPResponse(wire) as answer:
                    answer.begin()
                    text = answer.read().decode()
            except (OSError, HTTPException) as error:
                raise Wrong(
                    tried=tried,
                    expected="an answer to each of the three",
                    happened=f"the connection ended: {type(error).__name__}",
                    look="a header that asks the service to close",
                ) from error
            expect(
                answer.status == 200,
                tried=tried,
                expected="status 200",
                happened=f"status {answer.status}: {text[:160]}",
                look="your body: what would json.loads say to it, and which keys does a chat need?",
            )
            out = json.loads(text)["usage"]["completion_tokens"]
            body = json.loads(sent.partition(b"\r\n\r\n")[2])
            expect(
                out <= most,
                tried=tried,
                expected=f"at most {most} tokens of answer",
                happened=f"there were {out}",
                look="section 4: what the service does with a name or a type that it doesn't know",
            )
            expect(
                most in (body.get("max_tokens"), body.get("max_completion_tokens")),
                tried=tried,
                expected=f"a body that asks for {most} tokens at most",
                happened=f"it asks for {body.get('max_tokens')}",
                look="the last argument of the function",
            )
            asked = body["messages"][-1]["content"]
            expect(
                asked == prompt,
                tried=tried,
                expected="this very question in the last message",
                happened=f"the service was asked {asked!r}",
                look="the way of the text into JSON and into bytes: nothing may get lost",
            )


# 01-2


def _asked(http: httpx.Client) -> list[tuple[str, httpx.Response, str]]:
    text = json.dumps(_body())
    return [
        (
            "the chat whose JSON has a comma too many",
            http.post(CHAT, content=f"{text[:-1]},}}"),
            "who reads your JSON, and how strict JSON is about commas",
        ),
        (
            "the chat that calls its JSON text/plain",
            http.post(CHAT, content=text, headers={"Content-Type": "text/plain"}),
            "whether this service reads headers that it does not need",
        ),
        (
            "HEAD where only GET is known",
            http.head("/models/loaded"),
            "section 5, number 6: what a method that does not exist gets here, always",
        ),
        (
            "the model by its alias below /v1/models",
            http.get(f"/v1/models/{service().alias}"),
            "section 2: which routes want the alias. It is those that load and unload, no others",
        ),
        (
            "the chat with temperature 9",
            http.post(CHAT, json=_body(temperature=9)),
            "whose mistake a number out of its range is: this one is understood, and checked",
        ),
        (
            'the chat with temperature "hot"',
            http.post(CHAT, json=_body(temperature="hot")),
            "section 4: a wrong type is no wrong value. What becomes of it?",
        ),
    ]


def six_statuses(guesses: Any) -> None:
    """01-2: six guesses, compared with what the real service answers now."""
    tried = "your six guesses against six real requests"
    given = list(guesses) if isinstance(guesses, list | tuple) else []
    expect(
        len(given) == 6 and all(isinstance(guess, int) for guess in given),
        tried=tried,
        expected="a list of six numbers, each a status",
        happened=f"it is {guesses!r}"[:100],
        look="the table: one guess for each line, in its order",
    )
    with httpx.Client(base_url=service().url, timeout=PATIENCE) as http:
        asked = _asked(http)
    right = [
        guess == answer.status_code for guess, (_, answer, _) in zip(given, asked, strict=True)
    ]
    for number, (what, _, look) in enumerate(asked):
        expect(
            right[number],
            tried=tried,
            expected=f"for number {number + 1}, {what}, the status that came",
            happened=f"{sum(right)} of 6 are right, and this one was not {given[number]}",
            look=look,
        )


# 01-3

JOINS = {
    "http://127.0.0.1:5111": "http://127.0.0.1:5111",
    "http://127.0.0.1:5111/": "http://127.0.0.1:5111",
    "http://127.0.0.1:5111/v1": "http://127.0.0.1:5111",
    "http://127.0.0.1:5111/v1/": "http://127.0.0.1:5111",
    "http://127.0.0.1:5111/catalogs/local": "http://127.0.0.1:5111/catalogs/local",
    "http://127.0.0.1:5111/catalogs/local/v1": "http://127.0.0.1:5111/catalogs/local",
    f"http://127.0.0.1:5111/catalogs/local{CHAT}": "http://127.0.0.1:5111/catalogs/local",
    f"http://127.0.0.1:5111{CHAT}": "http://127.0.0.1:5111",
    f" http://127.0.0.1:5111{CHAT}/ ": "http://127.0.0.1:5111",
    "https://gate.example/v1/team": "https://gate.example/v1/team",
    "https://gate.example/team-v1": "https://gate.example/team-v1",
    "  http://127.0.0.1:5111/v1\n": "http://127.0.0.1:5111",
}
"""Address as people write it → base URL."""


def joined(chat_url: Callable[..., Any]) -> None:
    """01-3: addresses as people write them, one of them asked for real."""
    for endpoint, base in JOINS.items():
        tried = f"call chat_url({endpoint!r})"
        expect(
            str(found := value_of(chat_url, endpoint, tried=tried)) == base + CHAT,
            tried=tried,
            expected=base + CHAT,
            happened=f"{found}",
            look="which characters at the end go, which stay, and what stands before them",
        )
    for endpoint in ("127.0.0.1:5111/v1", "localhost", "httpbin.example/v1", "ftp://127.0.0.1/v1"):
        outcome = attempt(chat_url, endpoint, tried=f"call chat_url({endpoint!r})")
        expect(
            isinstance(outcome.error, ValueError) and endpoint in str(outcome.error),
            tried=f"call chat_url({endpoint!r})",
            expected="a ValueError whose text has the address in it",
            happened=f"it {outcome.told}",
            look="the last sentence of the task: an address needs its http:// or https://",
        )
    tried = "ask the real service at the address you join"
    url = value_of(chat_url, f"{service().url}/v1", tried=tried)
    status = httpx.post(str(url), json=_body(), timeout=PATIENCE).status_code
    expect(
        status == 200,
        tried=tried,
        expected="status 200",
        happened=f"status {status}",
        look="the path that arrives there",
    )


# 01-4


class Case(NamedTuple):
    """An answer, and what it is."""

    what: str
    answer: httpx.Response
    verdict: str
    look: str


@cache
def _cases() -> list[Case]:
    pages = Script([HtmlPage(502), HtmlPage(200), HtmlPage(404), Status(401), Status(503)])
    with (
        FaultProxy(service().url, pages) as gateway,
        httpx.Client(base_url=gateway.url, timeout=PATIENCE) as http,
    ):
        broken, login, page, key, full = [http.post(CHAT, json=_body()) for _ in range(5)]
        chat = http.post(CHAT, json=_body())
        garbled = http.post(CHAT, content=b"{nope")
        nowhere = http.get("/health")
        kind = http.post("/v1/embeddings", json={"model": service().model_id, "input": "Hello"})
    labelled = {"Content-Type": "application/json; charset=utf-8"}
    sent = httpx.Request("POST", f"http://127.0.0.1{CHAT}")  # or raise_for_status() can't be used
    again = httpx.Response(200, headers=labelled, content=chat.content, request=sent)
    up = httpx.Response(200, json={"status": "up"}, request=sent)
    names = httpx.Response(200, json=["lab:1"], request=sent)
    moved = httpx.Response(302, headers={"Location": "/login"}, request=sent)
    empty = httpx.Response(200, json={"object": "chat.completion", "choices": []}, request=sent)
    other = httpx.Response(404, json={"detail": "Not Found"}, request=sent)
    number = httpx.Response(404, json=404, request=sent)
    plain = httpx.Response(404, text="404 page not found", request=sent)
    null = httpx.Response(200, json={"choices": None}, request=sent)
    latin = httpx.Response(200, content="<p>Entrée</p>".encode("latin-1"), request=sent)
    told = "who says so: what has this API's own 4xx in its JSON?"
    shape = "what a chat's answer has that no other answer has"
    return [
        Case("the real service's answer to a chat", chat, "ok", shape),
        Case("a 400 for broken JSON", garbled, "mine", "section 5: what 4xx means"),
        Case("a gateway's 401, in JSON", key, "mine", "section 5: what 4xx means"),
        Case("a 500 for a wrong kind of model", kind, "theirs", "section 5: what 5xx means"),
        Case("a gateway's 503, in JSON", full, "theirs", "section 5: what 5xx means"),
        Case("a gateway's 502, a web page", broken, "theirs", "what 5xx means, whatever the body"),
        Case("a 404 in plain text, for a wrong path", nowhere, "mine", "how that text begins"),
        Case("a log-in page with status 200", login, "not this API", shape),
        Case("another web server's 404 page", page, "not this API", "whose 404 this is"),
        Case("a 200 whose JSON is {'status': 'up'}", up, "not this API", shape),
        Case("a 200 whose JSON is a list", names, "not this API", shape),
        Case("a 200 whose choices are an empty list", empty, "not this API", "at least one"),
        Case("a 404 in JSON, {'detail': 'Not Found'}", other, "not this API", told),
        Case("a 404 whose JSON is a number", number, "not this API", told),
        Case("another server's 404 in plain text", plain, "not this API", "how that text begins"),
        Case("a 200 whose choices are null", null, "not this API", shape),
        Case("a 200, a page in Latin-1", latin, "not this API", "what reading JSON may raise"),
        Case("a 302 that leads to a log-in", moved, "not this API", "the last line of the table"),
        Case(
            "a chat's answer, its type with a charset", again, "ok", "what a content type may add"
        ),
    ]


def whose_mistake(whose: Callable[..., Any]) -> None:
    """01-4: seventeen answers, most of them from the real service and its fault proxy."""
    for what, answer, verdict, look in _cases():
        found = value_of(whose, answer, tried=what)
        expect(
            found == verdict,
            tried=what,
            expected=f"{verdict!r}",
            happened=f"it gave {found!r}"[:100],
            look=look,
        )


# 01-5

TIMES = (0.2, 0.4, 0.8, 1.6)
"""Seconds that a call may take; more than the first where a busy machine had not asked by then."""
PATIENT = 2.0
"""More than a deadline that is written down in the code can be: the drips end before it."""
LATE = 4.0
"""Seconds beyond that which a busy machine is granted."""


def ask_within(ask: Callable[..., Any]) -> None:
    """01-5: a healthy service, an error, a drip and silence, with a deadline."""
    with FaultProxy(service().url) as proxy:
        url, body = f"{proxy.url}{CHAT}", _body()
        text = httpx.post(url, json=body, timeout=PATIENCE).json()["choices"][0]["message"]
        tried = "ask the real service, with 60 s"
        found = value_of(ask, url, body, PATIENCE, tried=tried, seconds=PATIENCE)
        expect(
            found == text["content"],
            tried=tried,
            expected=f"the text of its answer, {text['content']!r}",
            happened=f"it gave {found!r}"[:200],
            look="section 3: where in the answer the text is",
        )
        proxy.plan = Always(Status(503))
        tried = "ask a service that answers 503, with 60 s"
        outcome = attempt(ask, url, body, PATIENCE, tried=tried, seconds=PATIENCE)
        expect(
            isinstance(outcome.error, Exception) and not isinstance(outcome.error, TimeoutError),
            tried=tried,
            expected="an exception, and no TimeoutError",
            happened=f"it {outcome.told}",
            look="which line looks at the status, and what else your `except` catches",
        )
        proxy.plan = Always(Drip(6, 0.03))
        dripped: list[Seen] = []
        for seconds in TIMES:
            _in_time(ask, url, body, seconds, "ask a service that drips")
            until = time.monotonic() + seconds
            while not dripped and time.monotonic() < until:
                dripped = [seen for seen in proxy.seen if seen.fault == "Drip"]
                time.sleep(0.01)
            if dripped:
                break
        while any(not seen.outcome for seen in dripped):
            time.sleep(0.01)
        expect(
            all(seen.outcome == "client left" for seen in dripped),
            tried="see what became of the drips, after your function gave up",
            expected="a closed connection",
            happened="somebody read them to the end",
            look="who goes on when you stop waiting: a thread can't be stopped from outside",
        )
        proxy.plan = Always(Stall())
        tried = "ask a service that says nothing"
        long = _in_time(ask, url, body, PATIENT, tried)
        for _ in range(3):  # a busy machine is late at times
            short = _in_time(ask, url, body, TIMES[0], tried)
            if short < long - 1:
                break
        expect(
            long > 0.9 * PATIENT and short < long - 1,
            tried=f"{tried}, with {TIMES[0]:g} s and with {PATIENT:g} s",
            expected="an end after as many seconds as it was given",
            happened=f"it came after {short:.1f} s, and after {long:.1f} s",
            look="the third argument: where does your deadline come from?",
        )


def _in_time(ask: Callable[..., Any], url: str, body: object, seconds: float, tried: str) -> float:
    tried = f"{tried}, with {seconds:g} s"
    began = time.monotonic()
    outcome = attempt(ask, url, body, seconds, tried=tried, seconds=PATIENCE / 2)
    took = time.monotonic() - began
    expect(
        outcome.error is not None,
        tried=tried,
        expected="a TimeoutError",
        happened=f"it {outcome.told}, when its time was over",
        look="section 7: what a read timeout bounds, and what bounds the whole",
    )
    expect(
        isinstance(outcome.error, TimeoutError),
        tried=tried,
        expected="a TimeoutError, the same for every kind of slowness",
        happened=f"it {outcome.told}",
        look="whether httpx's own timeouts are what a caller of yours waits for",
    )
    expect(
        took <= seconds + LATE,
        tried=tried,
        expected=f"an end after {seconds:g} s",
        happened=f"it came more than {LATE:g} s later",
        look="what your function still does after its time is over",
    )
    return took


GRADERS: dict[str, Callable[[Any], None]] = {
    "01-1": chat_bytes,
    "01-2": six_statuses,
    "01-3": joined,
    "01-4": whose_mistake,
    "01-5": ask_within,
}
