"""Sentences in the language of the person's locale: templates and what they are in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from doctor.model import Text, printable
from doctor.toml import load_toml

_FOLDER = Path(__file__).parent.parent / "locale"
_ORDER = ("LC_ALL", "LC_MESSAGES", "LANG")  # setlocale(3): the first one that is set


class Translation:
    """`rows`: by English template. What has no row stays English."""

    def __init__(self, rows: Mapping[str, str]) -> None:
        self._rows = rows

    def of(self, text: Text) -> str:
        """The sentence; the sentences among its values too."""
        values = {name: self._value(value) for name, value in text.values.items()}
        return self._rows.get(text.template, text.template).format(**values)

    def _value(self, value: object) -> str:
        if isinstance(value, Text):
            return self.of(value)
        if isinstance(value, (tuple, list)):
            return printable([self._value(one) for one in value])
        return printable(value)


def chinese() -> Translation:
    """Raises OSError and ValueError for a damaged catalogue."""
    return Translation(load_toml(_FOLDER / "zh_CN.toml")["texts"])


def translation(env: Mapping[str, str]) -> Translation:
    """Of the language that these variables name."""
    said = next((env[name] for name in _ORDER if env.get(name)), "")
    return chinese() if said.lower().startswith("zh") else Translation({})
