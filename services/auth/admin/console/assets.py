"""The files that pages of the console load, from this package alone."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from shared.errors import NotFound

PATH = "/admin/static/{name}"
_FOLDERS = (Path(__file__).parent / "static", Path(__file__).parent / "static" / "vendor")
_SUFFIXES = (".css", ".svg", ".txt")


@dataclass(frozen=True, slots=True)
class _Asset:
    body: bytes
    content_type: str
    version: str


class Assets:
    def __init__(self) -> None:
        self._assets: dict[str, _Asset] = {}
        for path in (path for folder in _FOLDERS for path in folder.iterdir() if path.suffix in _SUFFIXES):
            body = path.read_bytes()
            kind = mimetypes.types_map[path.suffix]
            self._assets[path.name] = _Asset(body, kind, hashlib.sha256(body).hexdigest()[:12])

    def url(self, name: str) -> str:
        """The path of a file, which changes with its content."""
        return f"/admin/static/{name}?v={self._assets[name].version}"

    def response(self, request: web.Request) -> web.Response:
        """:raises NotFound: it does not exist."""
        asset = self._assets.get(request.match_info["name"])
        if asset is None:
            raise NotFound
        newest = request.query.get("v") == asset.version
        headers = {"Cache-Control": "public, max-age=31536000, immutable" if newest else "no-cache"}
        return web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers)


ASSETS = web.AppKey("assets", Assets)
