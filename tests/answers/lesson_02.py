"""Answers to the exercises of lesson 02: other right ones, and typical wrong ones."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

import foundry_lab as lab
from answers import Answers
from foundry_lab.clock import Clock

Ask = Callable[[], Awaitable[httpx.Response]]

# 02-1


def _chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


def _without_async(url: str, model: str, seconds: float) -> str:
    """Piece by piece, with a look at the clock after each."""
    until, found = time.monotonic() + seconds, "down"

    def read(method: str, path: str, body: Any = None) -> Any:
        left, whole = max(0.01, until - time.monotonic()), b""
        with httpx.stream(method, url + path, json=body, timeout=left) as answer:
            for piece in answer.raise_for_status().iter_raw():
                whole += piece
                if time.monotonic() > until:
                    raise TimeoutError
        return json.loads(whole)

    try:
        if isinstance(read("GET", "/models/loaded"), list):
            found = "degraded"
            read("POST", "/v1/chat/completions", _chat(model))
            found = "ok"
    except (httpx.HTTPError, TimeoutError, ValueError):
        pass
    return found


def _health(
    *,
    whole: Callable[[float], float | None] = lambda seconds: seconds,
    gap: Callable[[float], float | None] = lambda seconds: None,
    broken: type[Exception] = httpx.HTTPError,
) -> Any:
    """A correct `health`, but for what is changed."""

    async def health(url: str, model: str, seconds: float) -> str:
        found = "down"
        error: type[Exception] = httpx.HTTPError
        try:
            async with (
                asyncio.timeout(whole(seconds)),
                httpx.AsyncClient(base_url=url, timeout=gap(seconds)) as http,
            ):
                if isinstance((await http.get("/models/loaded")).json(), list):
                    found, error = "degraded", broken
                    chat = await http.post("/v1/chat/completions", json=_chat(model))
                    found = "ok" if chat.is_success else found
        except (TimeoutError, ValueError, error):
            pass
        return found

    return health


async def _by_client(url: str, model: str, seconds: float) -> str:
    async with lab.FoundryAPIClient(url) as client:
        try:
            found = await client.health_check(timeout=seconds)
            if found.status == "ok" and model not in found.loaded_models:
                return "degraded"
        except lab.FoundryLabError:
            return "down"
        return found.status


def _status_alone(url: str, model: str, seconds: float) -> str:
    try:
        answer = httpx.get(f"{url}/models/loaded", timeout=seconds)
    except httpx.HTTPError:
        return "down"
    return "ok" if answer.status_code in (200, 404) else "down"


def _any_json(url: str, model: str, seconds: float) -> str:
    try:
        httpx.get(f"{url}/models/loaded", timeout=seconds).raise_for_status().json()
        chat = httpx.post(f"{url}/v1/chat/completions", json=_chat(model), timeout=seconds)
        return "ok" if chat.is_success else "degraded"
    except (httpx.HTTPError, ValueError):
        return "down"


def _loaded_is_enough(url: str, model: str, seconds: float) -> str:
    try:
        names = httpx.get(f"{url}/models/loaded", timeout=seconds).json()
    except (httpx.HTTPError, ValueError):
        return "down"
    if not isinstance(names, list):
        return "down"
    return "ok" if model in names else "degraded"


def _known_is_enough(url: str, model: str, seconds: float) -> str:
    try:
        found = httpx.get(f"{url}/v1/models", timeout=seconds).json()
        known = [one["id"] for one in found["data"]]
    except (httpx.HTTPError, ValueError, KeyError):
        return "down"
    return "ok" if model in known else "degraded"


def _raises(url: str, model: str, seconds: float) -> str:
    return "ok" if httpx.get(f"{url}/models/loaded", timeout=seconds).is_success else "down"


def _any_failure_is_down(url: str, model: str, seconds: float) -> str:
    found = _without_async(url, model, seconds)
    return "ok" if found == "ok" else "down"


# 02-3


async def _by_recursion(ask: Ask, clock: Clock, seconds: float) -> bool:
    began, answer = clock.now(), await ask()
    message = answer.json().get("error", {}).get("message", "")
    if "session(s)" in message:
        if seconds < 0.5:
            return False
        await clock.sleep(0.5)
        return await _by_recursion(ask, clock, seconds - (clock.now() - began))
    if message:
        raise RuntimeError(message)
    return True


async def _growing(ask: Ask, clock: Clock, seconds: float) -> bool:
    until, pause = clock.now() + seconds, 0.1
    while True:
        answer = await ask()
        if answer.is_success:
            return True
        if "still using" not in answer.text:
            raise RuntimeError(answer.text)
        pause = min(2 * pause, 0.8, until - clock.now())
        if pause < 0.1:
            return False
        await clock.sleep(pause)


async def _raises_for_status(ask: Ask, clock: Clock, seconds: float) -> bool:
    until = clock.now() + seconds
    while "still using" in (answer := await ask()).text:
        if clock.now() + 0.3 > until:
            return False
        await clock.sleep(0.3)
    try:
        return answer.raise_for_status().is_success
    except httpx.HTTPStatusError as error:
        raise RuntimeError(error.response.text) from error


def _waiting(
    *,
    limit: Callable[[float], float] = lambda seconds: seconds,
    pause: float = 0.25,
    busy: Callable[[httpx.Response], bool] = lambda answer: "still using" in answer.text,
    done: tuple[str, ...] = ("unloaded", "not_loaded"),
    over: Callable[[float, float], bool] = lambda left, pause: left < pause,
    error: Callable[[httpx.Response], Exception] = lambda answer: RuntimeError(answer.text),
) -> Callable[[Ask, Clock, float], Awaitable[bool | None]]:
    async def unload(ask: Ask, clock: Clock, seconds: float) -> bool | None:
        until = clock.now() + limit(seconds)
        while True:
            answer = await ask()
            if answer.is_success and answer.json()["status"] in done:
                return True
            if not busy(answer):
                raise error(answer)
            if over(until - clock.now(), pause):
                return False
            if pause:
                await clock.sleep(pause)

    return unload


async def _prints(ask: Ask, clock: Clock, seconds: float) -> None:
    print((await ask()).json()["status"])


async def _once(ask: Ask, clock: Clock, seconds: float) -> bool:
    return (await ask()).is_success


async def _asked(ask: Ask, clock: Clock, seconds: float) -> bool:
    await ask()
    return True


# 02-4


def _scores(ringing: bool, recent: list[str]) -> bool:
    score = sum(weight for weight, one in zip((1,) * 6, recent[::-1], strict=False) if one != "ok")
    return score > 0 if ringing and len(recent) >= 6 else score >= 3


def _by_words(ringing: bool, recent: list[str]) -> bool:
    newest = "".join("o" if status == "ok" else "x" for status in recent)
    return not newest.endswith("oooo") if ringing else newest[-7:].count("x") > 2


def _k_of_n(
    count: int, of: int, *, quiet: int = 5, bad: tuple[str, ...] = ("degraded", "down")
) -> Callable[[bool, list[str]], bool]:
    def rule(ringing: bool, recent: list[str]) -> bool:
        if ringing:
            return any(status in bad for status in recent[-quiet:])
        return sum(status in bad for status in recent[-of:]) >= count

    return rule


def _same_kind(ringing: bool, recent: list[str]) -> bool:
    if ringing:
        return any(status != "ok" for status in recent[-5:])
    return (
        recent[-3:] in (["down"] * 3, ["degraded"] * 3)
        or sum(status == "down" for status in recent[-6:]) >= 4
    )


ANSWERS = {
    "02-1": Answers(
        right=[_without_async, _by_client, _health()],
        wrong={
            "404 means running": (_status_alone, "everything with a page"),
            "any JSON will do": (_any_json, "everything with JSON"),
            "loaded is enough": (_loaded_is_enough, "whose chats never end"),
            "known is enough": (_known_is_enough, "a model that is not loaded"),
            "raises": (_raises, "ConnectError"),
            "any failure is down": (_any_failure_is_down, "a model that nobody knows"),
            "always well": (lambda url, model, seconds: True, "it gave True"),
            "always 5 s": (_health(whole=lambda _: 5), "where does your deadline come from"),
            "always 2 s": (_health(whole=lambda _: 2), "a service whose chats take"),
            "a time for each gap": (
                _health(whole=lambda _: None, gap=lambda seconds: seconds),
                "a byte at a time",
            ),
            "a broken chat raises": (
                _health(broken=httpx.TimeoutException),
                "a service that breaks off each chat",
            ),
        },
    ),
    "02-2": Answers(
        right=[
            (
                ["qwen", ["qwen:3", "qwen_big:1"]],
                ["a:2", ("a:20", "a:2")],
                ["a", ["a:100", "a:99"]],
            ),
            [("b", ["bc:1"]), ("b:1", ["b:11"]), ("b", ["b:2", "b:11"])],
            [("b", ["b:9", "b:10", "bc:1"]), ("b:1", ["b:10"]), ("b", ["b:9", "b:10"])],
        ],
        wrong={
            "two cases": ([("lab", ["labs:1"]), ("lab:1", ["lab:12"])], "a list of three pairs"),
            "an example that works": (
                [("lab", ["lab:1", "lab:2"]), ("lab:1", ["lab:12"]), ("b", ["b:9", "b:10"])],
                "it gives lab:2, and that is right",
            ),
            "a begin that is sorted away": (
                [("lab", ["lab:1", "lab-big:1"]), ("lab:1", ["lab:12"]), ("b", ["b:9", "b:10"])],
                "it gives lab:1, and that is right",
            ),
            "one bug three times": (
                [("lab", ["labs:1"]), ("lab", ["lab-big:1"]), ("a", ["ab:1"])],
                "you find 1 of them",
            ),
            "names only": (
                [("lab", ["labs:1"]), ("b", ["b:9", "b:10"]), ("a", ["ab:1"])],
                "what is wrong with a full id",
            ),
            "an id twice": ([("a", ["a:1", "a:1"])] * 3, "a list of different ids"),
        },
    ),
    "02-3": Answers(
        right=[_by_recursion, _growing, _raises_for_status],
        wrong={
            "prints": (_prints, "it gave None"),
            "asks once": (_once, "busy for 3 s"),
            "to ask is enough": (_asked, "when it was still busy"),
            "always 10 s": (_waiting(limit=lambda _: 10), "in the last second of the 4"),
            "another exception": (
                _waiting(error=lambda answer: ValueError(answer.text)),
                "raised ValueError",
            ),
            "no pause": (_waiting(pause=0), "asked five times, and no time passed"),
            "a storm": (_waiting(pause=0.01), "they are 0.01 to"),
            "sleeps long": (_waiting(pause=2), "they are 2.00 to 2.00 s"),
            "not_loaded is an error": (_waiting(done=("unloaded",)), "'not_loaded' at once"),
            "no end": (_waiting(over=lambda left, pause: False), "it still asked after 15 s"),
            "ends late": (_waiting(pause=0.7, over=lambda left, _: left < 0), "it came at 10.5 s"),
            "gives up early": (
                _waiting(over=lambda left, _: left < 5),
                "it came at 5.25 s",
            ),
            "every 500 is busy": (_waiting(busy=lambda answer: answer.status_code == 500), "Disk"),
            "any error is busy": (_waiting(busy=lambda answer: answer.is_error), "says 404"),
            "says nothing": (
                _waiting(error=lambda answer: RuntimeError("failed")),
                "RuntimeError: failed",
            ),
        },
    ),
    "02-4": Answers(
        right=[_by_words, _k_of_n(3, 6), _k_of_n(3, 5, quiet=3), _scores],
        wrong={
            "each change": (
                lambda ringing, recent: recent[-1] != "ok",
                "how many bad checks a hiccup may have",
            ),
            "three in a row": (_k_of_n(3, 3), "every second check fails"),
            "half of ten": (_k_of_n(5, 10), "it began at check 17"),
            "no hysteresis": (
                lambda ringing, recent: sum(status != "ok" for status in recent[-5:]) >= 3,
                "10 alarms",
            ),
            "only down counts": (_k_of_n(3, 5, bad=("down",)), "a model that was unloaded"),
            "three of one kind": (_same_kind, "down and degraded in turn"),
            "ends too late": (_k_of_n(3, 5, quiet=9), "it still rang at check"),
            "rings twice": (_k_of_n(3, 5, quiet=2), "an outage with a bumpy end"),
            "says nothing": (lambda ringing, recent: None, "check 1 gave None"),
        },
    ),
}
