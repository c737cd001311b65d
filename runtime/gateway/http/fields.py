"""Typed fields of a JSON body. Every field is either read, known to have no effect on the answer, or refused by name: nothing is ignored
silently. `null` is the same as absent, as in OpenAI's API.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from triptych.runtime.gateway.http.errors import HttpError, bad_field

MAX_DEPTH_MESSAGE = "the body is nested too deeply"


def parse_json(data: bytes) -> dict[str, Any]:
    """The body as an object; HttpError 400 for anything else, NaN and Infinity included (they are no JSON)."""
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except RecursionError:
        raise HttpError(400, MAX_DEPTH_MESSAGE) from None
    except ValueError as error:  # JSON, UTF-8, and numbers with thousands of digits
        raise HttpError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise HttpError(400, f"the body is {kind_of(value)}; expected a JSON object")
    return value


def kind_of(value: Any) -> str:
    """JSON's word for the type of a value."""
    if value is None:
        return "null"
    words = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return words.get(type(value), type(value).__name__)


@dataclass(frozen=True)
class Inert:
    """A known field that has no effect here, as long as its value asks for none."""

    allows: Callable[[Any], bool]
    expected: str


ANYTHING = Inert(lambda value: True, "anything")
NOTHING = Inert(lambda value: not value and not (isinstance(value, int | float) and not isinstance(value, bool)), "it unset: it is not supported here")  # fmt: skip


def only(*values: Any) -> Inert:
    """Allowed with these values alone."""
    return Inert(
        lambda value: value in values, " or ".join(map(json.dumps, values)) + ": nothing else is supported here"
    )


class Fields:
    """The fields of one body, each read once.

    Args:
        inert: fields that are accepted without effect.
    """

    def __init__(self, body: Mapping[str, Any], inert: Mapping[str, Inert]):
        self._left = {name: value for name, value in body.items() if value is not None}
        self._inert = inert

    def take(self, name: str) -> Any:
        """The raw value, or None."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            wrong(name, value, "a string")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            wrong(name, value, "a boolean")
        return value

    def integer(self, name: str, low: int, high: int = 2**31 - 1) -> int | None:
        """A whole number in [low, high]; 5.0 is one, as in JSON Schema."""
        value = self.take(name)
        if value is None:
            return None
        whole = _whole(value)
        if whole is None:
            wrong(name, value, "a whole number")
        if not low <= whole <= high:
            raise bad_field(name, f"{name} is {whole}; expected a whole number in [{low}, {high}]")
        return whole

    def number(self, name: str) -> float | None:
        """A finite number."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong(name, value, "a number")
        return _finite(name, value)

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A string, or an array of strings."""
        value = self.take(name)
        if value is None or isinstance(value, str):
            return None if value is None else (value,)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            wrong(name, value, "a string or an array of strings")
        return tuple(value)

    def token_ids(self, name: str) -> tuple[int, ...] | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, list):
            wrong(name, value, "an array of token ids")
        return token_ids(name, value)

    def biases(self, name: str) -> dict[int, float] | None:
        """An object of token id (a string, as JSON wants it) to bias."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            wrong(name, value, "an object of token ids and numbers")
        biases: dict[int, float] = {}
        for key, bias in value.items():
            if not key.isascii() or not key.isdigit() or len(key) > 10 or int(key) >= 2**32:
                raise bad_field(name, f"{name} has the key {key[:40]!r}; expected token ids")
            if isinstance(bias, bool) or not isinstance(bias, int | float):
                raise bad_field(name, f"{name}[{key}] is {kind_of(bias)}; expected a number")
            biases[int(key)] = _finite(f"{name}[{key}]", bias, param=name)
        return biases

    def fields_of(self, name: str) -> Fields | None:
        """An object, as fields of its own that the caller finishes."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            wrong(name, value, "an object")
        return Fields({f"{name}.{key}": entry for key, entry in value.items()}, self._inert)

    def finish(self) -> None:
        """Refuse what nobody has read: HttpError 400 naming the first such field."""
        for name, value in self._left.items():
            inert = self._inert.get(name)
            if inert is None:
                raise HttpError(400, f"{name[:100]} is not known here", param=name[:100], code="unknown_parameter")
            if not inert.allows(value):
                raise HttpError(
                    400,
                    f"{name} is {_shown(value)}; expected {inert.expected}",
                    param=name,
                    code="unsupported_parameter",
                )


def wrong(name: str, value: Any, expected: str) -> NoReturn:
    raise bad_field(name, f"{name} is {_shown(value)}; expected {expected}")


def token_ids(name: str, values: list[Any], param: str | None = None) -> tuple[int, ...]:
    """Token ids, each a whole number that fits 32 bits; HttpError naming the first that does not."""
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**32:
            raise bad_field(param or name, f"{name}[{index}] is {_shown(value)}; expected a token id")
    return tuple(values)


def _whole(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _finite(name: str, value: float, param: str | None = None) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise bad_field(param or name, f"{name} is too large for a number")
    return number


def _shown(value: Any) -> str:
    """A value in an error message: what it is, shortened."""
    if isinstance(value, list | dict):
        return kind_of(value)
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
