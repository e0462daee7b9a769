"""Batch: every prompt is asked once, every result kept, and no more taken than can be worked on."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_lab import FoundryAPIClient
from foundry_lab.batch import REFUSALS, Prompt, batch
from foundry_lab.chat import Completion, Usage
from foundry_lab.errors import BreakerOpen, CallError, InvalidRequest, ModelNotFound

pytestmark = pytest.mark.anyio

USAGE = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)


def completion(text: str) -> Completion:
    return Completion(content=text, finish_reason="stop", usage=USAGE, model="m:1", id="1")


class Stub:
    """Stands where the client's `complete` does, and counts."""

    def __init__(self, fails: Callable[[str], bool] = lambda _: False) -> None:
        self.asked = Counter[str]()
        self.running = self.most_at_once = 0
        self._fails = fails

    async def __call__(self, prompt: str) -> Completion:
        self.asked[prompt] += 1
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            await asyncio.sleep(0)
            if self._fails(prompt):
                raise CallError("It failed.", fix="Nothing.")
            return completion(prompt.upper())
        finally:
            self.running -= 1


async def test_every_prompt_is_answered_by_the_real_service(client: FoundryAPIClient) -> None:
    """Questions and arguments both work, one bad item stops nothing, and order can be restored."""
    prompts: list[Prompt] = [
        "What is jitter?",
        {"prompt": "What is a deadline?", "max_tokens": 3},
        {"prompt": "Hello", "model": "no-such-model"},
        {"prompt": "Hello", "nonsense": 1},
        {"nothing": "of use"},
    ]
    results = [result async for result in client.batch(prompts, progress=False)]
    results.sort(key=lambda result: result.index)
    assert [result.index for result in results] == [0, 1, 2, 3, 4]
    one, two, *failed = results
    assert one.completion is not None
    assert one.completion.content == (await client.complete("What is jitter?")).content
    assert two.completion is not None
    assert two.completion.usage.completion_tokens == 3
    assert [type(result.error) for result in failed] == [
        ModelNotFound,
        InvalidRequest,
        InvalidRequest,
    ]


@given(st.lists(st.text(max_size=3), max_size=20), st.integers(1, 5))
async def test_each_is_asked_once(prompts: list[str], concurrency: int) -> None:
    """Any prompts, any concurrency: one result each, never more at once than allowed."""
    stub = Stub(fails=lambda prompt: "a" in prompt)
    results = [r async for r in batch(stub, prompts, concurrency=concurrency, progress=False)]
    assert sorted(result.index for result in results) == list(range(len(prompts)))
    assert stub.asked == Counter(prompts)
    assert stub.most_at_once <= concurrency
    for result in results:
        assert (result.error is None) == ("a" not in result.prompt)


async def test_the_source_is_read_no_faster_than_worked_on() -> None:
    """Of an endless source only what is under way has been taken."""
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "x"

    seen = 0
    async with aclosing(batch(Stub(), endless(), concurrency=3, progress=False)) as results:
        async for _ in results:
            seen += 1
            for _ in range(50):  # a slow reader: the workers have all the turns they want
                await asyncio.sleep(0)
            assert taken <= seen + 2 * 3
            if seen == 50:
                break


async def test_leaving_cancels_what_is_under_way() -> None:
    """After the loop was left, nothing runs."""
    began, ended = 0, 0

    async def slow(prompt: str) -> Completion:
        nonlocal began, ended
        began += 1
        try:
            await asyncio.sleep(0 if prompt == "quick" else 3600)
        finally:
            ended += 1
        return completion(prompt)

    async with aclosing(
        batch(slow, ["quick", "slow", "slow"], concurrency=3, progress=False)
    ) as results:
        async for _ in results:
            break
    assert began == ended == 3


async def test_an_interrupted_batch_goes_on(tmp_path: Path) -> None:
    """What was answered is not asked again, what failed or was under way is; nothing is lost."""
    journal, prompts = tmp_path / "batch.jsonl", [f"p{i}" for i in range(10)]
    first = Stub(fails=lambda prompt: prompt == "p1")
    seen = 0
    async with aclosing(batch(first, prompts, journal=journal, progress=False)) as results:
        async for _ in results:
            seen += 1
            if seen == 5:
                break
    with journal.open("ab") as file:
        file.write(b'{"index": 7, "promp')  # killed while it wrote
    second = Stub()
    results_now = [r async for r in batch(second, prompts, journal=journal, progress=False)]
    assert sorted(result.index for result in results_now) == list(range(10))
    assert all(result.completion for result in results_now)
    kept = {str(result.prompt) for result in results_now if result.resumed}
    assert len(kept) >= 4
    assert kept.isdisjoint(second.asked)
    assert "p1" in second.asked
    third = Stub()
    assert [r.resumed async for r in batch(third, prompts, journal=journal, progress=False)] == [
        True
    ] * 10
    assert not third.asked


async def test_a_prompt_is_journalled_whatever_mapping_it_is(tmp_path: Path) -> None:
    """One that is no dict has the same place in the journal as the dict that equals it."""
    journal, prompt = tmp_path / "batch.jsonl", {"prompt": "a"}
    for prompts in ([MappingProxyType(prompt)], [prompt]):
        results = [r async for r in batch(Stub(), prompts, journal=journal, progress=False)]
        assert results[0].completion
    assert results[0].resumed


async def test_an_answer_is_written_before_it_is_seen(tmp_path: Path) -> None:
    """Whoever has seen a result finds it in the journal: a kill can't take it back."""
    journal = tmp_path / "batch.jsonl"
    async for result in batch(Stub(), ["a", "b", "c"], journal=journal, progress=False):
        indices = [json.loads(line)["index"] for line in journal.read_text().splitlines()]
        assert result.index in indices


async def test_a_journal_of_another_batch_is_refused(tmp_path: Path) -> None:
    """Neither other prompts nor a file that no batch wrote is taken, or changed."""
    journal = tmp_path / "batch.jsonl"
    _ = [r async for r in batch(Stub(), ["a"], journal=journal, progress=False)]
    with pytest.raises(InvalidRequest, match="another prompt"):
        _ = [r async for r in batch(Stub(), ["b"], journal=journal, progress=False)]
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    with pytest.raises(InvalidRequest, match="no batch wrote"):
        _ = [r async for r in batch(Stub(), ["a"], journal=notes, progress=False)]
    assert notes.read_text() == "my notes\n"
    for text in ('["my only copy", "of the prompts"]', '{"index": 0}\n', "[]\n"):
        notes.write_text(text)
        with pytest.raises(InvalidRequest, match="no batch wrote"):
            _ = [r async for r in batch(Stub(), ["a"], journal=notes, progress=False)]
        assert notes.read_text() == text


@pytest.mark.parametrize(("refusals", "answered"), [(0, True), (2, True), (99, False)])
async def test_an_open_breaker_is_waited_for(refusals: int, answered: bool) -> None:
    """What was refused unsent is tried again, so an outage eats no prompts; not for ever."""
    asked = 0

    async def complete(prompt: str) -> Completion:
        nonlocal asked
        asked += 1
        if asked <= refusals:
            raise BreakerOpen("The breaker is open.", fix="Wait.", retry_in=0)
        return completion(prompt)

    (result,) = [r async for r in batch(complete, ["a"], progress=False)]
    assert asked == min(refusals + 1, REFUSALS)
    assert (result.completion is not None) == answered
    assert isinstance(result.error, BreakerOpen) != answered


async def test_no_concurrency_is_refused() -> None:
    """A concurrency of 0 would wait for ever."""
    with pytest.raises(InvalidRequest, match="concurrency"):
        _ = [r async for r in batch(Stub(), ["a"], concurrency=0, progress=False)]


async def test_a_mistake_in_the_program_is_no_result() -> None:
    """An error that is not of this package stops the batch: it is a bug, not an outcome."""

    async def broken(_: str) -> Completion:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _ = [r async for r in batch(broken, ["a"], progress=False)]
