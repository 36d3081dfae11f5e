"""Lua scripts with named keys, arguments and constants.

A script is a file whose head declares what it works with:

    --@ use clock              chunks of code that it shares with other scripts, put before it
    --@ keys user leases       its keys, which are locals of these names
    --@ args id amount#        its arguments, likewise; # makes a number of it (nil for an empty text)
    --@ each keys token        keys and arguments of as many items as a call has:
    --@ each args seconds#     ``for at, item in each() do ... item.token, item.seconds``

A name in capitals is a constant of ``shared.state.layout``. ``epoch``, always the first argument, is not for a caller
to give: it is the run id of the server, which the connection knows.

A line ``--@ include decide`` puts a chunk just there; the chunk says with ``--@ needs`` which locals it reads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from operator import itemgetter
from typing import NamedTuple

from shared.state import layout

Value = str | int

_DIRECTIVE = re.compile(r"^--@ (use|keys|args|each keys|each args|needs|include) (.+)$", re.MULTILINE)
_CODE = re.compile(r"--[^\n]*|'[^'\n]*'")
_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_CONSTANTS = {name: value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str | int)}
_OF_REDIS = {"KEYS", "ARGV"}


class ScriptCall(NamedTuple):
    """What goes to Redis, without the epoch."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[str, ...]

    def argv(self, epoch: str) -> tuple[str, ...]:
        """Its arguments on a server; ``epoch`` is empty where the connection doesn't know it."""
        return (epoch, *self.args) if self.script.takes_epoch else self.args


class Script:
    """A Lua script of ``shared/state/scripts``. Called with its keys and arguments by name, it gives a ``ScriptCall``.

    :raises ValueError: the file names something that isn't declared, or declares something that it never uses.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        text = _read(name)
        head = _Head.of(text)
        self.takes_epoch = head.args[:1] == ["epoch"]
        self.source = assemble(name, text)
        given = [*head.keys, *map(_plain, head.args[1:] if self.takes_epoch else head.args)]
        self._keys = _getter(head.keys)
        self._args = _getter(given[len(head.keys) :])
        self._names = frozenset(given)
        self._each_keys, self._each_args = _getter(head.each_keys), _getter(list(map(_plain, head.each_args)))
        self._each_names = frozenset((*head.each_keys, *map(_plain, head.each_args)))

    @cached_property
    def wire_head(self) -> bytes:
        """The first two arguments of its EVALSHA as they go over the wire."""
        sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        return f"$7\r\nEVALSHA\r\n$40\r\n{sha}\r\n".encode()

    def __call__(self, *, each: Iterable[Mapping[str, Value]] | None = None, **values: Value) -> ScriptCall:
        """
        :raises TypeError: a name is missing, or unknown.
        """
        if values.keys() != self._names:
            raise TypeError(self._mismatch(values, self._names))
        keys, args = self._keys(values), self._args(values)
        if (each is not None) is not bool(self._each_names):
            raise TypeError(f"{self.name}.lua has {'' if self._each_names else 'no '}items")
        for item in each or ():
            if item.keys() != self._each_names:
                raise TypeError(self._mismatch(item, self._each_names))
            keys += self._each_keys(item)
            args += self._each_args(item)
        return ScriptCall(self, keys, args)

    def _mismatch(self, given: Mapping[str, Value], declared: frozenset[str]) -> str:
        missing, unknown = sorted(declared - given.keys()), sorted(given.keys() - declared)
        return f"{self.name}.lua: missing {missing}, unknown {unknown}"


class _Head(NamedTuple):
    """What a file declares."""

    use: list[str]
    keys: list[str]
    args: list[str]
    each_keys: list[str]
    each_args: list[str]
    needs: list[str]

    @classmethod
    def of(cls, text: str) -> _Head:
        found: dict[str, list[str]] = {}
        for kind, names in _DIRECTIVE.findall(text):
            found.setdefault(kind, []).extend(names.split())
        return cls(*(found.get(kind, []) for kind in ("use", "keys", "args", "each keys", "each args", "needs")))


def _read(name: str) -> str:
    return files("shared.state.scripts").joinpath(f"{name}.lua").read_text()


def assemble(name: str, text: str) -> str:
    """The whole source of a script.

    :raises ValueError: it names something that isn't declared, or declares something that it never uses.
    """
    head = _Head.of(text)
    unread = re.findall(r"^--@(?! (?:use|keys|args|each keys|each args|needs|include) ).*$", text, re.MULTILINE)
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
    constants = sorted((words & _CONSTANTS.keys()) - _OF_REDIS)
    parts = [
        _locals(constants, [_literal(_CONSTANTS[one]) for one in constants]),
        chunks,
        _locals(head.keys, [f"KEYS[{at}]" for at in range(1, len(head.keys) + 1)]),
        _locals(list(map(_plain, head.args)), [_argument(arg, f"{at}") for at, arg in enumerate(head.args, 1)]),
        _each(head) if head.each_keys or head.each_args else "",
        body,
    ]
    return "".join(parts)


def _check(name: str, head: _Head, body: str, code: str, words: set[str]) -> None:
    """:raises ValueError:"""
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
    keys, args, first_key, first_arg = len(head.each_keys), len(head.each_args), len(head.keys), len(head.args)
    rest = f"(#ARGV - {first_arg}) / {args}" if args else f"(#KEYS - {first_key}) / {keys}"
    fields = [f"{name} = KEYS[{first_key} + {keys} * at - {keys - n}]" for n, name in enumerate(head.each_keys, 1)]
    fields += [
        f"{_plain(name)} = {_argument(name, f'{first_arg} + {args} * at - {args - n}')}"
        for n, name in enumerate(head.each_args, 1)
    ]
    return (
        f"local function each()\n  local at = 0\n  return function()\n    at = at + 1\n"
        f"    if at <= {rest} then return at, {{{', '.join(fields)}}} end\n  end\nend\n"
    )


def _locals(names: Sequence[str], values: Sequence[str]) -> str:
    return f"local {', '.join(names)} = {', '.join(values)}\n" if names else ""


def _plain(argument: str) -> str:
    return argument.removesuffix("#")


def _argument(argument: str, at: str) -> str:
    return f"tonumber(ARGV[{at}])" if argument.endswith("#") else f"ARGV[{at}]"


def _literal(value: str | int) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, Value]], tuple[str, ...]]:
    """The values of these names as text."""
    if len(names) < 2:
        return lambda values: tuple(str(values[one]) for one in names)
    get = itemgetter(*names)
    return lambda values: tuple(map(str, get(values)))
