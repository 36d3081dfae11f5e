"""The official OpenAI client for Node, installed by ``npm ci`` once per lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.system.harness import ROOT

HERE = Path(__file__).parent / "node"
FILES = ("package.json", "package-lock.json", "flows.mjs", "desktop.mjs")


def missing() -> str | None:
    """Why it can't run here."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            return f"{name} is not installed"
    return None


def install() -> Path:
    """The folder that it runs in, below .mlpa/.

    :raises subprocess.CalledProcessError: npm could not install it.
    """
    content = b"".join((HERE / name).read_bytes() for name in FILES)
    folder = ROOT / ".mlpa" / "node" / hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            for name in FILES:
                shutil.copy(HERE / name, folder / name)
            command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)
            (folder / "installed").touch()
    return folder


def run(url: str, token: str, jobs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """As ``python_flows.run``."""
    results: list[dict[str, Any]] = _run("flows.mjs", {"url": url, "token": token, "jobs": jobs})
    return results


def run_desktop(given: dict[str, Any]) -> dict[str, Any]:
    """One call of Firefox for desktop, as ``desktop.mjs`` says."""
    result: dict[str, Any] = _run("desktop.mjs", given)
    return result


def _run(script: str, given: dict[str, Any]) -> Any:
    done = subprocess.run(
        ["node", script], cwd=install(), input=json.dumps(given), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
