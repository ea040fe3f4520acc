"""Our own frozen dataclasses are what `dataclasses` makes, as far as the doctor uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from functools import cached_property
from typing import Any, ClassVar

import pytest

from doctor.frozen import dataclass

MAKERS: list[Callable[..., Any]] = [dataclass, dataclasses.dataclass]


def made(maker: Callable[..., Any]) -> tuple[type[Any], type[Any]]:
    """A class and one that inherits from it."""

    @maker(frozen=True)
    class Base:
        kind: ClassVar[str] = "one"
        name: str
        size: int = 1
        parts: tuple[int, ...] = ()

        def __post_init__(self) -> None:
            if self.size < 0:
                raise ValueError("size: is negative")

        @cached_property
        def double(self) -> int:
            return 2 * self.size

    @maker(frozen=True)
    class Derived(Base):
        more: dict[str, int] = field(default_factory=dict)

    return Base, Derived


@pytest.fixture(params=MAKERS, ids=["ours", "the standard library's"])
def classes(request: pytest.FixtureRequest) -> tuple[type[Any], type[Any]]:
    return made(request.param)


def test_values_are_given_by_place_by_name_or_by_default(
    classes: tuple[type[Any], type[Any]],
) -> None:
    base, derived = classes
    one = derived("it", 2, more={"x": 1})
    assert (one.name, one.size, one.parts, one.more) == ("it", 2, (), {"x": 1})
    assert derived("it").more is not derived("it").more
    assert base("it", parts=(1,)).double == 2
    assert repr(base("it")).endswith("Base(name='it', size=1, parts=())")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), (("a", 1, (), 4), {}), (("a",), {"name": "b"}), (("a",), {"other": 1})],
)
def test_a_value_too_few_or_too_many_is_refused(
    classes: tuple[type[Any], type[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        classes[0](*args, **kwargs)


def test_its_own_check_is_made(classes: tuple[type[Any], type[Any]]) -> None:
    with pytest.raises(ValueError, match="size: is negative"):
        classes[1]("a", -1)


def test_equal_are_those_of_one_class_with_equal_values(
    classes: tuple[type[Any], type[Any]],
) -> None:
    base, derived = classes
    assert base("a") == base("a") != base("b")
    assert hash(base("a")) == hash(base("a"))
    assert base("a") != derived("a")
    with pytest.raises(TypeError):
        hash(derived("a"))


def test_it_is_frozen(classes: tuple[type[Any], type[Any]]) -> None:
    one = classes[1]("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.new = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.name


def test_the_functions_of_dataclasses_work_on_it(classes: tuple[type[Any], type[Any]]) -> None:
    one: Any = classes[1]("a")
    assert [f.name for f in dataclasses.fields(one)] == ["name", "size", "parts", "more"]
    assert dataclasses.replace(one, size=3) == classes[1]("a", 3)
    assert dataclasses.asdict(one) == {"name": "a", "size": 1, "parts": (), "more": {}}


@pytest.mark.parametrize("base", MAKERS)
@pytest.mark.parametrize("maker", MAKERS)
def test_either_may_be_derived_from_the_other(
    base: Callable[..., Any], maker: Callable[..., Any]
) -> None:
    """A site's rules derive from our steps and facts, and know `dataclasses` alone."""
    derived = made(base)[1]

    @maker(frozen=True)
    class Further(derived):  # type: ignore[misc, valid-type]
        last: int = 3

    one = Further("a", 2, more={})
    assert (one.name, one.size, one.last, one.double) == ("a", 2, 3, 4)
    assert one == Further("a", 2, more={}) != Further("a", 2, more={}, last=4)
    with pytest.raises(ValueError, match="size: is negative"):
        Further("a", -1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.last = 4
    with pytest.raises(TypeError):
        dataclasses.dataclass(type("Thawed", (derived,), {"__annotations__": {}}))
