"""Strict CBOR (RFC 8949): what Apple's objects need, and nothing else.

cbor2 decodes; before it sees a byte, a scan over the heads of the items has bounded their number and depth and
refused indefinite lengths, tags (which make decoders do things), floats and simple values, lengths that aren't
in their shortest form, and anything that ends early. So each value has one encoding, up to the order of a map.
"""

import cbor2

MAX_DEPTH = 4
MAX_ITEMS = 32

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP = range(6)

# Additional information of a head -> bytes of its argument, and the least argument that needs so many.
_ARGUMENTS = {24: (1, 24), 25: (2, 1 << 8), 26: (4, 1 << 16), 27: (8, 1 << 32)}


class NotStrictCbor(ValueError):
    """The bytes aren't one item (or don't begin with one) of strict CBOR."""


def decode(data: bytes) -> object:
    """The one item that `data` consists of. Raises NotStrictCbor."""
    value, end = decode_first(data)
    if end != len(data):
        raise NotStrictCbor("bytes after the item")
    return value


def decode_first(data: bytes) -> tuple[object, int]:
    """The item that `data` begins with, and where it ends. Raises NotStrictCbor."""
    end = _end_of_item(data)
    try:
        return cbor2.loads(data[:end], allow_indefinite=False, allow_duplicate_keys=False), end
    except (cbor2.CBORDecodeError, ValueError, TypeError) as error:  # text that isn't UTF-8, a key twice
        raise NotStrictCbor("not decodable") from error


def _end_of_item(data: bytes) -> int:
    position = items = 0
    open_levels = [1]  # how many items each open container still lacks
    while open_levels:
        if open_levels[-1] == 0:
            open_levels.pop()
            continue
        open_levels[-1] -= 1
        items += 1
        if items > MAX_ITEMS:
            raise NotStrictCbor("too many items")
        kind, argument, position = _head(data, position)
        if kind in (_BYTES, _TEXT):
            position += argument
            if position > len(data):
                raise NotStrictCbor("a string ends early")
        elif kind in (_ARRAY, _MAP):
            if len(open_levels) > MAX_DEPTH:
                raise NotStrictCbor("too deep")
            open_levels.append(argument * 2 if kind == _MAP else argument)
        elif kind not in (_UNSIGNED, _NEGATIVE):
            raise NotStrictCbor("a tag, float or simple value")
    return position


def _head(data: bytes, position: int) -> tuple[int, int, int]:
    """Major type and argument of the item at `position`, and where its head ends."""
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
    if argument < least:
        raise NotStrictCbor("a length in a longer form than needed")
    return kind, argument, position
