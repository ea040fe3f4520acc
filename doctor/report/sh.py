"""A plan as a POSIX shell script that does the same, for whoever wants to read it first."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from doctor import about
from doctor.fixes.pip import install_lines
from doctor.model import Installer, printable
from doctor.redact import redact
from doctor.repair.context import RepairContext
from doctor.repair.create import CreationPlan
from doctor.repair.plan import Plan


def script(plan: Plan, context: RepairContext) -> str:
    """The whole script. Raises OSError or ValueError where the saved variables cannot be read."""
    return _text(_lines(plan, context))


def creation_script(plan: CreationPlan, installer: Installer) -> str:
    """A script that makes the environment and installs exactly what was resolved into it."""
    return _text(_creation(plan, installer))


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{_as_comment(line) if line.startswith('#') else line}\n" for line in lines)


def _as_comment(line: str) -> str:
    """One line, whatever a path in it holds: what followed would be executed."""
    return printable(redact(line))


def _begin(what: str) -> Iterator[str]:
    yield "#!/bin/sh"
    yield f"# {about.NAME} {about.VERSION}: {printable(what)}."
    yield "# It stops at the first command that fails. It keeps no journal: `vllm-doctor undo`"
    yield "# undoes what `vllm-doctor fix --apply` did, not what this script did."
    yield "set -eu"


def _lines(plan: Plan, context: RepairContext) -> Iterator[str]:
    report = context.report
    yield from _begin(f"fixes {report.where.python}, to serve {report.model or 'no model'}")
    for action in plan.actions:
        yield ""
        yield f"# For {', '.join(action.ids)}."
        for ask in action.asks:
            yield f"# Note: {ask.why}."
        yield from action.kind.shell(action, context)
    if not plan.actions:
        yield ""
        yield "# There is nothing that a script could fix."
    for left in plan.manual:
        yield ""
        yield f"# Manual, for {left.id}:"
        for fix in left.fixes:
            yield from (f"#   {line}" for line in fix.commands(report.installer))
    yield ""
    yield "# What was inconclusive before is checked now."
    yield f"# {report.installer.again('diagnose', '--deep')}"


def _creation(plan: CreationPlan, installer: Installer) -> Iterator[str]:
    yield from _begin(f"makes {plan.path}")
    yield ""
    yield shlex.join(["uv", "venv", "--python", str(plan.base.path), str(plan.path)])
    yield from install_lines(plan.resolution, installer, plan.shell, plan.path)
    yield ""
    yield "# What it still lacks is found and fixed now."
    yield f"# {installer.again('fix', '--apply')}"
