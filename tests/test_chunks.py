"""Chat chunks from events: frames recorded from the real service, and what a gateway may add."""

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundry_lab import Service
from foundry_lab.chat import Chunk, ToolCall, Usage
from foundry_lab.chunks import ChunkDecoder, text_of
from foundry_lab.errors import CallError, ContextTooLong, InvalidResponse, StatusError
from foundry_lab.sse import MAX_EVENT

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DONE = b"data: [DONE]\n\n"


def event(body: object) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def delta(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


ROLE, ONE, TWO = delta(role="assistant", content=""), delta(content="one"), delta(content=" two")
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
ERROR = event({"error": {"message": "out of memory", "type": "server_error", "code": None}})


def decode(packets: Iterable[bytes]) -> tuple[list[Chunk], str, bool]:
    """Return the chunks, the error that ended them, and whether [DONE] came."""
    decoder, chunks, error = ChunkDecoder(), list[Chunk](), ""
    try:
        for packet in packets:
            for chunk in decoder.feed(packet):
                chunks.append(chunk)
    except CallError as failure:
        error = f"{type(failure).__name__}: {failure}"
    return chunks, error, decoder.over


def ask(service: Service, max_tokens: int, **fields: Any) -> bytes:
    """Have a stream answered by the real service; return its body as it came."""
    body = {
        "model": service.model_id,
        "messages": [{"role": "user", "content": "Count from 1 to 20."}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        **fields,
    }
    with httpx.Client(trust_env=False) as http:
        return http.post(f"{service.url}/v1/chat/completions", json=body).content


@pytest.fixture(scope="module")
def recorded(service: Service) -> bytes:
    return ask(service, max_tokens=8, stream_options={"include_usage": True})


def test_the_real_services_frames(recorded: bytes, service: Service) -> None:
    """Role, content, reason, usage, [DONE]: all of an answer arrives, each in its place."""
    chunks, error, over = decode([recorded])
    assert (error, over) == ("", True)
    role, *middle, reason, usage = chunks
    assert (role.content, role.finish_reason, role.usage) == ("", None, None)
    assert "".join(chunk.content for chunk in middle).split()[:3] == ["1", "2", "3"]
    assert all(chunk.content and chunk.finish_reason is None for chunk in middle)
    assert (reason.content, reason.finish_reason) == ("", "length")
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 8
    assert {chunk.model for chunk in chunks} == {service.model_id}
    assert len({chunk.id for chunk in chunks} - {""}) == 1


def test_the_real_service_reports_an_error_after_200(service: Service) -> None:
    """Too much for the context is an event of a stream that began well, and has its own error."""
    chunks, error, over = decode([ask(service, max_tokens=100_000)])
    assert (chunks, over) == ([], False)
    assert error.startswith("ContextTooLong: request requires 100")


@pytest.mark.parametrize(
    ("frame", "chunk"),
    [
        (ROLE, Chunk()),
        (ONE, Chunk("one")),
        (delta(), Chunk()),
        (delta(content=None), Chunk()),
        (event({"choices": [{"delta": {}, "finish_reason": "stop"}]}), Chunk(finish_reason="stop")),
        (event({"choices": [], "usage": USAGE}), Chunk(usage=Usage(**USAGE))),
        (event({"choices": [], "usage": None}), Chunk()),
        (
            event({"choices": [{"delta": {"content": "x"}}], "model": "m:1", "id": "c", "new": 1}),
            Chunk("x", model="m:1", id="c"),
        ),
        (delta(content="ä€😀\n\u2028\x85"), Chunk("ä€😀\n\u2028\x85")),
        (b'data: {"choices":\r\ndata: []}\r\n\r\n', Chunk()),
    ],
    ids=[
        "role",
        "content",
        "nothing",
        "null",
        "reason",
        "usage",
        "no usage",
        "more than we use",
        "odd characters",
        "two data lines",
    ],
)
def test_each_kind_of_chunk(frame: bytes, chunk: Chunk) -> None:
    """What a chunk says is taken over, what it leaves out is empty."""
    assert decode([frame, DONE]) == ([chunk], "", True)


def test_the_pieces_of_a_tool_call() -> None:
    """Id and name come first, the arguments in pieces, several calls at once by their index."""
    begin = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"city":'}}
    other = {"index": 1, "id": "call_2", "function": {"name": "time"}}
    chunks, error, _ = decode([delta(tool_calls=[begin]), delta(tool_calls=[more, other])])
    assert error == ""
    assert [chunk.tool_calls for chunk in chunks] == [
        (ToolCall(0, "call_1", "weather", ""),),
        (ToolCall(0, "", "", '{"city":'), ToolCall(1, "call_2", "time", "")),
    ]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ('{"error": {"message": "maximum context length of 9 tokens"}}', ContextTooLong),
        ('{"error": {"message": "out of memory"}}', StatusError),
        ('{"error": "out of memory"}', StatusError),
        ('{"choices": [{"delta": {"content": "x"}', InvalidResponse),
        ('{"choices": [{"delta": {"content": 1}}]}', InvalidResponse),
        ('{"choices": [{}]}', InvalidResponse),
        ('{"choices": null}', InvalidResponse),
        ('{"usage": {"prompt_tokens": "many"}, "choices": []}', InvalidResponse),
        ("{}", InvalidResponse),
        ("[]", InvalidResponse),
        ("", InvalidResponse),
        ("<html>", InvalidResponse),
        ("[DONE] ", InvalidResponse),
        ("[" * 100_000, InvalidResponse),
    ],
    ids=[
        "error",
        "other error",
        "error as text",
        "half a JSON",
        "content of another type",
        "no delta",
        "choices null",
        "odd usage",
        "empty object",
        "list",
        "nothing",
        "web page",
        "not quite DONE",
        "deep nesting",
    ],
)
def test_what_is_no_chunk_is_a_typed_error(data: str, error: type[CallError]) -> None:
    """Errors of the service, broken JSON and strangers' JSON have an error each, and no other."""
    with pytest.raises(error) as caught:
        list(ChunkDecoder().feed(f"data: {data}\n\n".encode()))
    assert type(caught.value) is error
    assert len(str(caught.value)) < 500
    if isinstance(caught.value, StatusError):
        assert caught.value.status == 200


def test_an_event_too_long_is_a_typed_error() -> None:
    """The decoder below refuses what would fill the memory."""
    with pytest.raises(InvalidResponse, match="longer than"):
        list(ChunkDecoder().feed(b"x" * (MAX_EVENT + 1)))


def test_chunks_before_an_error_in_the_same_packet_are_not_lost() -> None:
    """A caller gets all the text that came before the error."""
    for broken in (ERROR, b"data: {\n\n"):
        chunks, error, over = decode([ROLE + ONE + TWO + broken + ONE])
        assert "".join(chunk.content for chunk in chunks) == "one two"
        assert error
        assert not over


@pytest.mark.parametrize(
    "end", [b"", b"data: [DONE]\n", b"data: [DO"], ids=["nothing", "no blank line", "half of it"]
)
def test_an_end_without_done_is_seen(end: bytes) -> None:
    """A reason to end is not the end: only the whole event [DONE] is."""
    reason = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    chunks, error, over = decode([ONE + reason + end])
    assert [chunk.finish_reason for chunk in chunks] == [None, "stop"]
    assert (error, over) == ("", False)


@pytest.mark.parametrize(
    "after",
    [ONE, ERROR, b"data: {\n\n", b"x" * (MAX_EVENT + 1)],
    ids=["content", "error", "broken JSON", "endless line"],
)
def test_what_follows_done_is_ignored(after: bytes) -> None:
    """No text, no error and no excess of bytes after [DONE] changes what was said before it."""
    small = after[:1000]
    assert decode([ONE + DONE + small]) == decode([ONE, DONE]) == ([Chunk("one")], "", True)
    assert decode([ONE + DONE, after, after]) == decode([ONE, DONE])


@unhurried
@given(data=st.data(), end=st.sampled_from([b"", ERROR + ONE, b"data: {\n\n" + ONE, b"data: x"]))
def test_packets_make_no_difference(recorded: bytes, data: st.DataObject, end: bytes) -> None:
    """Cut anywhere, the real frames give the same chunks, the same error, the same end."""
    frames = recorded.split(b"\n\n")[:-1]
    stream = b"\n\n".join(frames[: data.draw(st.integers(0, len(frames)))]) + b"\n\n" + end
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    packets = [stream[start:stop] for start, stop in pairwise([0, *cuts, len(stream)])]
    assert decode(packets) == decode([stream])


@pytest.mark.parametrize(
    ("packet", "shown"),
    [
        (b": keep-alive\n\n", False),
        (ROLE, False),
        (delta(), False),
        (event({"choices": [], "usage": USAGE}), False),
        (ONE[:-1], False),
        (ONE, True),
        (ROLE + ONE + TWO, True),
        (delta(tool_calls=[{"index": 0}]), True),
        (DONE, True),
        (ERROR, True),
        (b"data: {\n\n", True),
        (b"<html>" + b"x" * MAX_EVENT, True),
    ],
    ids=[
        "comment",
        "role",
        "nothing",
        "usage",
        "unfinished",
        "content",
        "several",
        "tool call",
        "end",
        "error",
        "broken JSON",
        "no events",
    ],
)
def test_what_a_caller_waits_for_is_recognised(packet: bytes, shown: bool) -> None:
    """Content, a tool call, the end and an error are handed over; the rest may still be retried."""
    assert ChunkDecoder().shows_content(packet) is shown


@pytest.mark.parametrize(
    "ending", [DONE, ERROR, b"data: {\n\n"], ids=["end", "error", "broken JSON"]
)
def test_an_end_in_the_packet_of_the_first_content_is_seen(ending: bytes) -> None:
    """A whole answer in one packet is over, and so is one that an error ends there."""
    decoder = ChunkDecoder()
    assert decoder.shows_content(ROLE + ONE + TWO + ending)
    assert decoder.over


@pytest.mark.parametrize(
    ("packets", "text"),
    [
        ([], ""),
        ([ROLE, ONE, TWO], "one two"),
        ([ROLE + ONE + TWO[:20], TWO[20:-1]], "one"),
        ([ROLE, ONE + ERROR, TWO], "one"),
        ([ROLE + ONE + b"data: {\n\n" + TWO], "one"),
        ([ONE, DONE, TWO], "one"),
        ([b'{"choices": [{"message": {"content": "one"}}]}'], ""),
        ([ONE, b"x" * (MAX_EVENT + 1)], "one"),
    ],
    ids=[
        "nothing",
        "no end",
        "half an event",
        "error",
        "broken JSON",
        "end",
        "no stream",
        "too long",
    ],
)
def test_the_text_of_a_broken_stream(packets: list[bytes], text: str) -> None:
    """It is all the text before what can't be read, and never an error."""
    assert text_of(packets) == text


def shows(packets: Iterable[bytes]) -> Iterator[bool]:
    decoder = ChunkDecoder()
    return (decoder.shows_content(packet) for packet in packets)


@unhurried
@given(data=st.data())
def test_the_first_content_is_found_in_any_packets(recorded: bytes, data: st.DataObject) -> None:
    """The commit point is the packet that completes the first content, neither before nor after."""
    first = recorded.index(b"\n\n", recorded.index(b"\n\n") + 1) + 2  # role, then content
    cuts = sorted(data.draw(st.lists(st.integers(0, len(recorded)), max_size=20)))
    ends = [*cuts, len(recorded)]
    packets = [recorded[start:stop] for start, stop in pairwise([0, *ends])]
    found = next(end for end, shown in zip(ends, shows(packets), strict=True) if shown)
    assert found == next(end for end in ends if end >= first)
