"""What stands for a sign of ours where a stream's encoding has none: GBK has no ✓, ASCII no →."""

from __future__ import annotations

import codecs

ERROR_HANDLER = "vllm-doctor-signs"

# Each as different from the others, and from the signs !, i, +, ~, - and ?, as it was.
STAND_INS = {
    "✓": "ok",
    "✗": "x",
    "→": "->",
    "×": "*",
    "·": ".",
    "…": "...",
    "–": "-",
    "—": "--",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    # The bars of `fit`.
    "█": "#",
    "▓": "=",
    "▒": "%",
    "░": ".",
    "▞": "@",
    # uv draws its explanations with these.
    "├": "|-",
    "╰": "`-",
    "─": "-",
    "▶": ">",
    "│": "|",
    "┃": "|",
}


def missing_signs(encoding: str | None) -> dict[str, str]:
    """The signs that a stream of this encoding lacks, and what stands for each."""
    return {
        s: other for s, other in STAND_INS.items() if not s.encode(encoding or "utf-8", "ignore")
    }


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = error.object[error.start]
    escaped = one.encode("ascii", "backslashreplace").decode()
    return STAND_INS.get(one, escaped), error.start + 1


def register() -> str:
    """The name by which a stream knows this way out (`errors` of a text stream)."""
    codecs.register_error(ERROR_HANDLER, _instead)
    return ERROR_HANDLER
