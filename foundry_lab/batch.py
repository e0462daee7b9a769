"""Batch: many prompts, a few at once, every result kept.

Only as many prompts are taken from the source as can be worked on, so a million of them need no
more memory than ten. A journal, one line of JSON per result, lets an interrupted batch go on.
"""

import asyncio
import hashlib
import json
from array import array
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm.auto import tqdm

from foundry_lab.chat import Completion
from foundry_lab.errors import BreakerOpen, FoundryLabError, InvalidRequest, QueueFull

__all__ = ["BatchResult", "Prompt", "batch"]

REFUSALS = 6
"""How often a prompt is tried that is refused before it is sent."""

Prompt = str | Mapping[str, Any]
"""A question, or the arguments of `FoundryAPIClient.complete`."""


@dataclass(frozen=True)
class BatchResult:
    """What became of one prompt: either a completion or an error."""

    index: int
    """Its place among the prompts, from 0."""
    prompt: Prompt
    completion: Completion | None = None
    error: FoundryLabError | None = None
    resumed: bool = False
    """Whether it came out of the journal: answered by an earlier run."""


async def batch(
    complete: Callable[..., Awaitable[Completion]],
    prompts: Iterable[Prompt],
    *,
    concurrency: int = 4,
    journal: Path | None = None,
    progress: bool = True,
) -> AsyncGenerator[BatchResult]:
    """Ask every prompt, and yield each result as soon as it is there.

    Errors of this package are results; they stop nothing. Closing it (`contextlib.aclosing`)
    cancels what is under way. Results come in the order they are done:
    ``sorted(results, key=lambda r: r.index)``. A prompt that was not even sent, as a breaker is
    open or a queue full, is tried again, for half a minute at most.

    Args:
        complete: What answers one prompt, such as `FoundryAPIClient.complete`.
        prompts: Any iterable, read no faster than the prompts are worked on.
        concurrency: Prompts under way at once. A `FoundryAPIClient` sends 4 at a time; more wait
            in its queue, and their time runs meanwhile.
        journal: A file that keeps the answers. Where it exists, what it holds is not asked again;
            what failed is. It compares prompts, not models: one file for one model.
        progress: Whether to show a progress bar.

    Raises:
        InvalidRequest: `concurrency` is below 1, or the journal is of another batch.
    """
    if concurrency < 1:
        raise InvalidRequest(f"concurrency is {concurrency}.", fix="Pass 1 or more.")
    total = len(prompts) if isinstance(prompts, Sized) else None
    with _opened(journal) as kept, tqdm(total=total, unit="prompt", disable=not progress) as bar:
        waiting, room = enumerate(prompts), asyncio.Semaphore(2 * concurrency)
        done = asyncio.Queue[BatchResult | asyncio.Task[None]]()
        workers = {
            asyncio.create_task(_work(waiting, room, complete, kept, done))
            for _ in range(concurrency)
        }
        for worker in workers:
            worker.add_done_callback(done.put_nowait)
        try:
            while workers:
                result = await done.get()
                if isinstance(result, asyncio.Task):
                    workers.remove(result)
                    await result  # raises what went wrong in it
                    continue
                bar.update()
                yield result
                room.release()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _work(
    waiting: Iterator[tuple[int, Prompt]],
    room: asyncio.Semaphore,
    complete: Callable[..., Awaitable[Completion]],
    kept: "_Journal",
    done: asyncio.Queue[Any],
) -> None:
    """Answer prompts, one after the other, until none is left; wait while too few are fetched."""
    while await room.acquire():
        index, prompt = next(waiting, (-1, ""))
        if index < 0:
            return
        result = kept.find(index, prompt)
        if result is None:
            result = await _ask(complete, index, prompt)
            kept.keep(result)
        done.put_nowait(result)


async def _ask(
    complete: Callable[..., Awaitable[Completion]], index: int, prompt: Prompt
) -> BatchResult:
    for _ in range(REFUSALS - 1):
        result = await _ask_once(complete, index, prompt)
        if not isinstance(result.error, BreakerOpen | QueueFull):
            return result
        retry_in = result.error.retry_in if isinstance(result.error, BreakerOpen) else 1.0
        await asyncio.sleep(min(max(retry_in, 0.1), 5.0))
    return await _ask_once(complete, index, prompt)


async def _ask_once(
    complete: Callable[..., Awaitable[Completion]], index: int, prompt: Prompt
) -> BatchResult:
    try:
        answer = complete(prompt) if isinstance(prompt, str) else complete(**prompt)
    except TypeError as error:
        refusal = InvalidRequest(f"No call can be made of it: {error}.", fix="See `complete`.")
        return BatchResult(index, prompt, error=refusal)
    try:
        return BatchResult(index, prompt, await answer)
    except FoundryLabError as error:
        return BatchResult(index, prompt, error=error)


BEGINNING = b'{"index": '
JOURNALLED = {"index", "prompt", "completion"}


class _Journal:
    """The answers so far, in a file of JSON lines; in memory only where each line begins."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self._places = array("q")  # index → where its line begins, -1 for none
        if file is not None:
            self._read(file)

    def find(self, index: int, prompt: Prompt) -> BatchResult | None:
        """Return the answer of an earlier run."""
        if self._file is None or index >= len(self._places) or self._places[index] < 0:
            return None
        self._file.seek(self._places[index])
        line = json.loads(self._file.readline())
        if line["prompt"] != _digest(prompt):
            raise InvalidRequest(
                f"The journal holds an answer to another prompt with the number {index}.",
                fix="Use one journal for one batch: name a new file, or delete the old one.",
            )
        completion = Completion.model_validate(line["completion"])
        return BatchResult(index, prompt, completion, resumed=True)

    def keep(self, result: BatchResult) -> None:
        """Write an answer down before anybody sees it; an error is asked again next time."""
        if self._file is None or result.completion is None:
            return
        line = {
            "index": result.index,
            "prompt": _digest(result.prompt),
            "completion": result.completion.model_dump(),
        }
        self._file.seek(0, 2)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def _read(self, file: BinaryIO) -> None:
        place = 0
        for line in file:
            if not line.endswith(b"\n"):  # the writer was killed in the middle of it
                if not (line.startswith(BEGINNING) or BEGINNING.startswith(line)):
                    raise _foreign(line)
                break
            index = _index(line)
            self._places.extend([-1] * (index + 1 - len(self._places)))
            self._places[index] = place
            place += len(line)
        file.truncate(place)


def _index(line: bytes) -> int:
    try:
        written = json.loads(line)
        index = written["index"]
        if isinstance(index, int) and 0 <= index < 10**8 and written.keys() >= JOURNALLED:
            return index
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise _foreign(line)


def _foreign(line: bytes) -> InvalidRequest:
    return InvalidRequest(
        f"The journal has a line that no batch wrote: {line[:80]!r}.",
        fix="Name another file: this one is left as it is.",
    )


def _digest(prompt: Prompt) -> str:
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def _opened(journal: Path | None) -> Iterator[_Journal]:
    if journal is None:
        yield _Journal(None)
        return
    path = Path(journal)
    path.touch()
    with path.open("r+b") as file:
        yield _Journal(file)
