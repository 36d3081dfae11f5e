"""Strict CBOR (RFC 8949): the part of it that Apple's objects need.

cbor2 decodes. Before it sees a byte, a scan over the heads of the items bounds their number and depth and
refuses indefinite lengths, tags (which make decoders do things), floats and simple values, lengths that aren't
in their shortest form, and anything that ends early. So each value has one encoding, apart from the order of a map.

``split_map`` takes a map apart without decoding its values, for maps that may have unknown entries.
"""

from __future__ import annotations

import cbor2

MAX_DEPTH = 4
MAX_ITEMS = 32

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
#: The largest simple value that the head of an item holds by itself; those up to 31 have no other form.
_LEAST_LONG_SIMPLE = 32

# Additional information of a head -> bytes of its argument, and the least argument that needs so many.
_ARGUMENTS = {24: (1, 24), 25: (2, 1 << 8), 26: (4, 1 << 16), 27: (8, 1 << 32)}


class NotStrictCbor(ValueError):
    """The bytes aren't one item (or don't begin with one) of strict CBOR."""


def decode(data: bytes) -> object:
    """The one item that ``data`` consists of.

    :raises NotStrictCbor: it is not one item.
    """
    value, end = decode_first(data)
    if end != len(data):
        raise NotStrictCbor("bytes after the item")
    return value


def decode_first(data: bytes) -> tuple[object, int]:
    """The item that ``data`` begins with, and where it ends.

    :raises NotStrictCbor: it doesn't begin with one.
    """
    end = _end_of_item(data)
    try:
        return cbor2.loads(data[:end], allow_indefinite=False, allow_duplicate_keys=False), end
    except (cbor2.CBORDecodeError, ValueError, TypeError) as error:  # text that isn't UTF-8, a repeated key
        raise NotStrictCbor("not decodable") from error


def split_map(data: bytes, *, max_entries: int, max_key: int, max_value: int) -> dict[str, bytes]:
    """The entries of the one map with text keys that ``data`` consists of, each value as it's encoded.

    A value may be anything in CTAP2's canonical form, floats and simple values included: no tags, no indefinite
    lengths. ``max_key`` and ``max_value`` bound each one's bytes: those of a string, or of the encoding of anything
    else.

    :raises NotStrictCbor: it is not one such map.
    """
    kind, entries, position = _head(data, 0)
    if kind != _MAP:
        raise NotStrictCbor("not a map")
    if entries > max_entries:
        raise NotStrictCbor("too many entries")
    values: dict[str, bytes] = {}
    for _ in range(entries):
        kind, length, start = _head(data, position)
        if kind != _TEXT or length > max_key:
            raise NotStrictCbor("a key that isn't a short text")
        key, end = decode_first(data[position : start + length])
        position += end
        kind, length, _ = _head(data, position)
        end = _end_of_item(data, position, max_items=max_value, max_depth=max_value, others=True)
        if (length if kind in (_BYTES, _TEXT) else end - position) > max_value:
            raise NotStrictCbor("a value that is too long")
        if key in values:
            raise NotStrictCbor("a repeated key")
        values[str(key)] = data[position:end]
        position = end
    if position != len(data):
        raise NotStrictCbor("bytes after the map")
    return values


def _end_of_item(
    data: bytes, position: int = 0, *, max_items: int = MAX_ITEMS, max_depth: int = MAX_DEPTH, others: bool = False
) -> int:
    """Where the item at ``position`` ends. With ``others`` it may be, or hold, floats and simple values."""
    items = 0
    open_levels = [1]  # how many items each open container still lacks
    while open_levels:
        if open_levels[-1] == 0:
            open_levels.pop()
            continue
        open_levels[-1] -= 1
        items += 1
        if items > max_items:
            raise NotStrictCbor("too many items")
        kind, argument, position = _head(data, position)
        if kind in (_BYTES, _TEXT):
            position += argument
            if position > len(data):
                raise NotStrictCbor("a string ends early")
        elif kind in (_ARRAY, _MAP):
            if len(open_levels) > max_depth:
                raise NotStrictCbor("too deep")
            open_levels.append(argument * 2 if kind == _MAP else argument)
        elif kind == _TAG or (kind == _OTHER and not others):
            raise NotStrictCbor("a tag, float or simple value")
    return position


def _head(data: bytes, position: int) -> tuple[int, int, int]:
    """Major type and argument of the item at ``position``, and where its head ends."""
    if position >= len(data):
        raise NotStrictCbor("an item is missing")
    kind, information = data[position] >> 5, data[position] & 0x1F
    position += 1
    if information < 24:
        return kind, information, position
    if information not in _ARGUMENTS:
        raise NotStrictCbor("an indefinite or reserved length")
    width, least = _ARGUMENTS[information]
    argument = int.from_bytes(data[position : position + width], "big")
    position += width
    if position > len(data):
        raise NotStrictCbor("a length ends early")
    if kind == _OTHER:
        least = _LEAST_LONG_SIMPLE if width == 1 else 0  # the other widths are those of floats
    if argument < least:
        raise NotStrictCbor("a length in a longer form than needed")
    return kind, argument, position
