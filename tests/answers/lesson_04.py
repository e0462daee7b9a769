"""Answers to the exercises of lesson 04: other right ones, and typical wrong ones."""

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import openai
import stamina

import foundry_lab as lab
from answers import Answers
from foundry_lab.retry import RETRYABLE_ERRORS, RETRYABLE_STATUSES, retry_after

# 04-1


def _ceiling(retry: int, base: float, cap: float) -> float:
    return float(min(cap, base * 2**retry))


def _scaled(retry: int, base: float, cap: float, rng: random.Random) -> float:
    return rng.random() * _ceiling(retry, base, cap)


# 04-2


def _judge(
    *,
    statuses: Any = RETRYABLE_STATUSES,
    errors: Any = RETRYABLE_ERRORS,
    stop_when_shown: bool = True,
    after: Callable[[str | None, datetime], float | None] = retry_after,
    join: Callable[[float, float], float] = float.__add__,
    bounded: bool = True,
) -> Any:
    """A correct `next_wait` by the package's parts, but for what is changed."""

    def next_wait(
        failure: httpx.Response | Exception, shown: bool, backoff: float, left: float, now: datetime
    ) -> float | None:
        floor = 0.0
        if isinstance(failure, httpx.Response):
            if failure.status_code not in statuses:
                return None
            floor = after(failure.headers.get("Retry-After"), now) or 0.0
        elif not isinstance(failure, errors):
            return None
        wait = join(floor, backoff)
        if (shown and stop_when_shown) or (bounded and wait >= left):
            return None
        return wait

    return next_wait


def _any_number(text: str | None, now: datetime) -> float | None:
    try:
        return float(text or 0)
    except ValueError:
        return retry_after(text, now)


def _as_parsed(text: str | None, now: datetime) -> float | None:
    if text and ":" in text:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    return retry_after(text, now)


# 04-3


async def _chat(library: openai.AsyncOpenAI, model: str, prompt: str) -> str:
    answer = await library.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], max_tokens=20
    )
    return answer.choices[0].message.content or ""


async def _let_the_library(library: openai.AsyncOpenAI, model: str, prompt: str) -> str:
    """Retries at the other layer: the library's own, three after the first attempt."""
    return await _chat(library.with_options(max_retries=3), model, prompt)


def _worth_it(error: Exception) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in RETRYABLE_STATUSES
    return isinstance(error, openai.APIConnectionError)


@stamina.retry(on=_worth_it, attempts=4, wait_initial=0.01, wait_jitter=0.01)
async def _by_stamina(library: openai.AsyncOpenAI, model: str, prompt: str) -> str:
    return await _chat(library.with_options(max_retries=0), model, prompt)


stamina.instrumentation.set_on_retry_hooks([])  # no log lines


def _attempts(
    number: int = 4,
    of: int = 0,
    swallow: bool = False,
    worth: Callable[[Exception], bool] = _worth_it,
) -> Any:
    """A loop of so many attempts around a library with so many retries of its own."""

    async def once(library: openai.AsyncOpenAI, model: str, prompt: str) -> str:
        try:
            return await _chat(library.with_options(max_retries=of), model, prompt)
        except openai.APIError as error:
            if not swallow:
                raise
            return f"Error: {error}"

    async def ask(library: openai.AsyncOpenAI, model: str, prompt: str) -> str:
        for _ in range(number - 1):
            try:
                return await once(library, model, prompt)
            except openai.APIError as error:
                if not worth(error):
                    raise
            await asyncio.sleep(0.01)
        return await once(library, model, prompt)

    return ask


async def _statuses_only(library: openai.AsyncOpenAI, model: str, prompt: str) -> str:
    for _ in range(3):
        try:
            return await _chat(library.with_options(max_retries=0), model, prompt)
        except openai.APIStatusError as error:
            if not _worth_it(error):
                raise
    return await _chat(library.with_options(max_retries=0), model, prompt)


async def _none_at_last(library: openai.AsyncOpenAI, model: str, prompt: str) -> str | None:
    """Four attempts, and then an end without a word."""
    for _ in range(4):
        try:
            return await _chat(library.with_options(max_retries=0), model, prompt)
        except openai.APIError as error:
            if not _worth_it(error):
                raise
    return None


# 04-4


class _Window:
    """Retries of the last ten seconds, beside the calls of the last ten seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.calls, self.retries = deque[float](), deque[float]()

    def deposit(self) -> None:
        self.calls.append(self.now())

    def withdraw(self) -> bool:
        for times in (self.calls, self.retries):
            while times and times[0] < self.now() - 10:
                times.popleft()
        if len(self.retries) + 1 > 1 + 0.1 * len(self.calls):
            return False
        self.retries.append(self.now())
        return True


class _Pot:
    """A pot that is filled by calls and by time, up to a limit."""

    ratio, rate, limit = 0.1, 0.1, 10.0

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.at, self.tokens = now, now(), min(10.0, self.limit)

    def deposit(self) -> None:
        self.tokens = min(self.limit, self.tokens + self.ratio)

    def withdraw(self) -> bool:
        at = self.now()
        self.tokens = min(self.limit, self.tokens + self.rate * (at - self.at))
        self.at = at
        allowed = self.tokens >= 1
        self.tokens -= allowed
        return allowed


class _OfTheLesson(_Pot):
    rate = 0.0


class _OnlyTime(_Pot):
    ratio = 0.0


class _NoLimit(_Pot):
    limit = float("inf")


class _NeverNo(_Pot):
    def withdraw(self) -> bool:
        return True


class _NeverFilled(_Pot):
    """Three hundred retries, once and for all."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.tokens = 300

    def deposit(self) -> None:
        pass

    def withdraw(self) -> bool:
        self.tokens -= 1
        return self.tokens >= 0


# 04-5


def _equal(base: float, cap: float) -> Any:
    return lambda rng: lab.backoff_delays(base, cap, "equal", rng)


def _ten_waits(rng: random.Random) -> list[float]:
    """A list by formula, no generator."""
    return [rng.uniform(0, min(16.0, 0.4 * 2**n)) for n in range(30)]


def _full(base: float, cap: float, attempts: int | None = None) -> Any:
    def waits(rng: random.Random) -> Iterator[float]:
        delays = lab.backoff_delays(base, cap, "full", rng)
        return itertools.islice(delays, attempts and attempts - 1)

    return waits


ANSWERS = {
    "04-1": Answers(
        right=[_scaled],
        wrong={
            "no jitter": (lambda r, b, c, rng: _ceiling(r, b, c), "every one was"),
            "no cap": (lambda r, b, c, rng: rng.uniform(0, b * 2**r), "the longest was"),
            "capped after the draw": (
                lambda r, b, c, rng: min(c, rng.uniform(0, b * 2**r)),
                "on average they were",
            ),
            "equal jitter": (
                lambda r, b, c, rng: _ceiling(r, b, c) * (0.5 + rng.random() / 2),
                "they lay between",
            ),
            "another generator": (
                lambda r, b, c, rng: random.uniform(0, _ceiling(r, b, c)),
                "same seed, same draw",
            ),
            "no base": (
                lambda r, b, c, rng: rng.uniform(0, min(c, 2 ** (r - 1))),
                "with base 0.2 s",
            ),
            "prints": (lambda r, b, c, rng: print(_scaled(r, b, c, rng)), "is not returning"),
            "a draw": (0.25, "without calling it"),
        },
    ),
    "04-2": Answers(
        right=[_judge()],
        wrong={
            "400 too": (_judge(statuses=range(400, 600)), "whose mistake it is"),
            "500 too": (_judge(statuses={*RETRYABLE_STATUSES, 500}), "what a 500 can mean"),
            "no 408": (_judge(statuses={429, 502, 503, 504}), "status 408"),
            "every TransportError": (_judge(errors=httpx.TransportError), "UnsupportedProtocol"),
            "every exception": (
                _judge(errors=Exception, statuses=RETRYABLE_STATUSES),
                "UnsupportedProtocol; backoff",
            ),
            "three errors": (
                _judge(errors=(httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError)),
                "ReadError; backoff",
            ),
            "every ProtocolError": (
                _judge(errors=(httpx.TimeoutException, httpx.NetworkError, httpx.ProtocolError)),
                "LocalProtocolError; backoff",
            ),
            "no network errors": (_judge(errors=httpx.TimeoutException), "ConnectError"),
            "the floor replaces the backoff": (_judge(join=max), "is it one of them, or both"),
            "no dates": (
                _judge(after=lambda text, _: float(text) if text and text.isdigit() else None),
                "the second form",
            ),
            "a date in the past": (
                _judge(
                    after=lambda text, now: (
                        -60.0 if "11:59" in (text or "") else retry_after(text, now)
                    )
                ),
                "what a date in the past means",
            ),
            "a date without a zone": (_judge(after=_as_parsed), "offset-naive"),
            "1.5 is read": (_judge(after=_any_number), "a header that can't be read"),
            "no deadline": (_judge(bounded=False), "when the wait would be over"),
            "text shown twice": (_judge(stop_when_shown=False), "what the user would read"),
        },
    ),
    "04-3": Answers(
        right=[_let_the_library, _by_stamina, _attempts()],
        wrong={
            "as it came": (_attempts(of=2, swallow=True), "server: 3; the caller got 'Error"),
            "the library's retries": (_attempts(of=2), "server: 12"),
            "the error is swallowed": (_attempts(swallow=True), "server: 1; the caller got 'Error"),
            "five attempts": (_attempts(number=5), "server: 5"),
            "400 is repeated": (_attempts(worth=lambda error: True), "400 to every request"),
            "408 is sent once": (
                _attempts(
                    worth=lambda error: _worth_it(error) and getattr(error, "status_code", 0) != 408
                ),
                "408, 502 and 504",
            ),
            "401 is repeated": (
                _attempts(worth=lambda error: not isinstance(error, openai.BadRequestError)),
                "401 to every request",
            ),
            "429 is sent once": (
                _attempts(
                    worth=lambda error: (
                        _worth_it(error) and not isinstance(error, openai.RateLimitError)
                    )
                ),
                "429 to every request",
            ),
            "statuses only": (_statuses_only, "errors that come without any status"),
            "None at last": (_none_at_last, "server: 4; the caller got None"),
        },
    ),
    "04-4": Answers(
        right=[_Window, _Pot],
        wrong={
            "the lesson's": (_OfTheLesson, "a program that calls rarely"),
            "only time pays in": (_OnlyTime, "what a busy program pays in"),
            "no limit": (_NoLimit, "how much the pot may save up"),
            "never says no": (_NeverNo, "4.00 requests per call"),
            "never fills again": (_NeverFilled, "how the pot fills again"),
        },
    ),
    "04-5": Answers(
        right=[_equal(0.5, 15), _ten_waits],
        wrong={
            "every second": (lambda rng: itertools.repeat(1.0), "25.5 requests per call"),
            "no jitter": (
                lambda rng: lab.backoff_delays(0.5, 20, "none", rng),
                "whether the clients' waits differ",
            ),
            "cap too small": (_full(0.1, 5), "requests per call"),
            "four attempts": (_full(0.5, 20, 4), "0.0% got one"),
            "cap too large": (_full(1, 60), "got one"),
            "slow at first": (lambda rng: iter(lambda: rng.uniform(0, 15), None), "it took"),
            "no end": (lambda rng: itertools.repeat(0.0), "there is no end"),
        },
    ),
}
