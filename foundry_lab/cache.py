"""Cache: the same question, the same answer, once.

Only a deterministic request may be cached: temperature 0, or a seed. The key is the model's id and
the request in one canonical form; the store is SQLite, in memory or in a file that survives a kill.
"""

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foundry_lab.chat import Completion
from foundry_lab.errors import DeadlineExceeded, InvalidRequest

__all__ = ["Cache", "cache_key"]

STORE = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;  -- a power cut may cost the last answers
CREATE TABLE IF NOT EXISTS answers
    (key TEXT PRIMARY KEY, body TEXT, stored REAL, used REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_stored ON answers (stored);
CREATE INDEX IF NOT EXISTS by_used ON answers (used);
PRAGMA busy_timeout = 100;  -- ms, from now on: the event loop waits with it
"""


def cache_key(body: dict[str, Any]) -> str | None:
    """Name a request: those with one answer have one name. None if it must not be cached.

    Args:
        body: The JSON that goes to the service, with the model's id.
    """
    if body.get("temperature") != 0 and "seed" not in body:
        return None
    canonical = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """Keeps completions.

    A file that is locked, full or damaged costs no answer: it is asked for, and not kept.

    Args:
        path: A file to keep them in; None keeps them in memory only.
        max_entries: Most completions to keep; the one that was used longest ago goes first.
        max_age: Seconds after which an answer is asked for again.
        now: The wall clock, as ages must outlive the program.

    Raises:
        InvalidRequest: The file can't be used, or nothing could be kept.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        max_entries: int = 10_000,
        max_age: float = 7 * 86_400,
        now: Callable[[], float] = time.time,
    ) -> None:
        if max_entries < 1 or not max_age > 0:
            raise InvalidRequest(
                f"A cache of {max_entries} entries for {max_age} s keeps nothing.",
                fix="max_entries is 1 or more, max_age above 0.",
            )
        self.hits = self.misses = 0
        self._max_entries, self._max_age, self._now = max_entries, max_age, now
        self._under_way: dict[str, _Shared] = {}
        try:
            self._store = sqlite3.connect(path or ":memory:", isolation_level=None)
            self._store.executescript(STORE)
        except sqlite3.Error as error:
            raise InvalidRequest(
                f"{path} can't keep answers: {error}.", fix="Remove it, or name another file."
            ) from error

    def __len__(self) -> int:
        count: int = self._store.execute("SELECT count(*) FROM answers").fetchone()[0]
        return count

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def clear(self) -> None:
        """Forget everything."""
        self._store.execute("DELETE FROM answers")

    async def get_or_ask(
        self, key: str, ask: Callable[[], Awaitable[Completion]]
    ) -> tuple[Completion, bool]:
        """Return the answer, and whether it was there already.

        Callers that want the same answer at the same moment wait for one call. It goes on while
        any of them waits, and ends when the last has left. An error reaches all, and is not kept;
        but where the deadline of the one who asked was missed, one of the others asks anew.
        """
        if found := self._find(key):
            self.hits += 1
            return found, True
        while (shared := self._under_way.get(key)) and shared.goes_on:
            with suppress(DeadlineExceeded):
                completion = await shared.wait()
                self.hits += 1
                return completion, True
        self.misses += 1
        self._under_way[key] = shared = _Shared(self._ask(key, ask))
        shared.task.add_done_callback(partial(self._forget, key))
        return await shared.wait(), False

    async def _ask(self, key: str, ask: Callable[[], Awaitable[Completion]]) -> Completion:
        completion = await ask()
        self._keep(key, completion)
        return completion

    def _forget(self, key: str, task: asyncio.Task[Completion]) -> None:
        if (shared := self._under_way.get(key)) and shared.task is task:  # not a later call
            del self._under_way[key]

    def _find(self, key: str) -> Completion | None:
        now, found = self._now(), None
        with suppress(sqlite3.Error, ValidationError):
            row = self._store.execute(
                "SELECT body FROM answers WHERE key = ? AND stored > ?", (key, now - self._max_age)
            ).fetchone()
            if row:
                found = Completion.model_validate_json(row[0])
                self._store.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))
        return found

    def _keep(self, key: str, completion: Completion) -> None:
        now = self._now()
        with suppress(sqlite3.Error):
            self._store.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
                (key, completion.model_dump_json(), now, now),
            )
            self._store.execute("DELETE FROM answers WHERE stored <= ?", (now - self._max_age,))
            self._store.execute(
                "DELETE FROM answers WHERE key IN "
                "(SELECT key FROM answers ORDER BY used DESC LIMIT -1 OFFSET ?)",
                (self._max_entries,),
            )


class _Shared:
    """One call that several wait for; it is cancelled when nobody does any more."""

    def __init__(self, call: Coroutine[Any, Any, Completion]) -> None:
        self.task = asyncio.create_task(call)
        self._waiting = 0

    @property
    def goes_on(self) -> bool:
        return not (self.task.done() or self.task.cancelling())

    async def wait(self) -> Completion:
        self._waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.task.cancel()
