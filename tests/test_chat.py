"""Chat: a request is right or refused; an answer is whole or refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_lab.chat import ChatParameters, ChatRequest, Chunk, Completion, Usage, conversation
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


def test_a_completion_is_what_its_chunks_say() -> None:
    """Text is joined; reason, usage, model and id come from the last chunks."""
    usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    chunks = [Chunk("a"), Chunk("b", "stop"), Chunk(usage=usage, model="m:1", id="chatcmpl-1")]
    whole = Completion.of(chunks)
    assert (whole.content, whole.finish_reason, whole.usage) == ("ab", "stop", usage)
    assert (whole.model, whole.id) == ("m:1", "chatcmpl-1")


def test_an_answer_without_its_end_is_refused_and_kept() -> None:
    """A stream that says neither why it ended nor what it cost is no completion."""
    for chunks in ([], [Chunk("a")], [Chunk("a", "stop")]):
        with pytest.raises(InvalidResponse, match="finish_reason") as caught:
            Completion.of(chunks)
        assert caught.value.content == "".join(chunk.content for chunk in chunks)
