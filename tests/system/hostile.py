"""Requests that nobody should send, as bytes: each is one connection's worth, made from a seed."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cbor2


@dataclass(frozen=True, slots=True)
class Target:
    """One method of one path of a service, and a good body and headers for it."""

    service: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Attempt:
    """``data`` is to be sent, and ``what`` says what is wrong with it. ``complete``: an answer is owed."""

    service: str
    what: str
    data: bytes
    complete: bool = True


_NASTY_TEXT = (
    "",
    " ",
    "\x00",
    "\x7f",
    "' or 1=1 --",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "%00",
    "%0d%0aX-Injected: 1",
    "%c0%ae%c0%ae/",
    "%u0041",
    "%",
    "%zz",
    "\u202e\u0000",
    "\ud83d\ude00",
    "A" * 3000,
    "-1",
    "1e309",
    "NaN",
    "null",
    "[]",
    "0x10",
    "*",
    "{s00}",
    "a:b:c",
    "*\r\n$3\r\nGET",
    "\\",
    '"',
    "'",
    "\x1b[31m",
)
_METHODS = (
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "get",
    "FOO",
    "",
    "G\x00T",
)
_VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "HTTP/1.1 ", "http/1.1", "")
_CONTENT_TYPES = (
    "application/json",
    "application/x-www-form-urlencoded",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-7",
    "application/json; charset=" + "x" * 200,
    "application/cbor",
    ";",
    "a/b/c",
    "*/*",
    "application/json\x00",
)


class Generator:
    """:param tokens: credentials that get a request past the door."""

    def __init__(self, seed: int, targets: Sequence[Target], tokens: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._targets, self._tokens = targets, tokens
        self._kinds: tuple[Callable[[Target], Attempt], ...] = (
            self._strange_line,
            self._strange_path,
            self._strange_headers,
            self._strange_credential,
            self._strange_body,
            self._strange_body,
            self._strange_length,
            self._smuggled,
            self._strange_fields,
            self._strange_fields,
        )

    def next(self) -> Attempt:
        kind: Callable[[Target], Attempt] = self._pick(self._kinds)
        return kind(self._pick(self._targets))

    def _pick(self, choices: Sequence[Any]) -> Any:
        return self._random.choice(choices)

    def _text(self) -> str:
        return str(self._pick(_NASTY_TEXT))

    def _bytes(self, most: int = 300) -> bytes:
        return self._random.randbytes(self._random.randrange(most))

    def _make(
        self,
        target: Target,
        what: str,
        *,
        method: str | None = None,
        path: str | None = None,
        version: str = "HTTP/1.1",
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        length: bool = True,
        complete: bool = True,
    ) -> Attempt:
        body = target.body if body is None else body
        fields = [("Host", "mlpa"), ("Connection", "close"), *target.headers, *headers]
        if length and (body or target.method == "POST"):
            fields.append(("Content-Length", str(len(body))))
        line = f"{target.method if method is None else method} {target.path if path is None else path} {version}"
        head = "\r\n".join([line, *(f"{name}: {value}" for name, value in fields)]) + "\r\n\r\n"
        return Attempt(target.service, what, head.encode("utf-8", "surrogatepass") + body, complete)

    def _strange_line(self, target: Target) -> Attempt:
        method, version = self._pick(_METHODS), self._pick(_VERSIONS)
        return self._make(target, f"line {method!r} {version!r}", method=method, version=version)

    def _strange_path(self, target: Target) -> Attempt:
        text = self._text().replace(" ", "%20").replace("\r", "").replace("\n", "")
        path = self._pick(
            (
                f"{target.path}/{text}",
                f"/{text}{target.path}",
                f"{target.path}?{text}={text}&{text}",
                f"{target.path}?key_id_b64={text}",
                f"/user/{text}/ledger",
                f"/user/{text}?limit={text}",
                f"/user?q={text}",
                f"/user?cursor={text}",
                f"//{text}",
                f"http://[{text}]{target.path}",
                f"{target.path}#{text}",
                f"/admin/static/{text}",
                f"/api/docs/assets/{text}",
                "/api/docs/assets/..%2f..%2fetc%2fpasswd",
                "*",
                "/" + "a" * 20000,
                "/" + "%2e%2e/" * 200,
                f"/admin/users?cursor={text}&sort={text}",
                f"/admin/audit?cursor={text}",
            )
        )
        return self._make(target, f"path {path[:60]!r}", path=path)

    def _strange_headers(self, target: Target) -> Attempt:
        text = self._text()
        header = self._pick(
            (
                ("X-Request-ID", text),
                ("X-Request-ID", "a\r\nX-Injected: 1"),
                ("X-Forwarded-For", text),
                ("purpose", text),
                ("Cookie", f"mlpa_session={text}"),
                ("Cookie", "=" * 500),
                ("Content-Type", self._pick(_CONTENT_TYPES)),
                ("Accept-Encoding", text),
                ("Content-Encoding", self._pick(("gzip", "br", "deflate", "x", "gzip, gzip"))),
                ("Expect", self._pick(("100-continue", "200-ok", text))),
                ("Upgrade", "h2c"),
                ("Upgrade", "websocket"),
                ("traceparent", text),
                ("Range", "bytes=0-0,-1"),
                ("If-Modified-Since", text),
                ("X" * 9000, "1"),
                ("X", "y" * 9000),
                ("Te", "trailers"),
                ("Host", "elsewhere"),
                ("Host", "["),
                ("Sec-Fetch-Site", text),
                (text, text),
                ("X y", "z"),
                (" X", "folded"),
                ("Origin", "null"),
                ("X-Http-Method-Override", "DELETE"),
            )
        )
        return self._make(target, f"header {header[0][:30]!r}: {header[1][:30]!r}", headers=[header])

    def _strange_credential(self, target: Target) -> Attempt:
        good = self._pick(self._tokens)
        head, _, rest = good.partition(".")
        part = base64.urlsafe_b64encode(self._random.randbytes(40)).decode().rstrip("=")
        none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt","kid":"x"}').decode().rstrip("=")
        deep = base64.urlsafe_b64encode(b"[" * 800).decode().rstrip("=")
        value = self._pick(
            (
                "",
                "Bearer",
                "Bearer ",
                f"bearer  {good}",
                f"Bearer {good} x",
                f"Basic {part}",
                f"Bearer {part}",
                f"Bearer {good}.{part}",
                f"Bearer {part}.{rest}",
                f"Bearer {none}.{rest}",
                f"Bearer {deep}.{deep}.{part}",
                f"Bearer {head}..",
                "Bearer ...",
                f"Bearer {good[:-5]}{part[:5]}",
                "Bearer " + "a" * 7000,
                f"Bearer {self._text()}",
                f"Bearer \u00e9{good}",
                f"{good}",
            )
        )
        kept = [header for header in target.headers if header[0] != "Authorization"]
        bare = Target(target.service, target.method, target.path, tuple(kept), target.body)
        return self._make(bare, f"credential {value[:40]!r}", headers=[("Authorization", value)])

    def _strange_body(self, target: Target) -> Attempt:
        body = target.body or b"{}"
        at = self._random.randrange(len(body) + 1)
        name, made = self._pick(
            (
                ("random", self._bytes()),
                ("cut", body[:at]),
                ("spliced", body[:at] + self._bytes(20) + body[at:]),
                ("twice", body + body),
                ("nested", b"[" * 5000),
                ("nested objects", b'{"a":' * 3000 + b"1" + b"}" * 3000),
                ("duplicate", b'{"model":"double","model":"double","messages":[]}'),
                ("number", b'{"n":1e400,"seed":' + b"9" * 400 + b"}"),
                ("not UTF-8", body[:at] + b"\xff\xfe" + body[at:]),
                ("BOM", b"\xef\xbb\xbf" + body),
                ("UTF-16", body.decode("latin-1").encode("utf-16")),
                ("null", b"null"),
                ("empty", b""),
                ("fields", b"&".join(b"a%d=1" % n for n in range(200))),
                ("percent", b"grant_type=%zz&token=%ff"),
                ("surrogate", b'{"model":"\\ud800","messages":[{"role":"user","content":"\\udfff"}]}'),
                ("NUL", body.replace(b"a", b"\x00")),
            )
        )
        return self._make(target, f"body {name}", body=made)

    def _strange_fields(self, target: Target) -> Attempt:
        """A good body with one field exchanged, so that it gets far."""
        name, made = "bytes", self._bytes()
        if target.body.startswith(b"{"):
            fields = json.loads(target.body)
            name = self._pick(sorted(fields))
            fields[name] = self._value()
            made = json.dumps(fields).encode("utf-8", "surrogatepass")
        elif b"=" in target.body:
            pairs = target.body.split(b"&")
            at = self._random.randrange(len(pairs))
            name = pairs[at].partition(b"=")[0].decode()
            value = self._pick(
                (b"%00", b"%ff", b"", b"a" * 5000, self._assertion(), base64.urlsafe_b64encode(self._bytes()))
            )
            pairs[at] = pairs[at].partition(b"=")[0] + b"=" + value
            made = b"&".join(pairs)
        return self._make(target, f"field {name}", body=made)

    def _value(self) -> Any:
        text = self._text()
        parts = [{"type": "image_url", "image_url": {"url": text}}, {"type": text}, {"type": "text", "text": text}]
        return self._pick(
            (
                text,
                None,
                True,
                -1,
                2**64,
                1e300,
                [],
                {},
                [text],
                {text: text},
                [[[]]],
                [{"role": "user", "content": parts}],
                [{"role": "user", "content": text}] * 50,
                [{"role": "tool", "content": text, "tool_call_id": text}],
                base64.b64encode(self._bytes()).decode(),
                base64.b64encode(cbor2.dumps({"fmt": "x", "attStmt": {"x5c": [b"x"]}})).decode(),
                base64.b64encode(b"\xbf" * 500).decode(),
                base64.b64encode(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff").decode(),
            )
        )

    def _assertion(self) -> bytes:
        members = {name: self._value() for name in ("key_id_b64", "assertion_obj_b64", "client_data_b64", "bundle_id")}
        return base64.urlsafe_b64encode(json.dumps(members).encode("utf-8", "surrogatepass")).rstrip(b"=")

    def _strange_length(self, target: Target) -> Attempt:
        """Lengths that lie. What is not sent is not owed an answer: the connection ends."""
        body = target.body or b"{}"
        name, headers, made, complete = self._pick(
            (
                ("too long", [("Content-Length", str(len(body) + 10))], body, False),
                ("too short", [("Content-Length", str(len(body) // 2))], body, True),
                ("huge", [("Content-Length", str(10**12))], body, True),
                ("negative", [("Content-Length", "-1")], body, True),
                ("signed", [("Content-Length", f"+{len(body)}")], body, True),
                ("hex", [("Content-Length", hex(len(body)))], body, True),
                ("overflow", [("Content-Length", "9" * 40)], body, True),
                ("text", [("Content-Length", "abc")], body, True),
                ("list", [("Content-Length", f"{len(body)}, {len(body)}")], body, True),
                ("chunks", [("Transfer-Encoding", "chunked")], _chunked(body), True),
                ("cut chunks", [("Transfer-Encoding", "chunked")], _chunked(body)[:-4], False),
                ("bad chunks", [("Transfer-Encoding", "chunked")], b"zz\r\n" + body, True),
                ("huge chunk", [("Transfer-Encoding", "chunked")], b"f" * 20 + b"\r\n" + body, True),
                ("extension", [("Transfer-Encoding", "chunked")], b"2;" + b"x" * 5000 + b"\r\n{}\r\n0\r\n\r\n", True),
                ("trailers", [("Transfer-Encoding", "chunked")], b"2\r\n{}\r\n0\r\nX-Injected: 1\r\n\r\n", True),
            )
        )
        return self._make(target, f"length {name}", headers=headers, body=made, length=False, complete=complete)

    def _smuggled(self, target: Target) -> Attempt:
        """Two readings of where a request ends."""
        hidden = b"GET /health/liveness HTTP/1.1\r\nHost: hidden\r\nX-Request-ID: smuggled\r\n\r\n"
        size, chunk = str(len(hidden)), _chunked(b"{}")
        name, headers, made = self._pick(
            (
                (
                    "CL.TE",
                    [("Content-Length", str(len(chunk) + len(hidden))), ("Transfer-Encoding", "chunked")],
                    chunk + hidden,
                ),
                ("TE.CL", [("Transfer-Encoding", "chunked"), ("Content-Length", "4")], chunk + hidden),
                ("TE.TE", [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")], chunk + hidden),
                ("TE x", [("Transfer-Encoding", "xchunked"), ("Content-Length", size)], hidden),
                ("TE tab", [("Transfer-Encoding", "\tchunked")], chunk + hidden),
                ("TE space", [("Transfer-Encoding ", "chunked"), ("Content-Length", size)], hidden),
                ("TE last", [("Transfer-Encoding", "chunked, gzip")], chunk + hidden),
                ("CL.CL", [("Content-Length", "0"), ("Content-Length", size)], hidden),
                ("CL.0", [("Content-Length", size)], hidden),
                ("CR", [("X", "a\rTransfer-Encoding: chunked"), ("Content-Length", size)], hidden),
                ("LF", [("X", "a\nTransfer-Encoding: chunked"), ("Content-Length", size)], hidden),
                ("NUL", [("Transfer-Encoding\x00", "chunked"), ("Content-Length", size)], hidden),
            )
        )
        return self._make(target, f"smuggled {name}", headers=headers, body=made, length=False)


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
