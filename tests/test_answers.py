"""Answers: whatever a server sends ends in a value or in one typed error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_lab.answers import Listing, Status, parse, status_error
from foundry_lab.errors import (
    ContextTooLong,
    InvalidResponse,
    ModelBusy,
    ModelNotFound,
    ModelNotLoaded,
    StatusError,
)


@pytest.mark.parametrize(
    ("message", "kind", "fix"),
    [
        ("Model not found: No model matching 'a'", ModelNotFound, "client.models()"),
        ("Model not loaded: Model 'a:1' must be loaded", ModelNotLoaded, "client.load('a:1')"),
        ("request requires 9 total … maximum context length of 8", ContextTooLong, "lower"),
        ("cannot unload model 'a:1': 1 session(s) still using it", ModelBusy, "Wait"),
        ("something else", StatusError, "try again later"),
    ],
    ids=["unknown", "not loaded", "too long", "busy", "other"],
)
def test_each_message_has_its_error(message: str, kind: type[StatusError], fix: str) -> None:
    """What the service says decides the type; what it said and what to do are both there."""
    error = status_error(400, json.dumps({"error": {"message": message}}))
    assert type(error) is kind
    assert message in error.what
    assert fix in error.fix


def test_source_locations_are_left_out() -> None:
    """Where in the runtime's C++ a refusal was written helps nobody who reads it."""
    said = "Unload failed: load.cc:286 bool fl::A::B(std::string, int*) cannot unload 'a:1': busy"
    error = status_error(500, json.dumps({"error": {"message": said}}))
    assert "Unload failed: cannot unload 'a:1': busy" in error.what


@given(st.integers(400, 599), st.text() | st.text().map(lambda m: f'{{"error": {json.dumps(m)}}}'))
def test_any_error_body_gives_a_status_error(status: int, text: str) -> None:
    """No body of a gateway, however odd, breaks the reading of an error."""
    assert status_error(status, text).status == status


@given(st.text() | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_any_other_body_is_refused(text: str) -> None:
    """What is not the listing or the status of Foundry Local is not taken for one."""
    for kind in (Listing, Status):
        with pytest.raises(InvalidResponse):
            parse(kind, text)


def test_a_listing_keeps_what_is_known_and_ignores_the_rest() -> None:
    """A newer service may add fields."""
    listing = parse(Listing, '{"object": "list", "data": [{"id": "a:1", "new": true}]}')
    assert [model.id for model in listing.data] == ["a:1"]
