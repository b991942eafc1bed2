"""From a request body to a validated request model, and from pydantic's findings to OpenAI's errors.

Knows the shape of OpenAI's messages and codes, not the single fields: those are in `completions` and `chat`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from gateway.errors import (
    ApiError,
    InvalidRequestError,
    MissingParameterError,
    UnknownParameterError,
    UnsupportedParameterError,
    shortened,
)

UNSUPPORTED = "unsupported_parameter"


def tag(kind: str) -> str:
    """Of one kind of a union: a part of pydantic's paths that a client did not write."""
    return f"<{kind}>"


TEXT = tag("text")
LIST = tag("list")
OBJECT = tag("object")
MAX_CHOICES = "max_choices"
"""Key of the validation context."""


class RequestModel(BaseModel):
    """Base of all request bodies and their parts: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def check(cls, fields: dict[str, Any], *, max_choices: int) -> Self:
        """The request that `fields` make. Raises `InvalidRequestError` naming the first field that is wrong."""
        try:
            return cls.model_validate(fields, context={MAX_CHOICES: max_choices})
        except ValidationError as error:
            raise _api_error(error.errors(include_url=False)[0]) from None


def only_neutral(*neutral: Any) -> Any:
    """Type of a field of the API that is not honoured yet: accepted where it changes nothing, else refused by name."""

    def check(value: Any) -> Any:
        if value is None or any(value == one and type(value) is type(one) for one in neutral):
            return value
        raise PydanticCustomError(UNSUPPORTED, "")

    schema = {"enum": [None, *neutral], "description": "Not supported: taken where it changes nothing."}
    return Annotated[Any, BeforeValidator(check), WithJsonSchema(schema)]


def text_or_list(value: Any) -> str:
    """Discriminator of a field that takes a string or a list."""
    return LIST if isinstance(value, list) else TEXT


def invalid(code: str, message: str) -> PydanticCustomError:
    """To be raised by a validator: an error with OpenAI's `code`; `{param}` in the message becomes the field's path."""
    return PydanticCustomError(code, "{template}", {"template": message})


def _api_error(detail: ErrorDetails) -> ApiError:
    kind = detail["type"]
    if kind == "extra_forbidden":
        *parents, key = detail["loc"]
        return UnknownParameterError(_path([part for part in parents if not _is_tag(part)] + [key]))
    param = _path([part for part in detail["loc"] if not _is_tag(part)])
    if kind == "missing":
        return MissingParameterError(param)
    if kind == UNSUPPORTED:
        return UnsupportedParameterError(
            f"Unsupported parameter: '{param}' is not supported by this server. Leave it out or set it to null.",
            param=param,
        )
    if kind in _BOUNDS:
        return _BOUNDS[kind](param, detail)
    if kind in _EXPECTED_TYPES:
        message = f"expected {_EXPECTED_TYPES[kind]}, but got {type_name(detail['input'])} instead."
        return InvalidRequestError(f"Invalid type for '{param}': {message}", param=param, code="invalid_type")
    context = detail.get("ctx", {})
    message = context.get("template", detail["msg"] + " ('{param}').").replace("{param}", param)
    return InvalidRequestError(message, param=param, code=kind if "template" in context else "invalid_value")


def _is_tag(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith("<") and part.endswith(">")


def _path(loc: Sequence[int | str]) -> str:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return shortened(path)


_EXPECTED_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "model_type": "an object",
    "dict_type": "an object",
}


def type_name(value: Any) -> str:
    """What a JSON value is called in OpenAI's messages."""
    names: dict[type, str] = {
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _number_bound(code: str, words: str, relation: str, key: str) -> Callable[[str, ErrorDetails], ApiError]:
    def error(param: str, detail: ErrorDetails) -> ApiError:
        limit, value = detail["ctx"][key], detail["input"]
        kind = "decimal" if isinstance(limit, float) else "integer"
        message = f"{kind} {words} value. Expected a value {relation} {limit:g}, but got {value} instead."
        if isinstance(limit, int):
            message = f"{kind} {words} value. Expected a value {relation} {limit}, but got {value} instead."
        return InvalidRequestError(f"Invalid '{param}': {message}", param=param, code=f"{kind}_{code}_value")

    return error


def _length_bound(code: str, words: str, key: str, number: str) -> Callable[[str, ErrorDetails], ApiError]:
    def error(param: str, detail: ErrorDetails) -> ApiError:
        limit, value = detail["ctx"][key], detail["input"]
        if isinstance(value, dict):
            message = f"object too large. Expected at most {limit} properties, but got {len(value)} instead."
            return InvalidRequestError(f"Invalid '{param}': {message}", param=param, code="object_above_max_properties")
        kind = "string" if isinstance(value, str) else "array"
        if not value and limit:
            message = f"empty {kind}. Expected a length of {number} {limit}, but got an empty {kind} instead."
            return InvalidRequestError(f"Invalid '{param}': {message}", param=param, code=f"empty_{kind}")
        message = f"{kind} too {words}. Expected a length of {number} {limit}, but got {len(value)} instead."
        return InvalidRequestError(f"Invalid '{param}': {message}", param=param, code=f"{kind}_{code}_length")

    return error


_BOUNDS: dict[str, Callable[[str, ErrorDetails], ApiError]] = {
    "greater_than_equal": _number_bound("below_min", "below minimum", ">=", "ge"),
    "greater_than": _number_bound("below_min", "below minimum", ">", "gt"),
    "less_than_equal": _number_bound("above_max", "above maximum", "<=", "le"),
    "less_than": _number_bound("above_max", "above maximum", "<", "lt"),
    "too_short": _length_bound("below_min", "short", "min_length", "at least"),
    "too_long": _length_bound("above_max", "long", "max_length", "at most"),
    "string_too_short": _length_bound("below_min", "short", "min_length", "at least"),
    "string_too_long": _length_bound("above_max", "long", "max_length", "at most"),
}
