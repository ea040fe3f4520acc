"""Amounts of memory as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

from doctor.errors import UsageError
from doctor.model import Text, shortened

_UNITS = {
    "b": 1,
    "bytes": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_MOST = 1 << 50  # bytes; more than any machine has


def bytes_of(text: str) -> int:
    """Bytes of such as 79.18GiB, 80 GB, 512MiB and 85899345920; with a minus in front they are
    below 0. Raises UsageError."""
    found = re.fullmatch(
        r"\s*(-?)([0-9]{1,16}(?:\.[0-9]{1,9})?)\s*([a-z]{0,5})\s*", text.lower(), re.ASCII
    )
    if found is None or (found[3] and found[3] not in _UNITS):
        shown = shortened(text, 80)
        raise UsageError(Text("{text} is not a size such as 79.18GiB, 80GB or 512MiB", text=shown))
    if not found[3] and "." in found[2]:
        raise UsageError(Text("{text} has no unit, such as GiB", text=text))
    size = round(Decimal(found[2]) * _UNITS[found[3] or "b"])
    if size > _MOST:
        raise UsageError(Text("{text} is more than any machine has", text=text))
    return -size if found[1] else size
