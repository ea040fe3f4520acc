"""Where the rules, signatures and tables that come with the doctor lie."""

from __future__ import annotations

from pathlib import Path


def rules_folder() -> Path:
    """Inside the package where it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "_rules"
    return inside if inside.is_dir() else package.parent / "rules"
