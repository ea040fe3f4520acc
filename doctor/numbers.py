"""Versions and numbers out of what a machine says: text that is neither is None, never an error.

`str.isdigit` and `\\d` accept "²" and "９", `int` refuses more than 4,300 digits and `Version` a
dot at the end: whoever reads text that somebody else wrote asks here.
"""

from __future__ import annotations

from packaging.version import Version

YEAR_10000 = 253402300800
"""Seconds since 1970; no calendar of Python's goes so far."""
_LONGEST_VERSION = 128  # characters; a local version with a git hash has 60
_LONGEST_NUMBER = 19  # digits; nanoseconds since 1970 have 19


def version_of(text: str | None) -> Version | None:
    """The version (PEP 440) that is written there."""
    if not text or len(text) > _LONGEST_VERSION or not text.isascii():
        return None
    try:
        return Version(text)
    except ValueError:
        return None


def number_of(text: str | None) -> int | None:
    """The whole number, 0 or more, that is written there in ASCII digits and nothing else."""
    if not text or len(text) > _LONGEST_NUMBER or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def cuda_version(number: int | None) -> Version | None:
    """The release behind CUDA's own number, 1000 x major + 10 x minor (13020 is 13.2)."""
    if number is None or number <= 0:
        return None
    return version_of(f"{number // 1000}.{number % 1000 // 10}")


def shown_size(size: int) -> str:
    """So many bytes, as hubs and disks count them: "59.1 GB"."""
    if size < 1000:
        return f"{size} bytes"
    units = ("kB", "MB", "GB", "TB")
    power = min(len(units), (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:.1f} {units[power - 1]}"
