"""Failures of a call: from what httpx raised to the typed error that says what to do.

Error statuses are the other half of it, in `foundry_lab.answers.status_error`.
"""

import httpx

from foundry_lab.answers import beginning
from foundry_lab.errors import (
    CallError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidResponse,
    ServiceUnreachable,
    StreamInterrupted,
    TokenTimeout,
)

__all__ = ["call_error", "no_stream"]


def call_error(
    error: httpx.RequestError | CallError, request: httpx.Request, seen: str
) -> CallError:
    """Find the error to raise, and tell it the attempts and the text that came before it.

    Args:
        error: What was raised; it is returned itself if it says all.
        request: The request that failed, as the layers left it.
        seen: The text that was handed over before.
    """
    if seen and not isinstance(error, DeadlineExceeded) and not _has_text(error):
        found: CallError = StreamInterrupted(
            f"The answer broke off after {len(seen)} characters: {_first_line(error)}",
            fix="The text so far is in .content. Ask again if you need the whole.",
        )
    else:
        found = error if isinstance(error, CallError) else _typed(error, request)
    found.content = seen or request.extensions.get("content", "")
    found.attempts = request.extensions.get("attempts", 1)
    return found


def no_stream(text: str) -> InvalidResponse:
    """Make the error that says that an answer, which begins with `text`, is no stream."""
    return InvalidResponse(
        f"The answer is not a stream of events; it begins with {beginning(text)!r}.",
        fix="Check that FOUNDRY_ENDPOINT is a Foundry Local service and not a web page.",
    )


def _has_text(error: Exception) -> bool:
    """Whether it is about an answer that came to its end: it has all the text already."""
    return isinstance(error, CallError) and bool(error.content)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _typed(error: httpx.RequestError, request: httpx.Request) -> CallError:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServiceUnreachable(
            f"Nobody answers at {request.url.copy_with(raw_path=b'/')}: {error}",
            fix="Start the service: service.restart(), or `python -m foundry_lab serve`.",
        )
    if isinstance(error, httpx.TimeoutException):
        return TokenTimeout(
            f"The service is connected but silent: {error}.",
            fix="See whether it is busy: await client.health_check(). Or wait longer.",
        )
    return ConnectionLost(
        f"The connection broke before the answer was whole: {error}",
        fix="See whether the service still runs: await client.health_check().",
    )
