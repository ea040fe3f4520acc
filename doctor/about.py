"""What this doctor is: its name, version, and how much it knows."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from doctor.shipped import rules_folder

NAME = "vllm-doctor"
VERSION = "0.1.0"


@functools.cache
def tool() -> dict[str, str | int]:
    """name, version, and the numbers of rules and signatures, counted in their files."""
    folder = rules_folder()
    return {
        "name": NAME,
        "version": VERSION,
        "rules": _count(folder, "*.py", r"(?m)^@rule\("),
        "signatures": _count(folder / "signatures", "*.toml", r"(?m)^\[\[signature\]\]"),
    }


def _count(folder: Path, files: str, row: str) -> int:
    texts = (p.read_text(encoding="utf-8") for p in folder.glob(files))
    return sum(len(re.findall(row, text)) for text in texts)
