"""The audit of the locked versions: its findings, and its report of what it could not ask."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

DEPLOY = Path(__file__).parents[2] / "deploy"
GOOD, BAD = "a" * 64, "b" * 64
LOCK = f"""# made by hand
good==1.0 \\
    --hash=sha256:{GOOD} \\
    --hash=sha256:{BAD}
Odd_Name==2.0 ; python_full_version >= '3.11' \\
    --hash=sha256:{GOOD}
"""
PAGE: dict[str, Any] = {"files": [{"filename": "x.whl", "hashes": {"sha256": GOOD}, "yanked": False}]}


class Registry:
    """An index and an advisory database."""

    def __init__(self) -> None:
        self.pages = {"good": PAGE, "odd-name": PAGE}
        self.vulnerabilities: dict[str, list[dict[str, str]]] = {}
        self.url = ""

    async def page(self, request: web.Request) -> web.Response:
        return web.json_response(self.pages[request.match_info["name"]])

    async def query(self, request: web.Request) -> web.Response:
        asked = [query["package"]["name"] for query in (await request.json())["queries"]]
        return web.json_response({"results": [{"vulns": self.vulnerabilities.get(name, [])} for name in asked]})


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    double, app = Registry(), web.Application()
    app.router.add_get("/simple/{name}/", double.page)
    app.router.add_post("/v1/querybatch", double.query)
    async with TestServer(app) as server:
        double.url = str(server.make_url("/"))
        yield double


async def audited(folder: Path, registry: Registry, *, osv: str | None = None) -> tuple[int | None, str]:
    """Exit code and output."""
    shutil.copy(DEPLOY / "audit.py", folder)
    (folder / "requirements").mkdir()
    (folder / "requirements" / "runtime.txt").write_text(LOCK)
    environment = {"PIP_INDEX_URL": f"{registry.url}simple", "OSV_URL": osv or registry.url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(folder / "audit.py"), env=environment, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_nothing_is_found_where_nothing_is(tmp_path: Path, registry: Registry) -> None:
    code, said = await audited(tmp_path, registry)
    assert (code, said) == (0, "index: 0 findings in 2 versions\nadvisories: 0 findings in 2 versions\n")


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ({"files": [{**PAGE["files"][0], "yanked": "broken"}]}, "yanked: broken"),
        ({**PAGE, "project-status": {"status": "quarantined"}}, "the project is quarantined"),
        ({"files": [{**PAGE["files"][0], "hashes": {"sha256": "c" * 64}}]}, "no file with a hash of the lock"),
    ],
)
async def test_the_index_warns_of_a_version(
    tmp_path: Path, registry: Registry, page: dict[str, Any], found: str
) -> None:
    registry.pages["odd-name"] = page
    code, said = await audited(tmp_path, registry)
    assert code == 1
    assert "index: 1 findings" in said
    assert "Odd_Name 2.0: " in said
    assert found in said


async def test_a_known_vulnerability_is_told(tmp_path: Path, registry: Registry) -> None:
    registry.vulnerabilities["good"] = [{"id": "GHSA-x"}]
    code, said = await audited(tmp_path, registry)
    assert code == 1
    assert "good 1.0: GHSA-x" in said


async def test_what_could_not_be_asked_is_no_success(tmp_path: Path, registry: Registry, unused_port: int) -> None:
    code, said = await audited(tmp_path, registry, osv=f"http://127.0.0.1:{unused_port}/")
    assert code == 2
    assert "advisories: could not be asked" in said
