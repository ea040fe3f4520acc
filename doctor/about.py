"""What this doctor is: its name, version, and how much it knows."""

from __future__ import annotations

import re

from doctor.shipped import rules_folder

NAME = "vllm-doctor"
VERSION = "0.7.0"


def count_rules() -> int:
    """How many rules the doctor carries, counted in their files."""
    return _count("*.py", r"(?m)^@rule\(")


def count_signatures() -> int:
    """How many log signatures it carries, counted in their files."""
    return _count("signatures/*.toml", r"(?m)^\[\[signature\]\]")


def _count(files: str, row: str) -> int:
    texts = (p.read_text(encoding="utf-8") for p in rules_folder().glob(files))
    return sum(len(re.findall(row, text)) for text in texts)
