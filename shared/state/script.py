"""Lua scripts with named keys, arguments and constants.

A script is a file whose head declares what it works with:

    --@ use clock              chunks of code that it shares with other scripts, put before it
    --@ keys user leases       its keys, which are locals of these names
    --@ args id amount# room#? its arguments, likewise; # makes a number of it, #? of an empty text nil; ``*limits``
                               stands for all of ``shared.state.limits``, and is one argument of the Python call
    --@ each keys token        keys and arguments of as many items as a call has:
    --@ each args seconds#     ``for at, item in each() do ... item.token, item.seconds``
    --@ flags allow-oom        what Redis should let it do: ``allow-oom`` for one that ends or keeps what was admitted,
                               ``no-writes`` for one that only reads

Every script has a ``#!lua`` line, so that Redis (7 or later) or Valkey decides before its first command whether it can
run at all: a server that is full, or takes no writes, leaves nothing half done.

A name in capitals is a constant of ``shared.state.layout``; the loader replaces it with its value. ``epoch``, always
the first argument, is not given by the caller: it is the run id of the server, which the connection knows. All other
arguments go to Redis as one MessagePack array: thirty of them would cost more than the rest of a request's way there.

A line ``--@ include decide`` inserts a chunk at that place; its ``--@ needs`` names the locals that it reads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from shared.state import layout
from shared.state.limits import LIMITS

#: The keys and the arguments of an item.
Item = tuple[Sequence[str], Sequence[str | float]]

_DIRECTIVE = re.compile(r"^--@ (use|keys|args|each keys|each args|needs|include|flags) (.+)$", re.MULTILINE)
_CODE = re.compile(r"--[^\n]*|'[^'\n]*'")
_CONSTANT = re.compile(rf"{_CODE.pattern}|\b[A-Z][A-Z_]+\b")
_COMMAND = re.compile(r"\bredis\.call\('(\w+)'")
_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_CONSTANTS = {name: value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str | int)}
_OF_REDIS = {"KEYS", "ARGV"}
_LIMITS = [f"{name}#" for name in LIMITS]
_pack = msgspec.msgpack.Encoder().encode


class ScriptCall(NamedTuple):
    """The call as it goes to Redis, without the epoch."""

    script: Script
    keys: Sequence[str]
    args: Sequence[str | float]

    def argv(self, epoch: str) -> Sequence[str | bytes]:
        """Its arguments on a server; ``epoch`` is empty where the connection doesn't know it."""
        packed = _pack(self.args)
        return (epoch, packed) if self.script.takes_epoch else (packed,)


class Script:
    """A Lua script of ``shared/state/scripts``.

    ``call`` takes its keys and arguments by name, as text or numbers, and its items as ``each``, a list of results of
    ``item``. A name that is missing or unknown is a ``TypeError``.
    """

    def __init__(self, name: str) -> None:
        """:raises ValueError: the file names what isn't declared, or declares what it never uses."""
        self.name = name
        text = _read(name)
        head = _Head.of(text)
        self.takes_epoch = head.args[:1] == ["epoch"]
        #: Whether Redis runs it only while it may write and has memory.
        self.needs_writes = not head.flags
        self.source = assemble(name, text)
        #: The names of its keys in ``shared.state.layout.Shard``, and the commands that it runs.
        self.keys, self.commands = frozenset(head.keys + head.each_keys), frozenset(_COMMAND.findall(self.source))
        self.call, self.item = _functions(self, head)

    @cached_property
    def sha(self) -> str:
        """The name by which EVALSHA knows its source."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def _functions(script: Script, head: _Head) -> tuple[Callable[..., ScriptCall], Callable[..., Item]]:
    """``call`` and ``item`` of a script.

    They are generated as functions with exactly these names, like the ``__init__`` of a dataclass: every request makes
    two calls of up to thirty values, and sorting values by name would cost more than the rest of its work with Redis.
    """
    args, each_args = [one for one in head.given if one != "epoch"], head.each_args
    has_items = bool(head.each_keys or each_args)
    source = f"""
def {script.name}({_keywords([*head.keys, *args, *(["each"] if has_items else [])])}):
    keys, args = [{", ".join(head.keys)}], [{_values(args)}]
    {"for more_keys, more_args in each: keys += more_keys; args += more_args" if has_items else ""}
    return ScriptCall(script, keys, args)

def {script.name}_item({_keywords([*head.each_keys, *each_args])}):
    return [{", ".join(head.each_keys)}], [{_values(each_args)}]
"""
    made: dict[str, Any] = {"ScriptCall": ScriptCall, "script": script}
    exec(source, made)  # noqa: S102 - of names in this package's own files
    return made[script.name], made[f"{script.name}_item"]


def _keywords(names: Sequence[str]) -> str:
    return f"*, {', '.join(_plain(name.lstrip('*')) for name in names)}" if names else ""


def _values(names: Sequence[str]) -> str:
    """Numbers as they are; all else as text."""
    return ", ".join(_plain(name) if name[0] == "*" or _plain(name) != name else f"str({name})" for name in names)


class _Head(NamedTuple):
    """The declarations of a script's file. ``given``: the arguments as they are written there."""

    use: list[str]
    keys: list[str]
    args: list[str]
    each_keys: list[str]
    each_args: list[str]
    needs: list[str]
    flags: list[str]
    given: list[str]

    @classmethod
    def of(cls, text: str) -> _Head:
        found: dict[str, list[str]] = {}
        for kind, names in _DIRECTIVE.findall(text):
            found.setdefault(kind, []).extend(names.split())
        found["given"] = found.get("args", [])
        found["args"] = [name for one in found["given"] for name in (_LIMITS if one == "*limits" else [one])]
        kinds = ("use", "keys", "args", "each keys", "each args", "needs", "flags", "given")
        return cls(*(found.get(kind, []) for kind in kinds))


def _read(name: str) -> str:
    return files("shared.state.scripts").joinpath(f"{name}.lua").read_text()


def assemble(name: str, text: str) -> str:
    """The whole source of a script.

    :raises ValueError: it names something that isn't declared, or declares something that it never uses.
    """
    head = _Head.of(text)
    unread = re.findall(r"^--@(?! (?:use|keys|args|each keys|each args|needs|include|flags) ).*$", text, re.MULTILINE)
    if unread:
        raise ValueError(f"{name}.lua: not a directive: {unread[0]}")

    def include(directive: re.Match[str]) -> str:
        kind, names = directive.groups()
        return "\n".join(_read(f"chunks/{one}") for one in names.split()) if kind == "include" else directive.group()

    body = _DIRECTIVE.sub(include, text)
    chunks = "".join(_read(f"chunks/{one}") for one in head.use)
    code = _CODE.sub("", chunks + body)
    words = set(_NAME.findall(code))
    _check(name, head, body, code, words)
    given = [_plain(one) for one in head.args if one != "epoch"]
    parts = [
        f"#!lua flags={','.join(head.flags)}\n" if head.flags else "#!lua\n",
        chunks,
        _locals(head.keys, [f"unpack(KEYS, 1, {len(head.keys)})"]),
        "local epoch = ARGV[1]\n" if "epoch" in head.args else "",
        "local given = cmsgpack.unpack(ARGV[#ARGV])\n" if given or head.each_args else "",
        _locals(given, [f"unpack(given, 1, {len(given)})"]),
        _numbers(head.args),
        _each(head) if head.each_keys or head.each_args else "",
        body,
    ]
    return _CONSTANT.sub(_literal, "".join(parts))


def _check(name: str, head: _Head, body: str, code: str, words: set[str]) -> None:
    """:raises ValueError: names are repeated, unused or unknown."""
    declared = [*head.keys, *map(_plain, head.args)]
    items = {*head.each_keys, *map(_plain, head.each_args)}
    used_items = set(re.findall(r"\bitem\.(\w+)", code))
    lists = re.findall(r"\blocal (?:function )?(\w+(?:,\s*\w+)*)", code)
    known = {*declared, *(one for names in lists for one in re.findall(r"\w+", names))}
    problems = {
        "declared twice": [one for one in declared if declared.count(one) > 1],
        "never used": [one for one in declared if one not in words] + sorted(items - used_items),
        "not declared": sorted(used_items - items)
        + sorted(one for one in words if one.isupper() and len(one) > 1 and one not in _CONSTANTS.keys() | _OF_REDIS)
        + sorted(set(_Head.of(body).needs) - known),
    }
    for problem, names in problems.items():
        if names:
            raise ValueError(f"{name}.lua: {problem}: {', '.join(names)}")


def _each(head: _Head) -> str:
    """An iterator over the items of a call."""
    keys, args, first_key = len(head.each_keys), len(head.each_args), len(head.keys)
    first_arg = len(head.args) - ("epoch" in head.args)
    rest = f"(#given - {first_arg}) / {args}" if args else f"(#KEYS - {first_key}) / {keys}"
    fields = [f"{name} = KEYS[{first_key} + {keys} * at - {keys - n}]" for n, name in enumerate(head.each_keys, 1)]
    fields += [
        f"{_plain(name)} = {_number(name, f'given[{first_arg} + {args} * at - {args - n}]')}"
        for n, name in enumerate(head.each_args, 1)
    ]
    return (
        f"local function each()\n  local at = 0\n  return function()\n    at = at + 1\n"
        f"    if at <= {rest} then return at, {{{', '.join(fields)}}} end\n  end\nend\n"
    )


def _locals(names: Sequence[str], values: Sequence[str]) -> str:
    return f"local {', '.join(names)} = {', '.join(values)}\n" if names else ""


def _plain(argument: str) -> str:
    return argument.rstrip("#?")


def _number(argument: str, value: str) -> str:
    """The value, as a number where it is one. Adding is quicker than ``tonumber``, but takes no empty text."""
    return f"tonumber({value})" if argument.endswith("#?") else f"{value} + 0" if argument.endswith("#") else value


def _numbers(arguments: Sequence[str]) -> str:
    found = [one for one in arguments if one != _plain(one)]
    names = list(map(_plain, found))
    return f"{', '.join(names)} = {', '.join(map(_number, found, names))}\n" if found else ""


def _literal(found: re.Match[str]) -> str:
    value = _CONSTANTS.get(found.group(), found.group())
    return f"'{value}'" if isinstance(value, str) and found.group() in _CONSTANTS else str(value)
