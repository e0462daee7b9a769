"""Answers to the exercises of lesson 01: other right ones, and typical wrong ones."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import httpx

from answers import Answers

CHAT = "/v1/chat/completions"

# 01-1


def _body(model: str, prompt: str, most: Any, **how: Any) -> str:
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": most}, **how)


def _by_httpx(host: str, path: str, model: str, prompt: str, most: int) -> bytes:
    request = httpx.Request(
        "POST",
        f"http://{host}{path}",
        content=_body(model, prompt, most, ensure_ascii=False).encode(),
    )
    lines = [b"%b: %b" % pair for pair in request.headers.raw]
    return b"\r\n".join([b"POST %b HTTP/1.1" % request.url.raw_path, *lines, b"", request.content])


def _written(
    host: str, path: str, body: str, *, end: str = "\r\n", length: int | None = None, more: str = ""
) -> bytes:
    size = len(body.encode()) if length is None else length
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {size}"]
    return (end.join([*lines, *([more] if more else []), "", ""]) + body).encode()


def _counts_text(host: str, path: str, model: str, prompt: str, most: int) -> bytes:
    body = _body(model, prompt, most, ensure_ascii=False)
    return _written(host, path, body, length=len(body))


def _by_format(host: str, path: str, model: str, prompt: str, most: int) -> bytes:
    messages = '[{"role": "user", "content": "%s"}]' % prompt  # noqa: UP031 - it is the mistake
    return _written(
        host, path, f'{{"model": "{model}", "max_tokens": {most}, "messages": {messages}}}'
    )


def _drops_letters(host: str, path: str, model: str, prompt: str, most: int) -> bytes:
    return _written(host, path, _body(model, prompt.encode("ascii", "ignore").decode(), most))


# 01-3


def _by_url(endpoint: str) -> str:
    url = httpx.URL(endpoint.strip())
    if not url.is_absolute_url or url.scheme not in ("http", "https"):
        raise ValueError(f"no address: {endpoint}")
    parts = [part for part in url.path.split("/") if part]
    for tail in (["v1", "chat", "completions"], ["v1"]):
        if parts[-len(tail) :] == tail:
            del parts[-len(tail) :]
    return str(url.copy_with(path="/".join(["", *parts, *CHAT.split("/")[1:]])))


def _checked(join: Callable[[str], str], begin: str = "https?://") -> Callable[[str], str]:
    def chat_url(endpoint: str) -> str:
        if not re.match(begin, endpoint.strip()):
            raise ValueError(endpoint)
        return join(endpoint)

    return chat_url


def _resolved(endpoint: str) -> str:
    return str(httpx.URL(endpoint.strip()).join(CHAT))


def _cut(endpoint: str) -> str:
    return re.sub(r"(/v1|/v1/chat/completions)?/*$", "", endpoint.strip()) + CHAT


def _no_slash_behind(endpoint: str) -> str:
    endpoint = endpoint.strip()
    return endpoint if endpoint.endswith(CHAT) else endpoint.rstrip("/").removesuffix("/v1") + CHAT


# 01-4


def _by_match(answer: httpx.Response) -> str:
    text = answer.text
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    match answer.status_code // 100, found:
        case 5, _:
            return "theirs"
        case 2, {"choices": [_, *_]}:
            return "ok"
        case 4, {"error": _}:
            return "mine"
        case 4, None if text.startswith("server=oatpp"):
            return "mine"
    return "not this API"


def _by_raising(answer: httpx.Response) -> str:
    try:
        return "ok" if answer.raise_for_status().json()["choices"] else "not this API"
    except httpx.HTTPStatusError as error:
        return _by_match(error.response)
    except (ValueError, LookupError, TypeError):
        return "not this API"


def _whose(
    *,
    ok: Callable[[Any], bool] = lambda body: bool(body.get("choices")),
    mine: Callable[[Any], bool] = lambda body: isinstance(body, dict) and "error" in body,
    catch: type[Exception] = ValueError,
) -> Callable[[httpx.Response], str]:
    """A correct `whose`, but for what is changed."""

    def whose(answer: httpx.Response) -> str:
        try:
            body = answer.json()
        except catch:
            body = None
        if answer.is_success and isinstance(body, dict) and ok(body):
            return "ok"
        if answer.is_client_error and (answer.text.startswith("server=oatpp") or mine(body)):
            return "mine"
        return "theirs" if answer.is_server_error else "not this API"

    return whose


def _by_status(answer: httpx.Response) -> str:
    return {2: "ok", 4: "mine", 5: "theirs"}.get(answer.status_code // 100, "not this API")


def _by_type(answer: httpx.Response) -> str:
    if "application/json" not in answer.headers.get("content-type", ""):
        return "not this API"
    return _by_status(answer)


def _parses_first(answer: httpx.Response) -> str:
    found = answer.json()
    return "ok" if "choices" in found else _by_status(answer)


def _exact_type(answer: httpx.Response) -> str:
    if answer.is_success and answer.headers.get("content-type") != "application/json":
        return "not this API"
    return _by_match(answer)


def _fourohfour(answer: httpx.Response) -> str:
    return "mine" if answer.status_code == 404 else _by_match(answer)


# 01-5


def _text(answer: httpx.Response) -> str:
    text: str = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    return text


def _piece_by_piece(url: str, body: dict[str, Any], seconds: float) -> str:
    until = time.monotonic() + seconds
    try:
        with httpx.stream("POST", url, json=body, timeout=seconds) as answer:
            pieces = []
            for piece in answer.iter_raw():
                pieces.append(piece)
                if time.monotonic() > until:
                    raise TimeoutError
            answer.raise_for_status()
            whole = json.loads(b"".join(pieces))
    except httpx.TimeoutException as late:
        raise TimeoutError from late
    return str(whole["choices"][0]["message"]["content"])


async def _waited_for(url: str, body: dict[str, Any], seconds: float) -> str:
    async with httpx.AsyncClient(timeout=None) as client:  # noqa: S113 - bounded as a whole
        return _text(await asyncio.wait_for(client.post(url, json=body), seconds))


def _bounded(limit: Callable[[float], float]) -> Any:
    async def ask(url: str, body: dict[str, Any], seconds: float) -> str:
        async with (
            asyncio.timeout(limit(seconds)),
            httpx.AsyncClient(timeout=None) as client,  # noqa: S113 - bounded as a whole
        ):
            return _text(await client.post(url, json=body))

    return ask


def _read_timeout(url: str, body: dict[str, Any], seconds: float) -> str:
    patience = max(60, seconds)  # on a busy machine a gap would be taken for a deadline
    try:
        return _text(httpx.post(url, json=body, timeout=patience))
    except httpx.TimeoutException as late:
        raise TimeoutError from late


def _httpx_error(url: str, body: dict[str, Any], seconds: float) -> str:
    try:
        return _piece_by_piece(url, body, seconds)
    except TimeoutError as late:
        raise httpx.ReadTimeout("timed out") from late


def _every_error(url: str, body: dict[str, Any], seconds: float) -> str:
    try:
        return _piece_by_piece(url, body, seconds)
    except Exception as error:
        raise TimeoutError from error


def _in_a_thread(url: str, body: dict[str, Any], seconds: float) -> str:
    found: Future[str] = Future()

    def work() -> None:
        try:
            found.set_result(_text(httpx.post(url, json=body, timeout=60)))
        except Exception as error:  # noqa: BLE001 - handed over
            found.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return found.result(seconds)


async def _whole_dict(url: str, body: dict[str, Any], seconds: float) -> Any:
    async with asyncio.timeout(seconds), httpx.AsyncClient() as client:
        return (await client.post(url, json=body)).json()


ANSWERS = {
    "01-1": Answers(
        right=[_by_httpx],
        wrong={
            "text instead of bytes": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, n)).decode(),
                "a value of type str",
            ),
            "line feeds alone": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, n), end="\n"),
                "a line feed alone",
            ),
            "no version": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, n)).replace(b" HTTP/1.1", b""),
                "it is 'POST",
            ),
            "no Host": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, n)).replace(b"Host", b"From"),
                "there is no Host",
            ),
            "no Content-Length": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, n)).replace(b"-Length", b"-Size"),
                "Content-Length says nothing",
            ),
            "characters counted": (_counts_text, "text and bytes are not the same length"),
            "JSON by format": (_by_format, "Invalid JSON"),
            "a limit in quotes": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, str(n))),
                "tokens of answer",
            ),
            "always 3 tokens": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, 3)),
                "there were 3",
            ),
            "always 1 token": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, 1)),
                "it asks for 1",
            ),
            "closes each time": (
                lambda h, p, m, q, n: _written(h, p, _body(m, q, n), more="Connection: close"),
                "the connection ended",
            ),
            "letters dropped": (_drops_letters, "the service was asked"),
        },
    ),
    "01-2": Answers(
        right=[(400, 200, 404, 404, 400, 200)],
        wrong={
            "five": ([400, 200, 404, 404, 400], "one guess for each line"),
            "lenient JSON": ([200, 200, 404, 404, 400, 200], "number 1"),
            "strict about types": ([400, 415, 404, 404, 400, 200], "number 2"),
            "by the book": ([400, 200, 405, 404, 400, 200], "5 of 6 are right"),
            "alias everywhere": ([400, 200, 404, 200, 400, 200], "number 4"),
            "all is ignored": ([400, 200, 404, 404, 200, 200], "number 5"),
            "all is checked": ([400, 200, 404, 404, 400, 400], "number 6"),
        },
    ),
    "01-3": Answers(
        right=[_by_url],
        wrong={
            "appended": (_checked(lambda e: e + CHAT), "http://127.0.0.1:5111//v1/chat"),
            "doubled": (_checked(lambda e: e.rstrip("/") + CHAT), "5111/v1/v1/chat"),
            "characters stripped": (_checked(lambda e: e.rstrip("/v1") + CHAT), "127.0.0.1:5/v1"),
            "resolved": (
                _checked(_resolved),
                "call chat_url('http://127.0.0.1:5111/catalogs/local')",
            ),
            "replaced everywhere": (
                _checked(
                    lambda e: e.strip().replace(CHAT, "").replace("/v1", "").rstrip("/") + CHAT
                ),
                "https://gate.example/team/v1/chat",
            ),
            "no slash behind": (_checked(_no_slash_behind), f"5111{CHAT}/ ')"),
            "no check": (_cut, "a ValueError whose text"),
            "http and no more": (_checked(_cut, "http"), "chat_url('httpbin.example/v1')"),
            "any scheme": (_checked(_cut, r"\w+://"), "chat_url('ftp://127.0.0.1/v1')"),
        },
    ),
    "01-4": Answers(
        right=[_by_match, _by_raising, _whose()],
        wrong={
            "by status": (_by_status, "a log-in page"),
            "by type": (_by_type, "a gateway's 502, a web page"),
            "parses first": (_parses_first, "JSONDecodeError"),
            "exact type": (_exact_type, "its type with a charset"),
            "every 404 is mine": (_fourohfour, "another web server's 404 page"),
            "the key is enough": (
                _whose(ok=lambda body: "choices" in body),
                "choices are an empty list",
            ),
            "any JSON is mine": (_whose(mine=lambda body: body is not None), "'Not Found'"),
            "all JSON has keys": (
                _whose(mine=lambda body: body is not None and "error" in body),
                "whose JSON is a number",
            ),
            "UTF-8 everywhere": (_whose(catch=json.JSONDecodeError), "UnicodeDecodeError"),
        },
    ),
    "01-5": Answers(
        right=[_piece_by_piece, _waited_for],
        wrong={
            "a read timeout": (_read_timeout, "it gave 'Jitter"),
            "httpx's own error": (_httpx_error, "ReadTimeout"),
            "everything is a timeout": (_every_error, "and no TimeoutError"),
            "in a thread": (_in_a_thread, "somebody read them to the end"),
            "the whole answer": (_whole_dict, "the text of its answer"),
            "1 s, for whatever is short": (
                _bounded(lambda seconds: seconds if seconds > 10 else 1),
                "where does your deadline come from",
            ),
            "a tenth of its time": (_bounded(lambda s: s / 10), "as many seconds as it was given"),
        },
    ),
}
