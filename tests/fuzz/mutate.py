"""Random changes of real input, and what has to hold of whatever is said about it."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

from tests.conftest import Said

# What programs that read text trip over; none of it means anything to the doctor.
WORDS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "-3",
        "1e999",
        "NaN",
        "²",
        "٣",
        "13.0.",
        "V13.0.",
        "13.0.1.2.3",
        "99" * 30,
    ),
    *("\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "\x07", "\r", "\n", "\t", "\0", "\u202e", "\ufeff"),
    *(
        "\udce9",
        "é",
        "中文",
        "🙂",
        "%s",
        "%h",
        "{x}",
        "{}",
        "${HOME}",
        "$(touch ran)",
        "`touch ran`",
    ),
    *(
        "'",
        '"',
        "\\",
        ";",
        "&",
        "|",
        "*",
        "#",
        "=",
        ":",
        ",",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "<",
        "~",
    ),
    *("/", "//", ".", "..", "../../../../etc/passwd", "/dev/zero", "/proc/self/mem", "/nowhere"),
    *("true", "null", "None", "x" * 5000, "[" * 500, "a.b.c", "--help", "-", "::", "=="),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**64, 10**400, 1.5, -0.0, float("nan"), float("inf")),
    *([], {}, [[]], [{}], {"": ""}, [None], "", "/"),
)


def words(r: random.Random, most: int = 4) -> str:
    return "".join(r.choice(WORDS) for _ in range(r.randint(1, most)))


def odd_value(r: random.Random) -> Any:
    return copy.deepcopy(r.choice(VALUES))  # for it may be changed in its turn


def changed_text(r: random.Random, text: str) -> str:
    """The text with a piece left out, doubled, moved, or replaced by something else."""
    for _ in range(r.randint(1, 4)):
        at, end = sorted(r.randint(0, len(text)) for _ in range(2))
        end = min(end, at + r.choice((0, 1, 8, 200, 10_000)))
        piece = r.choice(("", text[at:end] * 2, words(r), text[at:end].swapcase()))
        text = text[:at] + piece + text[end:]
    return text


def changed_bytes(r: random.Random, data: bytes) -> bytes:
    for _ in range(r.randint(1, 4)):
        at = r.randint(0, len(data))
        how = r.randrange(4)
        if how == 0:
            data = data[:at]
        elif how == 1:
            data = data[:at] + r.randbytes(r.randint(1, 8)) + data[at + r.randint(0, 8) :]
        elif how == 2:
            data = data[:at] + data[r.randint(0, at) :]
        else:
            data = data[:at] + words(r).encode("utf-8", "surrogateescape") + data[at:]
    return data


def changed_value(r: random.Random, value: Any) -> Any:
    """JSON or TOML data with one node of it changed, in place."""
    if isinstance(value, dict) and value and r.random() < 0.95:
        key = r.choice(list(value))
        how = r.random()
        if how < 0.08:
            del value[key]
        elif how < 0.16:
            value[words(r, 2)] = copy.deepcopy(value[key]) if r.random() < 0.5 else odd_value(r)
        else:
            value[key] = changed_value(r, value[key])
        return value
    if isinstance(value, list) and value and r.random() < 0.95:
        at = r.randrange(len(value))
        how = r.random()
        if how < 0.1:
            del value[at]
        elif how < 0.2:
            value.insert(at, copy.deepcopy(value[at]) if r.random() < 0.5 else odd_value(r))
        else:
            value[at] = changed_value(r, value[at])
        return value
    if isinstance(value, str) and r.random() < 0.8:
        return changed_text(r, value)
    return odd_value(r) if r.random() < 0.6 else words(r)


def changed_json(r: random.Random, text: str) -> bytes:
    """A JSON text whose values are changed, or its bytes."""
    if r.random() < 0.2:
        return changed_bytes(r, text.encode())
    value = json.loads(text)
    for _ in range(r.randint(1, 5)):
        value = changed_value(r, value)
    return json.dumps(value).encode()


def is_quiet(text: str) -> bool:
    """Whether it drives no terminal: no control character but the ends of lines and tabs."""
    return re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text) is None


def is_sound(said: Said, *codes: int) -> None:
    """It ended with one of these exit codes, and a sentence where there is no report."""
    assert said.code in codes, said
    assert is_quiet(said.out), repr(said.out)
    assert is_quiet(said.err), repr(said.err)
    assert "Traceback" not in said.err
    if not said.out and said.code:
        lines = said.err.splitlines()
        assert lines, said
        assert lines[-1].startswith(("vllm-doctor: ", "Error: ")), said.err
        assert "please report it" not in said.err, said.err
        assert len(said.err) < 3000


def has_no_crash(report: dict[str, Any]) -> None:
    """No rule broke on what it was given."""
    crashed = [(o["id"], o["why"]) for o in report["outcomes"] if o["verdict"] == "crashed"]
    assert not crashed, crashed


ROOT = Path(__file__).parent.parent.parent
TAPES = sorted((ROOT / "fixtures/tapes").glob("*.json"))
