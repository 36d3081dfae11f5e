"""Checks, builds and tags a release: ``make release``.

Without arguments it only tries: it checks the tree and builds the wheel. ``--prepare X.Y.Z`` writes the version to the
files that have it, to be committed; ``--tag`` makes the annotated tag. Nothing is pushed.
"""

from __future__ import annotations

import argparse
import configparser
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
_UNRELEASED = "## [Unreleased]\n"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class NotReady(Exception):
    """The tree can't be released; the message says why."""


def version(root: Path = ROOT) -> str:
    """The version that the package has."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    return config["metadata"]["version"]


def notes(root: Path, of: str) -> str:
    """The changelog's section of a version.

    :raises NotReady: nothing, or without its day.
    """
    text = (root / "CHANGELOG.md").read_text()
    found = re.search(
        rf"^## \[{re.escape(of)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## \[|\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None or not found[1].strip():
        raise NotReady(f"CHANGELOG.md has no section [{of}] with its day: make release ARGS='--prepare X.Y.Z'")
    return found[1].strip()


def prepare(root: Path, new: str, day: str) -> None:
    """Write a version where it belongs, and close the changelog's section of what is unreleased.

    :raises NotReady: it is no later version, or nothing is unreleased.
    """
    old, changelog = version(root), (root / "CHANGELOG.md").read_text()
    first = new == old and f"\n## [{old}]" not in changelog  # the version that nothing was released with yet
    if not first and (not _VERSION.fullmatch(new) or _numbers(new) <= _numbers(old)):
        raise NotReady(f"{new} is no version after {old}")
    _, found, rest = changelog.partition(_UNRELEASED)
    if not found or not rest.partition("\n## [")[0].strip():
        raise NotReady("CHANGELOG.md has nothing under [Unreleased]")
    (root / "CHANGELOG.md").write_text(changelog.replace(_UNRELEASED, f"{_UNRELEASED}\n## [{new}] - {day}\n", 1))
    for name, pattern in (
        ("setup.cfg", r"(?m)^(version = ).+"),
        ("deploy/kubernetes/production/kustomization.yaml", r"(\{name: mlpa-.+newTag: )\"[^\"]+\""),
    ):
        path = root / name
        value = new if name == "setup.cfg" else f'"{new}"'
        path.write_text(re.sub(pattern, rf"\g<1>{value}", path.read_text()))


def check(root: Path) -> str:
    """The notes of a tree that can be released.

    :raises NotReady: it can't.
    """
    current = version(root)
    if _git(root, "status", "--porcelain"):
        raise NotReady("there is something that is not committed")
    if _git(root, "tag", "--list", f"v{current}"):
        raise NotReady(f"v{current} is tagged already")
    text = (root / "deploy/kubernetes/production/kustomization.yaml").read_text()
    if set(re.findall(r'\{name: mlpa-.+newTag: "([^"]+)"', text)) != {current}:
        raise NotReady(f"the production overlay does not name {current} alone")
    return notes(root, current)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _git(root: Path, *arguments: str) -> str:
    argv = ("git", *arguments)
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603  ours
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("--prepare", metavar="X.Y.Z")
    parser.add_argument("--tag", action="store_true")
    given = parser.parse_args()
    if given.prepare:
        prepare(ROOT, given.prepare, f"{datetime.now(UTC):%Y-%m-%d}")
        print(f"{given.prepare} is written; look at it and commit it, then: make release ARGS=--tag")
        return
    said, current = check(ROOT), version()
    options = ("--quiet", "--no-deps", "--no-build-isolation", "-w", "build/dist")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "."], cwd=ROOT, check=True)  # noqa: S603  ours
    print(f"build/dist/mlpa-{current}-py3-none-any.whl, of {_git(ROOT, 'rev-parse', 'HEAD')}")
    if given.tag:
        _git(ROOT, "tag", "--annotate", f"v{current}", "--cleanup=verbatim", "--message", f"MLPA {current}\n\n{said}\n")
        print(f"v{current} is tagged: git push origin v{current}")
    else:
        print(f"Nothing is tagged; with ARGS=--tag it would be v{current}:\n\n{said}")


if __name__ == "__main__":
    try:
        main()
    except NotReady as reason:
        sys.exit(f"not ready: {reason}")
