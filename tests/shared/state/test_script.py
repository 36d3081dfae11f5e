"""Scripts whose files or callers name something that doesn't exist."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from typing import Any

import msgspec
import pytest
from redis.exceptions import ResponseError

from services.local.valkey import ValkeyServer
from shared.state import layout
from shared.state.limits import limits_of
from shared.state.script import Script, assemble
from tests.support.service_types import service_type

NAMES = sorted(
    file.name.removesuffix(".lua") for file in files("shared.state.scripts").iterdir() if ".lua" in file.name
)


@pytest.mark.parametrize("name", NAMES)
def test_every_script_compiles_and_reads_no_number_of_a_key_or_argument(name: str, valkey_server: ValkeyServer) -> None:
    with valkey_server.client() as client:
        client.script_load(Script(name).source)
    written = files("shared.state.scripts").joinpath(f"{name}.lua").read_text()
    assert not re.search(r"\b(KEYS|ARGV)\b", written)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("--@ keys user\nreturn 1", "never used: user"),
        ("--@ args id id\nreturn id", "declared twice: id"),
        ("--@ each keys user\n--@ each args id\nfor _, item in each() do redis.log(item.id) end", "never used: user"),
        ("--@ each args id\nfor _, item in each() do redis.log(item.id, item.usr) end", "not declared: usr"),
        ("return redis.call('HGET', 'x', SPENDT)", "not declared: SPENDT"),
        ("--@ use clock windows\nlocal standing = 1\n--@ include decide\nreturn reason", "not declared: available"),
        ("--@ key user\nreturn user", "not a directive: --@ key user"),
    ],
)
def test_a_file_that_names_what_is_not_there_is_not_a_script(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        assemble("x", text)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"user": "u"}, "missing .*'tier'"),
        ({"user": "u", "tier": "t", "teir": "t"}, "unexpected .*'teir'"),
        ({"user": "u", "tier": "t", "each": []}, "unexpected .*'each'"),
    ],
)
def test_a_call_gives_every_name_and_no_other(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        Script("set_user").call(**given)


def test_a_call_of_items_gives_every_name_of_each() -> None:
    script = Script("ack")
    with pytest.raises(TypeError, match=r"missing .*'start'"):
        script.item(user="u", id="1")
    with pytest.raises(TypeError, match=r"missing .*'each'"):
        script.call(outbox="o")
    items = [script.item(user="u", id="1", start="0|5|"), script.item(user="v", id=2, start="")]
    call = script.call(outbox="o", each=items)
    assert (call.keys, call.args) == (["o", "u", "v"], ["1", "0|5|", "2", ""])


def test_the_limits_of_a_row_reach_the_script_under_their_names(valkey_server: ValkeyServer) -> None:
    row = service_type("ai", duration_seconds=1, max_budget_nano=2, rpm=3, tpm=4, max_streams=5)
    text = "--@ args first *limits last\nreturn {first, duration + budget, rpm + tpm, max_streams * 1, last}"
    with valkey_server.client() as client:
        packed = msgspec.msgpack.encode(["a", *limits_of(row), "b"])
        assert client.eval(assemble("x", text), 0, packed) == [b"a", 3, 7, 5, b"b"]
    other = msgspec.structs.replace(row, rpm=6)
    assert limits_of(other) != limits_of(row)


def test_values_reach_the_script_under_their_names(valkey_server: ValkeyServer) -> None:
    """Keys, arguments, numbers and items; and the epoch, where it is asked for, before all other arguments."""
    text = """
--@ keys first second
--@ args epoch size# word none#?
--@ each keys place
--@ each args name count#
local found = {first, second, epoch, tostring(size + 1), word, tostring(none), IDLE}
for at, item in each() do
  found[#found + 1] = at .. item.place .. item.name .. tostring(item.count + 1)
end
return found
"""
    keys, args = ["a", "b", "p1", "p2"], [41, "w", "", "n1", 1, "n2", 2]
    with valkey_server.client() as client:
        found = client.eval(assemble("x", text), len(keys), *keys, "run", msgspec.msgpack.encode(args))
    assert found == [b"a", b"b", b"run", b"42", b"w", b"nil", layout.IDLE, b"1p1n12", b"2p2n23"]


async def test_what_a_script_does_not_declare_is_an_error_when_it_runs(valkey_server: ValkeyServer) -> None:
    with valkey_server.client() as client, pytest.raises(ResponseError, match="undeclared"):
        await asyncio.to_thread(client.eval, assemble("x", "return undeclared"), 0)
