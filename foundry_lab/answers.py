"""An HTTP answer: read it, but not without end; parse it, or raise the error that fits."""

import json
import re
from textwrap import shorten
from typing import TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from foundry_lab.errors import (
    ContextTooLong,
    InvalidResponse,
    ModelBusy,
    ModelNotFound,
    ModelNotLoaded,
    StatusError,
)

__all__ = ["MAX_BODY", "Listing", "Status", "beginning", "parse", "read", "status_error"]

MAX_BODY = 16_000_000
"""Bytes of an answer that are read at most: a server must not be able to fill our memory."""

MAX_SAID = 2_000
"""Characters of an error's message that are looked at."""

T = TypeVar("T")


class ListedModel(BaseModel):
    """One entry of ``GET /v1/models``."""

    id: str


class Listing(BaseModel):
    """The answer to ``GET /v1/models``."""

    data: list[ListedModel]


class Status(BaseModel):
    """What we use of the answer to ``GET /status``."""

    pid: int


async def read(response: httpx.Response) -> str:
    """Read the body as text.

    Raises:
        InvalidResponse: It is longer than `MAX_BODY`, or packed: a few bytes can unpack to more
            than there is memory, and nobody asked for that.
    """
    packing = response.headers.get("content-encoding", "identity")
    if packing != "identity":
        raise InvalidResponse(
            f"The answer, of status {response.status_code}, is packed as {packing!r}.",
            fix="Let the gateway in between honour the header Accept-Encoding: identity.",
        )
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_BODY:
            raise InvalidResponse(
                f"The answer is longer than {MAX_BODY:,} bytes.",
                fix="Check that the endpoint is a Foundry Local service.",
            )
    return body.decode("utf-8", errors="replace")


def parse(kind: type[T], text: str) -> T:
    """Parse JSON that must be of one kind: `Listing`, `Status` or ``list[str]``.

    Raises:
        InvalidResponse: It is not.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError:
        raise InvalidResponse(
            "The answer is not the JSON that Foundry Local gives; it begins with "
            f"{beginning(text)!r}.",
            fix="Check that the endpoint is a Foundry Local service and not a web page.",
        ) from None  # a traceback prints its cause, and what is in that


def beginning(text: str, characters: int = 80) -> str:
    """Cut a text between two words: half a key is no key to remove."""
    return shorten(text[:1000], characters, placeholder=" …")


def status_error(status: int, text: str) -> StatusError:
    """Turn an answer with an error status into the typed error that says what to do.

    Args:
        status: The HTTP status code; 200 for an error that an event of a stream reports.
        text: The body: Foundry Local's JSON, its plain text, or a gateway's page.
    """
    try:
        said = str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        said = beginning(text, 200) or "(nothing)"
    if len(said) > MAX_SAID:  # the pattern takes quadratic time
        said = said[:MAX_SAID].rpartition(" ")[0]
    said = re.sub(r"\b\w+\.cc:\d+ [^)]*\) ", "", said)  # where in the C++ it was said
    for sign, kind, fix in _SIGNS:
        if sign in said:
            model = re.search("'(.+?)'", said)
            return kind(said, fix=fix.format(model=model[1] if model else "…"), status=status)
    when = (
        "reported an error after status 200" if status == 200 else f"answered with status {status}"
    )
    return StatusError(
        f"The service {when}: {said}",
        fix="4xx: mend the request. 5xx: look at the service's log, and try again later.",
        status=status,
    )


_SIGNS: tuple[tuple[str, type[StatusError], str], ...] = (
    ("Model not found", ModelNotFound, "See await client.models() for the names."),
    ("must be loaded", ModelNotLoaded, "Load it first: await client.load('{model}')."),
    ("maximum context length", ContextTooLong, "Shorten the prompt or lower max_tokens."),
    ("still using it", ModelBusy, "Wait for the running generation to end, then try again."),
)
"""What the service's message contains → the error it means, and what to do."""
