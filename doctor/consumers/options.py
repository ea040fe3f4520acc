"""The options of a server that a profile has no setting of its own for, by type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from doctor.codec import parse_json
from doctor.numbers import number_of


class GivenOptions:
    """`values`: by name with underscores; as they were typed where nobody has read which type the
    installed vLLM gives them. A value of another type than it has is not said: vLLM refuses it, and
    another rule says so."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def count(self, name: str) -> int | None:
        """A whole number from 0 on."""
        value = self._values.get(name)
        if isinstance(value, str):
            return number_of(value)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return value if whole else None

    def amount(self, name: str) -> float:
        """0 where nothing is said."""
        value = self._values.get(name)
        if isinstance(value, str):
            value = float(value) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) else None
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
        return float(value) if good and value is not None else 0.0

    def size(self, name: str) -> int:
        """How many ways something is cut: 1 where nothing is said."""
        return self.count(name) or 1

    def switch(self, name: str) -> bool:
        value = self._values.get(name)
        return value is True or (isinstance(value, str) and value.lower() == "true")

    def word(self, name: str) -> str | None:
        value = self._values.get(name)
        return value if isinstance(value, str) and value else None

    def texts(self, name: str) -> tuple[str, ...]:
        """Of an option that takes several; other values than text among them are not said."""
        value = self._values.get(name)
        several = value if isinstance(value, (list, tuple)) else [value]
        return tuple(one for one in several if isinstance(one, str) and one)

    def table(self, name: str) -> Mapping[str, Any] | None:
        """A JSON object, None where nothing or something else is said."""
        value = self._values.get(name)
        if isinstance(value, str):
            try:
                value = parse_json(value)
            except ValueError:
                return None
        return value if isinstance(value, dict) else None

    def says(self, name: str) -> bool:
        return self._values.get(name) not in (None, "", {})
