"""Metrics and logs: what happened is counted and written down; keys and prompts are not."""

import logging
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.errors import BreakerOpen, ServiceUnreachable
from foundry_lab.metrics import Histogram, Metrics, log
from foundry_lab.records import Attempt, Call, GaveUp, StateChange, Wait, to_all

pytestmark = pytest.mark.anyio


@given(st.lists(st.floats(1e-6, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_known_to_five_percent(values: list[float], q: float) -> None:
    """Whatever the values, the histogram's quantile is next to the real one."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    wanted = sorted(values)[max(0, -(-len(values) * q // 1).__int__() - 1)]
    found = histogram.quantile(q)
    assert found is not None
    assert wanted / 1.06 <= found <= wanted * 1.06


def test_without_values_there_is_no_quantile() -> None:
    """None, and not 0."""
    assert Histogram().quantile(0.5) is None


async def test_a_real_call_is_counted(service: Service) -> None:
    """One question: one call, its tokens, a first token and a latency."""
    metrics = Metrics()
    async with FoundryAPIClient(service, hook=metrics) as client:
        answer = await client.complete("What is jitter?", max_tokens=5)
        stream = client.stream_complete("Count from 1 to 300.", max_tokens=1500)
        async with aclosing(stream):
            async for chunk in stream:
                if chunk.content:
                    break
    assert metrics.calls == {"ok": 1, "left": 1}
    assert metrics.tokens == answer.usage.completion_tokens
    assert metrics.ttft.n >= 1
    assert metrics.latency.n == 1
    assert metrics.attempts["200"] >= 2
    assert metrics.rate > 0


async def test_an_outage_is_counted(own_service: Service) -> None:
    """Attempts, retries, what was given up and the breaker's state."""
    metrics = Metrics()
    async with FoundryAPIClient(own_service, hook=metrics) as client:
        await client.complete("What is jitter?", max_tokens=1)
        own_service.kill()
        for _ in range(4):
            with pytest.raises((ServiceUnreachable, BreakerOpen)):
                await client.complete("What is jitter?", max_tokens=1)
    assert metrics.attempts["ConnectError"] >= 4
    assert metrics.retries["backoff"] >= 3
    assert metrics.given_up["attempts"] >= 1
    assert "open" in metrics.breakers.values()
    assert sum(metrics.calls.values()) == 5


def test_the_rate_forgets() -> None:
    """Calls that ended before the window do not count."""
    time = 100.0
    metrics = Metrics(now=lambda: time, window=10)
    for ended in (85.0, 95.0, 99.0):
        metrics(Call(ended - 1, ended, "ok", 3))
    assert metrics.rate == pytest.approx(0.2)


async def test_each_attempt_is_a_line_without_key_and_prompt(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """The lines of one call share its id; neither the question, the answer nor the key is there."""
    caplog.set_level(logging.DEBUG, "foundry_lab")
    settings = Settings(api_key="s3cret")
    async with FoundryAPIClient(service, settings=settings, hook=log) as client:
        answer = await client.complete("What is jitter?")
    lines = [record.getMessage() for record in caplog.records if record.name == "foundry_lab"]
    assert any("attempt 1: 200" in line for line in lines)
    assert len({line.split()[1] for line in lines}) == 1
    for secret in ("s3cret", "jitter", answer.content):
        assert secret not in "\n".join(lines)


def test_levels_say_how_bad_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """An open breaker and a lost call are warnings, an attempt is information."""
    caplog.set_level(logging.DEBUG, "foundry_lab")
    tell = to_all(log, log)
    tell(Attempt(1, 0.0, 0.5, "503", "c1"))
    tell(Wait(1, 0.25, "Retry-After", "c1"))
    tell(GaveUp(4, "attempts", "c1"))
    tell(StateChange("http://127.0.0.1 m:1", "closed", "open", 1.0))
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO"] * 4 + ["WARNING"] * 4
    assert "attempt 1: 503, 500 ms" in caplog.text
