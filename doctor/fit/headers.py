"""The tensors of a checkpoint from the rows of its headers."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Iterator

from doctor.fit.sizes import NotKnown
from doctor.fit.verdict import Tensor
from doctor.model import Text
from doctor.safetensors import RANGE, TensorRow

_EXPERTS = re.compile(r"(?<=\.experts)\.(\d{1,6})(?:-(\d{1,6}))?(?=\.)")
_MOST = 1 << 18  # tensors, the experts of a layer as one

_LARGEST = 1 << 48


def tensors_of(rows: Iterable[TensorRow]) -> tuple[Tensor, ...]:
    """A tensor for each layer; the experts of one stand in one tensor, whose first number they
    are, as far as they are alike. Raises NotKnown where two have one name, or there are too many.
    """
    made: list[Tensor] = []
    seen: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        name, experts = _without_experts(row.name)
        none = experts is not None and not experts
        if none or not all(0 <= size <= _LARGEST for size in row.shape):
            raise NotKnown(Text("the headers give {name} no shape", name=row.name))
        shape = row.shape if experts is None else (len(experts), *row.shape)
        for full in _spelled(name, _MOST - len(made)):
            _must_be_new(seen.setdefault(full, []), experts or range(1), full)
            made.append(Tensor(full, row.dtype, shape))
    return tuple(made)


def _without_experts(name: str) -> tuple[str, range | None]:
    found = _EXPERTS.search(name)
    if found is None:
        return name, None
    first, last = int(found[1]), int(found[2] or found[1])
    return name[: found.start()] + name[found.end() :], range(first, last + 1)


def _spelled(name: str, most: int) -> Iterator[str]:
    """The names that one with ranges stands for."""
    ranges = [range(int(r[1]), int(r[2]) + 1) for r in RANGE.finditer(name)]
    if math.prod(map(len, ranges)) > most:
        raise NotKnown(Text("the checkpoint's headers name too many tensors"))
    parts = RANGE.sub("#", name).split("#")
    for numbers in itertools.product(*ranges):
        pairs = zip(parts, (*map(str, numbers), ""), strict=True)
        yield "".join(itertools.chain(*pairs))


def _must_be_new(known: list[tuple[int, int]], numbers: range, name: str) -> None:
    """`known`: the ends of those that were seen, in order; a hostile header has 100,000 of them."""
    ends = numbers.start, numbers.stop
    at = bisect.bisect(known, ends)
    before, after = known[at - 1 : at] if at else [], known[at : at + 1]
    if any(start < ends[1] and ends[0] < stop for start, stop in (*before, *after)):
        raise NotKnown(Text("the checkpoint's headers name {name} twice", name=name))
    known.insert(at, ends)
