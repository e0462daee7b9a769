"""The token timeline panel: ask a question, and see when each piece of its answer came.

The answer is streamed on the notebook's own event loop, so the notebook goes on working meanwhile.
"""

import asyncio
import statistics
import time
from contextlib import aclosing
from html import escape
from itertools import pairwise
from textwrap import shorten
from typing import Any

import ipywidgets

from foundry_lab.client import FoundryAPIClient
from foundry_lab.errors import FoundryLabError
from foundry_lab.plots import Plot, token_timeline
from foundry_lab.widgets.parts import WIDE, button, picture

__all__ = ["TimelinePanel"]

REFRESH = 0.1
"""Seconds between two looks at the text while it comes: a browser need not draw every piece."""


class TimelinePanel:
    """A panel: a prompt, the most tokens of its answer, and when each piece of text came.

    Clicking the button and ``await panel.run()`` do the same. Where no widget can be drawn,
    `summary` and `plot` hold the result.

    Args:
        client: Who is asked.
        prompt: What stands in the box at first.
    """

    def __init__(self, client: FoundryAPIClient, prompt: str = "What is jitter?") -> None:
        self.client = client
        self.prompt = ipywidgets.Text(prompt, description="prompt", layout=WIDE)
        self.max_tokens = ipywidgets.IntSlider(60, 1, 1500, description="max_tokens", layout=WIDE)
        self.start = button("Run", self._start)
        self.stop = button("Stop", lambda: self.task and self.task.cancel())
        self.view = ipywidgets.HTML()
        """The summary, the text and the figure."""
        self.task: asyncio.Task[None] | None = None
        """What the button started last."""
        self.times: list[float] = []
        """When each piece of text came, in seconds since the request."""
        self.text = ""
        self.tokens: int | None = None
        """Tokens of the answer as the service counts them; None until it is whole."""
        self.plot: Plot | None = None
        """The timeline; None until two pieces have come."""
        self._state = "not run yet"
        buttons = ipywidgets.HBox([self.start, self.stop])
        self.panel = ipywidgets.VBox([self.prompt, self.max_tokens, buttons, self.view])
        self._show()

    async def run(self) -> None:
        """Ask, and show what comes, an error of the call too. Cancel it to stop the answer."""
        self.times, self.text, self.tokens, self.plot = [], "", None, None
        self._state, prompt = "running", self.prompt.value
        try:
            await self._ask(prompt)
            self._state = "whole"
        except FoundryLabError as error:
            self._state = f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            self._state = "stopped"
            raise
        except Exception as error:
            self._state = f"{type(error).__name__}: {error}"
            raise
        finally:
            if len(self.times) > 1:
                title = f"The answer to {shorten(prompt, 100)!r}"
                self.plot = token_timeline(self.times, title=title)
            self._show()

    async def _ask(self, prompt: str) -> None:
        began = shown = time.perf_counter()
        answer = self.client.stream_complete(prompt, max_tokens=self.max_tokens.value)
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                now = time.perf_counter()
                if chunk.content:
                    self.times.append(now - began)
                    self.text += chunk.content
                if chunk.usage:
                    self.tokens = chunk.usage.completion_tokens
                if now - shown > REFRESH:
                    self._show()
                    shown = now

    @property
    def summary(self) -> str:
        """How the stream ended, how many pieces came and when, in three lines at most."""
        lines = [self._state]
        if self.times:
            counted = "" if self.tokens is None else f", {self.tokens} tokens"
            lines.append(f"{len(self.times)} pieces of text{counted}")
            lines.append(f"first after {1000 * self.times[0]:.1f} ms{self._gaps()}")
        return "\n".join(lines)

    def _gaps(self) -> str:
        gaps = [1000 * (later - earlier) for earlier, later in pairwise(self.times)]
        if not gaps:
            return ""
        middle = statistics.median(gaps)
        return f", then gaps of {middle:.1f} ms in the median, {max(gaps):.1f} ms at most"

    def _start(self) -> None:
        # Not disabled meanwhile: a button that is loses the keyboard's focus.
        if self.task is None or self.task.done():
            self.task = asyncio.ensure_future(self.run())

    def _show(self) -> None:
        text = escape(f"{self.summary}\n\n{self.text}")
        style = "white-space: pre-wrap; word-break: normal"
        shown = f'<pre style="{style}" aria-live="polite">{text}</pre>'
        self.view.value = shown + (picture(self.plot) if self.plot else "")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = self.panel._repr_mimebundle_()
        return bundle | {"text/plain": f"A panel for {self.prompt.value!r}: {self.summary}"}
