"""The search for literals: in any encoding of a line, over any block border, by either engine."""

from __future__ import annotations

import random

import pytest

from doctor.logs import scan
from doctor.logs.scan import AHEAD, Scanner, piece

LITERALS = [
    b"Nospaceleftondevice",
    b"KVcache",
    b"InvalidvalueofaVariable",
    b"Invalidvalueofanother",
]


@pytest.fixture(params=["automaton", "plain"])
def scanner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Scanner:
    if request.param == "plain":
        monkeypatch.setattr(scan, "re2", None)
    return Scanner(LITERALS)


def found(scanner: Scanner, data: bytes, block: int = 1 << 20) -> list[tuple[int, tuple[int, ...]]]:
    blocks = [data[i : i + block] for i in range(0, len(data), block)]
    return [(hit.line, hit.literals) for hit in scanner.hits(blocks)]


@pytest.mark.parametrize(
    "text",
    [
        b"No space left on device",
        b"Nospace  left\ton device",
        b"No space le\x1b[0;31mft\x1b[0m on device",
        "No space │ left │ on device".encode(),
        b"N\0o\0 \0s\0p\0a\0c\0e\0 \0l\0e\0f\0t\0 \0o\0n\0 \0d\0e\0v\0i\0c\0e\0",
        b"No space left on device\r",
        b"\xff\xfeNo space left on device\xff",
    ],
)
def test_a_literal_is_found_whatever_stands_between_its_characters(
    scanner: Scanner, text: bytes
) -> None:
    assert found(scanner, b"one\n" + text + b"\nlast\n") == [(2, (0,))]
    assert scanner.lines == 3


@pytest.mark.parametrize("at", range(1, 23))
def test_a_literal_that_a_terminal_broke_is_found_wherever_it_broke(
    scanner: Scanner, at: int
) -> None:
    text = b"No space left on device"
    assert found(scanner, b"KV cache, " + text[:at] + b"\n" + text[at:] + b" more\n") == [
        (1, (0, 1))
    ]


def test_a_line_is_one_hit_with_all_its_literals_and_no_more(scanner: Scanner) -> None:
    data = (
        b"KV cache: No space left on device, no KV cache\nKV cac\nhe of a line\nInvalid value of\n"
    )
    assert found(scanner, data) == [(1, (0, 1)), (2, (1,))]


def test_the_literals_of_the_next_line_are_not_taken_for_those_of_a_line_with_a_beginning(
    scanner: Scanner,
) -> None:
    data = b"Invalid value of a nothing\nKV cache\nInvalid value of another\n"
    assert found(scanner, data) == [(2, (1,)), (3, (3,))]


@pytest.mark.parametrize("block", [1, 7, 4096, AHEAD, AHEAD + 1, 1 << 20])
def test_where_the_blocks_end_does_not_matter(scanner: Scanner, block: int) -> None:
    size = 300 if block < 4096 else 90_000
    filler = b"".join(b"line %d of something else\n" % i for i in range(size // 25))
    data = filler + b"KV cache\n" + filler[:-1] + b" No space left on device"
    lines = filler.count(b"\n")
    assert found(scanner, data, block) == [(lines + 1, (1,)), (2 * lines + 1, (0,))]
    assert scanner.lines == 2 * lines + 1


def test_a_line_of_ten_megabytes_has_as_many_hits_as_it_has_places(scanner: Scanner) -> None:
    gap = b"x" * (5 << 20)
    data = b"\n" + gap + b"KV cache" + gap + b"No space left on device" + b"x" * 9000
    assert found(scanner, data) == [(2, (1,)), (2, (0,))]


def test_a_hit_knows_its_place_in_the_log(scanner: Scanner) -> None:
    filler = b"y" * 99 + b"\n"
    data = filler * 20_000 + b"the KV cache\n"
    (hit,) = scanner.hits([data[i : i + 65536] for i in range(0, len(data), 65536)])
    assert hit.offset == data.index(b"KV cache")
    assert hit.window[hit.start : hit.end] == b"the KV cache"
    assert data.endswith(scanner.tail)
    assert scanner.base == len(data) - len(scanner.tail)


def test_the_window_does_not_grow_with_the_log() -> None:
    scanner = Scanner(LITERALS)
    block = b"z" * 65535 + b"\n"
    for hit in scanner.hits(block + (b"KV cache\n" if i % 100 == 0 else b"") for i in range(3000)):
        assert len(hit.window) < 1 << 19


@pytest.mark.parametrize("data", [b"", b"\n", b"no line end"])
def test_lines_are_counted_as_wc_and_editors_do(scanner: Scanner, data: bytes) -> None:
    assert found(scanner, data) == []
    assert scanner.lines == len(data.splitlines())


def test_both_engines_find_the_same_in_a_log_that_is_broken_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(4)  # noqa: S311
    spaced = [b"No space left on device", b"KV cache", b"Invalid value of a Variable"]
    parts: list[bytes] = []
    for _ in range(3000):
        one = rng.choice([*spaced, b"nothing to see here", b"Invalid value of"])
        at = rng.randrange(len(one))
        parts += [
            one[:at],
            rng.choice([b"", b" ", b"\n", b"\x1b[1;36m", b"\xe2\x94\x82"]),
            one[at:],
        ]
        parts.append(rng.choice([b"\n", b" ", b"\r\n", b"\r"]))
    data = b"".join(parts)

    def all_hits() -> list[tuple[int, tuple[int, ...], int, int]]:
        hits = Scanner(LITERALS).hits([data[:70_000], data[70_000:]])
        return [(h.line, h.literals, h.offset, h.end - h.start) for h in hits]

    fast = all_hits()
    monkeypatch.setattr(scan, "re2", None)
    assert fast == all_hits()
    assert len(fast) > 1000


def test_a_piece_ends_at_the_lines_ends_or_after_four_kilobytes() -> None:
    assert piece(b"ab\ncdef\r\ngh", 4, 5) == (3, 7)
    start, end = piece(b"x" * 20_000, 10_000, 10_010)
    assert (10_000 - start, end - 10_010) == (4096, 4096)
