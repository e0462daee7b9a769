"""The backoff explorer: its controls make the waits of the real policy, in picture and table."""

import random
import re
from base64 import b64decode
from itertools import accumulate, islice
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_lab.errors import InvalidRequest
from foundry_lab.figures import Plot
from foundry_lab.retry import Jitter, RetryPolicy
from foundry_lab.widgets.backoff import BASES, CAPS, BackoffExplorer, backoff_plot


def numbers(plot: Plot | None) -> list[list[float]]:
    """Return the rows of the table as numbers."""
    assert plot is not None
    return [[float(cell) for cell in row] for row in plot.rows]


def test_without_jitter_the_table_is_the_formula() -> None:
    """Each wait is min(cap, base · 2ⁿ), may be nothing else, and is added to those before it."""
    plot = backoff_plot(RetryPolicy(attempts=5, base=0.5, cap=2.0, jitter="none"), seed=1)
    assert numbers(plot) == [
        [2, 0.5, 0.5, 0.5, 0.5],
        [3, 1.0, 1.0, 1.0, 1.5],
        [4, 2.0, 2.0, 2.0, 3.5],
        [5, 2.0, 2.0, 2.0, 5.5],
    ]
    assert plot.alt.endswith("base 0.5 s, cap 2 s, jitter none, seed 1: 4 waits, 5.50 s in all.")


@settings(max_examples=20, deadline=None)
@given(
    jitter=st.sampled_from(get_args(Jitter)),
    base=st.sampled_from(BASES),
    cap=st.sampled_from(CAPS),
    seed=st.integers(0, 9999),
)
def test_the_table_shows_the_waits_of_the_policy(
    jitter: Jitter, base: float, cap: float, seed: int
) -> None:
    """They are what a retry with this seed waits, they add up, and keep to the range drawn."""
    policy = RetryPolicy(attempts=6, base=min(base, cap), cap=cap, jitter=jitter)
    waits = list(islice(policy.delays(random.Random(seed)), 5))  # noqa: S311
    rows = numbers(backoff_plot(policy, seed))
    assert [row[3] for row in rows] == pytest.approx(waits, abs=0.005)
    assert [row[4] for row in rows] == pytest.approx(list(accumulate(waits)), abs=0.005)
    assert all(low <= wait <= high for _, low, high, wait, _ in rows)


@pytest.mark.parametrize(
    ("jitter", "least"), [("none", 4.0), ("full", 0.0), ("equal", 2.0), ("decorrelated", 0.5)]
)
def test_each_jitter_has_its_range(jitter: Jitter, least: float) -> None:
    """Where expo is 4 s: all of it, nothing, half of it, or the base."""
    rows = numbers(backoff_plot(RetryPolicy(attempts=5, base=0.5, cap=60.0, jitter=jitter), seed=1))
    assert rows[3][1] == least


def test_decorrelated_jitter_reaches_from_the_base_to_three_times_the_wait_before() -> None:
    """Its range follows what was drawn; the first one follows the base."""
    policy = RetryPolicy(attempts=6, base=0.5, cap=5.0, jitter="decorrelated")
    rows = numbers(backoff_plot(policy, seed=2))
    previous = [0.5, *(row[3] for row in rows[:-1])]
    assert [row[2] for row in rows] == pytest.approx(
        [min(5.0, 3 * wait) for wait in previous], abs=0.02
    )
    assert len({row[2] for row in rows}) > 2


def test_one_attempt_has_no_waits() -> None:
    """There is nothing to show, and the error says so."""
    with pytest.raises(InvalidRequest, match="One attempt has nothing to wait for"):
        backoff_plot(RetryPolicy(attempts=1), seed=1)


@pytest.mark.parametrize(
    ("control", "value"),
    [("base", 0.5), ("cap", 1.0), ("attempts", 3), ("jitter", "equal"), ("seed", 7)],
)
def test_every_control_changes_what_is_shown(control: str, value: object) -> None:
    """Setting one does what moving it does: another picture, another table."""
    explorer = BackoffExplorer()
    explorer.jitter.value = "full"
    before, picture = numbers(explorer.plot), explorer.view.value
    getattr(explorer, control).value = value
    assert numbers(explorer.plot) != before
    assert explorer.view.value != picture


def test_a_base_above_the_cap_is_explained() -> None:
    """In place of the picture stands what to do, and doing it brings the picture back."""
    explorer = BackoffExplorer()
    explorer.base.value, explorer.cap.value = 5.0, 0.5
    assert explorer.plot is None
    assert "0 ≤ base ≤ cap" in explorer.view.value
    assert "<img" not in explorer.view.value
    data, _ = explorer._repr_mimebundle_()
    assert "image/png" not in data
    explorer.cap.value = 5.0
    assert explorer.plot is not None
    assert "<img" in explorer.view.value


def test_the_picture_has_words_and_a_table_with_names() -> None:
    """A screen reader gets the alt text, the columns' names and every row."""
    explorer = BackoffExplorer()
    assert explorer.plot is not None
    html = explorer.view.value
    alt, png = re.findall(r'<img alt="([^"]+)" [^>]*base64,([^"]+)">', html)[0]
    assert alt == explorer.plot.alt
    assert b64decode(png).startswith(b"\x89PNG")
    assert tuple(re.findall(r'<th scope="col">([^<]+)</th>', html)) == explorer.plot.header
    cells = tuple(re.findall("<td>([^<]+)</td>", html))
    assert cells == tuple(cell for row in explorer.plot.rows for cell in row)


def test_it_can_be_used_from_the_keyboard() -> None:
    """Every control has a name and is one that takes Tab and the arrow keys."""
    *controls, view = BackoffExplorer().panel.children
    names = [control.description for control in controls]
    assert names == ["base", "cap", "attempts", "jitter", "seed"]
    kinds = {type(control).__name__ for control in controls}
    assert kinds == {"SelectionSlider", "IntSlider", "Dropdown", "BoundedIntText"}
    assert type(view).__name__ == "HTML"


def test_a_page_without_widgets_has_the_picture() -> None:
    """The output of its cell holds the widget, the picture with alt text, and the same words."""
    explorer = BackoffExplorer()
    assert explorer.plot is not None
    data, metadata = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["text/plain"] == metadata["image/png"]["alt"] == explorer.plot.alt
