"""Answers to the exercises of lesson 05: other right ones, and typical wrong ones."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any

import httpx

from answers import Answers
from foundry_lab.breaker import BreakerPolicy


class _Lists:
    """Two lists of times, by outcome."""

    def __init__(self, seconds: float, least: int) -> None:
        self.seconds, self.least = seconds, least
        self.ended: dict[str, list[float]] = {}

    def counts(self, outcome: str) -> bool:
        return outcome != "neutral"

    def young(self, end: float, now: float) -> bool:
        return now - end < self.seconds

    def add(self, now: float, outcome: str) -> None:
        if self.counts(outcome):
            self.ended.setdefault(outcome, []).append(now)
        self.forget(now)

    def forget(self, now: float) -> None:
        for outcome, ends in self.ended.items():
            self.ended[outcome] = [end for end in ends if self.young(end, now)]

    def ratio(self, now: float) -> Any:
        self.forget(now)
        n = Counter({outcome: len(ends) for outcome, ends in self.ended.items()})
        return Fraction(n["failure"], n.total()) if n.total() >= self.least else None


class _NoLeast(_Lists):
    def __init__(self, seconds: float, least: int) -> None:
        super().__init__(seconds, 1)


class _NeutralCounts(_Lists):
    def counts(self, outcome: str) -> bool:
        return True


class _Edge(_Lists):
    def young(self, end: float, now: float) -> bool:
        return now - end <= self.seconds


class _ForgetsInAdd(_Lists):
    def ratio(self, now: float) -> Any:
        return super().ratio(max(map(max, filter(None, self.ended.values())), default=now))


class _Shared(_Lists):
    kept: dict[Any, Any] = {}  # noqa: RUF012 - the mistake

    def __init__(self, seconds: float, least: int) -> None:
        super().__init__(seconds, least)
        self.ended = self.kept
        if least > 1:
            self.kept.clear()


class _KeepsAll(_Lists):
    def forget(self, now: float) -> None:
        pass

    def ratio(self, now: float) -> Any:
        young = _Lists(self.seconds, self.least)
        young.ended = dict(self.ended)
        return young.ratio(now)


class _Few(_Lists):
    def forget(self, now: float) -> None:
        super().forget(now)
        for outcome, ends in self.ended.items():
            self.ended[outcome] = ends[-100:]


class _Prints(_Lists):
    def ratio(self, now: float) -> Any:
        print(super().ratio(now))


class _NotSent(Exception):
    pass


Send = Callable[[], Awaitable[httpx.Response]]


class _Guard:
    """The probe's place is a task; an outcome is a word."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.row, self.until = now, 0, 0.0
        self.probe: asyncio.Task[Any] | None = None

    async def call(self, send: Send) -> httpx.Response:
        half_open = self.row >= 3
        if half_open:
            if self.now() < self.until or self.probe:
                raise _NotSent
            self.probe = asyncio.current_task()
        outcome = self.of_cancelled()
        try:
            response = await send()
            outcome = self.judged(response)
        except Exception:
            outcome = "failure"
            raise
        finally:
            self.probe = None
            self.settle(outcome)
        return response

    def of_cancelled(self) -> str:
        return "neutral"

    def judged(self, response: httpx.Response) -> str:
        status = response.status_code
        return "failure" if status >= 500 else "neutral" if status == 429 else "success"

    def settle(self, outcome: str) -> None:
        if outcome == "failure":
            self.row, self.until = self.row + 1, self.now() + 5
        elif outcome == "success":
            self.row = 0


class _LeaverFails(_Guard):
    def of_cancelled(self) -> str:
        return "failure"


class _LeaverSucceeds(_Guard):
    def of_cancelled(self) -> str:
        return "success"


class _ByRaising(_Guard):
    def judged(self, response: httpx.Response) -> str:
        try:
            response.raise_for_status()
        except httpx.HTTPStatusError as error:
            return super().judged(error.response)
        return "success"


class _Mistake400(_Guard):
    def judged(self, response: httpx.Response) -> str:
        return "failure" if response.status_code >= 400 else "success"


class _Mistake429(_Guard):
    def judged(self, response: httpx.Response) -> str:
        return "failure" if response.status_code >= 500 else "success"


class _Neutral404(_Guard):
    def judged(self, response: httpx.Response) -> str:
        return "neutral" if response.is_client_error else super().judged(response)


class _NeverForgives(_Guard):
    def settle(self, outcome: str) -> None:
        if outcome != "success" or self.row >= 3:
            super().settle(outcome)


class _Swallows(_Guard):
    async def call(self, send: Send) -> Any:
        try:
            return await super().call(send)
        except (asyncio.CancelledError, httpx.HTTPError):
            return None


class _Slips(_Guard):
    async def call(self, send: Send) -> httpx.Response:
        if self.row >= 3:
            self.now = self.clock  # type: ignore[attr-defined]
        return await super().call(send)


class _Leaks(_Guard):
    async def call(self, send: Send) -> httpx.Response:
        try:
            return await super().call(send)
        except asyncio.CancelledError:
            if self.row >= 3:
                self.probe = asyncio.current_task()
            raise


class _AllProbes(_Guard):
    async def call(self, send: Send) -> httpx.Response:
        self.probe = None
        return await super().call(send)


OPENED = [
    *((1, name, "send") for name in "abc"),
    *((2, name, "failure") for name in "abc"),
]
LONG = (0, "long", "send")


ANSWERS = {
    "05-1": Answers(
        right=[_Lists],
        wrong={
            "no minimum": (_NoLeast, "it gave Fraction(1, 1)"),
            "neutral counts": (_NeutralCounts, "it gave Fraction(1, 2)"),
            "the edge counts": (_Edge, "it gave Fraction(1, 4)"),
            "forgets in add only": (_ForgetsInAdd, "calls grow old without a new one"),
            "one list for all": (_Shared, "the second one gave"),
            "keeps all": (_KeepsAll, "it keeps too much"),
            "a number of calls": (_Few, "a time, not a number"),
            "prints": (_Prints, "it gave None"),
            "a window": (_Lists(10, 3), "without calling it"),
        },
    ),
    "05-2": Answers(
        right=[_Guard, _ByRaising],
        wrong={
            "leaks": (_Leaks, "not sent: call 5 and call 6"),
            "who leaves is a failure": (_LeaverFails, "not sent: call 5, counted"),
            "who leaves is a success": (_LeaverSucceeds, "what nobody has found out yet"),
            "400 is a failure": (_Mistake400, "whose mistake a 400 is"),
            "429 is a success": (_Mistake429, "says about 429"),
            "404 is neutral": (_Neutral404, "what a 404 says"),
            "swallows": (_Swallows, "the caller of call 4 got"),
            "a slip": (_Slips, "call 4 got AttributeError: '_Slips' object has no attribute"),
            "all failures count": (_NeverForgives, "what a success in between does"),
            "no places": (_AllProbes, "half-open has one place"),
        },
    ),
    "05-3": Answers(
        right=[
            [
                *([n, n, "send"] for n in range(4)),
                *([4.5, n, "failure"] for n in range(1, 4)),
                [10, "p", "send"],
                [10, "refused", "send"],
                [11, 0, "success"],
                [12, "p", "failure"],
            ],
            [LONG, *OPENED, (7, "p", "send"), (8, "long", "success"), (9, "p", "success")],
        ],
        wrong={
            "never opens": ([LONG, (1, "long", "success")], "it never opened"),
            "late in the open state": ([LONG, *OPENED, (3, "long", "success")], "it was open"),
            "nobody probes": ([LONG, *OPENED, (9, "long", "success")], "at second 2, and at"),
            "the probe succeeds": (
                [*OPENED, (8, "p", "send"), (9, "p", "success")],
                "to close is right",
            ),
            "ends what was refused": (
                [*OPENED, (3, "d", "send"), (9, "d", "success")],
                "was never sent, or was refused",
            ),
            "time goes back": ([(5, "a", "send"), (4, "a", "failure")], "time goes back"),
            "another word": ([(0, "a", "ok")], "there is no event"),
            "ends twice": (
                [LONG, (1, "long", "failure"), (2, "long", "failure")],
                "has ended before",
            ),
            "no story": ({"long": "success"}, "no list of"),
        },
    ),
    "05-4": Answers(
        right=[
            {"minimum_throughput": 8, "failure_ratio": 0.4, "window": 15, "break_duration": 3},
            BreakerPolicy(failure_ratio=0.8, minimum_throughput=3, window=5, break_duration=3),
        ],
        wrong={
            "the defaults": (BreakerPolicy(), "by day too many wait in vain"),
            "a long break": (
                BreakerPolicy(minimum_throughput=5, window=10, break_duration=20),
                "by day it is closed too late",
            ),
            "Polly's throughput": (
                BreakerPolicy(minimum_throughput=20, window=10, break_duration=3),
                "at night too many wait in vain",
            ),
            "nervous": (
                BreakerPolicy(minimum_throughput=2, window=10, break_duration=3, probes=1),
                "it opens in the trickle",
            ),
            "out of range": ({"failure_ratio": 50}, "raised InvalidRequest: No breaker"),
            "numbers only": ((0.5, 10), "of type tuple"),
        },
    ),
}
