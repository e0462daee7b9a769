"""Answers to the exercises of lesson 07: other right ones, and typical wrong ones."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from answers import Answers

Ask = Callable[[Any], Awaitable[str]]

# --- 07-1 ------------------------------------------------------------------------------------


async def _by_places(ask: Ask, prompts: Iterable[Any], k: int) -> AsyncIterator[Any]:
    """Workers of a group, results by their number; a semaphore for what is ahead."""
    source, results = enumerate(prompts), dict[int, Any]()
    places, came, waiting = asyncio.Semaphore(k), asyncio.Event(), 0

    async def worker() -> None:
        while True:
            await places.acquire()
            number, prompt = next(source, (-1, None))
            if number < 0:
                came.set()
                return
            try:
                results[number] = await ask(prompt)
            except ValueError as error:
                results[number] = error
            came.set()

    workers = [asyncio.create_task(worker()) for _ in range(k)]
    try:
        while waiting in results or not any(one.done() for one in workers):
            while waiting not in results and not all(one.done() for one in workers):
                came.clear()
                await came.wait()
                if any(one.done() for one in workers):
                    places.release()
                    await asyncio.sleep(0)
            if waiting in results:
                yield results.pop(waiting)
                waiting += 1
                places.release()
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _window(
    ask: Ask,
    prompts: Iterable[Any],
    k: int,
    *,
    catch: bool = True,
    clean: tuple[type[BaseException], ...] = (BaseException,),
    at_once: bool = True,
) -> AsyncIterator[Any]:
    source, tasks = iter(prompts), deque[asyncio.Future[str]]()
    try:
        while True:
            for prompt in islice(source, (k if at_once else 1) - len(tasks)):
                tasks.append(asyncio.ensure_future(ask(prompt)))
            if not tasks:
                return
            if catch:
                try:
                    result: Any = await tasks[0]
                except Exception as error:  # noqa: BLE001 - it is a result
                    result = error
            else:
                result = await tasks[0]
            tasks.popleft()
            yield result
    except clean:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _in_words(ask: Ask, prompts: Iterable[Any], k: int) -> AsyncIterator[Any]:
    async for result in _window(ask, prompts, k):
        yield str(result)


async def _gathered(ask: Ask, prompts: Iterable[Any], k: int) -> AsyncIterator[Any]:
    places = asyncio.Semaphore(k)

    async def one(prompt: Any) -> Any:
        async with places:
            return await ask(prompt)

    for result in await asyncio.gather(*map(one, prompts), return_exceptions=True):
        yield result


async def _as_done(ask: Ask, prompts: Iterable[Any], k: int) -> AsyncIterator[Any]:
    source, tasks = iter(prompts), set[asyncio.Future[str]]()
    while True:
        tasks |= {asyncio.ensure_future(ask(prompt)) for prompt in islice(source, k - len(tasks))}
        if not tasks:
            return
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            yield task.exception() or task.result()


async def _a_list(ask: Ask, prompts: Iterable[Any], k: int) -> list[Any]:
    return await asyncio.gather(*map(ask, prompts), return_exceptions=True)


# --- 07-2 ------------------------------------------------------------------------------------


async def _rewritten(ask: Ask, prompts: list[str], path: Path) -> list[str]:
    """The file is written anew each time, by a rename."""
    text = path.read_bytes() if path.exists() else b""
    answers = [json.loads(line)["answer"] for line in text.split(b"\n")[:-1]]
    for prompt in prompts[len(answers) :]:
        answers.append(await ask(prompt))
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps({"answer": one}) + "\n" for one in answers))
        new.replace(path)
    return answers


async def _appended(
    ask: Ask,
    prompts: list[str],
    path: Path,
    *,
    flush: bool = True,
    escape: bool = True,
    check: bool = True,
) -> list[str]:
    answers = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines() if escape else text.split("\n")[:-1]:
        try:
            answers.append(json.loads(line) if escape else line)
        except ValueError:
            if not check:
                raise
    with path.open("a", encoding="utf-8") as file:
        for prompt in prompts[len(answers) :]:
            answers.append(await ask(prompt))
            file.write((json.dumps(answers[-1]) if escape else answers[-1]) + "\n")
            if flush:
                file.flush()
    return answers


async def _break_before(ask: Ask, prompts: list[str], path: Path) -> list[str]:
    """A line break before each answer, so that none is glued to half a line."""
    text = path.read_bytes() if path.exists() else b""
    answers = [json.loads(line) for line in text.splitlines() if _is_whole(line)]
    for prompt in prompts[len(answers) :]:
        answers.append(await ask(prompt))
        with path.open("ab") as file:
            file.write(b"\n" + json.dumps(answers[-1]).encode())
    return answers


async def _no_break_between(ask: Ask, prompts: list[str], path: Path) -> list[str]:
    """Half a line is cut off; a whole one stays, with or without its line break."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    path.write_bytes(b"".join(line for line in lines if _is_whole(line)))
    return await _appended(ask, prompts, path)


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


async def _at_the_end(ask: Ask, prompts: list[str], path: Path) -> list[str]:
    answers = [await ask(prompt) for prompt in prompts]
    path.write_text("".join(json.dumps(one) + "\n" for one in answers))
    return answers


async def _asks_all(ask: Ask, prompts: list[str], path: Path) -> list[str]:
    path.unlink(missing_ok=True)
    return await _rewritten(ask, prompts, path)


async def _swallows(ask: Ask, prompts: list[str], path: Path) -> list[str]:
    async def tries(prompt: str) -> str:
        try:
            return await ask(prompt)
        except Exception:  # noqa: BLE001 - that is the mistake
            return ""

    return await _rewritten(tries, prompts, path)


# --- 07-3 ------------------------------------------------------------------------------------

COUNT = {"messages": [{"role": "user", "content": "Count from 1 to 20."}], "temperature": 0}
JSON = {"response_format": {"type": "json_object"}}
TURNED = {"temperature": 0, "messages": COUNT["messages"]}
PAIRS: dict[str, Any] = {
    "messages": (COUNT | {"max_tokens": 5}, COUNT),
    "as_text": (COUNT, TURNED),
    "fields": (COUNT | JSON, COUNT),
}

# --- 07-4 ------------------------------------------------------------------------------------


class _Locks:
    """A lock for each key; the call is a task of its own."""

    def __init__(self) -> None:
        self._kept = dict[str, str]()
        self._locks = dict[str, asyncio.Lock]()
        self._errors = dict[str, Exception]()
        self._waiting = dict[str, int]()

    async def get(self, key: str, ask: Callable[[], Awaitable[str]]) -> str:
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            async with self._locks.setdefault(key, asyncio.Lock()):
                if error := self._errors.get(key):
                    raise error
                if key not in self._kept:
                    try:
                        self._kept[key] = await ask()
                    except Exception as error:
                        self._errors[key] = error
                        raise
                return self._kept[key]
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                self._errors.pop(key, None)


class _RetriesInLine(_Locks):
    """A plain lock for each key: in an outage the callers ask one after the other."""

    async def get(self, key: str, ask: Callable[[], Awaitable[str]]) -> str:
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._kept:
                self._kept[key] = await ask()
            return self._kept[key]


class _Plain:
    def __init__(self) -> None:
        self._kept = dict[str, str]()

    async def get(self, key: str, ask: Callable[[], Awaitable[str]]) -> str:
        if key not in self._kept:
            self._kept[key] = await ask()
        return self._kept[key]


class _OneLock(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()

    async def get(self, key: str, ask: Callable[[], Awaitable[str]]) -> str:
        async with self._lock:
            return await super().get(key, ask)


class _KeepsErrors:
    def __init__(self) -> None:
        self._calls = dict[str, asyncio.Future[str]]()

    async def get(self, key: str, ask: Callable[[], Awaitable[str]]) -> str:
        if key not in self._calls:
            self._calls[key] = asyncio.ensure_future(ask())
        return await asyncio.shield(self._calls[key])


class _FirstForgets(_KeepsErrors):
    async def get(self, key: str, ask: Callable[[], Awaitable[str]]) -> str:
        first = key not in self._calls
        try:
            return await super().get(key, ask)
        except Exception:
            if first:
                self._calls.pop(key, None)
            raise


class _NoShield:
    def __init__(self) -> None:
        self._calls = dict[str, asyncio.Future[str]]()

    async def get(self, key: str, ask: Callable[[], Awaitable[str]]) -> str:
        if key not in self._calls:
            self._calls[key] = asyncio.ensure_future(ask())
        try:
            return await self._calls[key]
        except Exception:
            self._calls.pop(key, None)
            raise


ANSWERS = {
    "07-1": Answers(
        right=[_window, _by_places],
        wrong={
            "the error's words only": (_in_words, "or the exception itself"),
            "gather takes all": (_gathered, "were taken that had not been handed over"),
            "in the order they are done": (_as_done, "they came in the order"),
            "one at a time": (lambda *a: _window(*a, at_once=False), "there were 1"),
            "an error ends all": (lambda *a: _window(*a, catch=False), "ValueError: refused"),
            "leaves calls running": (lambda *a: _window(*a, clean=()), "calls went on"),
            "ends them when cancelled": (
                lambda *a: _window(*a, clean=(asyncio.CancelledError,)),
                "left after the first result",
            ),
            "a list": (_a_list, "it gave a list"),
        },
    ),
    "07-2": Answers(
        right=[_rewritten, _break_before],
        wrong={
            "writes at the end": (_at_the_end, "the file had [0, 0, 0, 0, 0] lines"),
            "an answer's own line breaks": (
                lambda *a: _appended(*a, escape=False),
                "the file had [0, 2, 4, 6, 8] lines",
            ),
            "asks all again": (_asks_all, "5 were asked"),
            "glues to the half line": (_appended, "another run after"),
            "glues to a whole line": (_no_break_between, "before the second line break"),
            "stops at half a line": (lambda *a: _appended(*a, check=False), "JSONDecodeError"),
            "swallows the error": (_swallows, "a run that is ended by a PowerCut"),
        },
    ),
    "07-3": Answers(
        right=[
            PAIRS,
            PAIRS | {"fields": [COUNT, COUNT | {"stream": True}]},
            PAIRS | {"as_text": [COUNT, COUNT | {"temperature": 0.0}]},
        ],
        wrong={
            "the key sees it": (
                PAIRS | {"fields": (COUNT, COUNT | {"max_tokens": 5})},
                "they have two different keys",
            ),
            "nobody would notice": (
                PAIRS | {"messages": (COUNT, COUNT | {"user": "me"})},
                "both got the same text",
            ),
            "more than form": (
                PAIRS | {"as_text": (COUNT, COUNT | {"max_tokens": 5})},
                "the requests differ in more than form",
            ),
            "not deterministic": (
                PAIRS | {"messages": ({"messages": COUNT["messages"]}, COUNT)},
                "it may differ from itself",
            ),
            "refused": (PAIRS | {"fields": (COUNT, COUNT | {"top_p": 7})}, "status 400"),
            "one request": (PAIRS | {"messages": COUNT}, "two dictionaries with messages"),
        },
    ),
    "07-4": Answers(
        right=[_Locks],
        wrong={
            "look, ask, store": (_Plain, "20 calls were made"),
            "a plain lock for each key": (_RetriesInLine, "one after the other"),
            "one lock for all": (_OneLock, "one waited for the other"),
            "keeps errors": (_KeepsErrors, "got the old error"),
            "the first forgets": (_FirstForgets, "when the caller who made it is gone"),
            "a cache": (_Locks(), "without calling it"),
            "the first takes all with it": (_NoShield, "of the other two got the answer"),
        },
    ),
}
