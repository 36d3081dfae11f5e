"""Streams that LiteLLM may send, legal and not, as the client and the books see them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.budget.models import Usage
from tests.doubles.litellm import DONE, Script, chunk, error_body, event, stream_of, usage_chunk
from tests.services.gateway.conftest import Gateway, Model

STREAM = {"stream": True}


def script(gateway: Gateway, *parts: bytes, **options: Any) -> None:
    gateway.double.script("double", Script.events(parts, **options))


async def test_an_ordinary_stream_reaches_the_client_without_the_usage_chunk(gateway: Gateway) -> None:
    parts = stream_of(["Hel", "lo"], prompt=12, completion=2)
    script(gateway, *parts)
    status, body, headers = await gateway.read(STREAM)
    assert status == 200
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["x-ratelimit-remaining-requests"] == "39"
    assert body == b"".join(parts[:-2]) + DONE
    delivery = await gateway.budgets.wait_settled()
    assert delivery.outcome == "success"
    assert delivery.usage == Usage(12, 2)
    assert delivery.relayed_bytes == 5
    assert gateway.double.asked[0].body["stream_options"] == {"include_usage": True}


async def test_a_client_that_asks_for_usage_gets_the_chunk(gateway: Gateway) -> None:
    parts = stream_of(["Hi"])
    script(gateway, *parts)
    _, body, _ = await gateway.read({**STREAM, "stream_options": {"include_usage": True}})
    assert body == b"".join(parts)


async def test_a_usage_chunk_that_cannot_all_be_read_is_passed_on(gateway: Gateway) -> None:
    last = event(usage_chunk(3, 4, choices=[{"index": 0, "delta": {"x": "?"}}])).replace(b"?", b"\xff")
    script(gateway, event(chunk("a", finish="stop")), last, DONE)
    _, body, _ = await gateway.read(STREAM)
    assert body.endswith(last + DONE)
    assert (await gateway.budgets.wait_settled()).usage == Usage(3, 4)


@pytest.mark.parametrize(
    ("texts", "usage", "counted"),
    [
        (["text"] * 100, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        (["text"], {"prompt_tokens": 9, "completion_tokens": 0}, None),
        ([], {"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0)),
        (["text"], {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 511}, Usage(9, 502)),
        (["text"], {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 5}, Usage(9, 2)),
        (
            ["text"],
            {"prompt_tokens": 9, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 500}},
            Usage(9, 500, 0, 500),
        ),
    ],
)
async def test_usage_that_cannot_be_true_is_not_what_is_charged(
    gateway: Gateway, texts: list[str], usage: dict[str, Any], counted: Usage | None
) -> None:
    for number, stream in enumerate((True, False), 1):
        if stream:
            last = event({**chunk(), "choices": [], "usage": usage})
            script(gateway, *map(event, map(chunk, texts)), event(chunk(finish="stop")), last, DONE)
        else:
            message = {"role": "assistant", "content": "".join(texts)}
            answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
            gateway.double.script("double", Script.json(answer))
        assert (await gateway.read({"stream": stream}))[0] == 200
        assert (await gateway.budgets.wait_settled(number)).usage == counted


@pytest.mark.parametrize(
    ("chunks", "usage", "kept"),
    [
        ([usage_chunk(3, 4, choices=[])], Usage(3, 4), 0),
        ([usage_chunk(0, 0)], None, 0),
        ([usage_chunk(3, 0), usage_chunk(3, 4)], Usage(3, 4), 0),
        ([usage_chunk(3, 4, choices=None)], Usage(3, 4), 0),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {"content": ""}}])], Usage(3, 4), 0),
        ([usage_chunk(3, 4, choices=[{"index": 0}])], Usage(3, 4), 0),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": None, "finish_reason": None}])], Usage(3, 4), 0),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {"role": "assistant", "content": None}}])], Usage(3, 4), 0),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {"content": "", "audio": None}}])], Usage(3, 4), 0),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {"content": "x"}}])], Usage(3, 4), 1),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {"images": [{"type": "image_url"}]}}])], Usage(3, 4), 1),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}])], Usage(3, 4), 1),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {"audio": {}}}])], Usage(3, 4), 1),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {}, "logprobs": {"content": []}}])], Usage(3, 4), 1),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {}}, {"index": 1, "delta": {"x": 1}}])], Usage(3, 4), 1),
        ([usage_chunk(3, 4, choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])], Usage(3, 4), 1),
        ([{**chunk("a"), "usage": None}], None, 1),
        ([{**chunk("a"), "usage": "nonsense"}], None, 1),
        ([{**chunk("a"), "usage": {"prompt_tokens": 10}}], None, 1),
        ([{**chunk("a"), "usage": {"prompt_tokens": "10", "completion_tokens": None}}], None, 1),
        ([{**chunk("a"), "usage": {"prompt_tokens": -5, "completion_tokens": -1}}], None, 1),
    ],
)
async def test_usage_is_read_and_its_chunk_taken_out_in_every_shape(
    gateway: Gateway, chunks: list[Any], usage: Usage | None, kept: int
) -> None:
    finish = event(chunk(finish="stop"))
    script(gateway, event(chunk("a")), finish, *map(event, chunks), DONE)
    _, body, _ = await gateway.read(STREAM)
    assert body == event(chunk("a")) + finish + b"".join(map(event, chunks[:kept])) + DONE
    assert (await gateway.budgets.wait_settled()).usage == usage


@pytest.mark.parametrize(
    "texts", [['say "usage": {"prompt_tokens": 9}', "data: [DONE]", '{"error": {}}', "\n\ndata: [DONE]\n\n"]]
)
async def test_content_that_looks_like_protocol_fools_nobody(gateway: Gateway, texts: list[str]) -> None:
    parts = stream_of(texts, prompt=1, completion=4)
    script(gateway, *parts)
    _, body, _ = await gateway.read(STREAM)
    assert body == b"".join(parts[:-2]) + DONE
    delivery = await gateway.budgets.wait_settled()
    assert delivery.usage == Usage(1, 4)
    assert delivery.relayed_bytes == sum(map(len, texts))


@pytest.mark.parametrize(
    "raw",
    [
        b'data:{"choices":[{"index":0,"delta":{"content":"ab"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"ab"}}]}\r\n\r\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"ab"}}]}\r\r',
        b'\xef\xbb\xbfdata: {"choices":[{"index":0,"delta":{"content":"ab"}}]}\n\n',
        b': hello\n\ndata: {"choices":[{"index":0,"delta":{"content":"ab"}}]}\n\n',
        b'id: 7\nevent: message\ndata: {"choices":[{"index":0,\ndata: "delta":{"content":"ab"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"ab","tool_calls":null}}],"usage":null}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n: c\n\ndata: {"choices":[{"delta":{"content":"b"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"ab"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":["ab"]},"x":1}]}\n\n',
        'data: {"choices":[{"index":0,"delta":{"content":"é"}}]}\n\n'.encode(),
        b'data: {"choices":[{"index":0,"delta":{"content":"\\u00e9"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"ab"}}]}}]}\n\n',
        b'data: {"choices":[],"x":"usage"}\n\ndata: {"choices":[{"index":0,"delta":{"content":"ab"}}]}\n\n\n\n',
    ],
)
async def test_legal_shapes_go_by_unchanged_and_are_counted(gateway: Gateway, raw: bytes) -> None:
    script(gateway, raw, DONE)
    status, body, _ = await gateway.read(STREAM)
    assert (status, body) == (200, raw + DONE)
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.outcome, delivery.relayed_bytes) == ("success", 2)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_events_split_anywhere_arrive_whole(gateway: Gateway, size: int) -> None:
    whole = b"".join(stream_of(["Hel", "lo"], prompt=2))
    script(gateway, *(whole[i : i + size] for i in range(0, len(whole), size)))
    _, body, _ = await gateway.read(STREAM)
    parts = stream_of(["Hel", "lo"], prompt=2)
    assert body == b"".join(parts[:-2]) + DONE
    assert (await gateway.budgets.wait_settled()).usage == Usage(2, 2)


async def test_an_unterminated_last_event_is_given_its_end(gateway: Gateway) -> None:
    script(gateway, event(chunk("a")), event(chunk(finish="stop")), b"data: [DONE]")
    _, body, _ = await gateway.read(STREAM)
    assert body == event(chunk("a")) + event(chunk(finish="stop")) + DONE
    assert (await gateway.budgets.wait_settled()).outcome == "success"


async def test_a_stream_may_end_with_a_finish_reason_and_no_done(gateway: Gateway) -> None:
    script(gateway, event(chunk("a")), event(chunk(finish="stop")))
    _, body, _ = await gateway.read(STREAM)
    assert body == event(chunk("a")) + event(chunk(finish="stop"))
    assert (await gateway.budgets.wait_settled()).outcome == "success"


@pytest.mark.parametrize(
    "end",
    [
        (),
        (("cut", None),),
        (("reset", None),),
        (("send", b'data: {"choices":[{"ind'),),
        (("sleep", 0.05), ("raw", b"zz\r\n")),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_event(gateway: Gateway, end: tuple[Any, ...]) -> None:
    gateway.double.script("double", Script([("send", event(chunk("abc"))), *end]))
    status, body, _ = await gateway.read(STREAM)
    assert status == 200
    events = body.split(b"\n\n")
    assert events[0] + b"\n\n" == event(chunk("abc"))
    error = json.loads(events[1].removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_error"
    assert b"[DONE]" not in body
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.outcome, delivery.usage, delivery.relayed_bytes) == ("error", None, 3)
    assert gateway.metric("chat_availability_total", outcome="failure", reason="upstream_error") == 1


async def test_an_error_event_after_data_becomes_our_envelope(gateway: Gateway) -> None:
    error = error_body("secret host gpu-7", "throttling_error", "429")
    script(gateway, event(chunk("abc")), event(error), DONE)
    _, body, _ = await gateway.read(STREAM)
    assert body.startswith(event(chunk("abc")))
    assert json.loads(body.split(b"\n\n")[1].removeprefix(b"data: "))["error"]["code"] == "upstream_rate_limited"
    assert b"gpu-7" not in body
    assert b"[DONE]" not in body
    delivery = await gateway.budgets.wait_settled()
    assert (delivery.refused, delivery.relayed_bytes) == (False, 3)


@pytest.mark.parametrize("together", [True, False])
async def test_an_error_as_the_first_event_is_a_plain_http_error(gateway: Gateway, together: bool) -> None:
    parts = [b": hello\n\n", event(error_body("Budget", "budget_exceeded", "400"))]
    script(gateway, *([b"".join(parts)] if together else parts))
    status, body, headers = await gateway.read(STREAM)
    assert status == 429
    assert json.loads(body)["error"]["code"] == "budget_exceeded"
    assert headers["x-should-retry"] == "false"
    assert headers["x-ratelimit-limit-requests"] == "40"
    assert (await gateway.budgets.wait_settled()).refused


async def test_data_and_an_error_in_one_read_both_arrive(gateway: Gateway) -> None:
    script(gateway, event(chunk("abc")) + event(error_body("x", None, "500")))
    status, body, _ = await gateway.read(STREAM)
    assert status == 200
    assert body.startswith(event(chunk("abc")) + b'data: {"error":')


@pytest.mark.parametrize("parts", [[], [b"<html>oops</html>"], [b": only a comment\n\n"]])
async def test_a_200_without_any_event_is_a_502(gateway: Gateway, parts: list[bytes]) -> None:
    script(gateway, *parts)
    status, body, headers = await gateway.read(STREAM)
    assert status == 502
    assert json.loads(body)["error"]["code"] == "upstream_error"
    assert headers["x-should-retry"] == "false"  # it was sent, so it is charged


async def test_an_event_without_an_end_is_an_error(gateway: Gateway) -> None:
    script(gateway, event(chunk("abc")), b"data: " + b"x" * (2**20 + 10))
    _, body, _ = await gateway.read(STREAM)
    assert body.startswith(event(chunk("abc")) + b'data: {"error":')


async def test_what_follows_done_goes_nowhere(gateway: Gateway) -> None:
    script(gateway, event(chunk("a")), DONE + event(chunk("b")), event(chunk("c")))
    _, body, _ = await gateway.read(STREAM)
    assert body == event(chunk("a")) + DONE


_TWO = [event(chunk("a")), event(chunk("b", index=1)), event(chunk(finish="stop"))]


async def test_without_done_every_choice_has_to_come_to_its_end(gateway: Gateway) -> None:
    script(gateway, *_TWO)
    _, body, _ = await gateway.read({**STREAM, "n": 2})
    assert body.startswith(b"".join(_TWO))
    assert json.loads(body.rpartition(b"data: ")[2])["error"]["code"] == "upstream_error"


async def test_a_stream_of_two_choices_ends_well_with_both(gateway: Gateway) -> None:
    parts = [*_TWO, event(chunk(finish="stop", index=1))]
    script(gateway, *parts)
    assert (await gateway.read({**STREAM, "n": 2}))[1] == b"".join(parts)


async def test_tool_calls_and_finish_reasons_are_counted(gateway: Gateway) -> None:
    def call(index: int, **rest: Any) -> bytes:
        return event(chunk(tool_calls=[{"index": index, **rest}]))

    script(
        gateway,
        call(0, id="a", type="function", function={"name": "f", "arguments": ""}),
        call(0, function={"arguments": '{"x"'}),
        call(0, function={"arguments": ":1}"}),
        call(1, id="b", function={"name": "g", "arguments": "{}"}),
        event(chunk(finish="tool_calls")),
        DONE,
    )
    await gateway.read(STREAM)
    delivery = await gateway.budgets.wait_settled()
    assert delivery.relayed_bytes == len('{"x":1}{}')
    assert gateway.metric("chat_tool_calls_total", model="double", service_type="ai") == 2
    assert gateway.metric("chat_finish_reasons_total", model="double", reason="tool_calls") == 1


async def test_a_lowered_grant_goes_upstream_under_the_models_name_for_it(gateway: Gateway) -> None:
    gateway.budgets.grant = 50
    gateway.models["double"] = Model("double", limit_name="max_tokens")
    _, _, headers = await gateway.read({**STREAM, "max_completion_tokens": 60})
    assert headers["x-mlpa-max-completion-tokens"] == "50"
    assert gateway.double.asked[0].body["max_tokens"] == 50
    assert "max_completion_tokens" not in gateway.double.asked[0].body


@pytest.mark.parametrize(
    ("given", "limit", "shown"),
    [
        ({}, 4096, None),
        ({"max_tokens": 100}, 100, None),
        ({"max_tokens": 4096}, 4096, None),
        ({"max_tokens": 5000}, 4096, "4096"),
    ],
)
async def test_no_limit_goes_upstream_that_is_above_what_the_model_can_answer(
    gateway: Gateway, given: dict[str, int], limit: int, shown: str | None
) -> None:
    gateway.models["double"] = Model("double", max_output_tokens=4096)
    _, _, headers = await gateway.read({**STREAM, **given})
    assert gateway.double.asked[0].body["max_completion_tokens"] == limit
    assert gateway.budgets.asks[0].limit == limit
    assert headers.get("x-mlpa-max-completion-tokens") == shown
