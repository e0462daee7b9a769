"""The circuit breaker: its state machine by itself, then around real calls over real sockets."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, get_args

import httpx
import openai
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from raw_server import Line, chunk, head, serving, whole

from foundry_lab import FoundryAPIClient, Service
from foundry_lab.breaker import Breaker, BreakerPolicy, BreakerTransport, Outcome, Permit
from foundry_lab.clock import REAL, Clock, VirtualClock
from foundry_lab.errors import (
    BreakerOpen,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    ServiceUnreachable,
)
from foundry_lab.limits import ConcurrencyLimit, DeadlineTransport
from foundry_lab.records import Attempt, Record, State, StateChange, ignore
from foundry_lab.retry import RetryPolicy, RetryTransport
from foundry_lab.wire import http_transport

in_a_loop = pytest.mark.anyio
NO_TIMEOUT = httpx.Timeout(None)

# ---- The state machine. Times are invented: nothing here reads a clock.


def call(breaker: Breaker, outcome: Outcome, *, began: float = 0, ended: float = 0) -> None:
    """Make one call that must be let through."""
    permit = breaker.admit(began)
    assert permit is not None, f"refused while {breaker.state}"
    breaker.settle(permit, outcome, ended)


def state_of(breaker: Breaker) -> State:
    """Say the state; a type checker takes an attribute for constant between two asserts."""
    return breaker.state


def opened(**policy: Any) -> Breaker:
    """Make a breaker that one failure at second 0 has opened; it breaks for 5 s."""
    breaker = Breaker(BreakerPolicy(minimum_throughput=1, **policy))
    call(breaker, "failure")
    assert state_of(breaker) == "open"
    return breaker


def test_it_opens_at_the_ratio_and_not_below() -> None:
    """5 of 10 open a breaker with ratio 0.5, 4 of 10 don't; the order does not matter."""
    for failures, state in (4, "closed"), (5, "open"):
        breaker = Breaker(BreakerPolicy(failure_ratio=0.5, minimum_throughput=10))
        for number in range(10):
            call(breaker, "failure" if number < failures else "success")
        assert state_of(breaker) == state


@pytest.mark.parametrize(("failures", "of"), [(7, 25), (14, 25), (7, 100), (1, 3)])
def test_a_ratio_is_met_exactly(failures: int, of: int) -> None:
    """7 of 25 is 0.28, though 0.28 · 25 is 7.000000000000001 in floating point."""
    breaker = Breaker(BreakerPolicy(failure_ratio=failures / of, minimum_throughput=of))
    for number in range(of):
        assert state_of(breaker) == "closed"
        call(breaker, "failure" if number < failures else "success")
    assert state_of(breaker) == "open"


def test_a_few_calls_prove_nothing() -> None:
    """Below the minimum throughput even 100 % failures leave it closed."""
    breaker = Breaker(BreakerPolicy(minimum_throughput=3))
    for state in "closed", "closed", "open":
        call(breaker, "failure")
        assert state_of(breaker) == state


def test_old_calls_leave_the_window() -> None:
    """A failure counts for `window` seconds from when it ended, and no longer."""
    for second, state in (9.9, "open"), (10, "closed"):
        breaker = Breaker(BreakerPolicy(minimum_throughput=2, window=10))
        call(breaker, "failure", ended=0)
        call(breaker, "failure", ended=second)
        assert state_of(breaker) == state


def test_old_successes_leave_the_window_too() -> None:
    """Good times of long ago don't hide an outage."""
    breaker = Breaker(BreakerPolicy(minimum_throughput=2, window=10))
    for _ in range(100):
        call(breaker, "success", ended=0)
    for second in 9, 10:
        assert state_of(breaker) == "closed"
        call(breaker, "failure", began=second, ended=second)
    assert state_of(breaker) == "open"


def test_slow_calls_open_it() -> None:
    """Answers that take too long open it like failures, at a ratio of their own."""
    breaker = Breaker(BreakerPolicy(minimum_throughput=2, slow_ratio=0.5, slow_after=3))
    call(breaker, "success", began=0, ended=3)
    call(breaker, "success", began=3, ended=6)
    assert state_of(breaker) == "closed"
    call(breaker, "success", began=6, ended=9.1)
    assert state_of(breaker) == "closed"
    call(breaker, "success", began=9.1, ended=13)
    assert state_of(breaker) == "open"
    assert breaker.last_failure == "too slow"


def test_slow_calls_leave_the_window() -> None:
    """One that was slow long ago does not add to one that is slow now."""
    breaker = Breaker(BreakerPolicy(minimum_throughput=2, window=10, slow_after=1))
    for second in 0, 20:
        call(breaker, "success", began=second, ended=second + 2)
    call(breaker, "success", began=23, ended=23)
    assert state_of(breaker) == "closed"
    call(breaker, "success", began=23, ended=25)
    assert state_of(breaker) == "closed"


def test_a_slow_probe_opens_it_again() -> None:
    """What is slow would open a closed breaker, so it does not close an open one."""
    breaker = opened(slow_after=3, probes=1)
    call(breaker, "success", began=5, ended=8.1)
    assert state_of(breaker) == "open"


def test_it_stays_open_for_the_break_and_no_longer() -> None:
    """Nothing goes through for `break_duration`, then a probe does."""
    breaker = opened(break_duration=5)
    assert [breaker.admit(second) for second in (0, 2, 4.9)] == [None] * 3
    assert state_of(breaker) == "open"
    assert breaker.admit(5)
    assert state_of(breaker) == "half-open"


def test_retry_in_counts_down() -> None:
    """It says how long the break still lasts, then when the first probe's lease is over."""
    breaker = opened(break_duration=5, probes=2, lease=60)
    assert [breaker.retry_in(second) for second in (0, 2, 5, 9)] == [5, 3, 0, 0]
    assert breaker.admit(6)
    assert breaker.admit(10)
    assert breaker.admit(11) is None
    assert breaker.retry_in(11) == 55
    assert Breaker(BreakerPolicy()).retry_in(3) == 0


def test_half_open_lets_so_many_probes_through() -> None:
    """Three at once, not one more, however many ask."""
    breaker = opened(probes=3)
    assert sum(breaker.admit(5) is not None for _ in range(20)) == 3


def test_all_probes_must_succeed() -> None:
    """Two of three successes are not enough, the third closes."""
    breaker = opened(probes=3)
    probes = [breaker.admit(5) for _ in range(3)]
    for probe, state in zip(probes, ("half-open", "half-open", "closed"), strict=True):
        assert probe is not None
        breaker.settle(probe, "success", 6)
        assert state_of(breaker) == state


def test_probes_may_come_one_after_the_other() -> None:
    """What counts are successes, not calls at once; and no more than needed go through."""
    breaker = opened(probes=2)
    call(breaker, "success", began=5, ended=6)
    assert breaker.admit(6)
    assert breaker.admit(6) is None


def test_one_failed_probe_opens_it_again() -> None:
    """The break begins anew, and the other probe's late success changes nothing."""
    breaker = opened(probes=2)
    first, second = breaker.admit(5), breaker.admit(5)
    assert first
    assert second
    breaker.settle(first, "failure", 6)
    assert (state_of(breaker), breaker.retry_in(6)) == ("open", 5)
    breaker.settle(second, "success", 7)
    assert (state_of(breaker), breaker.retry_in(7)) == ("open", 4)


def test_each_half_open_has_all_its_places() -> None:
    """Probes of the one before that are still under way take none."""
    breaker = opened(probes=2)
    failed, slow = breaker.admit(5), breaker.admit(5)
    assert failed
    assert slow
    breaker.settle(failed, "failure", 6)
    assert breaker.admit(11)
    assert breaker.admit(11)
    assert breaker.admit(11) is None


def test_a_neutral_probe_makes_room_for_another() -> None:
    """A probe that its caller cancelled says nothing: neither open nor closed, ask another."""
    breaker = opened(probes=1)
    call(breaker, "neutral", began=5, ended=6)
    assert state_of(breaker) == "half-open"
    call(breaker, "success", began=6, ended=6)
    assert state_of(breaker) == "closed"


def test_a_lost_probe_blocks_for_its_lease_only() -> None:
    """A probe that never comes back gives its place away; its result then counts no more."""
    breaker = opened(probes=1, lease=60)
    lost = breaker.admit(5)
    assert lost
    assert breaker.admit(64.9) is None
    other = breaker.admit(65)
    assert other
    breaker.settle(lost, "failure", 66)
    assert state_of(breaker) == "half-open"
    breaker.settle(other, "success", 67)
    assert state_of(breaker) == "closed"


def test_results_of_before_the_outage_are_ignored() -> None:
    """A call sent while closed that ends in half-open neither closes nor opens it."""
    for outcome in get_args(Outcome):
        breaker = Breaker(BreakerPolicy(minimum_throughput=1, probes=1))
        late = breaker.admit(0)
        assert late
        call(breaker, "failure")
        probe = breaker.admit(5)
        assert probe
        breaker.settle(late, outcome, 6)
        assert state_of(breaker) == "half-open"
        assert breaker.admit(6) is None, "the late one has taken the probe's place"


def test_after_an_outage_it_starts_afresh() -> None:
    """Closed again, the failures that opened it are forgotten."""
    breaker = Breaker(BreakerPolicy(minimum_throughput=2, probes=1))
    for _ in range(2):
        call(breaker, "failure")
    call(breaker, "success", began=5, ended=5)
    call(breaker, "failure", began=6, ended=6)
    assert state_of(breaker) == "closed"


def test_neutral_outcomes_count_for_nothing() -> None:
    """A thousand cancelled calls neither open it nor add to the throughput."""
    breaker = Breaker(BreakerPolicy(minimum_throughput=2))
    for _ in range(1000):
        call(breaker, "neutral")
    call(breaker, "failure")
    assert state_of(breaker) == "closed"
    call(breaker, "failure")
    assert state_of(breaker) == "open"


def test_a_permit_counts_once() -> None:
    """A call that tells its end twice is one call."""
    breaker = Breaker(BreakerPolicy(minimum_throughput=2))
    permit = breaker.admit(0)
    assert permit
    for _ in range(5):
        breaker.settle(permit, "failure", 0)
    assert state_of(breaker) == "closed"


def test_every_change_is_told_once() -> None:
    """One whole life as records: who changed, from what to what, and when."""
    told: list[Record] = []
    breaker = Breaker(BreakerPolicy(minimum_throughput=1, probes=1), "lab", told.append)
    call(breaker, "failure", ended=1)
    call(breaker, "failure", began=6, ended=7)
    call(breaker, "success", began=12, ended=13)
    call(breaker, "success", began=14, ended=14)
    assert told == [
        StateChange("lab", "closed", "open", 1),
        StateChange("lab", "open", "half-open", 6),
        StateChange("lab", "half-open", "open", 7),
        StateChange("lab", "open", "half-open", 12),
        StateChange("lab", "half-open", "closed", 13),
    ]


NAN = float("nan")


@pytest.mark.parametrize(
    "mistake",
    [
        *({"failure_ratio": ratio} for ratio in (0, -0.1, 1.1, NAN)),
        *({"slow_ratio": ratio} for ratio in (0, 1.1, NAN)),
        *({name: 0} for name in ("minimum_throughput", "probes")),
        *(
            {name: seconds}
            for name in ("slow_after", "window", "break_duration", "lease")
            for seconds in (0, -1, NAN)
        ),
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(mistake: dict[str, float]) -> None:
    """A ratio of 0 would always be open, a break of NaN seconds would never end."""
    with pytest.raises(InvalidRequest, match=next(iter(mistake))):
        BreakerPolicy(**mistake)  # type: ignore[arg-type]


class Model:
    """What a breaker should do, written for the eye: all calls are kept, and counted each time."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.state = "closed"
        self.since = 0
        self.epoch = 0
        self.ended: list[tuple[int, bool, bool]] = []
        self.probes: dict[Permit, float] = {}
        self.good = 0

    def admits(self, now: int) -> bool:
        """Say whether a call goes through, and go from open to half-open if it is time."""
        if self.state == "open" and now - self.since >= self.policy.break_duration:
            self.become("half-open", now)
        self.probes = {permit: end for permit, end in self.probes.items() if now < end}
        out = len(self.probes) + self.good
        return self.state == "closed" or (self.state == "half-open" and out < self.policy.probes)

    def settle(self, permit: Permit, failed: bool, slow: bool, now: int) -> None:
        """Count a call of this epoch that was not neutral."""
        if self.state == "closed":
            self.ended.append((now, failed, slow))
            recent = [call for call in self.ended if now - call[0] < self.policy.window]
            enough = len(recent) >= self.policy.minimum_throughput
            failures = sum(call[1] for call in recent) / len(recent)
            slow_ones = sum(call[2] for call in recent) / len(recent)
            bad = failures >= self.policy.failure_ratio or slow_ones >= self.policy.slow_ratio
            if enough and bad:
                self.become("open", now)
        elif self.probes.pop(permit, None):
            self.good += 1
            if failed or slow:
                self.become("open", now)
            elif self.good == self.policy.probes:
                self.become("closed", now)

    def become(self, state: str, now: int) -> None:
        """Forget everything but the state."""
        self.state, self.since, self.epoch = state, now, self.epoch + 1
        self.ended, self.probes, self.good = [], {}, 0


class AnyCalls(RuleBasedStateMachine):
    """Calls that overlap in any way, and end in any way, at any time, or never, or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.told: list[StateChange] = []
        self.permits: list[tuple[Permit, int, int]] = []  # with its epoch and when it began
        self.settled = set[Permit]()

    @initialize(
        policy=st.builds(
            BreakerPolicy,
            failure_ratio=st.sampled_from([0.28, 0.5, 1.0]),
            slow_ratio=st.sampled_from([0.5, 1.0]),
            slow_after=st.sampled_from([3.0, float("inf")]),
            minimum_throughput=st.integers(1, 5),
            window=st.integers(1, 12),
            break_duration=st.integers(1, 6),
            probes=st.integers(1, 3),
            lease=st.integers(1, 8),
        )
    )
    def begin(self, policy: BreakerPolicy) -> None:
        """Start closed."""
        told = self.told

        def hear(record: Record) -> None:
            assert isinstance(record, StateChange)
            told.append(record)

        self.hear = hear
        self.breaker = Breaker(policy, hook=hear)
        self.model = Model(policy)

    @rule(seconds=st.integers(1, 10))
    def time_passes(self, seconds: int) -> None:
        """Let some time go by."""
        self.now += seconds

    @rule()
    def ask(self) -> None:
        """Want to make a call."""
        was_closed = self.model.state == "closed"
        admits = self.model.admits(self.now)
        permit = self.breaker.admit(self.now)
        assert (permit is not None) == admits
        assert permit is not None or not was_closed, "a closed breaker refused"
        if permit is not None:
            self.permits.append((permit, self.model.epoch, self.now))
            if self.model.state == "half-open":
                self.model.probes[permit] = self.now + self.model.policy.lease

    @rule(which=st.integers(0, 30), outcome=st.sampled_from(get_args(Outcome)))
    def a_call_ends(self, which: int, outcome: Outcome) -> None:
        """Settle a call, old or new, maybe a second time."""
        assume(self.permits)
        permit, epoch, began = self.permits[-1 - which % len(self.permits)]
        before = self.breaker.state
        self.breaker.settle(permit, outcome, self.now)
        if epoch != self.model.epoch or permit in self.settled:
            assert self.breaker.state == before, "a late result, or one told twice, was counted"
        elif outcome == "neutral":
            self.model.probes.pop(permit, None)
        else:
            slow = self.now - began > self.model.policy.slow_after
            self.model.settle(permit, outcome == "failure", slow, self.now)
        self.settled.add(permit)

    @invariant()
    def it_does_as_the_model(self) -> None:
        """Be in the state that follows from all that happened."""
        assert self.breaker.state == self.model.state

    @invariant()
    def no_more_probes_are_out_than_allowed(self) -> None:
        """Count the calls of this half-open that are under way, but for those with no lease."""
        if self.model.state == "half-open":
            out = [
                permit
                for permit, epoch, began in self.permits
                if epoch == self.model.epoch
                and permit not in self.settled
                and self.now < began + self.model.policy.lease
            ]
            assert len(out) <= self.model.policy.probes

    @invariant()
    def it_is_never_stuck(self) -> None:
        """Let somebody through after the time it names itself, if nobody asks before."""
        wait = self.breaker.retry_in(self.now)
        assert wait <= max(self.model.policy.break_duration, self.model.policy.lease)
        twin = copy.deepcopy(self.breaker, {id(self.hear): ignore})
        assert twin.admit(self.now + wait) is not None

    @invariant()
    def its_changes_are_legal(self) -> None:
        """Follow the arrows of the diagram, each told at its time."""
        path = ["closed", *(change.new for change in self.told)]
        assert [change.old for change in self.told] == path[:-1]
        assert path[-1] == self.breaker.state
        assert {(change.old, change.new) for change in self.told} <= {
            ("closed", "open"),
            ("open", "half-open"),
            ("half-open", "open"),
            ("half-open", "closed"),
        }
        times = [change.at for change in self.told]
        assert times == sorted(times)


AnyCalls.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyCalls = AnyCalls.TestCase


# ---- Around real calls.


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """Collect what breakers are told about the end of calls."""
    told: list[Outcome] = []
    settle = Breaker.settle

    def heard(self: Breaker, permit: Permit, outcome: Outcome, now: float, why: str = "") -> None:
        told.append(outcome)
        settle(self, permit, outcome, now, why)

    monkeypatch.setattr(Breaker, "settle", heard)
    return told


def guarded(
    clock: Clock | None = None, told: list[Record] | None = None, **policy: Any
) -> BreakerTransport:
    """Make a breaker in front of httpx's own transport; one failure opens it unless told."""
    return BreakerTransport(
        httpx.AsyncHTTPTransport(),
        BreakerPolicy(**{"minimum_throughput": 1, "break_duration": 5, **policy}),
        clock=clock or VirtualClock(),
        hook=ignore if told is None else told.append,
    )


def over(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """Make a plain client; what bounds its calls are layers, not httpx's own timeouts."""
    return httpx.AsyncClient(transport=transport, timeout=NO_TIMEOUT)


Answer = Callable[[Line], Awaitable[None]]
Caller = Callable[[httpx.AsyncClient, str], Awaitable[None]]


async def half(line: Line) -> None:
    """Send half a body and wait until the client is gone."""
    await line.send(head(length=10) + b"half")
    await asyncio.Event().wait()


async def cut(line: Line) -> None:
    """Send half a body and close."""
    await line.send(head(length=10) + b"half")


def status(code: int) -> Answer:
    """Answer with a status."""

    async def answer(line: Line) -> None:
        await line.send(whole(code, b"a body that nobody may read"))

    return answer


async def read(http: httpx.AsyncClient, url: str) -> None:
    """Read all, as most callers do."""
    await http.get(url)


async def look_at_the_status(http: httpx.AsyncClient, url: str) -> None:
    """Read only the head."""
    async with http.stream("GET", url):
        pass


async def leave(http: httpx.AsyncClient, url: str) -> None:
    """Read the first packet, then lose interest."""
    async with http.stream("GET", url) as response:
        async for _ in response.aiter_raw():
            return


async def leave_late(http: httpx.AsyncClient, url: str) -> None:
    """Be so slow with the first packet that the deadline is over, and leave."""
    async with http.stream("GET", url) as response:
        async for _ in response.aiter_raw():
            response.request.extensions["deadline"] = 0.0
            return


async def cancel(http: httpx.AsyncClient, url: str) -> None:
    """Be cancelled in the middle of the body, for a reason of the caller's own."""
    with contextlib.suppress(TimeoutError):
        async with http.stream("GET", url) as response:
            packets = response.aiter_raw()
            await anext(packets)
            async with asyncio.timeout(0):
                await anext(packets)


async def miss_the_deadline(http: httpx.AsyncClient, url: str) -> None:
    """Wait for the rest of the body until the time is over."""
    with pytest.raises(DeadlineExceeded):
        await http.get(url, extensions={"seconds": 0.1})


async def fail(http: httpx.AsyncClient, url: str) -> None:
    """Meet an error of the connection."""
    with pytest.raises(httpx.TransportError):
        await http.get(url)


@in_a_loop
@pytest.mark.parametrize(
    ("answer", "caller", "outcome"),
    [
        (status(200), read, "success"),
        (status(404), read, "success"),
        (status(429), read, "neutral"),
        (status(500), read, "failure"),
        (status(503), look_at_the_status, "failure"),
        (cut, fail, "failure"),
        (half, miss_the_deadline, "failure"),
        (half, leave, "neutral"),
        (half, leave_late, "neutral"),
        (half, cancel, "neutral"),
    ],
)
async def test_a_call_is_settled_once(
    answer: Answer, caller: Caller, outcome: Outcome, settled: list[Outcome]
) -> None:
    """Each way in which a call can end tells the breaker one thing, once."""
    async with serving(answer) as url, over(DeadlineTransport(guarded(REAL), 60)) as http:
        await caller(http, url)
    assert settled == [outcome]


@in_a_loop
async def test_it_is_settled_at_the_end_of_the_stream(settled: list[Outcome]) -> None:
    """At the headers a stream has only begun: that is no success yet."""
    rest = asyncio.Event()

    async def in_two_parts(line: Line) -> None:
        await line.send(head(length=4) + b"ab")
        await rest.wait()
        await line.send(b"cd")

    async with (
        serving(in_two_parts) as url,
        over(guarded()) as http,
        http.stream("GET", url) as response,
    ):
        packets = response.aiter_raw()
        assert await anext(packets) == b"ab"
        assert settled == []
        rest.set()
        assert [packet async for packet in packets] == [b"cd"]
        assert settled == ["success"]


@in_a_loop
@pytest.mark.parametrize("seconds", [60, 0.1], ids=["cancelled", "deadline"])
async def test_waiting_for_the_headers_ends_in_the_same_way(
    seconds: float, settled: list[Outcome]
) -> None:
    """A caller who gives up is neutral, a missed deadline is a failure: before the headers too."""

    async def silent(_: Line) -> None:
        await asyncio.Event().wait()

    async with serving(silent) as url, over(DeadlineTransport(guarded(REAL), seconds)) as http:
        with pytest.raises((TimeoutError, DeadlineExceeded)):
            async with asyncio.timeout(0.2):
                await http.get(url)
    assert settled == ["neutral" if seconds == 60 else "failure"]


@in_a_loop
async def test_an_answer_that_was_made_whole_is_settled(settled: list[Outcome]) -> None:
    """httpx reads no body of a response that has its content, such as MockTransport's."""
    stand_in = httpx.MockTransport(lambda request: httpx.Response(int(request.url.path[1:])))
    async with over(BreakerTransport(stand_in)) as http:
        await http.get("http://stand-in/200")
        async with http.stream("GET", "http://stand-in/500"):
            pass
    assert settled == ["success", "failure"]


@in_a_loop
async def test_what_does_not_reach_the_service_is_neutral(settled: list[Outcome]) -> None:
    """A full queue, a full pool and an impossible request say nothing about the service."""
    pool = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1))
    async with serving(half) as url:
        async with over(BreakerTransport(pool)) as http:
            with pytest.raises(httpx.LocalProtocolError):
                await http.get(url, headers={"X": "two\nlines"})
            with pytest.raises(httpx.UnsupportedProtocol):
                await http.get("ftp://127.0.0.1")
            async with http.stream("GET", url):
                with pytest.raises(httpx.PoolTimeout):
                    await http.get(url, timeout=httpx.Timeout(None, pool=0))
        limited = ConcurrencyLimit(httpx.AsyncHTTPTransport(), limit=1, queue=0)
        async with over(BreakerTransport(limited)) as http, http.stream("GET", url):
            with pytest.raises(QueueFull):
                await http.get(url)
    assert settled == ["neutral"] * 6


@in_a_loop
async def test_a_deadline_missed_in_the_queue_is_neutral(settled: list[Outcome]) -> None:
    """A call that waited for a slot was never sent; with a slot, it is a failure."""
    limited = ConcurrencyLimit(httpx.AsyncHTTPTransport(), limit=1)
    async with (
        serving(half) as url,
        over(DeadlineTransport(BreakerTransport(limited), 60)) as http,
    ):
        async with http.stream("GET", url):
            await miss_the_deadline(http, url)
            assert settled == ["neutral"]
        await miss_the_deadline(http, url)
    assert settled == ["neutral", "neutral", "failure"]


@in_a_loop
async def test_a_missed_deadline_is_named() -> None:
    """Who is refused afterwards reads what happened, not how the breaker learned of it."""
    async with serving(half) as url, over(DeadlineTransport(guarded(REAL), 60)) as http:
        await miss_the_deadline(http, url)
        with pytest.raises(BreakerOpen, match=r"the last one: deadline missed\)"):
            await http.get(url)


STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"message": "maximum context length of 9 tokens"}}\n\n'


@in_a_loop
@pytest.mark.parametrize(
    ("path", "code", "body", "outcome"),
    [
        ("chat/completions", 200, [chunk("one") + DONE], "success"),
        ("chat/completions", 200, [chunk("one"), b"data: [DO", b"NE]\r\n\r", b"\n:\n"], "success"),
        ("chat/completions", 200, [*[chunk("one")] * 100, DONE], "success"),
        ("chat/completions", 200, [chunk("one"), ERROR], "success"),
        ("chat/completions", 200, [chunk("one")], "failure"),
        ("chat/completions", 200, [chunk("one"), DONE[:-1]], "failure"),
        ("chat/completions", 200, [chunk("data: [DONE]")], "failure"),
        ("chat/completions", 200, [], "failure"),
        ("chat/completions", 400, [b"no such model"], "success"),
        ("events", 200, [b"event: loaded\n\n"], "success"),
    ],
    ids=[
        "done",
        "done in pieces",
        "done, after much text",
        "error",
        "cut",
        "done, but no blank line",
        "done, but as text",
        "empty",
        "a refusal",
        "no chat",
    ],
)
async def test_a_chat_that_ends_without_done_is_a_failure(
    path: str, code: int, body: list[bytes], outcome: Outcome, settled: list[Outcome]
) -> None:
    """However politely it ends; an error event is an answer, other streams have no [DONE]."""

    async def packets() -> AsyncIterator[bytes]:
        for packet in body:
            yield packet

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(code, headers={"Content-Type": STREAM}, content=packets())

    breakers = BreakerTransport(httpx.MockTransport(answer))  # a socket would join the packets
    async with over(breakers) as http:
        assert (await http.get(f"http://chat/{path}")).content == b"".join(body)
    assert settled == [outcome]
    failed = "RemoteProtocolError" if outcome == "failure" else ""
    assert breakers.breakers["http://chat"].last_failure == failed


@in_a_loop
async def test_open_it_fails_fast() -> None:
    """Without touching the wire, with the time until a probe and what went wrong last."""
    seen = 0

    async def broken(line: Line) -> None:
        nonlocal seen
        seen += 1
        await line.send(whole(503))

    clock = VirtualClock()
    async with serving(broken) as url, over(guarded(clock)) as http:
        await http.get(url)
        clock.advance(2)
        with pytest.raises(BreakerOpen, match=r"status 503(.|\n)*within 3\.0 s") as caught:
            await http.get(url)
        assert caught.value.retry_in == 3
        clock.advance(3)
        assert (await http.get(url)).status_code == 503
    assert seen == 2


@in_a_loop
async def test_an_open_breaker_ends_the_retrying() -> None:
    """With the retry outside, attempts go on until it opens, and then there are no more."""
    clock, told = VirtualClock(), list[Record]()
    inner = guarded(clock, minimum_throughput=2)
    retried = RetryTransport(inner, RetryPolicy(attempts=5), clock=clock, hook=told.append)
    async with serving(cut) as url, over(retried) as http:
        with pytest.raises(BreakerOpen):
            await http.get(url)
    outcomes = [record.outcome for record in told if isinstance(record, Attempt)]
    assert outcomes == ["RemoteProtocolError", "RemoteProtocolError", "BreakerOpen"]


@in_a_loop
async def test_one_models_outage_leaves_the_others_alone() -> None:
    """There is a breaker for each endpoint and model, and one for requests that name none."""

    async def answer(line: Line) -> None:
        await line.send(whole(500 if b"broken" in line.request else 200))

    async with (
        serving(answer) as url,
        serving(answer) as other,
        over(breakers := guarded()) as http,
    ):
        assert (await http.post(url, json={"model": "broken"})).status_code == 500
        with pytest.raises(BreakerOpen):
            await http.post(url, json={"model": "broken"})
        assert (await http.post(url, json={"model": "well"})).is_success
        assert (await http.get(url)).is_success
        assert (await http.post(other, json={"model": "broken"})).status_code == 500
        assert {key: breaker.state for key, breaker in breakers.breakers.items()} == {
            f"{url} broken": "open",
            f"{url} well": "closed",
            url: "closed",
            f"{other} broken": "open",
        }


@in_a_loop
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"model"', b"{}", b"[" * 200_000, b"\xff"])
async def test_any_body_may_be_sent(body: bytes) -> None:
    """What names no model, and what is no JSON, has the endpoint's breaker."""
    async with serving(status(200)) as url, over(breakers := guarded()) as http:
        assert (await http.post(url, content=body)).is_success
        assert list(breakers.breakers) == [url]


@in_a_loop
@pytest.mark.parametrize(("code", "state"), [(200, "closed"), (500, "open")])
async def test_half_open_is_no_stampede(code: int, state: str) -> None:
    """Of 20 calls at once exactly two reach the server; how they end decides for all."""
    seen, answers = 0, asyncio.Event()

    async def one_failure_then_wait(line: Line) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            await answers.wait()
        await line.send(whole(500 if seen == 1 else code))

    clock, told = VirtualClock(), list[Record]()
    async with (
        serving(one_failure_then_wait) as url,
        over(breakers := guarded(clock, told, probes=2)) as http,
    ):
        await http.get(url)
        clock.advance(5)
        calls = [asyncio.create_task(http.get(url)) for _ in range(20)]
        waiting = set(calls)
        async with asyncio.timeout(5):
            while len(waiting) > 2:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        answers.set()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(end, BreakerOpen) for end in ends) == 18
        assert seen == 3
        assert breakers.breakers[url].state == state
    assert [change.new for change in told if isinstance(change, StateChange)] == [
        "open",
        "half-open",
        state,
    ]


# ---- On the real service.


def ask(http: httpx.AsyncClient, service: Service, tokens: int = 1) -> Awaitable[httpx.Response]:
    """Ask a short question."""
    return http.post(f"{service.url}/v1/chat/completions", json=question(service, tokens))


def question(service: Service, tokens: int) -> dict[str, Any]:
    """Make the body of a request."""
    messages = [{"role": "user", "content": "Count from 1 to 900."}]
    body = {"model": service.model_id, "messages": messages}
    return {**body, "max_tokens": tokens, "temperature": 0}


@in_a_loop
async def test_it_lives_through_an_outage(own_service: Service) -> None:
    """Killed, the service is left alone after three failures; restarted, it is found again."""
    clock, told = VirtualClock(), list[Record]()
    policy = BreakerPolicy(minimum_throughput=3, break_duration=5, probes=2)
    wire = http_transport(httpx.URL(own_service.url))
    async with over(BreakerTransport(wire, policy, clock=clock, hook=told.append)) as http:
        assert (await ask(http, own_service)).is_success
        own_service.kill()
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                await ask(http, own_service)
        own_service.restart()
        with pytest.raises(BreakerOpen, match="ConnectError"):
            await ask(http, own_service)
        clock.advance(5)
        for _ in range(3):
            assert (await ask(http, own_service)).is_success
    assert [(change.old, change.new, change.at) for change in told] == [  # type: ignore[union-attr]
        ("closed", "open", 0),
        ("open", "half-open", 5),
        ("half-open", "closed", 5),
    ]


@in_a_loop
async def test_the_client_has_one(own_service: Service) -> None:
    """When nine of ten chats failed, calls are refused; a health check goes around it."""
    told = list[Record]()
    async with FoundryAPIClient(own_service, hook=told.append) as client:
        await client.complete("What is jitter?", max_tokens=1)
        own_service.kill()
        for _ in range(2):
            with pytest.raises(ServiceUnreachable):
                await client.complete("What is jitter?")
        with pytest.raises(BreakerOpen) as caught:
            await client.complete("What is jitter?")
        assert 4 < caught.value.retry_in <= 5
        assert "Nobody answers" in (await client.health_check()).reason
    ends = [kept.outcome for kept in told if isinstance(kept, Attempt) and kept.outcome != "200"]
    assert (len(ends), ends[-2:]) == (10, ["ConnectError", "BreakerOpen"])


@in_a_loop
async def test_a_death_in_mid_stream_is_a_failure(
    own_service: Service, settled: list[Outcome]
) -> None:
    """The headers said 200, the end says otherwise."""
    body = {**question(own_service, 3500), "stream": True}  # some seconds of work
    wire = http_transport(httpx.URL(own_service.url))
    async with over(BreakerTransport(wire)) as http:
        url = f"{own_service.url}/v1/chat/completions"
        async with http.stream("POST", url, json=body) as response:
            packets = response.aiter_raw()
            await anext(packets)
            own_service.kill()
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                async for _ in packets:
                    pass
    assert settled == ["failure"]


@pytest.fixture
async def asked(service: Service) -> AsyncIterator[tuple[openai.AsyncOpenAI, BreakerTransport]]:
    """Put a breaker under the openai package."""
    breakers = guarded()
    async with over(breakers) as http:
        client = openai.AsyncOpenAI(
            base_url=f"{service.url}/v1",
            api_key="none",
            max_retries=0,
            http_client=http,  # type: ignore[arg-type] # its types name httpx's successor
        )
        yield client, breakers


Asked = tuple[openai.AsyncOpenAI, BreakerTransport]


@in_a_loop
async def test_it_works_under_openai(
    asked: Asked, service: Service, settled: list[Outcome]
) -> None:
    """An answer, a stream read to its end, and one that is left: success, success, neutral."""
    client, breakers = asked
    body = question(service, 5)
    answer = await client.chat.completions.create(**body)
    stream = await client.chat.completions.create(**body, stream=True)
    pieces = [part.choices[0].delta.content or "" async for part in stream if part.choices]
    assert "".join(pieces) == answer.choices[0].message.content
    left = await client.chat.completions.create(**{**body, "max_tokens": 3000}, stream=True)
    async with left:
        await anext(aiter(left))
    assert settled == ["success", "success", "neutral"]
    assert list(breakers.breakers) == [f"http://127.0.0.1:{service.port} {service.model_id}"]


@in_a_loop
async def test_open_it_is_the_cause_of_openais_error(asked: Asked, service: Service) -> None:
    """openai raises a connection error of its own; the breaker's is its cause."""
    client, breakers = asked
    key = f"http://127.0.0.1:{service.port} {service.model_id}"
    breakers.breakers[key] = opened()
    with pytest.raises(openai.APIConnectionError) as caught:
        await client.chat.completions.create(**question(service, 1))
    assert isinstance(caught.value.__cause__, BreakerOpen)


@in_a_loop
async def test_an_answer_is_over_at_done_though_its_body_stays_open() -> None:
    """A gateway may keep the connection: what was said whole is a success, and a good probe."""

    async def lingering() -> AsyncIterator[bytes]:
        yield b"data: [DONE]\n\n"
        await asyncio.Future()

    def answer(_: httpx.Request) -> httpx.Response:
        if not well:
            return httpx.Response(500)
        kind = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=kind, content=lingering())

    clock, well = VirtualClock(), False
    policy = BreakerPolicy(minimum_throughput=1, break_duration=5, probes=1)
    layer = BreakerTransport(httpx.MockTransport(answer), policy, clock=clock)
    async with over(layer) as http:
        await http.post("http://here/chat/completions")
        (breaker,) = layer.breakers.values()
        states: list[str] = [breaker.state]
        clock.advance(5)
        well = True
        async with http.stream("POST", "http://here/chat/completions") as response:
            await anext(response.aiter_bytes())
            states.append(breaker.state)
    assert states == ["open", "closed"]
