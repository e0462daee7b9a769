"""Graders for the exercises of lesson 02: models and health."""

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from typing import Any, NamedTuple

import httpx

from foundry_lab.checks.bench import Outcome, Wrong, attempt, expect, service, value_of
from foundry_lab.clock import REAL, Clock, VirtualClock
from foundry_lab.faults import Always, Delay, Drip, Fault, FaultProxy, HtmlPage, Reset, Stall

__all__ = ["GRADERS"]

PATIENCE = 60.0
"""Seconds for what a big model takes a while for."""

SLOW, LATE = 2.5, 2.0
"""Seconds that a slow chat takes, and seconds beyond its time that a busy machine is granted."""

# 02-1


class _OtherApi(Fault):
    """Another program, which speaks JSON as well."""

    async def answer(self, request: httpx.Request, /) -> httpx.Response:
        await request.aread()
        return httpx.Response(200, json={"status": "ok"})


def health(check: Callable[..., Any]) -> None:
    """02-1: the real service, well, unloaded and stuck; others in its place; nobody."""
    model, look = service().model_id, "the table: which answer makes the difference"

    def found(url: str, name: str, seconds: float, what: str, status: str, look: str) -> float:
        tried, began = f"check {what}", time.monotonic()
        given = value_of(check, url, name, seconds, tried=tried, seconds=seconds + 5)
        expect(
            given == status,
            tried=tried,
            expected=f"{status!r}",
            happened=f"it gave {given!r}"[:100],
            look=look,
        )
        return time.monotonic() - began

    found(service().url, model, PATIENCE, "the real service", "ok", look)
    found(_closed_port(), model, 5, "a port that is closed", "down", look)
    with (
        FaultProxy(service().url) as other,
        FaultProxy(service().url, only="/chat/") as chats,
    ):
        for body, fault in (
            ("a page", HtmlPage(200)),
            ("a 404 page", HtmlPage(404)),
            ("JSON", _OtherApi()),
        ):
            other.plan = Always(fault)
            what = f"another program that answers everything with {body}"
            found(other.url, model, 5, what, "down", "what only Foundry Local answers, and where")
        look = "what a caller needs: not a list, an answer"
        found(service().url, f"no-{model}", 5, "a model that nobody knows", "degraded", look)
        with _unloaded():
            found(service().url, model, PATIENCE, "a model that is not loaded", "degraded", look)
        look = "which call has no end of its own, and what the third argument is for"
        chats.plan = Always(Stall())
        what = "a service whose chats never end"
        for seconds in (0.5, 2, 8):  # the longer ones are for a busy machine
            try:
                took = found(chats.url, model, seconds, what, "degraded", look)
                if took > seconds + LATE:  # it may be busy once
                    took = found(chats.url, model, seconds, what, "degraded", look)
                expect(
                    took <= seconds + LATE,
                    tried=f"check {what}, with {seconds:g} s",
                    expected=f"an end after {seconds:g} s",
                    happened=f"it came after {took:.1f} s",
                    look="the third argument: where does your deadline come from?",
                )
                break
            except Wrong:
                if seconds == 8 or chats.counts["Stall"]:
                    raise
        what = f"a service whose chats take {SLOW:g} s, with {PATIENCE:g} s"
        chats.plan = Always(Delay(SLOW))
        found(chats.url, model, PATIENCE, what, "ok", "where your deadline comes from")
        chats.plan = Always(Reset())
        what = "a service that breaks off each chat"
        found(chats.url, model, PATIENCE, what, "degraded", "what else a chat can raise")
        other.plan = Always(Stall())
        found(other.url, model, 0.1, "a port that takes calls and is silent", "down", look)
        other.plan = Always(Drip(1, 0.3))
        found(other.url, model, 2, "a port that answers a byte at a time", "down", look)


def _closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def _unloaded() -> Iterator[None]:
    models, alias = f"{service().url}/models", service().alias
    with httpx.Client(timeout=PATIENCE) as http:
        while http.get(f"{models}/unload/{alias}").is_error:  # somebody's call is still under way
            time.sleep(0.05)
        try:
            yield
        finally:
            http.get(f"{models}/load/{alias}")


# 02-2

BUGS = {
    "a name": "what else a text can begin with",
    "a full id": "an id that is the beginning of another one",
    "the newest": "how texts are put in order",
}
"""What the given function does wrong, and where to look for it."""


def _chosen(name: str, known: Sequence[str], bugs: Collection[str]) -> str:
    """What the given function gives, if it has these bugs only; with all of them it is as given."""
    starts = ("a full id" if ":" in name else "a name") in bugs
    fitting = [
        one
        for one in known
        if (one.startswith(name) if starts else name in (one, one.partition(":")[0]))
    ]
    as_text = "the newest" in bugs
    return max(fitting, key=lambda one: (0 if as_text else _version(one), one), default="nothing")


def _version(model_id: str) -> int:
    return int(model_id.partition(":")[2])


def _found(name: str, known: Sequence[str]) -> set[str]:
    """The bugs that make the given function wrong: alone, or so that it is right without them."""
    right, everything = _chosen(name, known, ()), set(BUGS)
    if _chosen(name, known, everything) == right:
        return set()
    found = {
        bug
        for bug in BUGS
        if _chosen(name, known, {bug}) != right or _chosen(name, known, everything - {bug}) == right
    }
    another = _chosen(name, known, everything).partition(":")[0] != name.partition(":")[0]
    return found | ({"a name"} if another else set())


def defeats(cases: Any) -> None:
    """02-2: three inputs, each of which finds another bug of a function that is given."""
    tried = "your three cases"
    given = list(cases) if isinstance(cases, list | tuple) else []
    expect(
        len(given) == 3 and all(_is_case(case) for case in given),
        tried=tried,
        expected="a list of three pairs: a name, and a list of different ids such as 'lab:1'",
        happened=f"it is {cases!r}"[:160],
        look="the example; a version is a whole number, and only one colon is in an id",
    )
    for name, known in given:
        expect(
            _found(name, known),
            tried=f"choose({name!r}, {known!r})",
            expected="a wrong id",
            happened=f"it gives {_chosen(name, known, BUGS)}, and that is right",
            look="what you would answer yourself, asked for that name",
        )
    found = [_found(name, known) for name, known in given]
    for bug, look in BUGS.items():
        expect(
            any(bug in bugs for bugs in found),
            tried=tried,
            expected="three bugs",
            happened=f"you find {len(set().union(*found))} of them; what is wrong with {bug}"
            " is not among them",
            look=look,
        )
    expect(
        any(
            all(bug in bugs for bug, bugs in zip(BUGS, order, strict=True))
            for order in permutations(found)
        ),
        tried=tried,
        expected="another bug from each",
        happened="one case finds two of them, and one finds nothing new",
        look="the case with the most ids: which of them does it need?",
    )


def _is_case(case: Any) -> bool:
    match case:
        case [str(name), [_, *_] as known] if name and isinstance(known, list | tuple):
            ids = [str(one).partition(":") for one in known]
            return len(set(ids)) == len(ids) and all(n and v.isdecimal() for n, _, v in ids)
    return False


# 02-3

BUSY = (500, "Unload failed: cannot unload model 'lab:1': 1 session(s) still using it")
DONE = (200, "unloaded")


class _Desk:
    """A service that answers by a script, on a virtual clock: what the last entry says stays."""

    def __init__(self, script: Sequence[tuple[float, tuple[int, str]]]) -> None:
        self.clock = VirtualClock()
        self.asked: list[float] = []
        self._script = script

    async def ask(self) -> httpx.Response:
        now = self.clock.now()
        self.asked.append(now)
        expect(
            now < 15,
            tried="a model that is always busy, with 10 s",
            expected="False in the last of these seconds",
            happened="it still asked after 15 s",
            look="when it must be over, and who looks at the clock",
        )
        if self.asked[-5:] == [now] * 5:
            raise Wrong(
                tried="a model that is busy",
                expected="a pause between two questions, on the clock that is given",
                happened="it asked five times, and no time passed there",
                look="clock.sleep, which is to be awaited",
            )
        status, text = [answer for begin, answer in self._script if begin <= now][-1]
        sent = httpx.Request("GET", "http://127.0.0.1/models/unload/lab")  # for raise_for_status()
        if status == 200:
            return httpx.Response(200, json={"status": text}, request=sent)
        error = {"error": {"message": text, "type": "server_error"}}
        return httpx.Response(status, json=error, request=sent)


def waits_politely(unload: Callable[..., Any]) -> None:
    """02-3: scripts on the virtual clock, then a model that is really busy."""

    def run(
        what: str, *script: tuple[float, tuple[int, str]], seconds: float = 10.0
    ) -> tuple[_Desk, Outcome, str]:
        desk, tried = _Desk(script), f"{what}, with {seconds:g} s"
        outcome = attempt(unload, desk.ask, desk.clock, seconds, tried=tried)
        if isinstance(outcome.error, Wrong):
            raise outcome.error
        return desk, outcome, tried

    for text in ("unloaded", "not_loaded"):
        desk, outcome, tried = run(f"a service that says {text!r} at once", (0, (200, text)))
        _expect_told(outcome, True, tried)
    desk, outcome, tried = run("a model that is busy for 3 s", (0, BUSY), (3, DONE))
    _expect_told(outcome, True, tried)
    expect(
        desk.clock.now() >= 3,
        tried=tried,
        expected="True when it is out of memory, after 3 s, and not before",
        happened=f"it gave True after {len(desk.asked)} question(s), when it was still busy",
        look="what the answer says that you got: is that a success?",
    )
    pauses = [after - before for before, after in zip(desk.asked, desk.asked[1:], strict=False)]
    expect(
        min(pauses) > 0.0999 and max(pauses) < 1.0001,
        tried=tried,
        expected="pauses of 0.1 s at least, and of 1 s at most",
        happened=f"they are {min(pauses):.2f} to {max(pauses):.2f} s",
        look="the length of your pauses: neither a storm of questions nor a long sleep",
    )
    for seconds in (10.0, 4.0):
        desk, outcome, tried = run("a model that is always busy", (0, BUSY), seconds=seconds)
        _expect_told(outcome, False, tried)
        expect(
            seconds - 1 <= desk.clock.now() <= seconds + 0.0001,
            tried=tried,
            expected=f"an end in the last second of the {seconds:g}, and not after them",
            happened=f"it came at {desk.clock.now():g} s",
            look="whether the next pause still fits, before you begin it",
        )
    for answer in ((404, "Model not found: No model matching 'lab:1'"), (500, "Disk on fire")):
        desk, outcome, tried = run(f"a service that says {answer[0]}, {answer[1]!r}", (0, answer))
        expect(
            isinstance(outcome.error, RuntimeError) and len(desk.asked) == 1,
            tried=tried,
            expected="one question, and a RuntimeError",
            happened=f"it asked {len(desk.asked)} times and {outcome.told}",
            look="what a busy model says; time heals that, and nothing else",
        )
        expect(
            answer[1] in str(outcome.error),
            tried=tried,
            expected="an exception that says what the service said",
            happened=f"it {outcome.told}",
            look="what whoever reads the log would like to know",
        )
    tried = "the real service, while it answers somebody"
    _expect_told(attempt(_with_a_busy_model, unload, tried=tried, seconds=PATIENCE), True, tried)


def _expect_told(outcome: Outcome, told: bool, tried: str) -> None:
    expect(
        outcome.value is told,
        tried=tried,
        expected="True: it is out of memory" if told else "False: it was busy all the time",
        happened=f"it {outcome.told}",
        look="the list of the task: which answers end the waiting, and how",
    )


async def _with_a_busy_model(unload: Callable[..., Any]) -> Any:
    models, alias = f"{service().url}/models", service().alias
    question = {"role": "user", "content": "Count from 1 to 300."}
    body = {"model": service().model_id, "messages": [question], "max_tokens": 500, "stream": True}
    async with httpx.AsyncClient(timeout=PATIENCE) as http:

        async def ask() -> httpx.Response:
            return await http.get(f"{models}/unload/{alias}")

        async def leave() -> None:
            await asyncio.sleep(0.05)
            await stream.aclose()

        chat = f"{service().url}/v1/chat/completions"
        stream = await http.send(http.build_request("POST", chat, json=body), stream=True)
        try:
            leaving = asyncio.create_task(leave())
            clock: Clock = REAL
            told = unload(ask, clock, PATIENCE)
            told = await told if isinstance(told, Awaitable) else told
            await leaving
            return told
        finally:
            await stream.aclose()
            await http.get(f"{models}/load/{alias}")


# 02-4


class History(NamedTuple):
    """What a monitor finds, a letter for each check: ok, degraded, Down."""

    what: str
    checks: str
    alarms: int
    ring_by: int = 0
    """Before which check it must ring; 0: whenever."""
    end_by: int = 0
    """Before which check it must have ended; 0: whenever."""


STATUS = {"o": "ok", "d": "degraded", "D": "down"}
LOOK = [
    "whether you count what is bad, or what is bad in one way, or in a row",
    "how many bad checks a hiccup may have",
    "what one condition can't do: begin early, and not begin twice",
]
"""Where to look when it never rang, when it rang for nothing, when it rang too often."""
QUIET = "o" * 12
HISTORIES = [
    History("one failed check", f"{QUIET}D{QUIET}", 0),
    History("two failed checks in a row", f"{QUIET}DD{QUIET}d{QUIET}", 0),
    History("an outage", f"{QUIET}{'D' * 12}{QUIET}", 1, 15, 30),
    History("a model that was unloaded", f"{QUIET}{'d' * 12}{QUIET}", 1, 15, 30),
    History("down and degraded in turn", f"{QUIET}{'Dd' * 8}{QUIET}", 1, 15, 34),
    History("every second check fails", f"{QUIET}{'Do' * 12}{QUIET}", 1, 18, 41),
    History("an outage with a bumpy end", f"{QUIET}{'D' * 9}ooDooDoo{QUIET}", 1, 15, 33),
    History("a service that is down from the start", f"{'D' * 9}{QUIET}", 1, 3, 15),
]


def alarm_rule(rule: Callable[..., Any]) -> None:
    """02-4: eight histories with objectives, then a day drawn at random."""
    for what, checks, alarms, ring_by, end_by in HISTORIES:
        rings = _rings(rule, checks, what)
        line = "".join("#" if ringing else "." for ringing in rings)
        shown = f"{checks} {what}"
        starts = f".{line}".count(".#")
        expect(
            starts == alarms,
            tried=shown,
            expected="one alarm" if alarms else "no alarm",
            happened=f"{line} {starts} alarms",
            look=LOOK[0 if not starts else 1 + alarms],
        )
        first, last = line.find("#") + 1, line.rfind("#") + 1
        expect(
            not ring_by or first <= ring_by,
            tried=shown,
            expected=f"the alarm at check {ring_by} at the latest",
            happened=f"{line} it began at check {first}",
            look="how many bad checks you wait for, among how many",
        )
        expect(
            not end_by or last < end_by,
            tried=shown,
            expected=f"no alarm any more at check {end_by}",
            happened=f"{line} it still rang at check {last}",
            look="how many good checks in a row make you believe that it is over",
        )
    rng, day, outages = random.Random(5), "", 60
    for _ in range(outages):
        hiccups = [rng.choice(["D", "d", "DD"]) + "o" * rng.randint(8, 40) for _ in range(3)]
        day += "".join(hiccups) + "D" * rng.randint(5, 30) + "o" * rng.randint(12, 40)
    tried = f"{len(day)} checks with {outages} outages and {3 * outages} hiccups"
    line = "".join("#" if ringing else "." for ringing in _rings(rule, day, tried))
    expect(
        line.count(".#") == outages,
        tried=tried,
        expected=f"{outages} alarms",
        happened=f"there were {line.count('.#')}",
        look="the two objectives together, with hiccups shortly after one another",
    )


def _rings(rule: Callable[..., Any], checks: str, tried: str) -> list[bool]:
    rings, ringing = [], False
    for now in range(1, len(checks) + 1):
        recent = [STATUS[letter] for letter in checks[max(0, now - 10) : now]]
        given = value_of(rule, ringing, recent, tried=tried)
        expect(
            given in (True, False),
            tried=tried,
            expected="True or False from each call",
            happened=f"check {now} gave {given!r}"[:100],
            look="what the function returns when nothing changes",
        )
        ringing = bool(given)
        rings.append(ringing)
    return rings


GRADERS: dict[str, Callable[[Any], None]] = {
    "02-1": health,
    "02-2": defeats,
    "02-3": waits_politely,
    "02-4": alarm_rule,
}
