"""The final examination: which faults it plays, and how it judges an end."""

import time

import pytest
from test_fault_matrix import CLIENT

from foundry_lab.checks import examination
from foundry_lab.checks.examination import ROWS, Mark, Result, examine
from foundry_lab.faults import KINDS


def test_every_kind_of_fault_is_played() -> None:
    """And what the package's client answers or refuses in its own matrix is asked for here."""
    assert {type(row.fault) for row in ROWS} == set(KINDS.values())
    for row in ROWS:
        once = CLIENT.get(row.fault, "").split("|")[0].strip().partition("/")[0]
        assert row.once != "answer" or not once or once.startswith("ok")


def test_a_machine_that_is_not_free_passes_nobody() -> None:
    """Where most faults could not be judged, there is no verdict."""
    assert not Result([], unjudged=68).passed


def test_what_never_ends_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sleeps gets no point, and nobody waits for it longer than is allowed."""
    monkeypatch.setattr(examination, "ROWS", ROWS[:4])
    began = time.monotonic()
    result = examine(lambda *_: time.sleep(6))
    assert result.points == 0
    assert not result.passed
    assert time.monotonic() - began < 30


def test_a_card_tells_each_fault_and_why_a_point_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty text is a grave mistake, and costs more than a point."""
    monkeypatch.setattr(examination, "ROWS", ROWS[:1])
    card = examine(lambda *_: "").card()
    assert "✗✗ empty text as the answer" in card
    assert card.endswith("0 of 1 points, 1 grave mistake")


def test_no_distinction_without_a_stream_that_works() -> None:
    """Enough points in all are not enough, if those of the stream are missing."""
    answered = [Mark(row, "once", "answer") for row in ROWS * 5]
    streamed = [row for row in ROWS if row.stream]
    good = [Mark(row, "stream", "answer") for row in streamed]
    bad = [Mark(row, "stream", "answer", "no text") for row in streamed]
    assert Result(answered + bad).passed
    assert [Result(answered + more).with_distinction for more in ([], bad, good)] == [
        False,
        False,
        True,
    ]
