"""Log signatures: rows of data that name an ailment by what it prints."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from doctor import toml
from doctor.codec import decode
from doctor.shipped import rules_folder


@dataclass(frozen=True)
class Signature:
    """`literal` is found first, which is fast; `pattern`, where given, then has to match the line.
    `printed_by` names who prints it: a distribution and its file, "nvcc", "ptxas", "linker", ..."""

    id: str
    literal: str
    printed_by: str
    pattern: str | None = None


@functools.cache
def signatures() -> tuple[Signature, ...]:
    """Every row of rules/signatures/*.toml, files by name. Raises CodecError, ValueError."""
    rows = []
    for path in sorted((rules_folder() / "signatures").glob("*.toml")):
        rows += decode(tuple[Signature, ...], toml.load(path).get("signature", []), path.name)
    return tuple(rows)


def ids_of(output: str) -> tuple[tuple[str, ...], str]:
    """(the ailments that `output` names, in its order; the first line that names one, or the last
    line that holds "error" or "fatal", or the last line)."""
    ids: list[str] = []
    telling = ""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        for one in signatures():
            if one.literal in line and (one.pattern is None or re.search(one.pattern, line)):
                telling = telling or line
                if one.id not in ids:
                    ids.append(one.id)
    lines = [x for x in lines if not x.startswith(("collect2:", "ninja:"))] or lines
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return tuple(ids), (telling or (errors or lines or [""])[-1])[:300]
