"""The chat playground: send a prompt, watch its answer grow, stop it, and see how fast it came.

::

    panel = ChatPlayground(client)
    panel                  # in a cell: type, Tab to Send, press Enter
    await panel.ask()      # what Send does
    print(panel.text)      # what the panel shows, where no widget is drawn
"""

import asyncio
import statistics
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from textwrap import fill, indent
from typing import Any

import ipywidgets

from foundry_lab.client import FoundryAPIClient
from foundry_lab.errors import FoundryLabError
from foundry_lab.figures import number
from foundry_lab.lesson import WIDTH, aligned
from foundry_lab.widgets.parts import NAMED, WIDE, button, preformatted, table

__all__ = ["ChatPlayground", "Turn"]

REFRESH = 0.1
"""Seconds between two looks at an answer that grows: a browser need not draw every piece."""

HEADER = ("turn", "ended", "TTFT ms", "tokens", "gaps: median ms", "gaps: worst ms")
UNKNOWN = "-"
MARGIN = 7
"""Characters of the margin of `ChatPlayground.text`, which says who speaks."""


@dataclass
class Turn:
    """A prompt and what became of it."""

    prompt: str
    answer: str = ""
    ended: str = "running"
    """``whole``, ``length`` when it ran into max_tokens, ``stopped``, or the name of an error."""
    error: str = ""
    """What happened and what to do, in sentences."""
    times: list[float] = field(default_factory=list)
    """When each piece of text came, in seconds since the request."""
    tokens: int | None = None
    """Tokens of the answer as the service counts them; None until it is over."""

    @property
    def figures(self) -> tuple[str, ...]:
        """How it ended, TTFT, tokens, and the gaps between pieces: the cells of its table row."""
        gaps = [1000 * (later - earlier) for earlier, later in pairwise(self.times)]
        ttft = number(1000 * self.times[0]) if self.times else UNKNOWN
        spread = (number(statistics.median(gaps)), number(max(gaps))) if gaps else (UNKNOWN,) * 2
        tokens = UNKNOWN if self.tokens is None else str(self.tokens)
        return (self.ended, ttft, tokens, *spread)


class ChatPlayground:
    """A panel: a conversation, two parameters, and the figures of each turn.

    The answer streams on the notebook's own event loop, and *Stop* closes its stream, which frees
    the service. All answers that came to their end are sent along with the next prompt, until
    *Clear*; one that was stopped or broke off is shown, and not sent.

    Args:
        client: Who is asked.
        prompt: What stands in the box at first.
    """

    def __init__(self, client: FoundryAPIClient, prompt: str = "What is jitter?") -> None:
        self.client = client
        self.turns: list[Turn] = []
        self.task: asyncio.Task[None] | None = None
        """What Send started last."""
        wide: Any = {"layout": WIDE, "style": NAMED}
        self.prompt = ipywidgets.Text(prompt, description="prompt", **wide)
        self.temperature = ipywidgets.FloatSlider(0, max=2, description="temperature", **wide)
        self.max_tokens = ipywidgets.IntSlider(100, 1, 1000, description="max_tokens", **wide)
        self.send = button("Send", self._start)
        self.stop = button("Stop", lambda: self.task and self.task.cancel())
        self.clear = button("Clear", self.forget)
        self.view = ipywidgets.HTML()
        """The conversation and the table of its figures."""
        buttons = ipywidgets.HBox([self.send, self.stop, self.clear])
        parameters = [self.temperature, self.max_tokens]
        self.panel = ipywidgets.VBox([self.prompt, *parameters, buttons, self.view])
        self._show()

    @property
    def messages(self) -> list[dict[str, str]]:
        """What is sent along with the next prompt."""
        return [
            {"role": role, "content": content}
            for turn in self.turns
            if turn.ended in ("whole", "length") and turn.answer
            for role, content in (("user", turn.prompt), ("assistant", turn.answer))
        ]

    async def ask(self) -> None:
        """Send the prompt and show what comes, an error too. Cancel it to stop the answer."""
        turn, before = Turn(self.prompt.value), self.messages
        self.turns.append(turn)
        self._show()
        try:
            await self._receive(turn, [*before, {"role": "user", "content": turn.prompt}])
        except FoundryLabError as error:
            turn.ended, turn.error = type(error).__name__, str(error)
        except asyncio.CancelledError:
            turn.ended = "stopped"
            raise
        except Exception as error:
            turn.ended, turn.error = type(error).__name__, str(error)
            raise
        finally:
            self._show()

    def forget(self) -> None:
        """Stop what is under way, and begin a new conversation."""
        if self.task:
            self.task.cancel()
        self.turns = []
        self._show()

    @property
    def text(self) -> str:
        """The conversation, and the figures of its turns."""
        if not self.turns:
            return "nothing said yet"
        return f"{self._transcript()}\n\n{aligned(HEADER, self._rows())}"

    async def _receive(self, turn: Turn, messages: list[dict[str, str]]) -> None:
        began = shown = time.perf_counter()
        limits = {"temperature": self.temperature.value, "max_tokens": self.max_tokens.value}
        reason = None
        async with aclosing(self.client.stream_complete(messages=messages, **limits)) as chunks:
            async for chunk in chunks:
                now = time.perf_counter()
                if chunk.content:
                    turn.times.append(now - began)
                    turn.answer += chunk.content
                if chunk.usage:
                    turn.tokens = chunk.usage.completion_tokens
                reason = chunk.finish_reason or reason
                if now - shown > REFRESH:
                    self._show()
                    shown = now
        turn.ended = "whole" if reason == "stop" else str(reason)

    def _start(self) -> None:
        # Not disabled meanwhile: a button that is loses the keyboard's focus.
        if self.task is None or self.task.done():
            self.task = asyncio.ensure_future(self.ask())

    def _transcript(self) -> str:
        lines = []
        for turn in self.turns:
            lines += [_said("you", turn.prompt), _said("model", turn.answer)]
            if turn.error:
                lines.append(_said("error", turn.error))
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, ...]]:
        return [(str(number), *turn.figures) for number, turn in enumerate(self.turns, 1)]

    def _show(self) -> None:
        if self.turns:
            self.view.value = preformatted(self._transcript()) + table(HEADER, self._rows())
        else:
            self.view.value = preformatted(self.text)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = self.panel._repr_mimebundle_()
        return bundle | {"text/plain": self.text}


def _said(who: str, words: str) -> str:
    lines = "\n".join(fill(line, WIDTH - MARGIN) for line in words.splitlines())
    return f"{who:{MARGIN}}{indent(lines, ' ' * MARGIN)[MARGIN:]}".rstrip()
