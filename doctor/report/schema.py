"""JSON Schema of a snapshot, made from the type it is decoded into."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from doctor.tape import TAPE_VERSION, Recording

_PLAIN = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}


def snapshot_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what `vllm-doctor snapshot` writes."""
    schema = _of(Recording)
    schema["properties"]["schema_version"] = {"const": TAPE_VERSION}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _of(kind: Any) -> dict[str, Any]:
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(a) for a in args]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _of(args[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _of(args[1])}
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    return {
        "type": "object",
        "properties": {f.name: _of(hints[f.name]) for f in fields},
        "required": [
            f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING
        ],
        "additionalProperties": False,
    }
