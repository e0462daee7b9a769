"""The final examination: a client of any shape meets every fault, and gets a score card.

It judges how a call ended, not what its errors are called: a whole answer wherever one was to be
had, else an exception; in time, with few requests, and with nothing left open.
"""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, Literal, Self

import httpx

from foundry_lab.checks.bench import service
from foundry_lab.faults import (
    Always,
    BrokenJson,
    BrokenSse,
    CutBody,
    Delay,
    Drip,
    ErrorEvent,
    Fault,
    FaultProxy,
    HtmlPage,
    Pace,
    Pass,
    Refuse,
    Reset,
    Script,
    Seen,
    SplitUtf8,
    Stall,
    Status,
)
from foundry_lab.lesson import aligned

__all__ = ["DEADLINE", "MAX_TOKENS", "PROMPT", "ROWS", "Result", "Row", "examine", "whole_answer"]

PROMPT, MAX_TOKENS = "Count from 1 to 300.", 24
DEADLINE = 2.0
"""Seconds that a call may take, whatever happens."""
GRACE = 0.5
"""Seconds by which it may be late: a machine is busy at times."""
AT_ONCE = 6
"""Calls under way at the same time, each through a proxy of its own."""
LONGEST = 35.0
"""Seconds for all of it. What was lost while the machine was busy with other things is tried again,
alone, as long as there is time; after that it is not judged."""
BEAT, SLOW = 0.02, 0.1
"""Seconds between two looks at that, and the delay from which on it counts as busy."""
SILENT = (Stall, Delay, Drip, Pace)
"""Faults that take long and no work: they come first."""
PASS_MARK = 0.8
EARLY = 0.4
"""Seconds between the first piece of a slow stream and its end."""

Expected = Literal["answer", "error", "either", ""]
Plan = Literal["once", "always", "stream"]


@dataclass(frozen=True)
class Row:
    """A fault, and what is asked of a call that meets it."""

    what: str
    fault: Fault
    once: Expected
    """If the next request is well; empty: not tried."""
    always: Expected
    stream: Expected = ""
    """Of an answer that is read piece by piece, if it happens once."""
    most: int = 5
    """Requests."""
    wait: float = 0.0
    """Seconds that the second request has to keep away."""

    @property
    def of_connections(self) -> bool:
        """Whether it comes before there is a request that could be told from others."""
        return self.fault == Reset("accept")


ROWS = (
    #   what                               fault                     once      always    stream
    Row("no fault",                        Pass(),                   "",       "answer", "answer"),
    Row("nobody listens",                  Refuse(),                 "",       "error",  ""),
    Row("reset when connected",            Reset("accept"),          "answer", "error",  ""),
    Row("reset after the request",         Reset("request"),         "answer", "error",  "answer"),
    Row("50 ms late",                      Delay(0.05),              "",       "answer", ""),
    Row("60 s late",                       Delay(60),                "answer", "error",  "answer"),
    Row("400, your mistake",               Status(400),              "",       "error",  "", 1),
    Row("401, no key",                     Status(401),              "",       "error",  "", 1),
    Row("404, no such model",              Status(404),              "",       "error",  "", 1),
    Row("429, too many",                   Status(429),              "answer", "error",  ""),
    Row("429, come back after 1 s",        Status(429, 1),           "answer", "",       "", 5, 1),
    Row("429, come back after 60 s",       Status(429, 60),          "error",  "",       "", 1),
    Row("500",                             Status(500),              "either", "error",  ""),
    Row("502, a web page",                 HtmlPage(502),            "answer", "error",  ""),
    Row("503",                             Status(503),              "answer", "error",  "answer"),
    Row("503, come back after 1 s",        Status(503, 1),           "answer", "",       "", 5, 1),
    Row("200, a log-in page",              HtmlPage(200),            "either", "error",  "either"),
    Row("silence",                         Stall(),                  "answer", "error",  "answer"),
    Row("silence after the headers",       Stall(0),                 "answer", "error",  "answer"),
    Row("silence before the first token",  Stall(1),                 "answer", "error",  ""),
    Row("silence in mid-answer",           Stall(6),                 "answer", "error",  "error"),
    Row("silence after the last word",     Stall(99),                "answer", "either", ""),
    Row("one byte every 100 ms",           Drip(1, 0.1),             "answer", "error",  ""),
    Row("small packets",                   Drip(100, 0.002),         "",       "answer", "answer"),
    Row("a slow model, 20 tokens/s",       Pace(20),                 "",       "answer", "answer"),
    Row("a model too slow, 6 tokens/s",    Pace(6),                  "either", "either", "either"),
    Row("cut before the text: reset",      CutBody(0, how="reset"),  "answer", "error",  "answer"),
    Row("cut before the text: close",      CutBody(0, how="close"),  "answer", "error",  ""),
    Row("cut before the text: an end",     CutBody(0, how="end"),    "answer", "error",  "answer"),
    Row("cut after 50 bytes",              CutBody(after_bytes=50),  "answer", "error",  ""),
    Row("cut in mid-answer: reset",        CutBody(6, how="reset"),  "answer", "error",  "error"),
    Row("cut in mid-answer: close",        CutBody(6, how="close"),  "answer", "error",  "error"),
    Row("cut in mid-answer: an end",       CutBody(6, how="end"),    "answer", "error",  "error"),
    Row("reset after the last word",       CutBody(99),              "answer", "either", ""),
    Row("half of the JSON",                BrokenJson(0),            "either", "error",  "either"),
    Row("JSON that breaks in mid-answer",  BrokenJson(6),            "either", "error",  "error"),
    Row("rubbish between the events",      BrokenSse(),              "answer", "either", ""),
    Row("an error after the 200",          ErrorEvent(0),            "either", "either", "either"),
    Row("an error in mid-answer",          ErrorEvent(6),            "either", "either", "error"),
    Row("bytes cut anywhere",              SplitUtf8(),              "",       "answer", "answer"),
)  # fmt: skip
"""Every fault of the workbook. Where a call can bring a whole answer, it has to."""


@dataclass(frozen=True)
class Mark:
    """What came of one fault."""

    row: Row
    plan: Plan
    how: str
    """``answer`` or ``error``, or what it did instead."""
    lost: str = ""
    """Why there is no point for it; empty: there is one."""
    grave: bool = False
    """Whether a caller was left with a wrong text, or without an end."""

    @property
    def expected(self) -> Expected:
        """What was asked for."""
        return getattr(self.row, self.plan)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Result:
    """All marks of a client."""

    marks: list[Mark]
    unjudged: int = 0
    """Faults without a mark: the machine was busy with other things."""

    @property
    def points(self) -> int:
        """One for each fault that was met well."""
        return sum(not mark.lost for mark in self.marks)

    @property
    def grave(self) -> list[Mark]:
        """The gravest mistakes: with one of them, no client passes."""
        return [mark for mark in self.marks if mark.grave]

    @property
    def judged(self) -> bool:
        """Whether the machine was free for most of the faults."""
        return self.unjudged <= len(self.marks) / 3

    @property
    def passed(self) -> bool:
        """Enough faults judged, enough points, and no grave mistake."""
        return self.judged and self.points >= PASS_MARK * len(self.marks) and not self.grave

    @property
    def with_distinction(self) -> bool:
        """Passed, and among the faults of the stream alone there were enough points, too."""
        streamed = [mark for mark in self.marks if mark.plan == "stream"]
        return self.passed and bool(streamed) and Result(streamed).passed

    def __str__(self) -> str:
        count = len(self.grave)
        graves = f", {count or 'no'} grave mistake{'s' if count > 1 else ''}"
        left_out = f", {self.unjudged} not judged on a busy machine" if self.unjudged else ""
        return f"{self.points} of {len(self.marks)} points{graves}{left_out}"

    def card(self) -> str:
        """Tell every mark, and below what the lost points were lost for."""
        plans = ["once", "always", "stream"]
        plans = [plan for plan in plans if any(mark.plan == plan for mark in self.marks)]
        found = {(mark.row.what, mark.plan): mark for mark in self.marks}
        rows = [
            [row.what, *(_short(found.get((row.what, plan))) for plan in plans)]  # type: ignore[arg-type]
            for row in ROWS
            if any((row.what, plan) in found for plan in plans)
        ]
        lost = [
            f"{'✗✗' if mark.grave else '✗ '} {mark.row.what}, {mark.plan}: {mark.lost}"
            for mark in self.marks
            if mark.lost
        ]
        return "\n".join([aligned(["fault", *plans], rows), "", *lost, str(self)])


def _short(mark: Mark | None) -> str:
    if mark is None:
        return ""
    if mark.expected == "either" and not mark.lost:
        return "✓ either"
    return f"{'✗✗' if mark.grave else '✗' if mark.lost else '✓'} {mark.how}"


def examine(ask: Callable[..., Any], stream: Callable[..., Any] | None = None) -> Result:
    """Put a client through all faults; it takes some seconds.

    Args:
        ask: Takes the base URL, the model's id and the prompt; gives the whole answer as text.
        stream: Takes the same; gives the answer's pieces.
    """
    plans: tuple[Plan, ...] = ("once", "always", "stream") if stream else ("once", "always")
    cases = [(row, plan) for row in ROWS for plan in plans if getattr(row, plan)]
    whole_answer()  # before anything is timed
    with _Proxies() as proxies, _Pulse() as pulse:
        until = time.monotonic() + LONGEST

        def try_(case: tuple[Row, Plan]) -> tuple[Mark, bool]:
            began = time.monotonic()
            if began > until:
                return Mark(*case, "not tried"), True
            mark = _tried(*case, stream if stream and case[1] == "stream" else ask, proxies)
            return mark, bool(mark.lost) and pulse.slowest(began) > SLOW

        longest_first = sorted(cases, key=lambda case: not isinstance(case[0].fault, SILENT))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            tried = dict(zip(longest_first, threads.map(try_, longest_first), strict=True))
        for case, (_, disturbed) in tried.items():
            if disturbed and time.monotonic() < until:
                tried[case] = try_(case)
    marks = [mark for mark, disturbed in (tried[case] for case in cases) if not disturbed]
    return Result(marks, len(cases) - len(marks))


class _Proxies(contextlib.ExitStack):
    """Proxies that were used by nobody, or left clean: each call has one for itself."""

    def __init__(self) -> None:
        super().__init__()
        self._free = SimpleQueue[FaultProxy]()

    def take(self, row: Row) -> FaultProxy:
        if row.of_connections:
            return self.enter_context(FaultProxy(service().url))
        try:
            return self._free.get_nowait()
        except Empty:
            return self.enter_context(FaultProxy(service().url, only="chat"))

    def give_back(self, proxy: FaultProxy, row: Row) -> None:
        """Take it back; one that still has a connection is closed, and breaks it off."""
        if proxy.open_connections or row.of_connections:
            proxy.close()
        else:
            proxy.plan = ()
            self._free.put(proxy)


class _Pulse:
    """Short waits, one after the other: how late they end is how busy the machine is."""

    def __enter__(self) -> Self:
        self._beats: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        began = time.monotonic()
        while not self._over.wait(BEAT):
            now = time.monotonic()
            self._beats.append((now, now - began - BEAT))
            began = now

    def slowest(self, since: float) -> float:
        """Say by how many seconds the latest beat since then was late."""
        return max((late for at, late in self._beats if at > since), default=0.0)


@cache
def whole_answer() -> str:
    """Ask the service itself, with no fault between: what every client should get."""
    body = {
        "model": service().model_id,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    answer = httpx.post(f"{service().url}/v1/chat/completions", json=body, timeout=30)
    text: str = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    return text


@dataclass
class _Call:
    """One call of a learner's function, in a thread and on an event loop of its own."""

    function: Callable[..., Any]
    url: str
    streams: bool
    text: Any = ""
    error: BaseException | None = None
    took: float = DEADLINE + 2 * GRACE
    first: float | None = None
    """Seconds to the first piece of a stream."""
    left: int = 0
    """Tasks that it left running."""

    def make(self) -> None:
        thread = threading.Thread(target=self._work, name="examined", daemon=True)
        thread.start()
        thread.join(DEADLINE + 2 * GRACE)

    @property
    def late(self) -> bool:
        return self.took > DEADLINE + GRACE

    def _work(self) -> None:
        began = time.monotonic()
        try:
            given = self.function(self.url, service().model_id, PROMPT)
            if inspect.isawaitable(given) or inspect.isasyncgen(given):
                asyncio.run(self._within(given, began))
            else:
                self._take(given, began)
        except BaseException as error:  # noqa: BLE001 - whatever it raises is how it ended
            self.error = error
        self.took = time.monotonic() - began

    async def _within(self, given: Any, began: float) -> None:
        try:
            async with asyncio.timeout(DEADLINE + GRACE + 0.1):
                value = await given if inspect.isawaitable(given) else given
                if self.streams and hasattr(value, "__aiter__"):
                    async with contextlib.aclosing(value) as pieces:
                        async for piece in pieces:
                            self._add(piece, began)
                else:
                    self._take(value, began)
        finally:
            await asyncio.sleep(0.01)  # what was told to end may do so
            self.left = len(asyncio.all_tasks()) - 1

    def _take(self, value: Any, began: float) -> None:
        if not self.streams:
            self.text = value
            return
        for piece in value:
            self._add(piece, began)

    def _add(self, piece: str, began: float) -> None:
        if piece and self.first is None:
            self.first = time.monotonic() - began
        self.text += piece


def _tried(row: Row, plan: Plan, function: Callable[..., Any], proxies: _Proxies) -> Mark:
    whole, proxy = whole_answer(), proxies.take(row)
    before = len(proxy.seen)
    proxy.plan = Always(row.fault) if plan == "always" else Script([row.fault])
    call = _Call(function, proxy.url, plan == "stream")
    call.make()
    until = time.monotonic() + GRACE
    while proxy.open_connections and time.monotonic() < until and not call.late:
        time.sleep(0.005)
    every = proxy.seen[before:]
    seen = [one for one in every if row.of_connections or one.path.endswith("/completions")]
    how, grave = _ended(call, whole)
    lost = [how] if grave else list(_complaints(row, plan, call, seen, proxy))
    proxies.give_back(proxy, row)
    return Mark(row, plan, how, "; ".join(lost), grave)


def _ended(call: _Call, whole: str) -> tuple[str, bool]:
    """Say how a call ended, and whether that is a grave mistake."""
    text = call.text
    if call.late:
        return f"no end within {DEADLINE:g} s", True
    if call.error is not None:
        if call.streams and not whole.startswith(text):
            return "text that is not the answer's", True
        return "error", False
    if isinstance(text, str) and text.strip() == whole.strip():
        return "answer", False
    if not isinstance(text, str):
        return f"gave a {type(text).__name__}", True
    if not text.strip():
        return "empty text as the answer", True
    if whole.startswith(text.strip()):
        return "cut text as the answer", True
    return "other text as the answer", True


def _complaints(
    row: Row, plan: Plan, call: _Call, seen: list[Seen], proxy: FaultProxy
) -> Iterator[str]:
    expected: Expected = getattr(row, plan)
    if expected == "answer" and call.error is not None:
        yield f"{type(call.error).__name__}, where a whole answer was to be had"
    if expected == "error" and call.error is None:
        yield "an answer, where none was to be had"
    if len(seen) > row.most:
        once = "it was asked again, which can't help"
        yield once if row.most == 1 else f"more than {row.most} requests"
    if row.wait and len(seen) > 1 and seen[1].began - seen[0].began < row.wait - 0.05:
        yield f"the second request came before {row.wait:g} s were over"
    if call.left:
        yield "a task was left running"
    if proxy.open_connections:
        yield "a connection was left open"
    if plan == "stream" and row.fault == Pace(20) and call.took - (call.first or 0) < EARLY:
        yield "the first piece came only with the last"
