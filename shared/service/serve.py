"""Runs one service in this process until a signal ends it: sites, drain.

After SIGTERM or SIGINT: readiness says 503 at once; new requests are served for ``drain_delay`` seconds, so that
balancers notice, and then answered 503, except probes. The gateway lets its streams finish, the listeners
close, and the requests that still run finish, all within ``drain_limit`` seconds. Every answer after the signal ends
its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from aiohttp import web

from shared.service.background import end
from shared.service.protocol import Protocol, ServiceSite
from shared.telemetry import logs

_log = logs.logger("serve")

#: Linux: how long sent data may stay unacknowledged before the connection counts as dead, in milliseconds. A client
#: that takes no data counts too, so this is more than the limit for slow clients (SLOW_CLIENT_SECONDS).
USER_TIMEOUT_MS = 75_000
#: Seconds between two checks of an ending process for running requests.
POLL_SECONDS = 0.02


@dataclass(slots=True)
class Drain:
    """The state of a process's shutdown, which readiness reports."""

    delay: float = 0.0
    limit: float = 60.0
    begun: bool = False
    #: Called when the delay is over.
    refuse_new: Callable[[], None] = lambda: None
    #: The service's first step, given the limit in seconds; new connections are still accepted meanwhile.
    finish: Callable[[float], Awaitable[None]] | None = None
    _left: float = 0.0
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """The service's part of the drain, once."""
        if self.begun:
            return
        self.begun = True
        _log.info("drain_begun", delay_s=self.delay, limit_s=self.limit)
        await asyncio.sleep(self.delay)
        self.refuse_new()
        until = time.monotonic() + self.limit
        if self.finish is not None:
            await self.finish(self.limit)
        self._left = max(0.0, until - time.monotonic())
        self._ended.set()

    async def wait(self) -> float:
        """Wait for the end of ``run``. Returns the seconds left of the limit."""
        await self._ended.wait()
        return self._left


DRAIN = web.AppKey("drain", Drain)


async def end_connection(request: web.Request, response: web.StreamResponse) -> None:
    """For ``on_response_prepare``: end the connection once the drain has begun, so that the client's next request goes
    elsewhere.
    """
    if request.app[DRAIN].begun:
        response.headers["Connection"] = "close"
        response.force_close()


#: Makes the site of an app from its runner and its listening socket.
SiteFactory = Callable[[web.AppRunner, socket.socket], ServiceSite]


@dataclass(frozen=True, slots=True)
class Site:
    app: web.Application
    port: int
    make: SiteFactory
    #: Whether all workers of a service listen on the one port.
    shared: bool = True


async def serve(
    main: Site, *others: Site, host: str, name: str, hang_up: Callable[[], object], reuse_port: bool = False
) -> bool:
    """Serve until a signal, then drain. Returns when all is closed.

    :param others: apps of further ports, served beside the main one.
    :param hang_up: called at SIGHUP, also for one that arrived while SIGHUP was blocked.
    :returns: whether it ever served: False if the signal came before.
    :raises OSError: a port is taken.
    """
    _allow_descriptors()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.loop_error)
    drain = main.app[DRAIN]
    runners: list[web.AppRunner] = []
    starting = asyncio.create_task(_start(runners, (main, *others), host, reuse_port=reuse_port))
    draining: set[asyncio.Task[None]] = set()
    too_early = False

    def begin() -> None:
        nonlocal too_early
        if starting.cancel():  # not yet done
            too_early = True
        else:
            draining.add(asyncio.ensure_future(drain.run()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        await asyncio.wait([starting])
        if not starting.cancelled():
            starting.result()
        if too_early:
            return False
        _log.info("listening", service=name, host=host, port=main.port, others=[site.port for site in others])
        await _close(runners, await drain.wait())
    finally:
        await end(starting)
        for runner in runners:
            await runner.cleanup()
    _log.info("stopped", service=name)
    return True


async def _start(runners: list[web.AppRunner], sites: Iterable[Site], host: str, *, reuse_port: bool) -> None:
    """Open the apps and their ports. A runner joins the list before it has anything to clean up."""
    for site in sites:
        runner = web.AppRunner(site.app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        runners.append(runner)
        await runner.setup()
        await site.make(runner, listen(host, site.port, reuse_port=reuse_port and site.shared)).start()


async def _close(runners: Iterable[web.AppRunner], seconds: float) -> None:
    """Close the listeners, one after the other, and wait for running requests; those that take longer continue.

    aiohttp's own shutdown would not read the rest of a body that is still coming.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for runner in runners:
                for site in tuple(runner.sites):
                    await site.stop()
                await asyncio.sleep(0)  # a request that has just come in begins
                while (server := runner.server) is not None and any(  # noqa: ASYNC110
                    isinstance(connection, Protocol) and connection.busy for connection in server.connections
                ):
                    await asyncio.sleep(POLL_SECONDS)


def _allow_descriptors() -> None:
    """Raise the limit of descriptors as far as allowed: each connection takes one, and the default is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A listening TCP socket, made here for the options that accepted connections inherit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        sock.bind((host, port))
        sock.listen(4096)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror or str(error), f"{host}:{port}") from None
    return sock
