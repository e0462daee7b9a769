"""Graders for the exercises of lesson 08: the production drill, and the final examination."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx

from foundry_lab import FoundryAPIClient, Settings
from foundry_lab.breaker import BreakerTransport
from foundry_lab.checks.bench import (
    Wrong,
    expect,
    expect_number,
    is_number,
    service,
    show,
    value_of,
)
from foundry_lab.checks.examination import (
    DEADLINE,
    MAX_TOKENS,
    PASS_MARK,
    PROMPT,
    Result,
    examine,
    whole_answer,
)
from foundry_lab.clock import VirtualClock
from foundry_lab.errors import FoundryLabError
from foundry_lab.faults import Always, CutBody, Fault, FaultProxy, Pass, Script, Status
from foundry_lab.layers import Layer
from foundry_lab.limits import ConcurrencyLimit, TokenTimeouts
from foundry_lab.records import Attempt, Call, Record, StateChange, Wait
from foundry_lab.retry import RetryBudget, RetryPolicy, RetryTransport, backoff_delays

__all__ = ["GRADERS"]

# --- 08-1 ------------------------------------------------------------------------------------

ONE_SHOT = Settings(model="lab-tiny", retries=0, timeout=5)


def smoke_test(smoke: Callable[..., Any]) -> None:
    """08-1: every check is made, and any failure reaches the exit code."""
    only_first, only_last = Script([Status(500)]), Script([Pass(), CutBody(2, how="end")])
    asked, code = _smoked(smoke, (), "a service that is well")
    expect(
        asked >= 2,
        tried="a service that is well",
        expected="a chat and a stream, both of them really asked for",
        happened=f"{asked} of them came to the service",
        look="what each of the CHECKS needs, and whether it is awaited",
    )
    _expect_code(code, "a service that is well", wrong=code != 0, wanted="0")
    for plan, what in (
        (Always(Status(500)), "a service whose chats all end with 500"),
        (only_first, "a service whose first chat fails, and whose stream is well"),
        (only_last, "a service whose chat is well, and whose stream breaks off"),
    ):
        asked, code = _smoked(smoke, plan, what)
        _expect_code(code, what, wrong=not code, wanted="a code that is not 0")
        expect(
            asked >= 2,
            tried=what,
            expected="all checks made, also those after one that failed",
            happened="the checks after the failed one were left out",
            look="where your function returns",
        )


def _smoked(smoke: Callable[..., Any], plan: Iterable[Fault], what: str) -> tuple[int, Any]:
    async def with_client(url: str) -> Any:
        async with FoundryAPIClient(url, settings=ONE_SHOT) as client:
            code = smoke(client)
            return await code if asyncio.iscoroutine(code) else code

    with FaultProxy(service().url, plan, only="chat") as proxy:
        code = value_of(with_client, proxy.url, tried=f"call smoke with {what}")
        return sum(one.path.endswith("/completions") for one in proxy.seen), code


def _expect_code(code: Any, what: str, *, wrong: bool, wanted: str) -> None:
    expect(
        isinstance(code, int),
        tried=what,
        expected=f"an exit code, {wanted}",
        happened=f"{code!r} came back, which is no whole number",
        look="what the function returns at its end; print tells a person, not a program",
    )
    expect(
        not wrong,
        tried=what,
        expected=wanted,
        happened=f"the exit code was {int(code)}",
        look="what happens to the code at a failure, and at the success after it",
    )


# --- 08-2 ------------------------------------------------------------------------------------

REASONS = {
    "breaker": "the breaker sees what comes out of the layer inside it. How many attempts does one "
    "call make in there, and how many results must the breaker see before a ratio counts?",
    "limit": "a place that is held is held for all of what is inside the limit. What does A do "
    "with it between its two attempts?",
    "tokens": "who has to hear of the silence, so that there is a second attempt? "
    "And which layer is already over when it is heard?",
}


def order_of_layers(prediction: Any) -> None:
    """08-2: what three wrong orders do, compared with what they do here and now."""
    expect(
        isinstance(prediction, Mapping) and set(prediction) == set(REASONS),
        tried="read your prediction",
        expected="a dictionary with one number for each of breaker, limit and tokens",
        happened=f"it is {prediction!r}",
        look="the form in the task",
    )
    measured = {"breaker": _breaker_outside, "limit": _limit_outside, "tokens": _tokens_outside}
    units = {"breaker": "requests", "limit": "s", "tokens": "requests"}
    for name, guess in prediction.items():
        expect_number(guess, name=name)
    for name, measure in measured.items():
        guess, found = prediction[name], value_of(measure, tried=f"measure {name}")
        expect(
            abs(guess - found) < 0.01,
            tried=f"{name}: build the wrong order, and measure it",
            expected="your prediction to be what is measured",
            happened=f"you said {guess} {units[name]}, and it is another number",
            look=REASONS[name],
        )


class _Server(httpx.AsyncBaseTransport):
    """Answers with these statuses in turn, each after a tenth of a virtual second."""

    def __init__(self, clock: VirtualClock, *statuses: int) -> None:
        self.asked, self._clock, self._statuses = 0, clock, statuses

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        await self._clock.sleep(0.1)
        place = min(self.asked, len(self._statuses)) - 1
        if self._statuses[place] == 0:  # silence
            await asyncio.sleep(60)
        return httpx.Response(self._statuses[place], request=request)


async def _send(transport: httpx.AsyncBaseTransport) -> str:
    try:
        answer = await transport.handle_async_request(httpx.Request("GET", "http://here/"))
        return str(answer.status_code)
    except (httpx.TransportError, FoundryLabError) as error:
        return type(error).__name__


def _retry(inner: httpx.AsyncBaseTransport, clock: VirtualClock) -> Layer:
    policy = RetryPolicy(attempts=4, base=0.8, cap=0.8, jitter="none")
    return RetryTransport(inner, policy, clock=clock, budget=RetryBudget(1, 1000))


async def _breaker_outside() -> int:
    clock = VirtualClock()
    server = _Server(clock, 503)
    guarded = BreakerTransport(_retry(server, clock), clock=clock)
    while await _send(guarded) != "BreakerOpen":
        pass
    return server.asked


async def _limit_outside() -> float:
    clock = VirtualClock()
    limited = ConcurrencyLimit(_retry(_Server(clock, 503, 200), clock), limit=1)
    first = asyncio.create_task(_send(limited))
    await asyncio.sleep(0)
    await _send(limited)
    await first
    return round(clock.now(), 3)


async def _tokens_outside() -> int:
    clock = VirtualClock()
    server = _Server(clock, 0)
    await _send(TokenTimeouts(_retry(server, clock), first_token=0.05))
    return server.asked


# --- 08-3 ------------------------------------------------------------------------------------


def incident_review(review: Callable[..., Any]) -> None:
    """08-3: beginning, calls lost, attempts for each call, and the time until all was well."""
    for what, records in _incidents().items():
        tried = f"review {what}, {len(records)} records"
        found, right = value_of(review, list(records), tried=tried), _reviewed(records)
        expect(
            isinstance(found, Mapping) and set(found) == set(right),
            tried=tried,
            expected=f"a dictionary with {', '.join(right)}",
            happened=f"{found!r} came back",
            look="the names in the task",
        )
        for name, value in right.items():
            same = found[name] is None if value is None else _close(found[name], value)
            expect(
                same,
                tried=tried,
                expected=f"{name} as the task defines it",
                happened=f"{name} was {found[name]!r}; the records say something else",
                look=LOOK[name],
            )


LOOK = {
    "began": "attempts, not calls, show the beginning; and records come in the order they end",
    "lost": "which outcomes mean that a caller wanted an answer and got none",
    "per_call": "which attempts were sent, and which calls sent any",
    "seconds": "from which moment to which: the first failed attempt, and the first answered call "
    "after the last lost one",
}


def _close(found: Any, right: float) -> bool:
    return is_number(found) and abs(found - right) < 1e-6


def _incidents() -> dict[str, list[Record]]:
    long, short = list(_records(7, 3.0, 9.0, 20.0)), list(_records(8, 2.0, 3.0, 8.0))
    random.Random(3).shuffle(long)
    calm = list(_records(9, 5.0, 5.0, 6.0))
    endless = list(_records(10, 3.0, 99.0, 8.0))
    refused = [one for one in endless if _refused(one)]
    return {
        "a short outage": short,
        "a calm day": calm,
        "an outage that goes on": endless,
        "a long outage, its records in no order": long,
        "calls that a breaker refused, all of them": refused,
    }


def _refused(one: Record) -> bool:
    return isinstance(one, Attempt | Call) and one.outcome == "BreakerOpen"


def _records(seed: int, bad: float, good: float, end: float) -> Iterable[Record]:
    """Make the records of an outage from `bad` to `good`, with a breaker that opens in it."""
    rng, now, number = random.Random(seed), 0.0, 0
    while now < end:
        number, call = number + 1, f"c{number}"
        began, ended, outcome = now, now, "ok"
        for attempt in (1, 2, 3):
            down = bad <= ended < good
            refused = down and ended > bad + 2
            ended += 0.0 if refused else 0.11
            said = rng.choice(["503", "ReadTimeout", "200"]) if down else "200"
            said = "BreakerOpen" if refused else said
            yield Attempt(attempt, ended - 0.11, ended, said, call)
            outcome = {"200": "ok", "503": "StatusError", "ReadTimeout": "CallTimeout"}.get(
                said, said
            )
            if outcome in ("ok", "BreakerOpen"):
                break
            yield Wait(attempt, 0.2, "backoff", call)
            ended += 0.2
        if outcome == "ok" and rng.random() < 0.1:
            outcome = "left"
        yield Call(began, ended, outcome, 8, call)
        now += 0.25
    yield StateChange("here", "half-open", "closed", good)


def _reviewed(records: list[Record]) -> dict[str, float | int | None]:
    attempts = [one for one in records if isinstance(one, Attempt)]
    calls = [one for one in records if isinstance(one, Call)]
    sent = [one for one in attempts if one.outcome != "BreakerOpen"]
    began = min((one.ended for one in sent if one.outcome != "200"), default=None)
    lost = [one for one in calls if one.outcome not in ("ok", "left")]
    last = max((one.ended for one in lost), default=0.0)
    well = min((one.ended for one in calls if one.outcome == "ok" and one.ended > last), default=-1)
    senders = {one.call for one in sent}
    return {
        "began": began,
        "lost": len(lost),
        "per_call": len(sent) / len(senders) if senders else None,
        "seconds": well - began if lost and began is not None and well >= 0 else None,
    }


# --- 08-4 ------------------------------------------------------------------------------------


@dataclass
class Day:
    """What a policy made of a day: shares of the calls, and the load in the outage."""

    answered: float
    in_outage: float
    """Requests for each call while the service was down."""


def policy_for_an_objective(choice: Any) -> None:
    """08-4: 99.5 % answered within 2 s on a bad day, and no more than 1.3 times the load."""
    names = {"first_token", "attempts", "base", "cap", "budget"}
    numbers = isinstance(choice, Mapping) and all(
        is_number(value) and value >= 0 for value in choice.values()
    )
    expect(
        numbers and set(choice) == names and choice["attempts"] >= 1,
        tried="read your choice",
        expected="a dictionary with a number for each of first_token, attempts, base, cap, budget",
        happened=f"it is {choice!r}",
        look="the form in the task",
    )
    for seed in (1, 2, 3):
        day = simulate(seed=seed, **choice)
        tried = f"{CALLS} calls, faults drawn with seed {seed}"
        expect(
            day.answered >= 0.995,
            tried=tried,
            expected="99.5 % of the calls outside of the outage answered within 2 s",
            happened=f"it was {day.answered:.1%}",
            look=_why_few(choice),
        )
        expect(
            day.in_outage <= 1.3,
            tried=tried,
            expected="at most 1.3 requests for each call while the service is down",
            happened=f"there were {day.in_outage:.2f}",
            look="which of the five numbers bounds the retries of all calls together",
        )


def _why_few(choice: Mapping[str, float]) -> str:
    if choice["first_token"] > 1:
        return "how much of the 2 s a silent attempt takes, before the next one can begin"
    if choice["first_token"] < 0.3:
        return "how many healthy first tokens come later than your first_token: see the figures"
    if choice["attempts"] < 3:
        return "the chance that all attempts of a call meet a fault: 0.08 to the power of attempts"
    return "what the waits take of the 2 s, and whether the budget is used up by everyday faults"


CALLS, RATE, OUTAGE = 2000, 20.0, (60.0, 70.0)


def simulate(
    *,
    seed: int,
    first_token: float,
    attempts: float,
    base: float,
    cap: float,
    budget: float,
) -> Day:
    """Make 20 calls a second, for 100 s, on a service as the task describes it."""
    rng, tokens = random.Random(seed), RetryBudget(budget, 10)
    answered, well, asked, down = 0, 0, 0, 0
    for number in range(CALLS):
        began = now = number / RATE
        in_outage = OUTAGE[0] <= began < OUTAGE[1]
        tokens.deposit()
        ok, tries = False, 0
        waits = islice(backoff_delays(base, max(base, cap), "full", rng), int(attempts))
        for wait in waits:
            tries += 1
            now, ok = _attempted(rng, now, first_token)
            if ok or tries == attempts or now + wait > began + 2 or not tokens.withdraw():
                break
            now += wait
        if in_outage:
            asked, down = asked + tries, down + 1
        else:
            well += 1
            answered += ok and now <= began + 2
    return Day(answered / well, asked / down)


def _attempted(rng: random.Random, now: float, first_token: float) -> tuple[float, bool]:
    """Return when an attempt ended, and whether with an answer."""
    luck, ttft = rng.random(), rng.lognormvariate(-2.5, 0.5)  # median 82 ms, p99 263 ms
    if OUTAGE[0] <= now < OUTAGE[1] or luck < 0.05:
        return now + 0.01, False
    if luck < 0.08 or ttft > first_token:
        return now + first_token, False
    return now + ttft + 0.1, True


# --- 08-5 ------------------------------------------------------------------------------------


def final_examination(answer: Any) -> None:
    """08-5: every fault, once and always; a score card."""
    ask, stream = (
        answer if isinstance(answer, tuple | list) and len(answer) == 2 else (answer, None)
    )
    tried = f"call ask with no fault at all: {PROMPT!r}"
    with FaultProxy(service().url, only="chat") as proxy:
        text = value_of(ask, proxy.url, service().model_id, PROMPT, tried=tried)
        asked = sum(one.path.endswith("/completions") for one in proxy.seen)
    expect(
        isinstance(text, str) and text.strip(),
        tried=tried,
        expected="the answer's text",
        happened=f"{text!r} came back",
        look="what the function returns; a text, not a response or a list",
    )
    expect(
        text.strip() == whole_answer().strip() and asked == 1,
        tried=tried,
        expected=f"the text that temperature 0 and max_tokens {MAX_TOKENS} give, for one request",
        happened=f"{asked} requests; the text has {len(text)} characters, begins {text[:20]!r}",
        look="the body that you send; the task names what belongs into it",
    )
    result = examine(ask, stream)
    show(result.card() + ("\nwith distinction" if result.with_distinction else ""))
    _expect_passed(result)


def _expect_passed(result: Result) -> None:
    tried = f"{len(result.marks)} calls, each with its fault"
    expect(
        result.judged,
        tried=tried,
        expected="a machine that is free for some seconds",
        happened=f"{result.unjudged} faults could not be judged: the machine was busy",
        look="which other programs run; then take the examination again",
    )
    if result.grave:
        worst = result.grave[0]
        raise Wrong(
            tried=tried,
            expected=f"the whole text or an exception, within {DEADLINE:g} s, whatever happens",
            happened=f"{worst.row.what}, {worst.plan}: {worst.lost}; {result}",
            look="the lines with ✗✗ in the score card. With one of them no client passes",
        )
    expect(
        result.passed,
        tried=tried,
        expected=f"{PASS_MARK:.0%} of the points",
        happened=f"{result}",
        look="the lines with ✗ in the score card: which fault of lessons 03 to 05 is behind it?",
    )


GRADERS: dict[str, Callable[[Any], None]] = {
    "08-1": smoke_test,
    "08-2": order_of_layers,
    "08-3": incident_review,
    "08-4": policy_for_an_objective,
    "08-5": final_examination,
}
