"""The address that a request counts for: never one that a client can choose."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, make_mocked_request
from hypothesis import given, strategies as st
from multidict import CIMultiDict

from shared.service.proxies import PRIVATE_NETWORKS, PROXIES, Proxies, ProxyMetrics, client_address, parse_networks
from shared.telemetry.metrics import Registry
from tests.support.clock import Clock
from tests.support.exposition import metric

PEER = "127.0.0.1"


class Port:
    """A port that answers with the address that a request counts for, asked from 127.0.0.1."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.registry, self.clock = Registry(), Clock()

    async def open(self, hops: int, *networks: str) -> None:
        proxies = Proxies(hops, networks or PRIVATE_NETWORKS, ProxyMetrics(self.registry), clock=self.clock)

        async def answer(request: web.Request) -> web.Response:
            return web.json_response([client_address(request), proxies.forwarded(request)])

        app = web.Application()
        app[PROXIES] = proxies
        app.router.add_get("/", answer)
        server = TestServer(app)
        await server.start_server()
        self._stack.push_async_callback(server.close)
        self._url = str(server.make_url("/"))
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())

    async def ask(self, *forwarded: str) -> tuple[str, bool]:
        headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])
        async with self._session.get(self._url, headers=headers) as response:
            address, trusted = await response.json()
            return address, trusted

    def ignored(self, reason: str) -> float:
        return metric(self.registry, "forwarded_ignored_total", reason=reason)

    def too_few(self) -> float:
        return metric(self.registry, "trusted_proxies_too_few_total")


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async with AsyncExitStack() as stack:
        yield Port(stack)


async def test_without_proxies_the_peer_is_the_client_whatever_it_sends(port: Port) -> None:
    await port.open(0)
    assert await port.ask("192.0.2.1") == (PEER, False)
    assert port.ignored("peer") == 0


@pytest.mark.parametrize(
    ("hops", "forwarded", "address"),
    [
        (1, ["192.0.2.1"], "192.0.2.1"),
        (1, ["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
        (1, ["6.6.6.6", "192.0.2.1"], "192.0.2.1"),
        (1, ["192.0.2.1:4711"], "192.0.2.1"),
        (1, ["[2001:db8::1]:4711"], "2001:db8::1"),
        (1, ["2001:db8::1"], "2001:db8::1"),
        (1, ["6.6.6.6, 192.0.2.1, ,"], "192.0.2.1"),
        (2, ["6.6.6.6, 192.0.2.1, 10.0.0.9"], "192.0.2.1"),
        (2, ["192.0.2.1", "10.0.0.9"], "192.0.2.1"),
    ],
)
async def test_a_trusted_proxy_is_believed_as_far_as_there_are_proxies(
    port: Port, hops: int, forwarded: list[str], address: str
) -> None:
    await port.open(hops)
    assert await port.ask(*forwarded) == (address, True)


@pytest.mark.parametrize(
    ("hops", "forwarded", "reason"),
    [
        (2, ["192.0.2.1"], "short"),
        (3, ["192.0.2.1, 10.0.0.9"], "short"),
        (1, [", ,"], "short"),
        (1, ["unknown"], "malformed"),
        (1, ["fe80::1%eth0"], "malformed"),
        (1, ["192.0.2.1:80:90"], "malformed"),
    ],
)
async def test_what_the_proxies_cannot_have_written_counts_for_the_peer(
    port: Port, hops: int, forwarded: list[str], reason: str
) -> None:
    await port.open(hops)
    assert (await port.ask(*forwarded))[0] == PEER
    assert port.ignored(reason) == 1


async def test_a_peer_outside_of_the_networks_is_not_believed_and_warned_of_once_a_minute(
    port: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    await port.open(1, "130.211.0.0/22", "2001:db8::/32")
    for number in range(5):
        assert await port.ask(f"192.0.2.{number}") == (PEER, False)
    assert await port.ask() == (PEER, False)
    assert port.ignored("peer") == 5
    assert capsys.readouterr().out.count("forwarded_header_ignored") == 1
    port.clock.now += 60
    await port.ask("192.0.2.1")
    said = capsys.readouterr().out
    assert said.count("forwarded_header_ignored") == 1
    assert PEER in said
    assert "192.0.2.1" not in said


async def test_a_hop_count_that_is_one_too_low_is_noticed(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    """Two proxies, one counted: all clients share the address of the proxy that was left out."""
    await port.open(1)
    sources = {(await port.ask(f"192.0.2.{number}, 203.0.113.7"))[0] for number in range(49)}
    assert sources == {"203.0.113.7"}
    assert port.too_few() == 0
    for number in range(49, 200):
        await port.ask(f"192.0.2.{number}, 203.0.113.7")
    assert port.too_few() == 1
    said = capsys.readouterr().out
    assert said.count("trusted_proxies_too_low") == 1
    assert "203.0.113.7" in said
    port.clock.now += 60
    for number in range(60):
        await port.ask(f"192.0.2.{number}, 203.0.113.7")
    assert port.too_few() == 2


async def test_one_client_behind_a_proxy_of_its_own_is_no_sign_of_it(port: Port) -> None:
    await port.open(1)
    for number in range(200):
        await port.ask(f"10.0.0.1, 192.0.2.{number}")
        await port.ask("10.0.0.1, 192.0.2.1")
    assert port.too_few() == 0


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "::1"])
def test_private_and_loopback_peers_are_proxies_by_default(peer: str) -> None:
    assert Proxies(1, PRIVATE_NETWORKS, ProxyMetrics(Registry())).forwarded(_request(peer))


@pytest.mark.parametrize("peer", ["8.8.8.8", "::ffff:8.8.8.8", "2001:db8::1", "", None])
def test_no_other_peer_is(peer: str | None) -> None:
    assert not Proxies(1, PRIVATE_NETWORKS, ProxyMetrics(Registry())).forwarded(_request(peer))


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "proxy.example.org", "fe80::/10/10", ""])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not appear|has host bits"):
        parse_networks([text])


@given(
    st.integers(0, 4),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=60), max_size=4),
)
def test_the_answer_is_an_address_whatever_is_forwarded(hops: int, forwarded: list[str]) -> None:
    proxies = Proxies(hops, PRIVATE_NETWORKS, ProxyMetrics(Registry()))
    ipaddress.ip_address(proxies.client(_request("10.0.0.1", *forwarded)))


class _Transport:
    """A connection of which nothing but its peer is asked."""

    def __init__(self, peer: str | None) -> None:
        self._peer = peer

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (self._peer, 4711) if name == "peername" and self._peer is not None else default


def _request(peer: str | None, *forwarded: str) -> web.Request:
    headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])
    return make_mocked_request("GET", "/", headers=headers, transport=_Transport(peer))
