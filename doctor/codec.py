"""Typed data to and from plain JSON/TOML values: one codec for tapes, case files and profiles."""

from __future__ import annotations

import dataclasses
import functools
import json
import reprlib
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from doctor.model import Text, shortened


class CodecError(ValueError):
    """A value that does not fit its type: `path` (like `toolkit.nvcc`) and what was expected."""

    def __init__(self, path: str, message: str) -> None:
        path, message = shortened(path, 200), shortened(message, 1000)
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown_value(value: object) -> str:
    """A value that does not fit as an error names it: in some 80 characters, however large."""
    try:
        return shortened(_SHORT.repr(value), 80)
    except ValueError:  # a number of more digits than Python writes
        return "a number that is far too large"


def parse_json(data: bytes | str, at_most: int | None = None) -> Any:
    """The JSON value. Raises ValueError alone, also where it is nested too deep, and CodecError
    where it is too much.

    `at_most`: how many lists and tables it may hold. Each takes a hundred times the two bytes in
    which it is written; brackets in text are counted as well, for the sake of a plain count.
    """
    if at_most is not None:
        brackets = ("[", "{") if isinstance(data, str) else (b"[", b"{")
        if sum(map(data.count, brackets)) > at_most:  # type: ignore[arg-type]
            raise CodecError("", f"it holds more than {at_most} lists and tables")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def encode(value: object) -> Any:
    """`value` as JSON data: paths and versions as text, dataclasses as objects, Text as shown."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value
    if isinstance(value, (Path, Version, Text)):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(encode(v) for v in value)
    raise TypeError(f"cannot encode {type(value).__name__}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def decode(kind: Any, value: Any, path: str = "") -> Any:
    """`value` (JSON or TOML data) as `kind`.

    Raises CodecError naming the path of the first value that does not fit, an unknown key
    of a dataclass included.
    """
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(args, value, path)
    if origin is typing.Literal:
        if value in args:
            return value
        raise CodecError(path, f"{shown_value(value)} is none of {', '.join(map(repr, args))}")
    if origin is tuple:
        if not isinstance(value, list):
            raise CodecError(path, f"expected a list, got {shown_value(value)}")
        if args[1:] == (...,):
            return tuple(decode(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise CodecError(path, f"expected {len(args)} values, got {len(value)}")
        pairs = zip(args, value, strict=True)
        return tuple(decode(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(pairs))
    if origin is frozenset:
        if not isinstance(value, list):
            raise CodecError(path, f"expected a list, got {shown_value(value)}")
        return frozenset(decode(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise CodecError(path, f"expected a table, got {shown_value(value)}")
        return {
            decode(args[0], k, f"{path}.{k}"): decode(args[1], v, f"{path}.{k}")
            for k, v in value.items()
        }
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, path)
    return _decode_scalar(kind, value, path)


def _decode_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    rest = [a for a in args if a is not type(None)]
    if value is None and len(rest) < len(args):
        return None
    if len(rest) == 1:
        return decode(rest[0], value, path)
    for one in rest:
        try:
            return decode(one, value, path)
        except CodecError:
            continue
    raise CodecError(path, f"{shown_value(value)} fits none of {', '.join(map(_name, rest))}")


@functools.cache
def _fields(cls: type) -> tuple[dict[str, Any], frozenset[str]]:
    """(the type of each field, the fields that have no default)."""
    hints = _hints(cls)
    fields = dataclasses.fields(cls)
    needed = (f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING)
    return {f.name: hints[f.name] for f in fields}, frozenset(needed)


def _decode_dataclass(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise CodecError(path, f"expected a table, got {shown_value(value)}")
    fields, needed = _fields(kind)
    prefix = f"{path}." if path else ""
    if unknown := [k for k in value if k not in fields]:
        raise CodecError(
            f"{prefix}{unknown[0]}", f"no such key; there are {', '.join(sorted(fields))}"
        )
    made = {k: decode(fields[k], v, f"{prefix}{k}") for k, v in value.items()}
    for name in fields:
        if name in needed and name not in made:
            raise CodecError(f"{prefix}{name}", "is missing")
    try:
        return kind(**made)
    except ValueError as error:  # a dataclass's own check; its words begin with the key
        raise CodecError("", f"{prefix}{error}") from None


def _decode_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is Any or kind is object:
        return value
    if kind is type(None) and value is None:
        return None
    try:
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if kind is Version and isinstance(value, str):
            return Version(value)
        if kind in (Path, Text) and isinstance(value, str):
            return kind(value)
        if kind is bytes and isinstance(value, str):
            return value.encode("utf-8", "surrogateescape")
        if isinstance(kind, type) and issubclass(kind, Enum):
            return kind(value)
    except OverflowError:
        raise CodecError(path, f"{shown_value(value)} is too large") from None
    except (InvalidVersion, ValueError) as error:
        raise CodecError(path, str(error)) from None
    if kind in (str, int, bool, float) and type(value) is kind:
        return value
    raise CodecError(path, f"expected {_name(kind)}, got {shown_value(value)}")


def _name(kind: Any) -> str:
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return plain.get(kind) or str(getattr(kind, "__name__", kind))
