"""Answers to the exercises of lesson 08: other right ones, and typical wrong ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx

from answers import Answers
from foundry_lab import FoundryAPIClient, Settings
from foundry_lab.checks.examination import MAX_TOKENS
from foundry_lab.records import Attempt, Call, Record

# --- 08-1 ------------------------------------------------------------------------------------


async def _models(client: FoundryAPIClient) -> None:
    assert await client.models()


async def _chat(client: FoundryAPIClient) -> None:
    await client.complete("Count from 1 to 9.", max_tokens=8)


async def _stream(client: FoundryAPIClient) -> None:
    async for _ in client.stream_complete("Count from 1 to 9.", max_tokens=8):
        pass


CHECKS = (_models, _chat, _stream)


async def _gathered(client: FoundryAPIClient) -> bool:
    ended = await asyncio.gather(*(one(client) for one in CHECKS[::-1]), return_exceptions=True)
    ended.reverse()
    return any(isinstance(one, Exception) for one in ended)


async def _in_turn(client: FoundryAPIClient) -> int:
    codes = []
    for one in CHECKS:
        try:
            await one(client)
            codes.append(0)
        except Exception:  # noqa: BLE001 - whatever it is
            codes.append(2)
    return max(codes)


async def _prints_and_ends_well(client: FoundryAPIClient) -> int:
    for one in CHECKS:
        try:
            await one(client)
        except Exception as error:  # noqa: BLE001 - that is the mistake
            print("Oh no:", error)
    return 0


async def _leaves_at_the_first(client: FoundryAPIClient) -> int:
    for one in CHECKS:
        try:
            await one(client)
        except Exception:  # noqa: BLE001 - whatever it is
            return 1
    return 0


async def _forgets(client: FoundryAPIClient) -> int:
    code = 0
    for one in CHECKS:
        try:
            await one(client)
            code = 0
        except Exception:  # noqa: BLE001 - whatever it is
            code = 1
    return code


async def _says_it_in_words(client: FoundryAPIClient) -> str:
    return "failed" if await _in_turn(client) else "ok"


async def _lets_it_out(client: FoundryAPIClient) -> int:
    for one in CHECKS:
        await one(client)
    return 0


async def _asks_nothing(client: FoundryAPIClient) -> int:
    for one in CHECKS:
        one(client).close()
    return 0


# --- 08-3 ------------------------------------------------------------------------------------


def _loop(
    records: Sequence[Record],
    *,
    left: bool = False,
    refused: bool = False,
    by_calls: bool = False,
    ordered: bool = True,
    failed: Callable[[str], bool] = lambda outcome: outcome != "200",
) -> dict[str, Any]:
    began: float | None = None
    sent, senders, lost, last = 0, set[str](), 0, -1.0
    calls = [one for one in records if isinstance(one, Call)]
    for one in sorted(records, key=_ended) if ordered else records:
        if isinstance(one, Attempt) and (refused or one.outcome != "BreakerOpen"):
            sent += 1
            senders.add(one.call)
            if failed(one.outcome) and began is None and not by_calls:
                began = one.ended
        if isinstance(one, Call) and one.outcome != "ok" and (left or one.outcome != "left"):
            lost, last = lost + 1, max(last, one.ended)
            if by_calls and began is None:
                began = one.ended
    after = [one.ended for one in calls if one.outcome == "ok" and one.ended > last]
    over = lost and after and began is not None
    seconds = min(after) - (began or 0) if over else None
    per_call = sent / len(senders) if senders else None
    return {"began": began, "lost": lost, "per_call": per_call, "seconds": seconds}


def _ended(record: Record) -> float:
    return float(getattr(record, "ended", 0.0))


# --- 08-4 ------------------------------------------------------------------------------------


def _policy(**changed: float) -> dict[str, float]:
    return {"first_token": 0.4, "attempts": 3, "base": 0.1, "cap": 1, "budget": 0.2} | changed


# --- 08-5 ------------------------------------------------------------------------------------

SETTINGS = Settings(timeout=2)
TIMES: dict[str, Any] = {"max_tokens": MAX_TOKENS, "first_token": 0.5, "stall": 0.5}


async def package(url: str, model: str, prompt: str) -> str:
    """The package's own client."""
    async with FoundryAPIClient(url, settings=SETTINGS) as client:
        return (await client.complete(prompt, model=model, **TIMES)).content


async def package_stream(url: str, model: str, prompt: str) -> AsyncIterator[str]:
    """The same, piece by piece."""
    async with FoundryAPIClient(url, settings=SETTINGS) as client:
        async for chunk in client.stream_complete(prompt, model=model, **TIMES):
            yield chunk.content


def _body(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    given = {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
    return given | more


def _gaps(url: str, model: str, prompt: str) -> str:
    """No retry, and a timeout for each gap: many lost points, and no end where bytes trickle."""
    answer = httpx.post(
        f"{url}/v1/chat/completions", json=_body(model, prompt), timeout=2, trust_env=False
    )
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


async def _joined(url: str, model: str, prompt: str) -> str:
    """The bug of many streams: bad lines are skipped, and the end of the body is the end."""
    text, body = "", _body(model, prompt, stream=True)
    async with (
        asyncio.timeout(2),
        httpx.AsyncClient(timeout=2, trust_env=False) as http,
        http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            try:
                choices = json.loads(line.removeprefix("data: "))["choices"]
                text += choices[0]["delta"].get("content") or ""
            except (ValueError, LookupError):
                continue
    if not text:
        raise ValueError("no text")
    return text


async def _one_shot(url: str, model: str, prompt: str) -> str:
    """Bounded in time and honest, and gives up at once."""
    async with asyncio.timeout(2), httpx.AsyncClient(timeout=2, trust_env=False) as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=_body(model, prompt))
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


async def _drawn(url: str, model: str, prompt: str) -> str:
    """No temperature, no max_tokens."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 9}
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=body)
    return str(answer.json()["choices"][0]["message"]["content"])


async def _never(url: str, model: str, prompt: str) -> str:
    await asyncio.Event().wait()
    return ""


ANSWERS = {
    "08-1": Answers(
        right=[_gathered, _in_turn],
        wrong={
            "prints, and ends with 0": (_prints_and_ends_well, "the exit code was 0"),
            "leaves at the first failure": (_leaves_at_the_first, "were left out"),
            "a success wipes out a failure": (_forgets, "a service whose first chat fails"),
            "says it in words": (_says_it_in_words, "which is no whole number"),
            "lets the error out": (_lets_it_out, "it raised StatusError"),
            "awaits nothing": (_asks_nothing, "0 of them came"),
        },
    ),
    "08-2": Answers(
        right=[{"tokens": 1.0, "limit": 1.1, "breaker": 40}],
        wrong={
            "the right order's breaker": (
                {"breaker": 10, "limit": 1.1, "tokens": 1},
                "you said 10 requests",
            ),
            "A's wait holds nothing": ({"breaker": 40, "limit": 1.0, "tokens": 1}, "said 1.0 s"),
            "each attempt has its time": (
                {"breaker": 40, "limit": 1.1, "tokens": 4},
                "you said 4 requests",
            ),
            "a list": ([40, 1.1, 1], "it is [40"),
            "text": ({"breaker": "40", "limit": 1.1, "tokens": 1}, "it is '40'"),
            "nothing yet": ({"breaker": ..., "limit": ..., "tokens": ...}, "your own number"),
        },
    ),
    "08-3": Answers(
        right=[_loop],
        wrong={
            "counts those who left": (lambda r: _loop(r, left=True), "lost was"),
            "counts refused attempts": (lambda r: _loop(r, refused=True), "per_call was"),
            "begins with a call": (lambda r: _loop(r, by_calls=True), "began was"),
            "trusts the order": (
                lambda r: _loop(r, ordered=False),
                "a long outage, its records in no order",
            ),
            "503 only": (
                lambda r: _loop(r, failed=lambda outcome: outcome == "503"),
                "began was None",
            ),
            "prints": (lambda r: print(_loop(r)), "None came back"),
        },
    ),
    "08-4": Answers(
        right=[_policy(), _policy(attempts=4, base=0.02, cap=0.2, budget=0.15, first_token=0.5)],
        wrong={
            "patience for a whole call": (_policy(first_token=2), "how much of the 2 s a silent"),
            "no patience": (_policy(first_token=0.1), "how many healthy first tokens"),
            "one retry": (_policy(attempts=2), "the chance that all attempts"),
            "long waits": (_policy(base=3, cap=10), "what the waits take"),
            "retries for everybody": (_policy(budget=1), "bounds the retries of all calls"),
            "a policy object": ({"attempts": 3}, "it is {'attempts': 3}"),
        },
    ),
    "08-5": Answers(
        right=[(package, package_stream)],
        wrong={
            "no temperature": (_drawn, "the text has"),
            "no temperature, and a stream": ([_drawn, package_stream], "requests; the text has"),
            "never ends": (_never, "still running"),
            "no whole deadline": (_gaps, "no end within 2 s"),
            "takes what came for the whole": (_joined, "cut text as the answer"),
            "no second attempt": (_one_shot, "which fault of lessons 03 to 05"),
            "not a text": (lambda url, model, prompt: 7, "7 came back"),
        },
    ),
}
