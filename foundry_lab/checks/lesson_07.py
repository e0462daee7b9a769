"""Graders for the exercises of lesson 07: batch and cache."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from foundry_lab.checks.bench import Wrong, attempt, expect, service, value_of
from foundry_lab.chunks import text_of
from foundry_lab.clock import VirtualClock

__all__ = ["GRADERS", "WRONG_KEYS"]

# --- 07-1 ------------------------------------------------------------------------------------


@dataclass
class _Shop:
    """Prompts to take and answers to wait for, on a clock that jumps; it notes what is done."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    taken: int = 0
    handed: int = 0
    ahead: int = 0
    running: int = 0
    most: int = 0

    def source(self, last: int, first: int = 0) -> Iterator[int]:
        for number in range(first, last):
            self.taken += 1
            self.ahead = max(self.ahead, self.taken - self.handed)
            yield number

    async def ask(self, number: int) -> str:
        """Take 1 s, every third prompt 2 s; the fifth is refused."""
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.clock.sleep(2 if number % 3 == 0 else 1)
            if number == 4:
                raise ValueError("refused")
            return f"answer {number}"
        finally:
            self.running -= 1


def in_order(function: Callable[..., Any]) -> None:
    """07-1: at most k at a time, in order, errors as results, no prompt taken too early."""
    for k, count in ((1, 6), (3, 9), (4, 2)):
        tried = f"{count} prompts, {k} at a time; number 4 is refused with a ValueError"
        shop = _Shop()
        got = value_of(_collected, function, shop, count, k, tried=tried)
        told = [repr(one) if isinstance(one, Exception) else one for one in got]
        right = [f"answer {n}" if n != 4 else "ValueError('refused')" for n in range(count)]
        expect(
            sorted(map(str, told)) == sorted(right),
            tried=tried,
            expected="one result for each prompt: its answer, or the exception itself",
            happened=f"these came: {told}",
            look="what becomes of an error, and of the prompts after it",
        )
        expect(
            told == right,
            tried=tried,
            expected="the results in the order of the prompts",
            happened=f"they came in the order {told}",
            look="which task you wait for: the one that is done first, or the one that is next",
        )
        expect(
            shop.most == min(k, count),
            tried=tried,
            expected=f"{min(k, count)} under way at the busiest moment",
            happened=f"there were {shop.most}",
            look="how many tasks are started before the first is waited for",
        )
    _expect_backpressure(function)
    _expect_nothing_left(function)


def _expect_backpressure(function: Callable[..., Any]) -> None:
    shop, tried = _Shop(), "a source of 60 prompts, 3 at a time, and a slow reader"
    value_of(_collected, function, shop, 60, 3, tried=tried)
    expect(
        shop.ahead <= 4,
        tried=tried,
        expected="no prompt taken before it can be worked on: at most 3 or 4 ahead of the reader",
        happened=f"{shop.ahead} were taken that had not been handed over",
        look="when the next prompt is taken, and what bounds how many results wait",
    )


def _expect_nothing_left(function: Callable[..., Any]) -> None:
    for how, leave in (("left after the first result", _left), ("cancelled", _cancelled)):
        shop, tried = _Shop(), f"a loop over 9 prompts, 3 at a time, that is {how}"
        tasks = value_of(leave, function, shop, tried=tried)
        expect(
            tasks == 0 and shop.running == 0,
            tried=tried,
            expected="nothing that goes on",
            happened=f"{max(tasks, shop.running)} calls went on, with nobody waiting for them",
            look="what ends the tasks when a generator is closed: it is a `finally`",
        )


async def _results(
    function: Callable[..., Any], shop: _Shop, count: int, k: int, first: int = 0
) -> AsyncIterator[Any]:
    results = function(shop.ask, shop.source(count, first), k)
    if asyncio.iscoroutine(results):
        results = await results
    if not isinstance(results, AsyncIterable):
        raise Wrong(
            tried="call in_order",
            expected="an async generator: results are handed over one by one",
            happened=f"it gave a {type(results).__name__}",
            look="what makes a function a generator: a `yield` in it",
        )
    return aiter(results)


async def _collected(function: Callable[..., Any], shop: _Shop, count: int, k: int) -> list[Any]:
    got = []
    async for one in await _results(function, shop, count, k):
        shop.handed += 1
        got.append(one)
        await asyncio.sleep(0)
    return got


async def _left(function: Callable[..., Any], shop: _Shop) -> int:
    # from number 1 on: it takes 1 s, number 3 takes 2 s and is still under way when it is there
    async with aclosing(await _results(function, shop, 10, 3, 1)) as results:  # type: ignore[type-var]
        async for _ in results:
            break
    return len(asyncio.all_tasks()) - 1


async def _cancelled(function: Callable[..., Any], shop: _Shop) -> int:
    async def reads() -> None:
        async with aclosing(await _results(function, shop, 9, 3)) as results:  # type: ignore[type-var]
            async for _ in results:
                pass

    reader = asyncio.create_task(reads())
    while shop.running < 3:  # noqa: ASYNC110 - rounds of the loop, no time
        await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    return len(asyncio.all_tasks()) - 1


# --- 07-2 ------------------------------------------------------------------------------------

TOPICS = ["jitter", "déjà vu", "a proxy", "a token", "a café"]


class PowerCut(Exception):
    """What ends a run in the middle."""


def journal(function: Callable[..., Any]) -> None:
    """07-2: what is in the journal is not asked again, whatever a crash has left of it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a file may be open
        path = Path(folder) / "answers.jsonl"
        asked = _run(function, path, "a first run: 5 prompts, no file", want=5)
        _expect_lines(path, asked.lines, "a first run: 5 prompts, no file")
        _run(function, path, "a second run with the same file", want=0)
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        ends = [*asked.sizes[1:], len(whole)]  # with so many bytes an answer is all there
        cuts = {
            "in the middle of the last line": whole[: -len(lines[-1]) // 2],
            "before the last line break": whole[:-1],
            "before the second line break": (lines[0] + lines[1])[:-1],
            "in the middle of the second line": lines[0] + lines[1][: len(lines[1]) // 2],
            "after 3 bytes": whole[:3],
        }
        cuts |= {
            f"in a character, {bytes_} bytes in all": whole[:bytes_] for bytes_ in _inside(whole)
        }
        for where, left in cuts.items():
            path.write_bytes(left)
            tried = f"a run with a file that was cut off {where}"
            most = sum(len(left) < end for end in ends)
            _run(function, path, tried, want=most, fewer="line break" in where)
            _run(function, path, f"another run after {tried}", want=0)
        _expect_crash_safe(function, Path(folder) / "crash.jsonl")


def _inside(whole: bytes) -> list[int]:
    """Find a place in the middle of a character, where the file has one."""
    return [place for place in range(1, len(whole)) if whole[place] & 0xC0 == 0x80][:1]


@dataclass
class _Asked:
    """What was asked, and how many whole lines the file had each time."""

    path: Path
    cut_at: int = 99
    topics: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    async def ask(self, topic: str) -> str:
        written = self.path.read_bytes() if self.path.exists() else b""
        self.lines.append(written.count(b"\n"))
        self.sizes.append(len(written))
        if len(self.topics) == self.cut_at:
            raise PowerCut("the power is gone")
        self.topics.append(topic)
        return f"{topic}: it is {len(topic)} long,\nand that is all."


def _run(
    function: Callable[..., Any], path: Path, tried: str, *, want: int, fewer: bool = False
) -> _Asked:
    asked = _Asked(path)
    right = [f"{topic}: it is {len(topic)} long,\nand that is all." for topic in TOPICS]
    got = value_of(function, asked.ask, list(TOPICS), path, tried=tried)
    expect(
        isinstance(got, list | tuple) and list(got) == right,
        tried=tried,
        expected="all five answers, in the order of the prompts",
        happened=f"{got!r} came back"[:300],
        look="what is put together: what the file has, and what was asked now",
    )
    expect(
        len(asked.topics) == want or (fewer and len(asked.topics) < want),
        tried=tried,
        expected=f"{want} of the 5 prompts asked",
        happened=f"{len(asked.topics)} were asked",
        look="which lines of the file are whole, and what is written behind half a line",
    )
    return asked


def _expect_lines(path: Path, lines: list[int], tried: str) -> None:
    expect(
        path.exists() and lines == [0, 1, 2, 3, 4],
        tried=tried,
        expected="each answer in the file, as a line of its own, before the next prompt is asked",
        happened=f"when the five prompts were asked, the file had {lines} lines",
        look="when the file is written, and what flushes it; and whether an answer's own line "
        "break stays out of the file's lines",
    )


def _expect_crash_safe(function: Callable[..., Any], path: Path) -> None:
    tried = "a run that is ended by a PowerCut at the fourth prompt"
    cut = attempt(function, _Asked(path, cut_at=3).ask, list(TOPICS), path, tried=tried)
    expect(
        isinstance(cut.error, PowerCut),
        tried=tried,
        expected="the PowerCut, passed on: it is no answer",
        happened=f"it {cut.told}",
        look="which errors you catch",
    )
    _run(function, path, "the run after the PowerCut", want=2)


# --- 07-3 ------------------------------------------------------------------------------------

Body = dict[str, Any]


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, ensure_ascii=False)


FIELDS = ("messages", "max_tokens", "temperature", "seed")

WRONG_KEYS: dict[str, Callable[[Body], str]] = {
    "messages": lambda body: _canonical({"messages": body["messages"]}),
    "as_text": lambda body: str(body),
    "fields": lambda body: _canonical({name: body.get(name) for name in FIELDS}),
}
"""Three keys as one finds them, for a body without its model."""


def broken_keys(pairs: Any) -> None:
    """07-3: two requests that a wrong key takes for one, or one that it takes for two."""
    expect(
        isinstance(pairs, Mapping) and set(pairs) == set(WRONG_KEYS),
        tried="read your pairs",
        expected="a dictionary with a pair of requests for each of messages, as_text and fields",
        happened=f"it is {pairs!r}"[:200],
        look="the form in the task",
    )
    service()  # its start is not part of what is tried
    for name, key in WRONG_KEYS.items():
        tried = f"the key `{name}` with your two requests"
        one, other = _pair(pairs[name], tried)
        same_key = value_of(key, one, tried=tried) == value_of(key, other, tried=tried)
        same = value_of(_told, one, tried=tried) == value_of(_told, other, tried=tried)
        if name == "as_text":
            expect(
                not same_key and (one == other or _canonical(one) == _canonical(other)),  # 0 == 0.0
                tried=tried,
                expected="one request, written in two ways, with two keys",
                happened="the requests differ in more than form"
                if not same_key
                else "both have the same key",
                look="what a dictionary has besides its contents",
            )
            continue
        expect(
            same_key,
            tried=tried,
            expected="one key for two requests",
            happened="they have two different keys, as they should",
            look="what this key looks at, and what it leaves out; differ only in that",
        )
        expect(
            not same,
            tried=f"{tried}, on the service",
            expected="two different answers, of which a cache would give the wrong one",
            happened="both got the same text, so nobody would notice",
            look="how far the two differ. Does the difference change what is said?",
        )


def _pair(pair: Any, tried: str) -> tuple[Body, Body]:
    expect(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(one, dict) and one.get("messages") for one in pair),
        tried=tried,
        expected="two dictionaries with messages, and whatever else a request has",
        happened=f"it is {pair!r}"[:200],
        look="the form in the task",
    )
    for one in pair:
        expect(
            one.get("temperature") == 0 or "seed" in one,
            tried=tried,
            expected="requests that may be cached at all",
            happened="one has neither temperature 0 nor a seed: it may differ from itself",
            look="section 5 of the lesson",
        )
    return pair[0], pair[1]


def _told(body: Body) -> str:
    return _answer(_canonical(body))


@cache
def _answer(body: str) -> str:
    given = {"model": service().model_id, "max_tokens": 16, **json.loads(body)}
    answer = httpx.post(f"{service().url}/v1/chat/completions", json=given, timeout=10)
    expect(
        answer.is_success,
        tried="ask the service for one of your requests",
        expected="requests that it answers: an error is not what a cache keeps",
        happened=f"status {answer.status_code}: {answer.text[:160]}",
        look="section 4 of lesson 01: which values a field may have",
    )
    if given.get("stream") is True:  # another answer, whatever its text
        return f"a stream: {text_of([answer.content])}"
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


# --- 07-4 ------------------------------------------------------------------------------------


@dataclass
class _Source:
    """Answers after a second of a clock that jumps, and counts."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    asked: int = 0
    fails: bool = False

    async def ask(self) -> str:
        self.asked += 1
        await self.clock.sleep(1)
        if self.fails:
            raise ConnectionError("no answer")
        return "an answer"


Get = Callable[[str, Callable[[], Awaitable[str]]], Awaitable[Any]]


def one_call_for_all(kind: Callable[..., Any]) -> None:
    """07-4: concurrent misses share a call; errors are not kept; nobody's leaving hurts others."""
    for what, tries in (
        ("20 callers, one key, at the same moment", _stampede),
        ("two keys at the same moment", _two_keys),
        ("an error, while 5 callers wait", _error),
        ("3 callers, of which the first is cancelled while all wait", _first_leaves),
        ("the first of 3 callers is cancelled, and then the call fails", _leaves_an_error),
    ):
        expected, happened, look = value_of(tries, kind, tried=what)
        expect(not happened, tried=what, expected=expected, happened=happened, look=look)


Verdict = tuple[str, str, str]


async def _stampede(kind: Callable[..., Any]) -> Verdict:
    source, get = _Source(), kind().get
    got = await asyncio.gather(*(get("a", source.ask) for _ in range(20)))
    got.append(await get("a", source.ask))
    wrong = "" if source.asked == 1 else f"{source.asked} calls were made"
    if set(map(str, got)) != {"an answer"}:
        wrong = f"they got {sorted(set(map(str, got)))}"
    expected = "one call, its answer for all of them, and no call for one who comes later"
    return expected, wrong, "what the second caller finds while the first one's call is under way"


async def _two_keys(kind: Callable[..., Any]) -> Verdict:
    source, get = _Source(), kind().get
    await asyncio.gather(get("a", source.ask), get("b", source.ask))
    took = source.clock.now()
    wrong = "" if source.asked == 2 else f"{source.asked} calls were made"
    if took > 1.5:
        wrong = f"it took {took:g} s: one waited for the other"
    return (
        "two calls, and both done after 1 s",
        wrong,
        "who waits for whom: is it one lock for all?",
    )


async def _error(kind: Callable[..., Any]) -> Verdict:
    source, get = _Source(fails=True), kind().get
    waiting = [get("a", source.ask) for _ in range(5)]
    got = await asyncio.gather(*waiting, return_exceptions=True)
    raised = sum(isinstance(one, ConnectionError) for one in got)
    wrong = "" if raised == 5 else f"{raised} of the 5 got the ConnectionError"
    if not wrong and source.asked != 1:
        wrong = f"{source.asked} calls were made, one after the other"
    if not await _well_later(get, source):
        wrong = "who came later, when all was well, got the old error"
    expected = "one call, its error for all five, and a new call for one who comes later"
    return expected, wrong, "what is kept after a call that failed, and when it is forgotten"


async def _well_later(get: Callable[..., Any], source: _Source) -> bool:
    """Whether one who comes when the source is well again gets its answer."""
    source.fails = False
    try:
        answer = await get("a", source.ask)
    except ConnectionError:
        return False
    return bool(answer == "an answer")


async def _got_by_the_others(get: Callable[..., Any], source: _Source) -> list[Any]:
    """Let three wait for one key, cancel the first, and give what the other two get."""
    tasks = [asyncio.ensure_future(get("a", source.ask)) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    tasks[0].cancel()
    return (await asyncio.gather(*tasks, return_exceptions=True))[1:]


async def _first_leaves(kind: Callable[..., Any]) -> Verdict:
    source, get = _Source(), kind().get
    got = await _got_by_the_others(get, source)
    well = sum(one == "an answer" for one in got)
    wrong = "" if well == 2 else f"{well} of the other two got the answer"
    if not wrong and source.asked > 2:
        wrong = f"{source.asked} calls were made"
    expected = "an answer for the other two"
    return expected, wrong, "whose task makes the call. asyncio.shield keeps a cancel from a task"


async def _leaves_an_error(kind: Callable[..., Any]) -> Verdict:
    source, get = _Source(fails=True), kind().get
    got = await _got_by_the_others(get, source)
    raised = sum(isinstance(one, ConnectionError) for one in got)
    wrong = "" if raised == 2 else f"{raised} of the other two got the ConnectionError"
    if not await _well_later(get, source):
        wrong = wrong or "who came later, when all was well, got the old error"
    expected = "the error for the other two, and a new call for one who comes later"
    return expected, wrong, "who forgets a failed call, when the caller who made it is gone"


GRADERS: dict[str, Callable[[Any], None]] = {
    "07-1": in_order,
    "07-2": journal,
    "07-3": broken_keys,
    "07-4": one_call_for_all,
}
