"""One declaration per setting: from a frozen dataclass come its command-line flags, environment twins, file keys, help and dump.

A field is declared with `setting(default, help, ...)`. `resolve` then takes, for every field, the first of: a flag that was given, the
environment variable TRIPTYCH_<FIELD>, the config file's key, the default. Raw texts of all sources go through the same parser, and everything
that is wrong is reported at once, each with the place it came from. This module and `config.py` are the only ones that read the environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from triptych.runtime.core.errors import ConfigError

ENV_PREFIX = "TRIPTYCH_"
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_UNSET = frozenset({"none", "auto", ""})  # what a user writes for an optional setting that is left to the program
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

T = TypeVar("T")


def setting(
    default: Any,
    help: str,
    *,
    flags: Sequence[str] = (),
    choices: Sequence[str] = (),
    parse: Callable[[str], Any] | None = None,
    group: str = "general",
    metavar: str | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field with everything a flag needs. `flags` are further names beside --field-name; a secret is never dumped or shown."""
    metadata = {
        "help": help,
        "flags": tuple(flags),
        "choices": tuple(choices),
        "parse": parse,
        "group": group,
        "metavar": metavar,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def flag_names(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """All command-line names of a field, the one after its own name first."""
    return ("--" + field.name.replace("_", "-"), *field.metadata["flags"])


def env_name(field: dataclasses.Field[Any]) -> str:
    return ENV_PREFIX + field.name.upper()


def parse_bytes(text: str) -> int:
    """A size such as 512MiB, 2G, 1.5gb or 1048576, in bytes (K, M, G, T are powers of ten, with an i powers of two)."""
    compact = text.strip().lower().removesuffix("b")
    number = compact.rstrip("kmgti")
    unit = compact[len(number) :]
    if unit not in _UNITS:
        raise ValueError(f"{text!r} is not a size such as 512MiB or 2GB")
    return int(float(number) * _UNITS[unit])


def split_secrets(text: str | None) -> tuple[str, ...]:
    """The tokens of a setting that takes several, separated by commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def add_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add one flag per field of `cls`, and --config and --dump-config."""
    add_flags(parser, cls)
    files = parser.add_argument_group("configuration")
    files.add_argument(
        "--config",
        dest="config_file",
        metavar="FILE",
        help="read settings from a .json or .toml file (flags and environment win)",
    )
    files.add_argument(
        "--dump-config",
        metavar="PATH",
        help="write the resolved configuration as JSON to PATH ('-' for stdout) and exit",
    )


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add one flag per field of `cls`, grouped. Nothing is parsed or defaulted here (see `resolve`)."""
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        meta = field.metadata
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        group = groups[meta["group"]]
        shown = (
            "auto"
            if field.default is None
            else str(field.default).lower()
            if isinstance(field.default, bool)
            else field.default
        )
        text = f"{meta['help']} (default {shown}; {env_name(field)})".replace("%", "%%")
        if isinstance(field.default, bool):
            group.add_argument(
                *flag_names(field),
                dest=field.name,
                help=text,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
            )
        else:
            metavar = meta["metavar"] or ("|".join(meta["choices"]) or field.name.upper())
            group.add_argument(
                *flag_names(field), dest=field.name, help=text, metavar=metavar, default=argparse.SUPPRESS
            )


def resolve(cls: type[T], args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> T:
    """Build `cls` from parsed flags, environment, config file and defaults, in this order of precedence.

    Raises:
        ConfigError: one line per value that cannot be read, naming its source; or what `cls.__post_init__` found wrong.
    """
    environ = os.environ if environ is None else environ
    path = getattr(args, "config_file", None)
    from_file = _read_file(Path(path), cls) if path else {}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]  (T is always a dataclass)
        if hasattr(args, field.name):
            raw, source = getattr(args, field.name), flag_names(field)[0]
        elif env_name(field) in environ:
            raw, source = environ[env_name(field)], env_name(field)
        elif field.name in from_file:
            raw, source = from_file[field.name], f"{path}: {field.name}"
        else:
            continue
        try:
            values[field.name] = _convert(raw, hints[field.name], field.metadata)
        except ValueError as error:
            problems.append(f"{source}: {error}")
    if problems:
        raise ConfigError(describe(problems))
    return cls(**values)


def describe(problems: Sequence[str]) -> str:
    """One message for several problems."""
    return (
        problems[0] if len(problems) == 1 else "the configuration is wrong:\n" + "\n".join(f"  - {p}" for p in problems)
    )


def dump(config: Any) -> str:
    """The configuration as JSON that --config reads back; secrets are left out."""
    public = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if not f.metadata["secret"]}
    return json.dumps(public, indent=2) + "\n"


def write_dump(config: Any, path: str) -> None:
    """Serve --dump-config PATH."""
    if path == "-":
        print(dump(config), end="")
    else:
        Path(path).write_text(dump(config))


def child_environment(config: Any, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for a process that gets `config` as its --config file.

    The parent's TRIPTYCH_ variables are left out: they are resolved already, and in the child they would beat the file. Secrets, which the
    file does not hold, travel as variables.
    """
    environ = os.environ if environ is None else environ
    kept = {k: v for k, v in environ.items() if not k.startswith(ENV_PREFIX)}
    for field in dataclasses.fields(config):
        if field.metadata["secret"] and getattr(config, field.name) is not None:
            kept[env_name(field)] = str(getattr(config, field.name))
    return kept


def _read_file(path: Path, cls: type) -> dict[str, Any]:
    try:
        text = path.read_text()
        loaded = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(
            f"--config {path} is not valid {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}"
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {path} holds a {type(loaded).__name__}; expected a table of settings")
    known = {f.name for f in dataclasses.fields(cls)}
    normal = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    if unknown := sorted(set(normal) - known):
        raise ConfigError(
            f"--config {path}: unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    return normal


def _convert(raw: Any, hint: Any, meta: Mapping[str, Any]) -> Any:
    """`raw` (text, or a typed value from a file or a flag) as a value of type `hint`; ValueError says what was expected."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    optional = type(None) in options
    kind = next(o for o in options if o is not type(None))
    if optional and (raw is None or (isinstance(raw, str) and raw.lower() in _UNSET)):
        return None
    if meta["parse"] is not None and isinstance(raw, str):
        return meta["parse"](raw)
    value = _to_bool(raw) if kind is bool else _to_kind(raw, kind)
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"{value!r} is not one of {', '.join(meta['choices'])}")
    return value


def _to_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    text = str(raw).strip().lower()
    if text not in _TRUE | _FALSE:
        raise ValueError(f"{raw!r} is not a switch; expected true or false")
    return text in _TRUE


def _to_kind(raw: Any, kind: type) -> Any:
    words = {int: "a whole number", float: "a number", str: "a text"}
    if isinstance(raw, bool) or (kind is int and isinstance(raw, float)) or (kind is str and not isinstance(raw, str)):
        raise ValueError(f"{raw!r} is not {words[kind]}")
    try:
        return kind(raw)
    except (TypeError, ValueError):
        raise ValueError(f"{raw!r} is not {words[kind]}") from None
