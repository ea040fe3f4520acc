"""What a text for a person is made of: coloured pieces in lines, wrapped by columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from doctor.frozen import dataclass
from doctor.model import Fix, Installer, Needs, Severity
from doctor.redact import redact

if TYPE_CHECKING:
    from doctor.diagnose import Report

# (style, text) pieces of one line; style is a rich style, "" for plain.
Line = tuple[tuple[str, str], ...]

MARKS = {
    Severity.ERROR: ("bold red", "✗"),
    Severity.WARNING: ("bold yellow", "!"),
    Severity.INFO: ("bold blue", "i"),
}


@dataclass(frozen=True)
class Style:
    """How much is shown, and how wide (columns). `stand_ins`: what the stream shows for signs that
    its encoding lacks."""

    verbose: bool = False
    quiet: bool = False
    width: int = 100
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def columns(self, line: Line) -> int:
        """How many columns a line takes on that stream."""
        text = "".join(piece for _, piece in line)
        return columns("".join(self.stand_ins.get(sign, sign) for sign in text))


def columns(text: str) -> int:
    """How many columns of a terminal the text takes: a wide character two (UAX #11), a mark that
    combines with the one before it none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 1 + (east_asian_width(c) in "WF") for c in text)


def wrap(text: str, width: int, hang: int = 0) -> Iterator[str]:
    """The text in lines of at most `width` columns, all but the first of `hang` less; a word is
    never broken. Redacted before that: in two lines a name and its value might not be known again.
    """
    line: list[str] = []
    room = width
    for word in redact(text).split():
        if line and columns(word) + 1 > room:
            yield " ".join(line)
            line, room = [], width - hang
        room -= columns(word) + bool(line)
        line.append(word)
    if line:
        yield " ".join(line)


def wrapped(
    text: str, indent: str, style: Style, colour: str = "", hang: str = ""
) -> Iterator[Line]:
    """A paragraph in lines of the style's width."""
    for i, line in enumerate(wrap(text, style.width - len(indent), len(hang))):
        yield ((colour, f"{indent}{hang if i else ''}{line}"),)


def counted(number: int, what: str) -> str:
    """The number with its noun, such as "2 errors"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def served(report: Report) -> Line:
    """What is to be served, and what says so: a profile, or a command and where it was found."""
    said = f"(profile {report.profile})"
    if command := report.command:
        said = f"(the command of {command.found})" if command.found else "(your command)"
    if report.model is None:
        return (("", f"no model {said}"),)
    return (("bold", report.model), ("", f" {said}"))


def fix_lines(
    fix: Fix, installer: Installer, style: Style, earlier: str | None = None
) -> Iterator[Line]:
    """The commands of a fix; only its name where an earlier finding has shown them."""
    manual = " (manual)" if fix.needs is Needs.PERSON else ""
    same = f": same fix as {earlier}" if earlier else ""
    yield from wrapped(f"fix: {fix.title}{manual}{same}", "    ", style, "green", hang="  ")
    if earlier:
        return
    for command in fix.commands(installer):
        yield (("cyan", f"      {command}"),)
