"""Which part of the code may import which: the floors of the house, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

#: The parts, and what each may import beside itself and libraries.
PARTS = {
    "shared": ("migrations",),
    "services/auth": ("shared",),
    "services/gateway": ("shared",),
    "services/local": ("shared", "services/auth/appattest"),
    "services/cli": ("shared", "services/auth", "services/gateway", "services/local", "migrations"),
    "migrations": ("shared",),
}

#: The rooms of auth from the ground up: a room may import rooms above it in this list, and none below.
AUTH = [
    "settings",
    "errors",
    "bodies",
    "forms",
    "pagination",
    "breaker",
    "connections",
    "appattest",
    "limits",
    "challenge",
    "fxa",
    "play",
    "audit",
    "standing",
    "devices",
    "receipts",
    "tokens",
    "users",
    "provisioning",
    "erasure",
    "events",
    "usage",
    "exchange",
    "health",
    "admin/times",
    "admin/access",
    "admin/api",
    "admin/console",
    "admin/app",
    "app",
]

#: Rooms of auth that don't import each other in either direction.
STRANGERS = [{"devices", "tokens"}, {"devices", "users"}, {"tokens", "users"}, {"admin/api", "admin/console"}]


def imports(path: Path) -> Iterator[str]:
    """The modules and names that a file imports, as paths: also what it imports inside of functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.replace(".", "/") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}/{alias.name}".replace(".", "/") for alias in node.names)


def files(part: str) -> list[Path]:
    found = sorted((REPOSITORY / part).rglob("*.py"))
    assert found, part
    return found


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}/")


def ours(name: str) -> bool:
    return any(within(name, part) for part in ("shared", "services", "migrations", "tests", "deploy"))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_only_what_it_may(part: str) -> None:
    allowed = (part, *PARTS[part])
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in files(part)
        for name in imports(path)
        if ours(name) and not any(within(name, each) for each in allowed)
    ]
    assert not wrong


def room(name: str) -> str | None:
    """The room of auth that a module is in; None for what is not in auth, and for packages themselves."""
    inside = name.removeprefix("services/auth/").removesuffix(".py")
    return max((each for each in AUTH if within(inside, each)), key=len, default=None) if inside != name else None


def test_nothing_in_auth_imports_upward() -> None:
    wrong = []
    for path in files("services/auth"):
        source = str(path.relative_to(REPOSITORY))
        mine = room(source)
        if path.name == "__init__.py" and mine is None:
            continue
        assert mine is not None, f"{source} is in no room: add it to AUTH"
        for name in imports(path):
            other = room(name)
            if other is None:
                strange = name.startswith("services/auth/") and not name.startswith("services/auth/admin")
                assert not strange, f"{source} imports {name}, which is in no room: add it to AUTH"
            elif AUTH.index(other) > AUTH.index(mine) or {other, mine} in STRANGERS:
                wrong.append(f"{source} imports {name}")
    assert not wrong
