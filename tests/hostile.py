"""Logs that are made to take time or memory, each of any size: what `explain` has to bear.

Ordinary tests count the work that a small one of each kind makes; tests/benchmarks/explain_hostile
measures seconds and memory of large ones. What is in them is made from the shipped signatures, so
that a new signature brings its own near-matches along.
"""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
import random
from collections.abc import Callable, Iterable, Iterator

from doctor.signatures import Signature, shipped_catalogue

Making = Callable[[int], bytes]
"""Makes a log of about so many bytes."""

ROWS = shipped_catalogue().signatures
START = "(APIServer pid=1) INFO 11-25 10:00:00 [utils.py:278] non-default args: {'model': 'm'}"
READY = "(APIServer pid=1) INFO:     Application startup complete."
STOP = "(APIServer pid=1) INFO:     Shutting down"
HEADER = "Traceback (most recent call last):"
CAUSED = "The above exception was the direct cause of the following exception:"
WRAPPERS = tuple(s.literal for s in ROWS if s.role == "symptom")


def filled(lines: Iterable[str | bytes], size: int) -> bytes:
    """The lines, again and again, until there are so many bytes."""
    made = bytearray()
    for line in lines:
        made += (line if isinstance(line, bytes) else line.encode()) + b"\n"
        if len(made) >= size:
            break
    return bytes(made)


def _literals(change: Callable[[Signature], str]) -> Making:
    return lambda size: filled(itertools.cycle([change(row) for row in ROWS]), size)


def _again(line: str) -> Making:
    data = line.encode() + b"\n"
    return lambda size: data * (size // len(data) + 1)


def _numbered(line: str) -> Making:
    return lambda size: filled((line.replace("{n}", str(n)) for n in itertools.count()), size)


def _some(pieces: Iterable[str]) -> Making:
    """The pieces in any order, but always the same one."""
    known = list(pieces)

    def make(size: int) -> bytes:
        rng = random.Random(9)  # noqa: S311
        return filled((rng.choice(known) for _ in itertools.count()), size)

    return make


def _broken(row: Signature) -> str:
    middle = len(row.literal) // 2
    return f"{row.literal[:middle]}\n{row.literal[middle:]}"


def _chained(size: int) -> bytes:
    return filled(
        itertools.cycle((HEADER, '  File "a.py", line 1, in f', "KeyError: 1", "", CAUSED, "")),
        size,
    )


def _groups(size: int) -> bytes:
    def lines() -> Iterator[str]:
        for depth in itertools.count():
            bar = "  | " * (depth % 500)
            yield f"{bar}  + Exception Group {HEADER}"
            yield f"{bar}  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)"
            yield f"{bar}  +-+---------------- {depth} ----------------"

    return filled(lines(), size)


def _ranks(size: int) -> bytes:
    texts = (HEADER, '  File "a.py", line 1, in f', "    f()", "RuntimeError: CUDA was out of it")
    return filled(
        (f"(Worker_TP{r} pid={r}) ERROR 11-25 10:00:00 [a.py:{n}] {text}"
         for n in itertools.count() for text in texts for r in range(8)),
        size,
    )  # fmt: skip


def _json(size: int) -> bytes:
    return filled(
        (json.dumps({"log": f'ERROR 11-25 10:00:00 [a.py:{n}] "{row.literal}"\n', "stream": "x"})
         for n, row in enumerate(itertools.cycle(ROWS))),
        size,
    )  # fmt: skip


def _prefixes(size: int) -> bytes:
    heads = ("(Worker_TP{n} pid={n})", "2026-11-25T10:00:00.{n:09}Z stderr F", "vllm-{n}  |",
             "[rank{n}]:", "Nov 25 10:00:00 n{n} vllm[{n}]:", "[pod/x{n}]", "ERROR:")  # fmt: skip
    rng = random.Random(5)  # noqa: S311
    return filled(
        ("".join(rng.choice(heads).format(n=n) + " " for _ in range(12)) + "RuntimeError: x"
         for n in itertools.count()),
        size,
    )  # fmt: skip


def _learned(size: int) -> bytes:
    lines = filled((f"odd-name-of-it > INFO 11-25 10:00:00 [a.py:1] {n}" for n in range(900)), size)
    return lines + b"\n" * (size - len(lines))


def _matching(level: str) -> Making:
    """Lines of the rows that need no pattern: each is a match."""
    rows = [row for row in ROWS if row.pattern is None]
    return lambda size: filled(
        (f"{level}{row.literal} it is" for row in itertools.cycle(rows)), size
    )


def _members(size: int) -> bytes:
    text = _again("INFO 11-25 10:00:00 [core.py:1] all is well, step of the engine")(size)[:size]
    packed = {byte: gzip.compress(bytes([byte]), 1, mtime=0) for byte in set(text)}
    return b"".join(packed[byte] for byte in text)


def _packed_members(size: int) -> bytes:
    return _members(size // 21)[:size]


def _gzip_bomb(size: int) -> bytes:
    return gzip.compress(bytes(size * 100), 9, mtime=0)


def _xz_bomb(size: int) -> bytes:
    one = lzma.compress(bytes(32 << 20))
    return one * max(1, size * 100 // (32 << 20))


def _great_dictionary(size: int) -> bytes:
    chosen = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30, "mf": lzma.MF_HC3}
    made = lzma.compress(b"RuntimeError: x\n", filters=[{**chosen, "dict_size": 4 << 20}])
    # The size of the dictionary stands in the header of the block, which a checksum closes.
    return _with_dictionary(made, 36) if size else b""


def _with_dictionary(packed: bytes, code: int) -> bytes:
    import zlib

    length = (packed[12] + 1) * 4
    header = bytearray(packed[12 : 12 + length - 4])
    at = header.index(b"\x21\x01") + 2  # LZMA2, one byte of properties
    header[at] = code
    checksum = zlib.crc32(bytes(header)).to_bytes(4, "little")
    return packed[:12] + bytes(header) + checksum + packed[12 + length :]


_near = "{0} of something else"

_closed = " ;"
_missed = [
    one
    for one in ROWS
    if not any(
        row.values(one.literal + _closed) is not None
        for row in ROWS
        if row.literal in one.literal and row.role != "failure"
    )
]
"""Rows whose literal alone is nothing to any row, nor with the line after it."""

KINDS: dict[str, Making] = {
    "near-misses": _some(row.literal + _closed for row in _missed),
    "near-matches: the literal alone": _literals(lambda row: _near.format(row.literal)),
    "near-matches, any order": _some(_near.format(row.literal) for row in ROWS),
    "near-matches as errors": _literals(lambda row: "ERROR: " + row.literal),
    "near-matches in a traceback": _literals(lambda row: "    raise " + row.literal),
    "literals without their end": _literals(lambda row: row.literal.rstrip()[:-1]),
    "literals with spaces": _literals(lambda row: " ".join(row.literal)),
    "literals with colours": _literals(lambda row: "\x1b[0m".join(row.literal)),
    "literals broken in the middle": _literals(_broken),
    "all literals in one line": lambda size: filled(
        itertools.repeat(" ".join(row.literal for row in ROWS)), size),
    "literals without line ends": lambda size: _literals(lambda row: row.literal)(size).replace(
        b"\n", b""
    ),
    "the shortest literal": _again("Error:"),
    "the shortest literal, one line": lambda size: b"Error:" * (size // 6),
    "matches": _matching("ERROR "),
    "matches as information": _matching("INFO "),
    "matches that are survived": lambda size: filled(
        (text for row in itertools.cycle(r for r in ROWS if r.pattern is None)
         for text in (f"{row.literal} it is", *["INFO: all is well"] * 5)), size),
    "one exception": _again("RuntimeError: x"),
    "exceptions, each another": _numbered("ValueError: {n} is not what is wanted, but it is {n}"),
    "short exceptions, each another": _numbered("E{n}Error: {n}"),
    "tracebacks": _numbered(HEADER + '\n  File "a.py", line {n}, in f\nValueError: {n}'),
    "headers of tracebacks": _again(HEADER),
    "a traceback without an end": lambda size: filled(
        itertools.chain([HEADER], itertools.repeat('  File "a.py", line 1, in f\n    f()')), size),
    "a chain of tracebacks": _chained,
    "groups of exceptions": _groups,
    "eight ranks at once": _ranks,
    "starts": _again(START),
    "starts and failures": _numbered(START + "\nValueError: {n}"),
    "starts, failures, ends": _numbered("\n".join((START, READY, "RuntimeError: {n}", STOP))),
    "starts and matches": lambda size: filled(
        (text for row in itertools.cycle(ROWS) for text in (START, row.literal)), size),
    "words of a start": _again("vllm serve x vllm serve non-default args: Application startup"),
    "wrappers": lambda size: filled(itertools.cycle(f"RuntimeError: {w}" for w in WRAPPERS), size),
    "last words": _some(["Killed", "Aborted", "Segmentation fault (core dumped)", "fatal error",
                         "MemoryError", "AssertionError", "terminate called ", "Bus error"]),
    "prefixes": _prefixes,
    "prefixes alone": lambda size: b"(EngineCore pid=1) " * (size // 19),
    "a learned prefix, then line ends": _learned,
    "JSON": _json,
    "JSON, open": lambda size: b'{"log":"Error: ' * (size // 15),
    "JSON, backslashes": lambda size: b'{"log":"Error: ' + b"\\n" * (size // 2),
    "JSON, nested": lambda size: filled(itertools.repeat('{"log":' * 500 + "Error: "), size),
    "boxes": _again("│ RuntimeError: x │ │ │ │"),
    "carriage returns": lambda size: b"RuntimeError: x\r" * (size // 16),
    "one line": lambda size: b"x" * size,
    "one line of Chinese errors": lambda size: "错误 ".encode() * (size // 7),
    "one line of errors": lambda size: b"RuntimeError: x " * (size // 16),
    "spaces in a literal": lambda size: b"No space left on" + b" " * size + b"device",
    "line ends": lambda size: b"\n" * size,
    "NULs": lambda size: b"Error: x\n" + bytes(size),
    "NULs in errors": lambda size: b"E\0r\0r\0o\0r\0:\0 \0x\0\n\0" * (size // 18),
    "escapes": lambda size: b"Error: x\n" + b"\x1b" * size,
    "colours": lambda size: b"Error: x\n" + b"\x1b[31m" * (size // 5),
    "control sequences without an end": lambda size: b"\x1b]0;Error: x\n" * (size // 13),
    "control sequences in a line": lambda size: b"Error: x" + b"\x1b[0" * (size // 3),
    "UTF-16": lambda size: _again("RuntimeError: x")(size // 2).decode().encode("utf-16"),
    "UTF-16, near-matches": lambda size: KINDS["near-matches: the literal alone"](size // 2)
    .decode().encode("utf-16"),
}  # fmt: skip

PACKED: dict[str, Making] = {
    "gzip, members of one byte": _members,
    "gzip of that size, members of one byte": _packed_members,
    "gzip, a bomb": _gzip_bomb,
    "xz, a bomb": _xz_bomb,
    "xz, a dictionary of 1 GiB": _great_dictionary,
    "gzip, near-matches": lambda size: gzip.compress(
        KINDS["near-matches: the literal alone"](size), 1, mtime=0
    ),
    "xz -9, near-matches": lambda size: lzma.compress(
        KINDS["near-matches: the literal alone"](size), preset=9
    ),
}
