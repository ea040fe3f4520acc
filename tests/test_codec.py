"""The codec: what is encoded comes back as it was; what does not fit is named by its path."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

import doctor.probes as _  # noqa: F401 - registers the probes
from doctor.codec import CodecError, decode, encode
from doctor.elf import Elf
from doctor.engine import REGISTRY
from doctor.model import Fact, Severity, Text
from doctor.probes.driver import Device, LibCuda
from doctor.probes.toolkit import Toolkit
from doctor.probes.wheels import Packages
from doctor.profile import Profile
from doctor.tape import Recording
from doctor.target import Ran, Stat

FACTS = sorted(REGISTRY.kinds(), key=lambda c: c.__name__)
OTHERS: list[type] = [Recording, Elf, Stat, Ran]

NAMES = st.text(max_size=8)
VERSIONS = st.builds(
    lambda numbers, suffix: Version(".".join(map(str, numbers)) + suffix),
    st.lists(st.integers(0, 99), min_size=1, max_size=4),
    st.sampled_from(["", "rc1", ".post2", ".dev3", "+cu130", "a1.post2.dev3+local.1"]),
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: NAMES,
    int: st.integers(-(2**63), 2**63),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    type(None): st.none(),
    Any: st.none() | st.booleans() | NAMES | st.lists(st.integers(0, 9), max_size=2),
    Path: NAMES.map(Path),
    Version: VERSIONS,
    Text: NAMES.map(
        lambda s: Text("{s}", s=s.replace("{", "").replace("}", "")) if s else Text("")
    ),
}
# What a class checks of its own values, which no strategy guesses.
FIXED: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    Profile: {
        "model": NAMES.filter(bool),
        "port": st.integers(1, 65535),
        "tensor_parallel_size": st.integers(1, 64),
        "max_model_len": st.none() | st.integers(1, 10**7),
        "gpu_memory_utilization": st.floats(0.01, 1),
        "archs": st.sampled_from([(), ("9.0",), ("8.0", "12.1")]),
        "needs": st.just(Profile("m").needs),
        "options": st.dictionaries(NAMES, st.booleans() | NAMES, max_size=2),
    }
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of any type that a fact is made of."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(a) for a in args])
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple and args[1:] == (...,):
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, args))
    if origin is frozenset:
        return st.frozensets(values(args[0]), max_size=2)
    if origin in (dict, Mapping):
        return st.dictionaries(values(args[0]), values(args[1]), max_size=2)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    hints, fixed = typing.get_type_hints(kind), FIXED.get(kind, {})
    names = [f.name for f in dataclasses.fields(kind)]
    return st.builds(kind, **{n: fixed[n] if n in fixed else values(hints[n]) for n in names})


@pytest.mark.parametrize("kind", [*FACTS, *OTHERS], ids=lambda k: k.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_encoded_comes_back(kind: type, data: st.DataObject) -> None:
    value = data.draw(values(kind))
    through_json = json.loads(json.dumps(encode(value)))
    assert decode(kind, through_json) == value


def test_bytes_that_are_not_utf8_come_back() -> None:
    for value in (b"caf\xe9", bytes(range(256))):
        assert decode(bytes, json.loads(json.dumps(encode(value)))) == value
    path = Path(b"/caf\xe9".decode("utf-8", "surrogateescape"))
    assert decode(Path, json.loads(json.dumps(encode(path)))) == path


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, "1", "expected an integer, got '1'"),
        (int, True, "expected an integer, got True"),
        (int, 1.0, "expected an integer, got 1.0"),
        (float, "1.0", "expected a number"),
        (float, True, "expected a number"),
        (bool, 1, "expected true or false"),
        (str, None, "expected text"),
        (Path, 1, "expected Path"),
        (Version, "three", "three"),
        (Version, None, "expected Version"),
        (Severity, "grave", "grave"),
        (Literal["a", "b"], "c", "'c' is none of 'a', 'b'"),
        (Literal["a", "b"], ["c"], "is none of"),
        (tuple[int, ...], 1, "expected a list"),
        (tuple[int, ...], [1, "2"], "[1]: expected an integer"),
        (tuple[int, str], [1], "expected 2 values, got 1"),
        (frozenset[str], "abc", "expected a list"),
        (frozenset[str], [1], "[0]: expected text"),
        (dict[str, int], [], "expected a table"),
        (dict[str, int], {"a": {}}, ".a: expected an integer"),
        (Elf, [], "expected a table"),
        (Elf, {"bits": 64, "nonsense": 1}, "nonsense: unknown key"),
        (Elf, {}, "bits: is missing"),
        (Elf, {"bits": 64, "needed": [1]}, "needed[0]: expected text"),
        (Packages, {"installed": {"torch": {"version": "x", "folder": "/"}}}, "installed.torch"),
        (LibCuda, {"version": "13000"}, "version: expected an integer"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_by_its_path(kind: Any, value: Any, words: str) -> None:
    with pytest.raises(CodecError) as error:
        decode(kind, value)
    assert words in str(error.value)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from([*FACTS, *OTHERS]),
)
def test_any_json_is_decoded_or_refused_with_a_codec_error(value: Any, kind: type[Fact]) -> None:
    with contextlib.suppress(CodecError):
        decode(kind, value)


def test_every_fact_has_a_default_or_is_named_when_it_is_missing() -> None:
    with pytest.raises(CodecError, match=r"root: is missing|found_by: is missing"):
        decode(Toolkit, {})
    with pytest.raises(CodecError, match="index: is missing"):
        decode(Device, {})


def test_what_cannot_be_encoded_is_a_programmers_error() -> None:
    with pytest.raises(TypeError, match="object"):
        encode(object())
