"""The workbench of the graders: try a learner's code, bounded in time, and say what came of it."""

import asyncio
import contextlib
import ctypes
import inspect
import io
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any, TextIO, TypeGuard

from foundry_lab.service import Service

__all__ = [
    "Wrong",
    "attempt",
    "expect",
    "expect_callable",
    "expect_number",
    "expect_written",
    "is_number",
    "run_bounded",
    "service",
    "show",
    "value_of",
]

CALL_SECONDS = 5.0
"""How long one call of a learner's function may take, if the grader says nothing else."""
OWN_SECONDS = 60.0
"""How long the graders' own code may take between two calls, the start of a service included."""
GRACE = 2.0
"""Seconds for code that was told to stop."""
WRITE_IT = "the cell above: write it there, run it, and then run the check again"
MOST_PRINTED = 2_000
"""Characters of a learner's own output that are kept."""


class Wrong(Exception):
    """The verdict on an answer that does not do yet what was asked, in sentences.

    Args:
        tried: What was tried, with its figures.
        expected: What should have come of it.
        happened: What did.
        look: Where to look. It never says the answer.
    """

    def __init__(self, *, tried: str, expected: str, happened: str, look: str) -> None:
        self.lines = {"Tried": tried, "Expected": expected, "Happened": happened, "Look at": look}
        super().__init__(happened)


class _TooLong(BaseException):
    """Raised inside code that runs for too long; no Exception, so that nobody catches it idly."""


@dataclass
class _Bounds:
    """What the worker is at, and until when it may be."""

    tried: str = "run your code"
    until: float = 0.0
    loop: asyncio.AbstractEventLoop | None = None


_bounds = threading.local()


def expect(condition: object, *, tried: str, expected: str, happened: str, look: str) -> None:
    """Raise `Wrong` with these sentences unless the condition holds."""
    if not condition:
        raise Wrong(tried=tried, expected=expected, happened=happened, look=look)


def expect_written(answer: object, *, tried: str, expected: str) -> None:
    """Raise `Wrong` if the stub's ``...`` still stands there."""
    expect(
        answer is not ... and answer is not None,
        tried=tried,
        expected=expected,
        happened="there is nothing to check yet",
        look=WRITE_IT,
    )


def expect_number(answer: object, *, name: str) -> None:
    """Raise `Wrong` if a learner's own number at that name is not written yet, or is none."""
    tried = f"look at {name}"
    expect_written(answer, tried=tried, expected="your own number in place of `...`")
    expect(
        is_number(answer),
        tried=tried,
        expected="a number, without its unit",
        happened=f"it is {answer!r}",
        look="what the task asks for at that name",
    )


def expect_callable(answer: object, *, tried: str) -> None:
    """Raise `Wrong` if it is no function and no class, but perhaps what one of them gives."""
    expect(
        callable(answer),
        tried=tried,
        expected="the function or the class itself, handed to check without calling it",
        happened=f"check got a value of type {type(answer).__name__}",
        look="the cell of the check: only the name stands there, with no parentheses behind it",
    )


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number of whatever kind; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Outcome:
    """What came of one call: a value, or an exception."""

    value: Any = None
    error: BaseException | None = None

    @property
    def told(self) -> str:
        """It in a few words, for a sentence: "gave 3", "raised ValueError: no"."""
        if self.error is None:
            return f"gave {_short(repr(self.value))}"
        text = f"raised {type(self.error).__name__}"
        return f"{text}: {_short(str(self.error))}" if str(self.error) else text


def attempt(
    function: Callable[..., Any],
    *args: Any,
    tried: str,
    seconds: float = CALL_SECONDS,
    **kwargs: Any,
) -> Outcome:
    """Call a learner's function; what it returns to be awaited is awaited, on a loop of its own.

    Args:
        tried: What is tried, as in ``"call backoff(3)"``; told if it never comes back.
        seconds: How long it may take.

    Raises:
        Wrong: It did not come back in time, or nothing is written yet.
    """
    bounds = _bounds.current
    bounds.tried, bounds.until = tried, time.monotonic() + seconds
    expect_callable(function, tried=tried)
    try:
        value = function(*args, **kwargs)
        if inspect.isawaitable(value):
            value = asyncio.run(_within(value, seconds))
        return Outcome(value)
    except (Wrong, _TooLong):
        raise
    except _OutOfTime:
        raise _never_came_back(tried, seconds) from None
    except NotImplementedError:
        raise Wrong(
            tried=tried,
            expected="your own code in place of `raise NotImplementedError`",
            happened="there is nothing to try yet",
            look=WRITE_IT,
        ) from None
    except BaseException as error:  # noqa: BLE001 - an exit or a cancellation, too, came of it
        return Outcome(error=error)
    finally:
        bounds.until = time.monotonic() + OWN_SECONDS


class _OutOfTime(Exception):
    """What was awaited did not come in time."""


async def _within(awaitable: Awaitable[Any], seconds: float) -> Any:
    _bounds.current.loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds) as limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise _OutOfTime from None
        raise


def value_of(
    function: Callable[..., Any],
    *args: Any,
    tried: str,
    seconds: float = CALL_SECONDS,
    **kwargs: Any,
) -> Any:
    """What a learner's function gives, where an exception is none of the expected answers.

    Raises:
        Wrong: It raised, or did not come back in time.
    """
    outcome = attempt(function, *args, tried=tried, seconds=seconds, **kwargs)
    if outcome.error is not None:
        raise Wrong(
            tried=tried,
            expected="a value",
            happened=f"it {outcome.told}{_where(outcome.error)}",
            look="the line that raised; what did it get that it did not expect?",
        ) from outcome.error
    return outcome.value


def run_bounded(grading: Callable[[], None]) -> tuple[Wrong | None, str]:
    """Run a grading in a thread of its own: what was wrong, if anything, and what was printed.

    A loop without end is stopped from outside. Ctrl-C, the stop button, works meanwhile.
    """
    ended: list[Wrong | None] = []
    bounds = _Bounds(until=time.monotonic() + OWN_SECONDS)

    def work() -> None:
        _bounds.current = bounds
        try:
            grading()
            ended.append(None)
        except Wrong as wrong:
            ended.append(wrong)
        except _TooLong:
            ended.append(_never_came_back(bounds.tried, None))
        except Exception as error:  # noqa: BLE001 - an answer can be anything
            ended.append(_unusable(bounds.tried, error))

    worker = threading.Thread(target=work, name="check", daemon=True)
    with _kept_output(worker) as printed:
        worker.start()
        try:
            while worker.is_alive() and time.monotonic() < bounds.until + 0.5:
                worker.join(0.02)
        finally:
            _stop(worker, bounds)
    if not ended:
        ended.append(_stuck(bounds.tried))
    return ended[0], printed.getvalue()


def _stop(worker: threading.Thread, bounds: _Bounds) -> None:
    until = time.monotonic() + GRACE
    while worker.is_alive() and time.monotonic() < until:
        identity = ctypes.c_ulong(worker.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(_TooLong))
        if bounds.loop is not None and not bounds.loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it was closed just now
                bounds.loop.call_soon_threadsafe(lambda: None)  # a loop that sleeps hears nothing
        worker.join(0.1)


def _never_came_back(tried: str, seconds: float | None) -> Wrong:
    return Wrong(
        tried=tried,
        expected="an end" if seconds is None else f"an end within {seconds:g} s",
        happened="it was still running, and was stopped",
        look="what its loop waits for, and whether that can ever happen",
    )


def _unusable(tried: str, error: Exception) -> Wrong:
    return Wrong(
        tried=tried,
        expected="what the task names",
        happened=f"something of another kind: {type(error).__name__}: {_short(str(error))}",
        look="which types go in and come out; the stub's docstring says them",
    )


def _stuck(tried: str) -> Wrong:
    return Wrong(
        tried=tried,
        expected="an end",
        happened="it was still running and could not be stopped: it sleeps, or waits for a socket",
        look="a wait without a limit. Restart the kernel before you go on",
    )


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    line = next(
        (
            frame.line
            for frame in reversed(frames)
            if "ipython-input" in frame.filename or "ipykernel" in frame.filename
        ),
        None,
    )
    return f', in the line "{line}"' if line else ""


def _short(text: str, most: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


class _Kept(io.StringIO):
    """A stream that keeps the beginning of what one thread writes, and hands on what others do."""

    def __init__(self, thread: threading.Thread, other: TextIO) -> None:
        super().__init__()
        self._thread, self.other = thread, other

    def write(self, text: str) -> int:
        if threading.current_thread() is not self._thread:
            return self.other.write(text)
        super().write(text[: max(0, MOST_PRINTED - self.tell())])
        return len(text)


def show(text: str) -> None:
    """Print what belongs to the verdict, such as a score card: whole, and before it."""
    print(text, file=_screen())


def _screen() -> TextIO:
    out = sys.stdout
    return out.other if isinstance(out, _Kept) else out


@contextlib.contextmanager
def _kept_output(thread: threading.Thread) -> Iterator[io.StringIO]:
    kept = _Kept(thread, sys.stdout)
    with contextlib.redirect_stdout(kept):
        yield kept


@cache
def service() -> Service:
    """The real service that the graders try things on: one for all of a kernel's checks."""
    with contextlib.redirect_stdout(_screen()):  # it may say which model answers
        return Service().start()
