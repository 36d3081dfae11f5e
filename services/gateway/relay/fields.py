"""The members of a request's body, decoded one by one: every refusal names the field at fault, never its value."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

import msgspec

from services.gateway.errors import InvalidModel, InvalidRequest, Malformed
from services.gateway.relay.raw_json import starts
from shared.domain.service_types import MAX_MODEL_NAME, is_model_name

#: Bytes of each parameter that is not part of the prompt.
MAX_PARAMETER_BYTES = 65_536
NULL = msgspec.Raw(b"null")

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)
_NONE: Mapping[str, str] = MappingProxyType({})


def members(body: bytes, names: Collection[str]) -> dict[str, msgspec.Raw]:
    """The members of these names, not decoded; others are dropped.

    :raises msgspec.DecodeError: the body is not a JSON object.
    """
    return {name: raw for name, raw in _members.decode(body).items() if name in names}


def model_name(raw: msgspec.Raw) -> str:
    """The model's name.

    :raises InvalidModel: it is not one.
    """
    with contextlib.suppress(msgspec.ValidationError):
        name = _text.decode(raw)
        if is_model_name(name):
            return name
    raise InvalidModel(f"A model's name is 1 to {MAX_MODEL_NAME} printable characters without spaces.")


def check_text(body: bytes) -> None:
    """Check that the body is UTF-8: values that are forwarded or dropped as they are have not been decoded.

    :raises UnicodeDecodeError: it is not.
    """
    if not body.isascii():
        body.decode()


class Parameters:
    """The parameters of an operation that are read one by one; null counts as absent.

    :param whole: those that must be whole numbers. A client may write ``100.0``, which not all providers accept, so it
        is rewritten.
    """

    def __init__(self, types: Mapping[str, Any], whole: Collection[str] = ()) -> None:
        self._types, self._whole = types, whole
        self._decoders = {name: msgspec.json.Decoder(of) for name, of in types.items()}

    def read(self, name: str, raw: msgspec.Raw, values: dict[str, Any]) -> msgspec.Raw:
        """Put a parameter's value, if it has one, into ``values``. Returns the bytes to forward.

        :raises msgspec.DecodeError: it has the wrong type.
        :raises InvalidRequest: it is too long.
        """
        if starts(raw, "n"):
            return raw
        if len(raw) > MAX_PARAMETER_BYTES:
            raise InvalidRequest(f"Expected at most {MAX_PARAMETER_BYTES} bytes.", param=name)
        try:
            values[name] = self._decoders[name].decode(raw)
        except msgspec.ValidationError:
            if name not in self._whole:
                raise
            number = msgspec.json.decode(raw)
            if not isinstance(number, float) or not number.is_integer():
                raise
            values[name] = msgspec.convert(int(number), self._types[name])
            return msgspec.Raw(b"%d" % values[name])
        return raw

    def schemas(self) -> dict[str, Any]:
        """The JSON Schemas of the parameters, for the documentation; each is whole."""
        found, parts = msgspec.json.schema_components(self._types.values(), ref_template="{name}")

        def whole(schema: Any) -> Any:
            if isinstance(schema, list):
                return [whole(each) for each in schema]
            if not isinstance(schema, dict):
                return schema
            if "$ref" in schema:
                schema = {name: value for name, value in parts[schema["$ref"]].items() if name != "title"}
            return {name: whole(value) for name, value in schema.items()}

        return {name: whole(schema) for name, schema in zip(self._types, found, strict=True)}


class Reading:
    """Reads fields: a decoder's error within the block becomes the refusal of the field ``name``.

    ``model``, once it is read, is noted in the refusal of another field.

    :param allowed: the allowed values of fields for which msgspec's message names only the value that was sent.
    """

    __slots__ = ("_allowed", "model", "name")

    def __init__(self, allowed: Mapping[str, str] = _NONE) -> None:
        self._allowed = allowed
        self.name: str | None = None
        self.model: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """:raises InvalidRequest: with the field at fault in ``param``; ``Malformed`` if it is not JSON."""
        refusal = self._refusal(error) if error is not None else None
        if refusal is not None:
            refusal.model = self.model
            if refusal is not error:
                try:
                    raise refusal from None
                finally:  # its traceback has this frame: a cycle would keep the body until the next collection
                    del refusal, error, trace

    def _refusal(self, error: BaseException) -> InvalidRequest | None:
        if isinstance(error, InvalidRequest):
            return error
        if isinstance(error, msgspec.ValidationError):
            return _field_error(error, self.name, self._allowed)
        if isinstance(error, msgspec.DecodeError | UnicodeDecodeError):
            return Malformed(param=self.name)
        if isinstance(error, RecursionError):
            return InvalidRequest("The body is nested too deeply.", param=self.name)
        return None


_WHERE = re.compile(r" - at (?:`key` in )?`\$(.*)`$")
_MISSING = re.compile(r"missing required field `(\w+)`")
_INDEX = re.compile(r"\[[^\]]*\]")
_SAFE = ("Expected ", "Object missing required field ")


def _field_error(error: msgspec.ValidationError, name: str | None, values: Mapping[str, str]) -> InvalidRequest:
    """The error for a field: what was expected, never what was sent."""
    text = str(error)
    where = _WHERE.search(text)
    path = where[1] if where else ""
    missing = _MISSING.search(text)
    if missing:
        path += f".{missing[1]}"
    param = (f"{name}{path}" if name else path.lstrip(".")).replace("[...]", "")
    reason = text[: where.start()] if where else text
    allowed = values.get(_INDEX.sub("", param))
    if allowed and not missing and not reason.startswith(("Expected `array`", "Expected `object` of")):
        reason = f"Expected {allowed}"
    elif not reason.startswith(_SAFE):
        reason = "The value is not allowed"
    return InvalidRequest(f"{reason}.", param=param or None)
