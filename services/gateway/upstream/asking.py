"""Requests to LiteLLM one layer below aiohttp's ``ClientSession``: with its pool of connections and its parser alone.

A session checks and builds each request from the start, and writes its body in a task of its own. LiteLLM's requests
differ in two or three fields of their heads, so the rest of a head is made once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus

import aiohttp
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.connector import Connection
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from services.gateway.upstream.connector import SEND_BUFFER, Connector, Wire

#: Reading from LiteLLM pauses when twice this is buffered of an answer.
READ_BUFFER = 16 * 1024
_OF_BODIES = frozenset(("content-length", "transfer-encoding"))


class Target:
    """A path of an instance of LiteLLM, and the head of requests to it up to their own fields."""

    __slots__ = ("_head", "request")

    def __init__(self, url: URL, headers: CIMultiDict[str]) -> None:
        #: A request as aiohttp makes it, which a connection is chosen by.
        self.request = aiohttp.ClientRequest("POST", url, headers=headers, loop=asyncio.get_running_loop())
        fields = [f"{name}: {value}" for name, value in self.request.headers.items() if name.lower() not in _OF_BODIES]
        self._head = "\r\n".join((f"POST {self.request.url.raw_path_qs} HTTP/1.1", *fields, ""))

    def head(self, own: Mapping[str, str], length: int) -> bytes:
        """The head of a request with a body of this length.

        :param own: fields that this request has beside the common ones.
        :raises ValueError: one of them has a line break, or is not ASCII.
        """
        fields = "".join([f"{name}: {value}\r\n" for name, value in own.items()])
        if fields.count("\n") != len(own) or fields.count("\r") != len(own):
            raise ValueError("a field of a head can't have a line break")
        return f"{self._head}{fields}Content-Length: {length}\r\n\r\n".encode("ascii")


class Answer:
    """An answer whose head has arrived. With the end of ``content`` its connection goes back to the pool."""

    __slots__ = ("_wire", "closed", "connection", "content", "headers", "status")

    def __init__(
        self, connection: Connection, wire: Wire, status: int, headers: CIMultiDictProxy[str], content: StreamReader
    ) -> None:
        self.connection, self.status = connection, status
        self.headers, self.content = headers, content
        self.closed = False
        self._wire = wire
        content.on_eof(self._ended)

    def _ended(self) -> None:
        if self._wire.written:
            self.closed = True
            self.connection.release()
        else:  # it came before all of the request was sent
            self._wire.cut()
            self.close()

    def close(self) -> None:
        """Close the connection, unless the answer has ended."""
        if not self.closed:
            self.closed = True
            self.connection.close()


async def ask(
    connector: Connector, timeout: aiohttp.ClientTimeout, target: Target, fields: Mapping[str, str], wire: Wire
) -> Answer:
    """Send the wire's request. Returns once the head of the answer has arrived.

    :param fields: those that it has beside the target's.
    :raises aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError: there is no connection, and nothing was sent.
    :raises aiohttp.ClientError: the connection failed later, or what came is no answer.
    """
    connection = await connector.lend(target.request, timeout, wire)
    protocol, transport = connection.protocol, connection.transport
    assert protocol is not None
    assert transport is not None
    sending: asyncio.Task[None] | None = None
    try:
        protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=READ_BUFFER)
        # not writelines: asyncio's of Python 3.12 keeps an empty part for ever, and does not pause (CVE-2024-12254)
        head = target.head(fields, len(wire.body))
        if len(wire.body) <= SEND_BUFFER:
            transport.write(head + wire.body)
        else:  # a copy would live until all of it is sent
            transport.write(head)
            transport.write(wire.body)
        wire.failed = transport.is_closing()
        if wire.written:
            wire.body = b""
        else:  # an answer may come before all of a large request was sent
            sending = asyncio.get_running_loop().create_task(_release_once_written(wire, protocol))
        message, content = await protocol.read()
        while message.code < HTTPStatus.OK and message.code != HTTPStatus.SWITCHING_PROTOCOLS:
            message, content = await protocol.read()
        wire.body = b""  # what was answered is not sent again
    except HttpProcessingError as error:
        connection.close()
        raise aiohttp.ClientPayloadError from error
    except BaseException:
        connection.close()
        raise
    finally:
        if sending is not None:
            sending.cancel()
    return Answer(connection, wire, message.code, message.headers, content)


async def _release_once_written(wire: Wire, protocol: BaseProtocol) -> None:
    """Drop the body of a request once the kernel has it, since the answer may take minutes."""
    with suppress(ConnectionError):  # the reader of the answer learns the reason
        await StreamWriter(protocol, asyncio.get_running_loop()).drain()
        if wire.written:
            wire.body = b""
