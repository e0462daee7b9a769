"""Errors: one tree, each message with a way on."""

import inspect
import json
import pickle
import re

from hypothesis import given
from hypothesis import strategies as st

from foundry_lab import errors
from foundry_lab.answers import status_error
from foundry_lab.errors import BreakerOpen, FoundryLabError, StatusError


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    """Every class stands in the drawing, one level below its parent, and nothing else does."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        if found := re.match(r"^ {4}([│├└─ ]*)([A-Z][A-Za-z]+)", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            drawn[found[2]] = path[depth - 1] if depth else "Exception"
    real = {
        name: kind.__base__.__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Exception) and kind.__base__
    }
    assert drawn == real


def test_a_message_says_what_and_what_next() -> None:
    """The text has both halves, the second after an arrow."""
    error = errors.PortInUse("The port is taken.", fix="Choose another.")
    assert str(error) == "The port is taken.\n→ Choose another."


def test_the_nearest_names_are_offered() -> None:
    """A typo finds its neighbour; what is like nothing gets the list."""
    assert errors.nearest_names("phi-4-mni", ["phi-4-mini", "qwen"]) == "Did you mean phi-4-mini?"
    assert errors.nearest_names("zzz", ["b", "a"]) == "There are: a, b."


@given(st.text(), st.lists(st.text(min_size=1), max_size=50))
def test_nearest_names_only_offers_what_exists(wanted: str, known: list[str]) -> None:
    """Whatever was wanted, the sentence is built from known names alone."""
    sentence = errors.nearest_names(wanted, known)
    assert sentence.startswith(("Did you mean ", "There are: "))


def test_errors_travel_between_processes() -> None:
    """A process pool pickles them: type, text, advice and status arrive."""
    for error in (
        FoundryLabError("It broke.", fix="Mend it."),
        StatusError("No.", fix="Ask.", status=503),
        BreakerOpen("Not sent.", fix="Wait.", retry_in=2.5),
    ):
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_long_message_is_not_searched_for_ever() -> None:
    """The pattern that drops a place in C++ takes quadratic time, so it sees a bounded text."""
    text = json.dumps({"error": {"message": "load.cc:286 Load(int) it failed " + "a" * 100_000}})
    error = status_error(500, text)
    assert "it failed" in str(error)
    assert "load.cc" not in str(error)
    assert len(str(error)) < 3_000
