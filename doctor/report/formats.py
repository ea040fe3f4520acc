"""The output forms of the commands that judge: `--format` of diagnose, explain and fix.

Text and JSON say all, each command in its own way. Every other form is a function of the cases that
each command can give (doctor.report.cases), and so works for all of them; a further one is a file
and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from doctor.report.cases import Cases


def _late(name: str) -> Callable[[Cases], str]:
    """The function of that name in the file of that name, imported where it is asked for."""

    def form(made: Cases) -> str:
        function: Callable[[Cases], str] = getattr(import_module(f"doctor.report.{name}"), name)
        return function(made)

    return form


CASE_FORMS: Mapping[str, Callable[[Cases], str]] = {
    "junit": _late("junit"),
    "github": _late("github"),
}
FORMS = ("text", "json", *CASE_FORMS)
