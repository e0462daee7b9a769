"""Cache: only what is deterministic, one call for many, and a store that survives a kill."""

import asyncio
import contextlib
import itertools
import sqlite3
import sys
import threading
from pathlib import Path

import pytest
from essay import ESSAY

from foundry_lab import FoundryAPIClient, Service
from foundry_lab.cache import Cache, cache_key
from foundry_lab.chat import Completion, Usage
from foundry_lab.errors import CallError, DeadlineExceeded, InvalidRequest, ServiceUnreachable
from foundry_lab.records import CacheHit, Call, Record

pytestmark = pytest.mark.anyio

USAGE = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)


def completion(text: str) -> Completion:
    return Completion(content=text, finish_reason="stop", usage=USAGE, model="m:1", id="1")


class Asked:
    """A call that counts how often it is made."""

    def __init__(self, text: str = "answer", wait: asyncio.Event | None = None) -> None:
        self.times = self.cancelled = 0
        self._text, self._wait = text, wait

    async def __call__(self) -> Completion:
        self.times += 1
        try:
            if self._wait:
                await self._wait.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return completion(self._text)


def test_only_what_is_deterministic_has_a_key() -> None:
    """Temperature 0 or a seed; every part of the request counts, its order does not."""
    body = {"model": "m:1", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.0}
    assert cache_key(body) == cache_key(dict(reversed(body.items())))
    assert cache_key(body | {"temperature": 1.0}) is None
    assert cache_key(body | {"temperature": 1.0, "seed": 3}) is not None
    keys = {cache_key(body | change) for change in ({}, {"model": "m:2"}, {"max_tokens": 3})}
    assert len(keys) == 3


async def test_the_second_time_nobody_is_asked() -> None:
    """A hit brings the same completion without a call."""
    cache, ask = Cache(), Asked()
    assert await cache.get_or_ask("k", ask) == (completion("answer"), False)
    assert await cache.get_or_ask("k", ask) == (completion("answer"), True)
    assert (ask.times, cache.hits, cache.misses, len(cache)) == (1, 1, 1, 1)


async def test_a_stampede_makes_one_call() -> None:
    """A hundred callers at once wait for one answer."""
    gate = asyncio.Event()
    cache, ask = Cache(), Asked(wait=gate)
    callers = [asyncio.create_task(cache.get_or_ask("k", ask)) for _ in range(100)]
    await asyncio.sleep(0)
    gate.set()
    assert {answer.content for answer, _ in await asyncio.gather(*callers)} == {"answer"}
    assert ask.times == 1


async def test_one_who_comes_as_the_shared_call_ends_asks_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call that has missed its deadline, and is not yet forgotten, is not waited for."""
    cache, late, waits = Cache(), list[asyncio.Task[tuple[Completion, bool]]](), itertools.count()
    shield = asyncio.shield

    def bounded(task: asyncio.Task[Completion]) -> asyncio.Future[Completion]:
        assert next(waits) < 100, "it waits for what has ended, again and again"
        return shield(task)

    async def too_slow() -> Completion:
        late.append(asyncio.create_task(cache.get_or_ask("k", Asked())))
        raise DeadlineExceeded("late", fix="-")

    monkeypatch.setattr(asyncio, "shield", bounded)
    with pytest.raises(DeadlineExceeded):
        await cache.get_or_ask("k", too_slow)
    assert await late[0] == (completion("answer"), False)


async def test_a_file_that_cannot_be_used_costs_no_answer(tmp_path: Path) -> None:
    """While another program writes it, answers are asked for and not kept; afterwards they are."""
    cache, ask = Cache(tmp_path / "cache.db"), Asked()
    other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for _ in range(2):
        assert await cache.get_or_ask("k", ask) == (completion("answer"), False)
    other.execute("COMMIT")
    other.close()
    await cache.get_or_ask("k", ask)
    assert await cache.get_or_ask("k", ask) == (completion("answer"), True)
    assert ask.times == 3


async def test_a_damaged_row_costs_no_answer(tmp_path: Path) -> None:
    """What can't be read any more is asked for again; a closed cache keeps nothing."""
    cache, ask = Cache(tmp_path / "cache.db"), Asked()
    await cache.get_or_ask("k", ask)
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as other:
        other.execute("UPDATE answers SET body = '{}'")
    assert await cache.get_or_ask("k", ask) == (completion("answer"), False)
    assert await cache.get_or_ask("k", ask) == (completion("answer"), True)
    cache.close()
    assert await cache.get_or_ask("k", ask) == (completion("answer"), False)


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    """Another file, or one in a folder that is not there, gets one of our errors."""
    (tmp_path / "notes.txt").write_text("These are no answers. " * 100)
    for name in "notes.txt", "nowhere/cache.db":
        with pytest.raises(InvalidRequest, match="can't keep answers"):
            Cache(tmp_path / name)
    assert (tmp_path / "notes.txt").read_text().startswith("These")


def test_a_new_file_that_another_program_makes_is_waited_for(tmp_path: Path) -> None:
    """Two programs may begin with the same file at the same moment."""
    other = sqlite3.connect(tmp_path / "c.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    made = threading.Timer(0.3, other.execute, ["COMMIT"])
    made.start()
    Cache(tmp_path / "c.db").close()
    made.join()
    other.close()


async def test_the_call_lives_as_long_as_somebody_waits() -> None:
    """The first caller may leave; when the last leaves, the call is cancelled."""
    gate = asyncio.Event()
    cache, ask = Cache(), Asked(wait=gate)
    first, second = (asyncio.create_task(cache.get_or_ask("k", ask)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert ask.cancelled == 0
    second.cancel()
    await asyncio.wait([second])
    await asyncio.sleep(0)
    assert ask.cancelled == 1
    gate.set()
    assert (await cache.get_or_ask("k", ask))[0].content == "answer"


async def test_an_error_reaches_all_and_is_not_kept() -> None:
    """After a failure the next caller asks again."""

    async def fails() -> Completion:
        await asyncio.sleep(0)
        raise CallError("It failed.", fix="Nothing.")

    cache = Cache()
    outcomes = await asyncio.gather(
        *(cache.get_or_ask("k", fails) for _ in range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [CallError] * 3
    assert (await cache.get_or_ask("k", Asked()))[1] is False


async def test_the_least_recently_used_goes_first() -> None:
    """It never holds more than it may, and keeps what was used."""
    time = 0.0
    cache = Cache(max_entries=2, now=lambda: time)
    for key in ("a", "b", "a", "c"):
        time += 1
        await cache.get_or_ask(key, Asked(key))
    assert len(cache) == 2
    assert (await cache.get_or_ask("a", Asked()))[1] is True
    assert (await cache.get_or_ask("b", Asked()))[1] is False


async def test_an_old_answer_is_asked_for_again() -> None:
    """After max_age seconds an answer does not count any more."""
    time = 0.0
    cache, ask = Cache(max_age=10, now=lambda: time), Asked()
    await cache.get_or_ask("k", ask)
    time = 9.0
    assert (await cache.get_or_ask("k", ask))[1] is True
    time = 10.0
    assert (await cache.get_or_ask("k", ask))[1] is False


@pytest.mark.parametrize("mistake", [{"max_entries": 0}, {"max_age": 0}, {"max_age": float("nan")}])
def test_a_cache_that_keeps_nothing_is_refused(mistake: dict[str, float]) -> None:
    """Sizes and ages are above zero."""
    with pytest.raises(InvalidRequest, match="keeps nothing"):
        Cache(**mistake)  # type: ignore[arg-type]


KILLED = """
import asyncio, os, sys
from pathlib import Path
from foundry_lab.cache import Cache
from foundry_lab.chat import Completion, Usage
usage = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
async def ask():
    return Completion(content="kept", finish_reason="stop", usage=usage, model="m:1", id="1")
async def main():
    await Cache(Path(sys.argv[1])).get_or_ask("k", ask)
    os._exit(1)  # as a kill does: nothing is closed
asyncio.run(main())
"""


async def test_the_store_survives_a_kill(tmp_path: Path) -> None:
    """What a killed program had kept, the next one finds."""
    path = tmp_path / "answers.sqlite"
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(path))
    await asyncio.wait_for(program.wait(), 30)
    cache = Cache(path)
    assert (await cache.get_or_ask("k", Asked("new")))[0].content == "kept"
    cache.close()


async def test_the_client_asks_the_real_service_once(service: Service) -> None:
    """Equal greedy questions cost one call, random ones each their own."""
    records: list[Record] = []
    cache = Cache()
    async with FoundryAPIClient(service, cache=cache, hook=records.append) as client:
        first = await client.complete("What is jitter?", max_tokens=5)
        again = await client.complete("What is jitter?", max_tokens=5)
        assert first == again
        await client.complete("What is jitter?", max_tokens=5, temperature=1.0)
        await client.complete("What is jitter?", max_tokens=5, temperature=1.0)
    assert (cache.hits, cache.misses, len(cache)) == (1, 1, 1)
    assert sum(isinstance(record, CacheHit) for record in records) == 1


async def test_with_a_cache_each_failure_has_its_record(own_service: Service) -> None:
    """Whoever asks while the service is gone counts: with the look-up, or with a shared call."""
    records: list[Record] = []
    async with FoundryAPIClient(own_service.url, cache=Cache(), hook=records.append) as client:
        await client.complete("Hello", max_tokens=1)
        own_service.kill()
        records.clear()
        calls = [client.complete("What is jitter?") for _ in range(3)]
        await asyncio.gather(*calls, return_exceptions=True)
    async with FoundryAPIClient(own_service.url, cache=Cache(), hook=records.append) as client:
        with pytest.raises(ServiceUnreachable):
            await client.complete("What is jitter?")
    ends = [record.outcome for record in records if isinstance(record, Call)]
    assert len(ends) == 4
    assert set(ends) <= {"ServiceUnreachable", "ConnectionLost"}


async def test_who_waits_for_anothers_call_keeps_the_own_deadline(service: Service) -> None:
    """A short deadline ends the waiting; the call goes on for the one who has time."""
    async with FoundryAPIClient(service, cache=Cache()) as client:
        await client.complete("Hello", max_tokens=1)
        patient = asyncio.create_task(client.complete("Hello", **ESSAY, timeout=60))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await client.complete("Hello", **ESSAY, timeout=0.02)
        assert (await patient).content


async def test_a_call_that_was_left_is_joined_by_nobody() -> None:
    """Who comes while a cancelled call still ends gets a call of their own."""
    cache, may_end = Cache(), asyncio.Event()

    async def ends_slowly() -> Completion:
        try:
            return await asyncio.Future()
        finally:
            await may_end.wait()

    first = asyncio.create_task(cache.get_or_ask("key", ends_slowly))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # now the call is under way
    first.cancel()
    await asyncio.wait([first])
    new_may_end = asyncio.Event()
    new = asyncio.create_task(cache.get_or_ask("key", Asked("new", new_may_end)))
    may_end.set()
    for _ in range(10):  # the old call ends, while the new one goes on
        await asyncio.sleep(0)
    joined = asyncio.create_task(cache.get_or_ask("key", Asked("another")))
    await asyncio.sleep(0)
    new_may_end.set()
    async with asyncio.timeout(5):
        assert await new == (completion("new"), False)
        assert await joined == (completion("new"), True)
    assert await cache.get_or_ask("key", Asked("newer")) == (completion("new"), True)


async def test_the_deadline_of_one_does_not_bind_the_others() -> None:
    """Who waited for a call that ran out of its own time asks anew."""
    cache = Cache()

    async def impatient() -> Completion:
        await asyncio.sleep(0)
        raise DeadlineExceeded("Too late.", fix="Wait longer.")

    calls = [cache.get_or_ask("key", ask) for ask in (impatient, Asked("a"), Asked("b"))]
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, DeadlineExceeded)
    assert second == (completion("a"), False)
    assert third == (completion("a"), True)
