"""Makes rules/tables/zh_CN.toml: what programs of a Chinese system print, with its English.

    python -m tests.catalogues FOLDER...

FOLDER: where message catalogues lie (*.mo, GNU gettext), such as the LC_MESSAGES of a system with
bash, binutils, coreutils, libc and make, and that of gcc's locales. Of each message that holds a
text which a signature searches for, the parts that are not filled in are written down, side by
side; nothing of it is typed.
"""

from __future__ import annotations

import gettext
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from doctor.shipped import rules_folder
from doctor.signatures import Signature, shipped_catalogue

_PROGRAMS = (
    "bash",
    "binutils",
    "ld",
    "bfd",
    "coreutils",
    "libc",
    "make",
    "gcc-12",
    "gcc",
    "cpplib",
)
_PRINTED_BY = ("sh", "linker", "gcc", "loader", "glibc", "libstdc++", "coreutils")
_DIRECTIVE = re.compile(
    r"%(?:\d+\$)?[-+ #0']*\d*(?:\.\d+)?(?:hh|h|ll|l|z|j|t)?[a-zA-Z%<>]|[‘’“”'`\"]"
)
_BARE = " \t\n:：()（）"
_FEWEST = 5
"""Characters of an English text that tells of a failure."""
_ENDS = ("error: ", "fatal error: ")
"""Words that compilers put before what they say."""


def main(folders: list[str]) -> None:
    pairs = table(folders)
    out = rules_folder() / "tables" / "zh_CN.toml"
    out.write_text(_toml(pairs), encoding="utf-8")
    print(f"{len(pairs)} texts")


def table(folders: Iterable[str | Path]) -> dict[str, str]:
    """English texts by Chinese ones, of the catalogues in these folders."""
    pairs: dict[str, str] = {}
    for folder in folders:
        for program in _PROGRAMS:
            path = Path(folder, f"{program}.mo")
            if path.exists():
                for english, chinese in _pairs(path, literals()):
                    pairs.setdefault(chinese, english)
    return pairs


def literals() -> set[str]:
    """What the signatures search for of what is printed in another language as well."""
    return {one.literal.strip() for one in shipped_catalogue().signatures if _is_localised(one)}


def _is_localised(row: Signature) -> bool:
    return row.printed_by in _PRINTED_BY


def _pairs(path: Path, searched: set[str]) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        catalogue: dict[object, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    for key, translated in catalogue.items():
        english = key[0] if isinstance(key, tuple) else str(key)
        if english in _ENDS:
            yield english.strip(_BARE), translated.strip(_BARE)
            continue
        ours, theirs = _texts(english), _texts(translated)
        # Another language has another order: of several texts only one that begins alike is sure.
        alone = len(ours) == len(theirs) == 1
        for own, other in zip(ours, theirs, strict=False):
            alike = alone or own.split()[0] == other.split()[0]
            if alike and not other.isascii() and _is_searched(own, searched):
                yield own, other


def _texts(message: str) -> list[str]:
    """Those of a message that are not filled in."""
    if "\n" in message.strip():
        return []
    return [text for one in _DIRECTIVE.split(message) if (text := one.strip(_BARE))]


def _is_searched(text: str, searched: set[str]) -> bool:
    """Whether a signature searches for the text, or for something in it; not for a word of it."""
    if " " not in text:
        return text in searched
    return len(text) >= _FEWEST and any(
        text in one or (one in text and len(text) < 3 * len(one)) for one in searched
    )


def _toml(pairs: dict[str, str]) -> str:
    lines = [
        "# What programs of a Chinese system print, and what it is in English: from their message",
        "# catalogues. Made, and to be made again, by: python -m tests.catalogues FOLDER...",
        "[texts]",
    ]
    quoted = str.maketrans({'"': r"\"", "\\": r"\\"})
    for chinese, english in sorted(pairs.items(), key=lambda pair: (pair[1], pair[0])):
        lines.append(f'"{chinese.translate(quoted)}" = "{english.translate(quoted)}"')
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
