"""The report for a person: short, with -v in full, with -q a line per finding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from doctor.model import printable
from doctor.report.full import full_lines
from doctor.report.lines import Line, Style
from doctor.report.short import quiet_lines, short_lines

if TYPE_CHECKING:
    from doctor.diagnose import Report


def report_lines(report: Report, style: Style) -> Iterator[Line]:
    """The report line by line, free of control characters. Commands are never wrapped, so that
    they can be copied."""
    lines = full_lines if style.verbose else quiet_lines if style.quiet else short_lines
    for line in lines(report, style):
        yield tuple((colour, printable(piece)) for colour, piece in line)
