"""Prefixes that no list knows: what a supervisor, a cluster's launcher or a copying tool puts
before every line of a log. They are learned from its beginning and taken away."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from doctor.logs.lines import FRAME, begins_a_record, decoded, split, unprefixed

_BEGINNING = 64 << 10
"""Bytes at the beginning of a log that a prefix is learned from."""
_LINES = 400
"""Lines that a prefix is learned from."""
_FEWEST = 6
_SHARE = 0.85
"""Part of the lines that have to begin with it."""
_MOST = 100
_SPACE = r"[^\S\n]"
"""White space within a line: with the line ends, each empty line would be searched to the last."""
_BOUNDARY = re.compile(r"[\s:>|\])›]$")


def without_unknown_prefix(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks without a prefix that nearly all lines have; as they are where there is none."""
    blocks = iter(blocks)
    first = b""
    for block in blocks:  # one may be empty, of a part that is
        first += block
        if len(first) >= _BEGINNING:
            break
    shape = learned(first)
    if shape is None:
        yield first
        yield from blocks
        return
    prefix = re.compile(b"(?m)^" + shape.encode())
    rest = b""
    for block in itertools.chain([first], blocks):
        whole, end, rest = (rest + block).rpartition(b"\n")
        made = prefix.sub(b"", whole) + end
        if len(rest) > _BEGINNING:  # of a line so long, a piece counts as a line
            made, rest = made + prefix.sub(b"", rest), b""
        yield made
    yield prefix.sub(b"", rest)


def learned(data: bytes) -> str | None:
    """A pattern of what nearly all lines begin with, or have behind a timestamp, where that is
    neither a prefix that is known nor a part of what the server says."""
    lines = [decoded(raw) for raw in split(data[:_BEGINNING])[:_LINES]]
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("{")]
    if len(lines) < _FEWEST:
        return None
    rests = [unprefixed(line) for line in lines]
    shapes = [_shape(rest) for rest in rests]
    common = _common(shapes)
    # The shortest beginning behind which lines begin as a server's do: the rest is its own.
    for end in range(1, len(common) + 1):
        if not _BOUNDARY.search(common[:end]):
            continue
        pattern = _pattern(common[:end])
        behind = [re.sub(f"^{pattern}", "", rest) for rest in rests]
        if sum(map(_is_a_server_s, behind)) >= max(2, len(lines) // 5):
            pattern += _SPACE * min(len(x) - len(x.lstrip()) for x in behind if x.strip())
            bare = sum(x.strip() == rest.strip() for x, rest in zip(lines, rests, strict=True))
            return pattern if bare > len(lines) / 2 else rf"\S+(?: \S+){{0,4}}?{pattern}"
    return None


def _shape(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\d+", "0", text[:_MOST])).lstrip()


def _pattern(shape: str) -> str:
    """Of a shape, whose 0 stands for any number and whose space for any white space. What it ends
    with is one character: the indentation of the line behind it is the line's own."""
    words = [re.escape(word).replace("0", r"\d+") for word in shape.split(" ")]
    last = _SPACE if shape.endswith(" ") else ""
    return f"{_SPACE}*" + f"{_SPACE}+".join(words).removesuffix(f"{_SPACE}+") + last


def _common(shapes: list[str]) -> str:
    """The longest beginning that enough of the shapes share."""
    needed = _SHARE * len(shapes)
    common = ""
    while len(common) < _MOST:
        count: dict[str, int] = {}
        for one in shapes:
            if one.startswith(common) and len(one) > len(common):
                count[one[len(common)]] = count.get(one[len(common)], 0) + 1
        best = max(count, key=lambda c: count[c], default=None)
        if best is None or count[best] < needed:
            break
        common += best
    return common


def _is_a_server_s(line: str) -> bool:
    """Whether the line begins as one of a server does that has no such prefix."""
    known = begins_a_record(line) or FRAME.match(line)
    return bool(known) or line.startswith("Traceback (")
