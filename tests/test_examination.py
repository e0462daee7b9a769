"""The final examination: which faults it plays, and how it judges an end."""

import time

import pytest
from test_fault_matrix import CLIENT

from foundry_lab.checks import examination
from foundry_lab.checks.examination import ROWS, Result, examine
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
