"""Core dataclasses (and named tuples) to protobuf messages and back, by field name.

The wire contracts in proto/v1 repeat the field names of the dataclasses in runtime/core, so one small, typed walk serves them all; a
field that exists on one side only is an error at import of the pair, not a silently dropped value. Rules:

- `X | None` is a field with presence; enums travel as their value (strings, or the number for Status);
- a tuple of pairs is a repeated two-field message, in field order; `str | int` (what a finish matched) is a oneof of `text` and `token`;
- a field called `deadline` holds absolute local seconds in the dataclass and remaining seconds on the wire (core/clock.py);
- unions of dataclasses are a message with one oneof, whose members are the snake-case class names.

Plans are compiled once per (class, message) pair into lists of field converters, because tokens pass through here on every step.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union

from google.protobuf.message import DecodeError, Message

from triptych.runtime.core import control, handle, instance, media, request, sampling, tasks
from triptych.runtime.core.clock import remaining
from triptych.runtime.core.errors import InvalidRequestError

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_MODULES = (control, handle, instance, media, request, sampling, tasks)


def encode(value: Any, message_class: type[M], now: float) -> M:
    """The message that says `value`. `now` turns deadlines into remaining seconds."""
    message = message_class()
    _fill(value, message, now)
    return message


def decode(message: Message, cls: type[T], now: float) -> T:
    """The `cls` value that `message` says. Raises InvalidRequestError when a value is not one of its enum's."""
    try:
        arguments = {
            name: read(message, now) for name, read in _readers(cls, message.DESCRIPTOR.full_name, type(message))
        }
        return cls(**arguments)
    except ValueError as error:
        raise InvalidRequestError(f"malformed {message.DESCRIPTOR.name}: {error}") from error


def encode_oneof(value: Any, message_class: type[M], now: float) -> M:
    """Wrap `value` in the member of `message_class`'s oneof that carries its class's name."""
    message = message_class()
    member = getattr(message, snake_case(type(value).__name__))
    member.SetInParent()
    _fill(value, member, now)
    return message


def decode_oneof(message: Message, now: float) -> Any:
    """The core value inside a oneof message. Raises InvalidRequestError if nothing is set (a newer peer, or rubbish)."""
    field = message.WhichOneof("kind")
    if field is None:
        raise InvalidRequestError(f"{message.DESCRIPTOR.name} carries nothing this version knows")
    inner = getattr(message, field)
    return decode(inner, core_class(inner.DESCRIPTOR.name), now)


def parse(data: bytes, message_class: type[M]) -> M:
    """Parse bytes that came as an opaque field. Raises InvalidRequestError on rubbish."""
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"malformed {message_class.DESCRIPTOR.name}: {error}") from error


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@cache
def core_class(name: str) -> type:
    """The core dataclass a message is named after."""
    for module in _MODULES:
        found = getattr(module, name, None)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    raise InvalidRequestError(f"no core value is called {name}")


# ---- compiled field plans -----------------------------------------------------------------------------------------------------------

Writer = Callable[[Any, Message, float], None]
Reader = Callable[[Message, float], Any]


def _fill(value: Any, message: Message, now: float) -> None:
    for write in _writers(type(value), message.DESCRIPTOR.full_name, type(message)):
        write(value, message, now)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def field_names(cls: type) -> tuple[str, ...]:
    """Of a dataclass or a named tuple."""
    return cls._fields if issubclass(cls, tuple) else tuple(f.name for f in dataclasses.fields(cls))  # pyright: ignore


def _matched_fields(cls: type, message_class: type[Message]) -> list[tuple[str, Any, Any]]:
    wire = message_class.DESCRIPTOR.fields_by_name
    fields = field_names(cls)
    if set(fields) != set(wire):
        raise TypeError(
            f"{cls.__name__} and message {message_class.DESCRIPTOR.name} differ in fields: {sorted(set(fields) ^ set(wire))}"
        )
    return [(name, _hints(cls)[name], wire[name]) for name in fields]


@cache
def _writers(cls: type, _name: str, message_class: type[Message]) -> tuple[Writer, ...]:
    return tuple(_writer(name, hint, field) for name, hint, field in _matched_fields(cls, message_class))


@cache
def _readers(cls: type, _name: str, message_class: type[Message]) -> tuple[tuple[str, Reader], ...]:
    return tuple((name, _reader(name, hint, field)) for name, hint, field in _matched_fields(cls, message_class))


def _optional(hint: Any) -> tuple[Any, bool]:
    """(the type without None, whether None was allowed)."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = [a for a in typing.get_args(hint) if a is not type(None)]
        inner = members[0] if len(members) == 1 else Union[tuple(members)]  # noqa: UP007 - built at run time
        return inner, len(members) < len(typing.get_args(hint))
    return hint, False


def _is_pair(hint: Any) -> bool:
    return (
        typing.get_origin(hint) is tuple
        and len(typing.get_args(hint)) == 2
        and typing.get_args(hint)[1] is not Ellipsis
    )


def _item_type(hint: Any) -> Any:
    return typing.get_args(hint)[0]


def _writer(name: str, hint: Any, field: Any) -> Writer:
    inner, _ = _optional(hint)
    if name == "deadline":

        def write_deadline(value: Any, message: Message, now: float) -> None:
            left = remaining(value.deadline, now)
            if left is not None:
                message.deadline = left  # type: ignore[attr-defined]

        return write_deadline
    if typing.get_origin(inner) in (tuple, frozenset) and not _is_pair(inner):
        item = _item_type(inner)
        if _is_pair(item):
            first, second = (f.name for f in field.message_type.fields)
            nested = _optional(typing.get_args(item)[1])[0]

            def write_pairs(value: Any, message: Message, now: float) -> None:
                target = getattr(message, name)
                for a, b in getattr(value, name):
                    entry = target.add()
                    setattr(entry, first, a)
                    if dataclasses.is_dataclass(nested):
                        if b is not None:
                            getattr(entry, second).SetInParent()
                            _fill(b, getattr(entry, second), now)
                    else:
                        setattr(entry, second, b)

            return write_pairs
        if dataclasses.is_dataclass(item):

            def write_messages(value: Any, message: Message, now: float) -> None:
                target = getattr(message, name)
                for entry in getattr(value, name):
                    added = target.add()
                    _fill(entry, added, now)

            return write_messages
        if isinstance(item, type) and issubclass(item, Enum):
            order = sorted if typing.get_origin(inner) is frozenset else list
            return lambda value, message, now: getattr(message, name).extend(
                order(e.value for e in getattr(value, name))
            )
        return lambda value, message, now: getattr(message, name).extend(getattr(value, name))
    if dataclasses.is_dataclass(inner):

        def write_message(value: Any, message: Message, now: float) -> None:
            entry = getattr(value, name)
            if entry is not None:
                member = getattr(message, name)
                member.SetInParent()
                _fill(entry, member, now)

        return write_message
    if typing.get_origin(inner) in (Union, types.UnionType):
        if field.message_type is not None and field.message_type.name == "Matched":

            def write_matched(value: Any, message: Message, now: float) -> None:
                entry = getattr(value, name)
                if isinstance(entry, str):
                    getattr(message, name).text = entry
                elif entry is not None:
                    getattr(message, name).token = entry

            return write_matched

        def write_union(value: Any, message: Message, now: float) -> None:
            entry = getattr(value, name)
            member = getattr(getattr(message, name), snake_case(type(entry).__name__))
            member.SetInParent()
            _fill(entry, member, now)

        return write_union
    if isinstance(inner, type) and issubclass(inner, Enum):

        def write_enum(value: Any, message: Message, now: float) -> None:
            entry = getattr(value, name)
            if entry is not None:
                setattr(message, name, entry.value)

        return write_enum

    def write_scalar(value: Any, message: Message, now: float) -> None:
        entry = getattr(value, name)
        if entry is not None:
            setattr(message, name, entry)

    return write_scalar


def _reader(name: str, hint: Any, field: Any) -> Reader:
    inner, optional = _optional(hint)
    if name == "deadline":
        return lambda message, now: now + message.deadline if message.HasField("deadline") else None  # type: ignore[attr-defined]
    if typing.get_origin(inner) in (tuple, frozenset) and not _is_pair(inner):
        item = _item_type(inner)
        if _is_pair(item):
            first, second = (f.name for f in field.message_type.fields)
            nested = _optional(typing.get_args(item)[1])[0]
            if dataclasses.is_dataclass(nested):
                return lambda message, now: tuple(
                    (getattr(e, first), decode(getattr(e, second), nested, now) if e.HasField(second) else None)  # type: ignore[arg-type]
                    for e in getattr(message, name)
                )
            return lambda message, now: tuple((getattr(e, first), getattr(e, second)) for e in getattr(message, name))
        if dataclasses.is_dataclass(item):
            return lambda message, now: tuple(decode(e, item, now) for e in getattr(message, name))  # type: ignore[arg-type]
        container = typing.get_origin(inner)
        if isinstance(item, type) and issubclass(item, Enum):
            return lambda message, now: container(item(e) for e in getattr(message, name))
        return lambda message, now: container(getattr(message, name))
    if dataclasses.is_dataclass(inner):
        if optional:
            return lambda message, now: decode(getattr(message, name), inner, now) if message.HasField(name) else None  # type: ignore[arg-type]
        return lambda message, now: decode(getattr(message, name), inner, now)  # type: ignore[arg-type]
    if typing.get_origin(inner) in (Union, types.UnionType):
        if field.message_type is not None and field.message_type.name == "Matched":

            def read_matched(message: Message, now: float) -> str | int | None:
                entry = getattr(message, name)
                which = entry.WhichOneof("kind")
                return None if which is None else getattr(entry, which)

            return read_matched
        return lambda message, now: decode_oneof(getattr(message, name), now)
    if isinstance(inner, type) and issubclass(inner, Enum):
        if optional:
            return lambda message, now: inner(getattr(message, name)) if message.HasField(name) else None
        return lambda message, now: inner(getattr(message, name))
    if optional:
        return lambda message, now: getattr(message, name) if message.HasField(name) else None
    return lambda message, now: getattr(message, name)
