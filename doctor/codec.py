"""Typed data to and from plain JSON/TOML values: one codec for tapes, case files and profiles."""

from __future__ import annotations

import dataclasses
import functools
import json
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from doctor.model import Text, shortened


class CodecError(ValueError):
    """A value that does not fit its type: `path` (like `toolkit.nvcc`), and `why`."""

    def __init__(self, path: str, why: Text) -> None:
        super().__init__(path, why)
        self.path = shortened(path, 200)
        self.why = why

    def __str__(self) -> str:
        why = shortened(str(self.why), 1000)
        return f"{self.path}: {why}" if self.path else why


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown_value(value: object) -> str:
    """A value that does not fit as an error names it: in some 80 characters, however large."""
    try:
        return shortened(_SHORT.repr(value), 80)
    except ValueError:  # a number of more digits than Python writes
        return "a number that is far too large"


def parse_json(data: bytes | str, at_most: int | None = None) -> Any:
    """The JSON value. Raises CodecError, also where it is nested too deep or too much.

    `at_most`: how many lists and tables it may hold. Each takes a hundred times the two bytes in
    which it is written; brackets in text are counted as well, for the sake of a plain count.
    """
    if at_most is not None:
        brackets = ("[", "{") if isinstance(data, str) else (b"[", b"{")
        if sum(map(data.count, brackets)) > at_most:  # type: ignore[arg-type]
            said = Text("contains more than {most} lists and tables", most=at_most)
            raise CodecError("", said)
    try:
        return json.loads(data)
    except (RecursionError, ValueError) as error:
        why = Text("nested too deep") if isinstance(error, RecursionError) else error
        raise CodecError("", Text("not valid JSON, or truncated: {why}", why=why)) from None


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
        raise CodecError(
            path,
            Text("{value} is none of {known}", value=shown_value(value), known=[*map(repr, args)]),
        )
    if origin is tuple:
        _must_be(list, value, path)
        if args[1:] == (...,):
            return tuple(decode(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            said = Text("expected {count} values, got {given}", count=len(args), given=len(value))
            raise CodecError(path, said)
        pairs = zip(args, value, strict=True)
        return tuple(decode(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(pairs))
    if origin is frozenset:
        _must_be(list, value, path)
        return frozenset(decode(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping):
        _must_be(dict, value, path)
        return {
            decode(args[0], k, f"{path}.{k}"): decode(args[1], v, f"{path}.{k}")
            for k, v in value.items()
        }
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, path)
    return _decode_scalar(kind, value, path)


def _must_be(kind: type, value: object, path: str) -> None:
    if not isinstance(value, kind):
        raise CodecError(path, _expected(kind, value))


def _expected(kind: Any, value: object) -> Text:
    return Text("expected {kind}, got {value}", kind=_name(kind), value=shown_value(value))


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
    kinds = [*map(_name, rest)]
    raise CodecError(
        path, Text("{value} is none of {kinds}", value=shown_value(value), kinds=kinds)
    )


@functools.cache
def _fields(cls: type) -> tuple[dict[str, Any], frozenset[str]]:
    """(the type of each field, the fields that have no default)."""
    hints = _hints(cls)
    fields = dataclasses.fields(cls)
    needed = (f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING)
    return {f.name: hints[f.name] for f in fields}, frozenset(needed)


def _decode_dataclass(kind: Any, value: Any, path: str) -> Any:
    _must_be(dict, value, path)
    fields, needed = _fields(kind)
    prefix = f"{path}." if path else ""
    if unknown := [k for k in value if k not in fields]:
        raise CodecError(f"{prefix}{unknown[0]}", unknown_key(fields))
    made = {k: decode(fields[k], v, f"{prefix}{k}") for k, v in value.items()}
    for name in fields:
        if name in needed and name not in made:
            raise CodecError(f"{prefix}{name}", Text("is missing"))
    try:
        return kind(**made)
    except CodecError as error:  # a dataclass's own check, which names the key
        raise CodecError(f"{prefix}{error.path}", error.why) from None


def unknown_key(known: Iterable[str]) -> Text:
    """What is wrong with a key that is none of these."""
    return Text("unknown key; known keys: {known}", known=sorted(known))


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
        raise CodecError(path, Text("{value} is too large", value=shown_value(value))) from None
    except (InvalidVersion, ValueError) as error:
        raise CodecError(path, Text("{error}", error=error)) from None
    if kind in (str, int, bool, float) and type(value) is kind:
        return value
    raise CodecError(path, _expected(kind, value))


_NAMES = {
    str: Text("text"),
    int: Text("an integer"),
    float: Text("a number"),
    bool: Text("true or false"),
    list: Text("a list"),
    dict: Text("a table"),
}


def _name(kind: Any) -> Text:
    return _NAMES.get(kind) or Text("{kind}", kind=getattr(kind, "__name__", kind))
