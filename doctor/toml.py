"""TOML files, read with the standard library's parser, or tomli before Python 3.11."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load(path: Path) -> dict[str, Any]:
    """The file's table. Raises OSError, or ValueError saying where it is no TOML."""
    with path.open("rb") as file:
        return tomllib.load(file)
