"""Checks every version in requirements/*.txt with the package index and the advisories: ``make audit``.

The index tells of files that their authors took back (PEP 592) and of projects that are quarantined, archived or
deprecated (PEP 792). Known vulnerabilities are asked of OSV, where it can be reached; where not, that is said.
Exits with 1 for findings, with 2 when something could not be asked, else with 0.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp

LOCKS = Path(__file__).parent / "requirements"
#: The variables of pip and uv; OSV has none.
INDEX = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_INDEX_URL") or "https://pypi.org/simple/"
OSV = os.environ.get("OSV_URL", "https://api.osv.dev/")
_AT_ONCE = 8
_JSON = {"Accept": "application/vnd.pypi.simple.v1+json"}


@dataclass(frozen=True, order=True, slots=True)
class Pin:
    """A locked version. ``hashes`` are hex SHA-256 of the files that pip would take."""

    name: str
    version: str
    hashes: frozenset[str]


def pins(lock: str) -> list[Pin]:
    """The versions of a lock, with their hashes, as pip reads it."""
    blocks = re.findall(r"(?m)^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)((?:.*\\\n)*.*)", lock)
    return [Pin(name, version, frozenset(re.findall(r"sha256:(\w+)", rest))) for name, version, rest in blocks]


def findings(pin: Pin, page: Mapping[str, Any]) -> list[str]:
    """The objections of the index' page of a project (PEP 691) to a version."""
    status = page.get("project-status") or {}
    state = status.get("status", "active") if isinstance(status, Mapping) else str(status)
    found = [] if state == "active" else [f"the project is {state}"]
    files = [one for one in page["files"] if one["hashes"].get("sha256") in pin.hashes]
    if not files:
        found.append("the index has no file with a hash of the lock")
    found += sorted({f"yanked: {one['yanked']}" for one in files if one.get("yanked")})
    return found


async def _ask_index(session: aiohttp.ClientSession, every: Iterable[Pin]) -> list[str]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(pin: Pin) -> list[str]:
        name = re.sub(r"[-_.]+", "-", pin.name).lower()
        async with gate, session.get(urljoin(f"{INDEX.rstrip('/')}/", f"{name}/"), headers=_JSON) as response:
            response.raise_for_status()
            page = await response.json(content_type=None)
        return [f"{pin.name} {pin.version}: {said}" for said in findings(pin, page)]

    return [said for some in await asyncio.gather(*map(ask, every)) for said in some]


async def _ask_advisories(session: aiohttp.ClientSession, every: list[Pin]) -> list[str]:
    queries = [{"package": {"name": pin.name, "ecosystem": "PyPI"}, "version": pin.version} for pin in every]
    async with session.post(urljoin(OSV, "v1/querybatch"), json={"queries": queries}) as response:
        response.raise_for_status()
        results = (await response.json())["results"]
    return [
        f"{pin.name} {pin.version}: {vulnerability['id']}"
        for pin, result in zip(every, results, strict=True)
        for vulnerability in result.get("vulns", ())
    ]


async def audit() -> int:
    """Ask, and print the findings. Returns the exit code."""
    every = sorted({pin for lock in LOCKS.glob("*.txt") for pin in pins(lock.read_text())})
    code = 0
    async with aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(total=300)) as session:
        for what, asked in (("index", _ask_index(session, every)), ("advisories", _ask_advisories(session, every))):
            try:
                found = await asked
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                print(f"{what}: could not be asked, {type(error).__name__}")
                code = code or 2
                continue
            print(f"{what}: {len(found)} findings in {len(every)} versions", *found, sep="\n  ")
            code = 1 if found else code
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(audit()))
