"""Latency: honest load, samples that lose nothing, percentiles that know what they can't know.

All loads but one run in virtual time: the event loop jumps over every wait, so the numbers are
exact and the same in every run.
"""

import asyncio
import math
import random
import selectors
import signal
import tempfile
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from foundry_lab.errors import ConnectionLost, InvalidRequest
from foundry_lab.latency import EARLY, Call, closed_loop, count_attempts, open_loop, schedule
from foundry_lab.samples import Sample, Samples
from foundry_lab.stats import Method, percentile, requests_needed

T = TypeVar("T")
unhurried = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine fails no test."""
METHODS: tuple[Method, ...] = ("nearest-rank", "linear")


class JumpingSelector(selectors.SelectSelector):
    """Where an event loop would wait for something to happen, time jumps instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen"
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes any time."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9  # on Windows timers would fire 16 ms early

    def time(self) -> float:
        return self._jumping.now


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def run_open(call: Call, **options: Any) -> Samples:
    async def main() -> Samples:
        return await open_loop(call, now=asyncio.get_running_loop().time, **options)

    return run(main())


def run_closed(call: Call, **options: Any) -> Samples:
    async def main() -> Samples:
        return await closed_loop(call, now=asyncio.get_running_loop().time, **options)

    return run(main())


def server(service: float = 0.001, *, stall: float = 0.0, stall_at: int = -1) -> Call:
    """Serve one request at a time, each in so many seconds, the one with that number in more."""
    turn, numbers = asyncio.Lock(), count()

    async def call() -> None:
        async with turn:
            await asyncio.sleep(stall if next(numbers) == stall_at else service)

    return call


@dataclass
class Usage:
    completion_tokens: int


@dataclass
class Piece:
    content: str = ""
    usage: Usage | None = None


# Coordinated omission


def test_the_stall_that_a_closed_loop_does_not_see() -> None:
    """1,000 requests of 1 ms, one stall of 1 s: p99 is 1 ms for one loop, 910 ms for the other.

    Request k after the stalled one is due 10·k ms later and answered 1 ms after the one before:
    it takes 1000 - 9·k ms. Rank 990 of 1,000 is the eleventh from the top: k = 10, 910 ms.
    """
    closed = run_closed(server(stall=1, stall_at=500), users=1, requests=1000)
    opened = run_open(server(stall=1, stall_at=500), rate=100, requests=1000, arrivals="fixed")
    assert percentile(closed.column("latency"), 99).value == pytest.approx(0.001)
    assert percentile(opened.column("latency"), 99).value == pytest.approx(0.910)
    assert max(closed.column("latency")) == pytest.approx(1.0)


def with_expected_interval(values: list[float], interval: float) -> list[float]:
    """Correct as HdrHistogram's ``recordValueWithExpectedInterval`` does, after the fact.

    For each slow value, it adds those of the requests that would have been sent meanwhile.
    """
    corrected = list(values)
    for value in values:
        missing = round(value / interval) - 1
        corrected += [value - interval * (step + 1) for step in range(missing)]
    return sorted(corrected)


def test_the_published_example_of_hdrhistogram() -> None:
    """100 s of 1 ms answers, 100 a second, then a pause of 100 s, as in HistogramDataAccessTest.

    https://github.com/HdrHistogram/HdrHistogram, testGetTotalCount and testGetValueAtPercentile:
    raw 10,001 values, p99 1 ms; corrected 20,000 values, p50 1 ms, p75 50 s, p90 80 s, p99 98 s,
    maximum 100 s. The open loop measures what the correction works out.
    """
    numbers = count()

    async def freezes() -> None:
        await asyncio.sleep(0.001 if next(numbers) < 10_000 else 100)

    async def frozen_from_100_to_200() -> None:
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(0.001 if now < 99.999 else 200 - now)

    raw = run_closed(freezes, users=1, requests=10_001).column("latency")
    assert percentile(raw, 99).value == pytest.approx(0.001)
    opened = run_open(frozen_from_100_to_200, rate=100, seconds=200, arrivals="fixed")
    latencies = opened.column("latency")
    assert len(latencies) == 20_000
    published = {50: 0.001, 75: 50, 90: 80, 99: 98}
    for q, seconds in published.items():
        assert percentile(latencies, q).value == pytest.approx(seconds, abs=1e-6)
    assert max(latencies) == pytest.approx(100)
    assert np.allclose(np.sort(latencies), with_expected_interval(list(raw), 0.010), atol=1e-6)


# Definitions


def test_ttft_itl_and_tpot_are_those_of_vllm() -> None:
    """The same moments give the numbers that vLLM's formulas give by hand.

    vllm/benchmarks/lib/endpoint_request_func.py: ttft is the first chunk's time, itl the time from
    one chunk to the next, latency that of the last. vllm/benchmarks/serve.py, calculate_metrics:
    tpot = (latency - ttft) / (output_len - 1), the length counted by the usage.
    """

    async def call() -> AsyncIterator[Piece]:
        for wait, content in ((0.25, "one"), (0.125, " two"), (0.25, " three four")):
            await asyncio.sleep(wait)
            yield Piece(content)
        yield Piece(usage=Usage(4))

    (sample,) = run_closed(call, users=1, requests=1)
    assert sample.ttft == 0.25
    assert sample.gaps == (0.125, 0.25)
    assert sample.latency == 0.625
    assert sample.tpot == (0.625 - 0.25) / (4 - 1)


def test_an_empty_chunk_is_no_first_token() -> None:
    """Foundry Local's first chunk names the role and has no text: nobody could read anything."""

    async def call() -> AsyncIterator[Piece]:
        yield Piece()
        await asyncio.sleep(0.5)
        yield Piece("text")
        yield Piece()

    (sample,) = run_closed(call, users=1, requests=1)
    assert sample.chunk_times == (0.5,)


def test_a_stream_may_yield_plain_text() -> None:
    """A lesson's own generator of strings can be measured too; tokens are then unknown."""

    async def call() -> AsyncIterator[str]:
        for text in ("", "a", "b"):
            await asyncio.sleep(0.125)
            yield text

    (sample,) = run_closed(call, users=1, requests=1)
    assert sample.chunk_times == (0.25, 0.375)
    assert sample.tokens is None
    assert math.isnan(sample.tpot)


def test_an_answer_that_is_awaited_has_tokens_but_no_first_one() -> None:
    """Without a stream nothing is known between sending and the end."""

    async def call() -> Piece:
        return Piece("all at once", Usage(7))

    (sample,) = run_closed(call, users=1, requests=1)
    assert (sample.tokens, sample.chunk_times, sample.outcome) == (7, (), "ok")
    assert math.isnan(sample.first_token)
    assert math.isnan(sample.ttft)


def test_goodput_counts_what_met_every_objective() -> None:
    """By hand with vLLM's rule: at most the limit is within it, and one token meets any TPOT."""
    rows = (
        Sample(0, 0.25, 1, (0.5,), 3),  # TTFT 0.5, latency 1, TPOT 0.25: from when it was due
        Sample(0, 0.125, 2, (0.25,), 8),  # TTFT 0.25, latency 2, TPOT 0.25
        Sample(1, 1, 2, (1.25,), 1),  # TTFT 0.25, latency 1, one token
        Sample(1, 1, 2),  # no stream: TTFT unknown
        Sample(2, 2, 4, (2.25,), 3, outcome="ConnectionLost"),
    )
    samples = Samples(rows)  # from 0 to 4 s
    assert samples.throughput == 4 / 4
    assert samples.goodput(ttft=0.5) == 3 / 4
    assert samples.goodput(ttft=0.25) == 2 / 4
    assert samples.goodput(latency=1) == 3 / 4
    assert samples.goodput(tpot=0.25) == 3 / 4
    assert samples.goodput(tpot=0.125) == 1 / 4
    assert samples.goodput(ttft=0.25, latency=1, tpot=0.25) == 1 / 4
    assert Samples(()).throughput == 0


def test_the_phases_of_a_request_fill_its_time() -> None:
    """They follow one another without a gap; the last of a failure has the error's name."""
    streamed = Sample(1, 2, 5, (3, 4), 2)
    assert streamed.phases == (("wait", 1, 2), ("first token", 2, 3), ("decode", 3, 5))
    assert Sample(1, 1, 2).phases == (("answer", 1, 2),)
    assert Sample(1, 1, 2, outcome="ReadTimeout").phases == (("ReadTimeout", 1, 2),)


# The load generators


def test_an_open_loop_sends_on_time_however_slow_the_answers() -> None:
    """Each request starts when the plan says, with 100 others still under way."""
    opened = run_open(lambda: asyncio.sleep(100), rate=10, requests=100)
    plan = schedule(10, requests=100)
    assert list(opened.column("intended")) == plan
    assert list(opened.column("started")) == pytest.approx(plan)


def test_nothing_is_sent_before_it_is_due() -> None:
    """Timers that fire early, as they do on Windows, do not make a latency shorter."""

    async def early(seconds: float) -> None:
        await asyncio.sleep(0.9 * seconds)

    samples = run_open(server(), rate=100, requests=50, sleep=early)
    assert all(samples.column("started") >= samples.column("intended") - EARLY)


@unhurried
@given(st.integers(), st.floats(0.1, 1000), st.integers(1, 50), st.floats(0, 10))
def test_a_plan_depends_on_its_seed_alone(seed: int, rate: float, n: int, service: float) -> None:
    """Same seed, same plan, whatever the server does; another seed, another plan."""
    slow = run_open(lambda: asyncio.sleep(service), rate=rate, requests=n, seed=seed)
    assert list(slow.column("intended")) == schedule(rate, requests=n, seed=seed)
    assert schedule(rate, requests=n, seed=seed) != schedule(rate, requests=n, seed=seed + 1)


def test_poisson_arrivals_come_at_their_rate() -> None:
    """10,000 gaps at 20 a second: mean and standard deviation both 1/20 s, within four errors."""
    gaps = np.diff(schedule(20, requests=10_001))
    assert np.mean(gaps) == pytest.approx(0.05, rel=4 / math.sqrt(10_000))
    assert np.std(gaps) == pytest.approx(0.05, rel=4 * math.sqrt(2 / 10_000))


def test_a_plan_ends_by_time_or_by_number() -> None:
    """Fixed arrivals start at zero; nothing is due at the end or after it."""
    assert schedule(4, seconds=1, arrivals="fixed") == [0, 0.25, 0.5, 0.75]
    assert schedule(4, requests=3, arrivals="fixed") == [0, 0.25, 0.5]
    assert all(time < 10 for time in schedule(20, seconds=10))


def test_a_limit_in_flight_is_kept_and_its_queue_is_latency() -> None:
    """Ten due at once, two at a time, one second each: they wait 0 to 4 s before they are sent."""
    samples = run_open(
        lambda: asyncio.sleep(1), rate=1e9, requests=10, arrivals="fixed", in_flight_limit=2
    )
    waits = samples.column("started") - samples.column("intended")
    assert list(waits) == pytest.approx([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], abs=1e-6)
    assert list(samples.column("latency")) == pytest.approx(list(waits + 1))


def test_users_of_a_closed_loop_share_the_requests() -> None:
    """Four users, ten requests of a second each: a third round for two of them."""
    samples = run_closed(lambda: asyncio.sleep(1), users=4, requests=10)
    assert sorted(samples.column("intended")) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert set(samples.column("latency")) == {1}


def test_failures_are_results() -> None:
    """Each is on the record under its error's name, and the run goes on."""
    numbers = count()

    async def call() -> None:
        number = next(numbers)
        if number == 1:
            raise ConnectionLost("It broke.", fix="Try again.")
        if number == 2:
            raise asyncio.CancelledError  # somebody cancelled this call, not the run
        if number == 3:
            raise ZeroDivisionError

    samples = run_closed(call, users=1, requests=6)
    outcomes = ["ok", "ConnectionLost", "CancelledError", "ZeroDivisionError", "ok", "ok"]
    assert list(samples.column("outcome")) == outcomes
    assert [len(samples.successes), len(samples.failures)] == [3, 3]
    assert repr(samples).startswith("<6 samples: 3 ok, 1 ConnectionLost, ")


def test_a_broken_stream_keeps_what_it_brought() -> None:
    """The times of the pieces before the error are on the record."""

    async def call() -> AsyncIterator[str]:
        yield "half an answ"
        raise ConnectionLost("It broke.", fix="Try again.")

    (sample,) = run_closed(call, users=1, requests=1)
    assert (sample.outcome, len(sample.chunk_times)) == ("ConnectionLost", 1)


def test_attempts_are_counted_for_the_request_they_belong_to() -> None:
    """The hook of the retry layer finds its request, with several under way at a time."""

    @dataclass
    class Attempt:
        number: int

    numbers = count(1)

    async def call() -> None:
        for number in range(1, next(numbers) + 1):
            await asyncio.sleep(1)
            count_attempts(Attempt(number))
            count_attempts("a record of another kind")

    count_attempts(Attempt(1))  # outside a run there is nothing to count
    samples = run_open(call, rate=10, requests=3, arrivals="fixed")
    assert list(samples.column("attempts")) == [1, 2, 3]
    assert list(run_open(server(), requests=2).column("attempts")) == [1, 1]


@unhurried
@given(
    st.lists(st.tuples(st.floats(0, 3), st.booleans()), min_size=1, max_size=30),
    st.floats(0, 5),
    st.none() | st.integers(1, 3),
)
def test_every_request_of_a_plan_is_accounted_for(
    answers: list[tuple[float, bool]], cancel_at: float, limit: int | None
) -> None:
    """Cancelled at any moment: what was due is on the record, what was not is not."""
    plan = schedule(10, requests=len(answers))
    assume(all(abs(due - cancel_at) > 1e-6 for due in plan))
    replies = iter(answers)

    async def call() -> None:
        seconds, good = next(replies)
        await asyncio.sleep(seconds)
        if not good:
            raise ConnectionLost("It broke.", fix="Try again.")

    async def main() -> Samples:
        loop = asyncio.get_running_loop()
        work = open_loop(call, rate=10, requests=len(plan), in_flight_limit=limit, now=loop.time)
        task = asyncio.create_task(work)
        loop.call_later(cancel_at, task.cancel)
        return await task

    samples = run(main())
    done = all(row.outcome != "CancelledError" for row in samples)
    assert list(samples.column("intended")) == [due for due in plan if due < cancel_at]
    assert done or max(samples.column("ended")) == pytest.approx(cancel_at)
    for row in samples:
        assert row.intended - 1e-9 <= row.started <= row.ended


def test_what_was_due_but_never_sent_is_on_the_record() -> None:
    """Four due at once, one at a time, a second each, the end at 2.5 s: the last was never sent."""

    async def main() -> Samples:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(2.5):
            return await open_loop(
                lambda: asyncio.sleep(1), rate=1e9, requests=4, in_flight_limit=1, now=loop.time
            )
        raise AssertionError("the time limit came through")

    samples = run(main())
    assert list(samples.column("outcome")) == ["ok", "ok", "CancelledError", "CancelledError"]
    assert list(samples.column("started")) == pytest.approx([0, 1, 2, 2.5], abs=1e-6)
    assert list(samples.column("ended")) == pytest.approx([1, 2, 2.5, 2.5], abs=1e-6)


@unhurried
@given(st.integers(1, 5), st.integers(1, 30), st.floats(0, 5))
def test_every_request_of_users_is_accounted_for(users: int, requests: int, end: float) -> None:
    """Cancelled at any moment: as many samples as calls were begun."""
    begun = 0

    async def call() -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(1)

    async def main() -> Samples:
        loop = asyncio.get_running_loop()
        work = closed_loop(call, users=users, requests=requests, now=loop.time)
        task = asyncio.create_task(work)
        loop.call_later(end, task.cancel)
        return await task

    assert len(run(main())) == begun <= requests


def test_ctrl_c_ends_the_load_and_loses_nothing() -> None:
    """A program gets its samples and goes on to its report."""

    async def main() -> Samples:
        loop = asyncio.get_running_loop()
        loop.call_later(2.5, signal.raise_signal, signal.SIGINT)
        samples = await closed_loop(lambda: asyncio.sleep(1), users=1, now=loop.time)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        await asyncio.sleep(1)
        return samples

    assert list(run(main()).column("outcome")) == ["ok", "ok", "CancelledError"]


def test_a_time_limit_around_a_load_loses_nothing() -> None:
    """`asyncio.timeout` ends it, and the samples are there."""

    async def main() -> tuple[Samples, bool]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(2.5) as limit:
            samples = await closed_loop(lambda: asyncio.sleep(1), users=2, now=loop.time)
        return samples, limit.expired()

    samples, expired = run(main())
    assert expired
    assert len(samples.successes) == 4
    assert list(samples.failures.column("outcome")) == ["CancelledError"] * 2


def test_the_default_clock_is_a_real_one() -> None:
    """Times are in order, from the beginning of the run."""

    async def main() -> list[Samples]:
        async def call() -> None: ...

        return [
            await closed_loop(call, users=2, requests=20),
            await open_loop(call, rate=10_000, requests=20),
        ]

    for samples in asyncio.run(main()):
        assert len(samples.successes) == 20
        assert all(0 <= row.intended <= row.ended and row.started <= row.ended for row in samples)


@pytest.mark.parametrize(
    ("mistake", "word"),
    [
        ({"rate": 0, "seconds": 1}, "rate is 0"),
        ({"rate": math.nan, "seconds": 1}, "rate is nan"),
        ({"seconds": -1}, "seconds is -1"),
        ({"requests": 0}, "requests is 0"),
        ({}, "exactly one end"),
        ({"seconds": 1, "requests": 1}, "exactly one end"),
        ({"requests": 1, "arrivals": "poison"}, "Did you mean poisson"),
        ({"requests": 1, "in_flight_limit": 0}, "in_flight_limit is 0"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(mistake: dict[str, Any], word: str) -> None:
    """Before anything is sent, with the name of what is wrong."""
    with pytest.raises(InvalidRequest, match=word):
        run_open(server(), **mistake)


def test_a_closed_loop_without_users_is_refused() -> None:
    """It would never end, or never begin."""
    with pytest.raises(InvalidRequest, match="users is 0"):
        run_closed(server(), users=0)


# Samples

TIMES = st.floats(0, 1e6)
SAMPLES = st.lists(
    st.builds(
        Sample,
        intended=TIMES,
        started=TIMES,
        ended=TIMES,
        chunk_times=st.lists(TIMES, max_size=4).map(tuple),
        tokens=st.none() | st.integers(0, 10**6),
        attempts=st.integers(1, 100),
        outcome=st.just("ok") | st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    ),
    max_size=5,
).map(lambda rows: Samples(tuple(rows)))


@unhurried
@given(SAMPLES)
def test_a_file_holds_every_bit(samples: Samples) -> None:
    """CSV and JSON give back exactly what was written."""
    with tempfile.TemporaryDirectory() as folder:
        samples.to_csv(Path(folder) / "run.csv")
        samples.to_json(Path(folder) / "run.json")
        assert Samples.from_csv(Path(folder) / "run.csv") == samples
        assert Samples.from_json(Path(folder) / "run.json") == samples


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,2\n3,4\n",
        "intended,started,ended,chunk_times\n0,0,1\n",
        '{"a": 1}',
        "[1]",
        "intended\n\xff\n",
        '"',
        "[{}]",
    ],
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    """The error names the file, not a column or a key."""
    path = tmp_path / "other"
    path.write_bytes(text.encode("latin-1"))
    for read in (Samples.from_csv, Samples.from_json):
        with pytest.raises(InvalidRequest, match="does not hold samples"):
            read(path)


def test_columns_are_arrays() -> None:
    """Numbers with nan for what is not known, names as text, the gaps of all requests in one."""
    samples = Samples((Sample(0, 1, 4, (2, 3), 5), Sample(1, 1, 2, outcome="ReadTimeout")))
    assert list(samples.column("latency")) == [4, 1]
    assert list(samples.column("gaps")) == [1]
    assert list(samples.column("outcome")) == ["ok", "ReadTimeout"]
    assert np.array_equal(samples.column("ttft"), [2, math.nan], equal_nan=True)
    assert np.array_equal(samples.column("tokens"), [5, math.nan], equal_nan=True)
    with pytest.raises(InvalidRequest, match="Did you mean latency"):
        samples.column("latencies")


# Percentiles

VALUES = st.lists(st.floats(-1e9, 1e9), min_size=7, max_size=80)


@pytest.mark.parametrize(("q", "n"), [(50, 6), (90, 29), (95, 59), (99, 299), (99.9, 2995)])
def test_a_percentile_takes_so_many_requests(q: float, n: int) -> None:
    """One too few is refused with the number that it takes; that number is enough."""
    assert requests_needed(q) == n
    with pytest.raises(InvalidRequest, match=f"Make {n:,} requests or more"):
        percentile(range(n - 1), q)
    assert percentile(range(n), q).n == n


@unhurried
@given(st.floats(75, 99.99))
def test_the_number_is_that_of_the_books(q: float) -> None:
    """From p75 up it is n ≥ ln(0.05) / ln(p)."""
    assert requests_needed(q) == math.ceil(math.log(0.05) / math.log(q / 100))


@pytest.mark.parametrize("q", [0, 100, -5, 101, math.nan])
def test_what_is_no_percentile_is_refused(q: float) -> None:
    """p0 and p100 are not percentiles of what was sampled, only ends of the sample."""
    with pytest.raises(InvalidRequest, match="above 0 and below 100"):
        percentile(range(1000), q)


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_unknown_times_are_not_left_out_in_silence(missing: float) -> None:
    """A column with failures in it has no percentile until somebody decides about them."""
    with pytest.raises(InvalidRequest, match="1 of 101 values"):
        percentile([*range(100), missing], 50)
    with pytest.raises(InvalidRequest, match="no values"):
        percentile([], 50)
    with pytest.raises(InvalidRequest, match="nearest-rank"):
        percentile(range(100), 50, "median")  # type: ignore[arg-type]


@unhurried
@given(VALUES, st.floats(1, 99), st.sampled_from(METHODS))
def test_a_percentile_lies_within_its_interval_within_the_sample(
    values: list[float], q: float, method: Method
) -> None:
    """Never outside [minimum, maximum], and the interval contains the estimate."""
    assume(len(values) >= requests_needed(q))
    found = percentile(values, q, method)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


@unhurried
@given(VALUES, st.floats(40, 60))
def test_the_nearest_rank_is_a_sample(values: list[float], q: float) -> None:
    """The definition, counted: at least q % at or below it, and fewer below it."""
    value = percentile(values, q).value
    assert value in values
    assert 100 * sum(other <= value for other in values) >= (q - 1e-6) * len(values)
    assert 100 * sum(other < value for other in values) < (q + 1e-6) * len(values)


@unhurried
@given(VALUES, st.floats(40, 60), st.floats(40, 60), st.sampled_from(METHODS))
def test_a_higher_percentile_is_never_lower(
    values: list[float], one: float, other: float, method: Method
) -> None:
    """Value and both ends of the interval grow with q."""
    assume(len(values) >= max(requests_needed(one), requests_needed(other)))
    small, large = (percentile(values, q, method) for q in sorted((one, other)))
    assert small.value <= large.value
    assert small.low <= large.low
    assert small.high <= large.high


def test_the_methods_differ_as_they_should() -> None:
    """Of 1 to 100, p95 is a sample or between two; 99.9 % of 3,000 is no rounding accident."""
    assert percentile(range(1, 101), 95).value == 95
    assert percentile(range(1, 101), 95, "linear").value == pytest.approx(95.05)
    assert percentile(range(1, 3001), 99.9).value == 2997


def test_the_interval_of_the_textbook() -> None:
    """The median of 100 lies between the 40th and the 61st value."""
    found = percentile(range(1, 101), 50)
    assert (found.low, found.high) == (40, 61)
    assert str(found) == "p50 = 50 (95 % sure: 40 to 61; n = 100, nearest-rank)"


@unhurried
@given(st.integers(6, 400), st.sampled_from([5, 50, 75, 90, 95, 99]))
@example(59, 95)  # the smallest sample: nothing to spare above, so below has to be surer
@example(59, 5)
@example(299, 99)
def test_the_interval_is_as_sure_as_it_says(n: int, q: int) -> None:
    """In exact fractions: P(l ≤ B < u) ≥ 95 %, and one rank fewer on a side misses its half."""
    assume(n >= requests_needed(q))
    found = percentile(range(1, n + 1), q)
    p = Fraction(q, 100)
    chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    low, high = int(found.low), int(found.high)
    assert sum(chance[low:high]) >= Fraction(95, 100)
    assert sum(chance[: low + 1]) > Fraction(25, 1000) or sum(chance[high:]) > Fraction(25, 1000)


def test_the_interval_holds_in_a_simulation() -> None:
    """1,000 runs of 100 requests: p95's interval holds the true one in 95 % of them or more."""
    rng = random.Random(1)  # noqa: S311 - guards nothing
    truth = -math.log(0.05)
    runs = [percentile([rng.expovariate(1) for _ in range(100)], 95) for _ in range(1000)]
    held = sum(run.low <= truth <= run.high for run in runs)
    assert held >= 950 - 3 * math.sqrt(1000 * 0.95 * 0.05)
