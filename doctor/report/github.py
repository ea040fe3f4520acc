"""Workflow commands of GitHub Actions: an annotation per case that a person should see
(docs.github.com, "Workflow commands for GitHub Actions")."""

from __future__ import annotations

from doctor import about
from doctor.model import Severity
from doctor.report.cases import Case, Cases, CaseVerdict

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def github(made: Cases) -> str:
    """An annotation per line, the verdict last."""
    lines = [_annotation(case) for case in made.cases if case.verdict not in _UNSEEN]
    lines.append(_command("notice", f"{about.NAME} {made.command}", [made.summary]))
    return "".join(f"{line}\n" for line in lines)


_UNSEEN = (CaseVerdict.PASSED, CaseVerdict.NOT_CHECKED)


def _annotation(case: Case) -> str:
    level, message = "notice", case.message
    if case.verdict is CaseVerdict.FAILED:
        level = _LEVELS[case.severity]
    elif case.verdict is CaseVerdict.INCONCLUSIVE:
        level, message = "warning", f"inconclusive: {message}"
    if case.accepted:
        level, message = "notice", f"accepted: {message}"
    return _command(level, case.id, [message, *case.details], file=case.file, line=case.line)


def _command(level: str, title: str, lines: list[str], **place: object) -> str:
    rows = {**place, "title": title}
    said = ",".join(f"{k}={_property(str(v))}" for k, v in rows.items() if v is not None)
    text = _data("\n".join(lines))
    return f"::{level} {said}::{text}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
