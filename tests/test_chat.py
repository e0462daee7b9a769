"""Chat: a request is right or refused; an answer is whole or refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_lab.chat import ChatParameters, ChatRequest, Completion, conversation
from foundry_lab.errors import InvalidRequest, InvalidResponse

HELLO = [{"role": "user", "content": "Hello"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    "mistake",
    [
        {"max_tokens": "20"},
        {"max_tokens": True},
        {"max_tokens": 2.0},
        {"max_tokens": 0},
        {"temperature": "0"},
        {"temperature": 9},
        {"temperature": float("nan")},
        {"top_p": -0.1},
        {"seed": 1.5},
        {"stop": ""},
        {"stop": [1]},
        {"n": 2},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user"}]},
        {"messages": "Hello"},
    ],
)
def test_what_the_service_would_ignore_or_reject_is_refused(mistake: dict[str, Any]) -> None:
    """Each mistake is refused before sending, and the message names the field."""
    with pytest.raises(InvalidRequest, match=next(iter(mistake))):
        ChatRequest.checked(**{"messages": HELLO, **mistake})


def test_a_mistyped_name_gets_the_nearest() -> None:
    """The parameter that was meant is offered."""
    with pytest.raises(InvalidRequest, match="Did you mean max_tokens"):
        ChatRequest.checked(messages=HELLO, max_token=5)


@given(st.sampled_from(sorted(ChatParameters.__annotations__)), JSON)
def test_a_parameter_is_sent_as_given_or_refused(name: str, value: Any) -> None:
    """No value is ever silently converted or dropped on its way into the body."""
    try:
        body = ChatRequest.checked(messages=HELLO, **{name: value}).body("a:1")
    except InvalidRequest:
        return
    if value is None:
        assert name not in body
    else:
        assert body[name] == value
        assert not isinstance(value, bool)


def test_a_request_has_a_prompt_or_messages() -> None:
    """Both or neither is refused; a system message comes first."""
    with pytest.raises(InvalidRequest, match="Neither"):
        conversation(None, None, None)
    with pytest.raises(InvalidRequest, match="Both"):
        conversation("Hello", HELLO, None)
    assert conversation("Hello", None, "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        *HELLO,
    ]


@given(JSON.map(json.dumps) | st.text())
def test_any_body_is_a_completion_or_refused(body: str) -> None:
    """Whatever a server sends, reading it ends in a Completion or in InvalidResponse."""
    with pytest.raises(InvalidResponse):
        Completion.from_body(body)
