"""The report as JSON data, and its schema."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

from doctor import about
from doctor.codec import encode
from doctor.model import (
    Finding,
    Fix,
    Installer,
    Needs,
    Outcome,
    Role,
    Severity,
    Step,
    Verdict,
    printable,
)
from doctor.redact import redacted_words
from doctor.report.machine import Machine, fact, machine, prefix_of

if TYPE_CHECKING:
    from doctor.command import ServerCommand
    from doctor.diagnose import Report

SCHEMA_VERSION = 1


def to_json(report: Report) -> dict[str, Any]:
    """The whole report; its shape is `report_schema()`."""
    where, whose = report.where, machine(report)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {
            "name": about.NAME,
            "version": about.VERSION,
            "rules": report.rules,
            "signatures": about.count_signatures(),
        },
        "target": {
            "python": printable(where.python),
            "prefix": printable(prefix_of(report)),
            "found_by": where.how,
            "profile": report.profile,
            "model": None if report.model is None else printable(report.model),
            "source": report.source,
            "recorded": encode(report.recorded),
            "checked_up_to": report.checked_up_to,
        },
        "command": None if report.command is None else _command(report.command),
        "model": _model(report),
        **machine_json(whose),
        "versions": {"vllm": whose.vllm, "torch": whose.torch, "driver": whose.driver},
        "gpus": None if whose.gpus is None else list(whose.gpus),
        "fail_on": report.fail_on.value,
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "primary": report.primary.rule.id if report.primary else None,
        "seconds": round(report.seconds, 3),
        "outcomes": [_outcome(o, report) for o in report.outcomes],
        "deep": _deep(report),
        "not_checked": [{"id": n.rule.id, "why": str(n.why)} for n in report.not_checked],
    }


def _command(command: ServerCommand) -> list[str]:
    """Its words; also those in a shell's text are redacted one by one."""
    if command.inner:
        from doctor.command.shell import as_text

        return redacted_words([*command.words[:-1], as_text(redacted_words(command.inner))])
    return redacted_words(command.words)


def _model(report: Report) -> dict[str, Any] | None:
    """What is known of the model, and where it was read; its shape is `_model_schema()`."""
    from doctor.probes.configuration import ModelConfiguration
    from doctor.probes.served import Profile

    profile, read = fact(report, Profile), fact(report, ModelConfiguration)
    if report.model is None or profile is None:
        return None
    needs = {name: value for name, value in vars(profile.needs).items() if value is not None}
    return {
        "name": printable(report.model),
        "source": read.source.value if read and read.source else None,
        "place": str(read.place) if read and read.place else None,
        "why": str(read.why) if read and read.why else None,
        "needs": needs,
    }


def _model_schema() -> dict[str, Any]:
    from doctor.probes.configuration import ReadFrom

    return object_of(
        name=TEXT,
        source={"enum": [*(one.value for one in ReadFrom), None]},
        place=MAYBE_TEXT,
        why=MAYBE_TEXT,
        needs={"type": "object"},
    )


def machine_json(whose: Machine) -> dict[str, Any]:
    """Of which machine and when; its shape is `MACHINE`."""
    return {"host": whose.host and printable(whose.host), "time": whose.time}


def _outcome(outcome: Outcome, report: Report) -> dict[str, Any]:
    first = Role.PRIMARY if outcome is report.primary else Role.CONTRIBUTING
    return {
        "id": outcome.rule.id,
        "title": outcome.rule.title,
        "severity": outcome.severity.value,
        "verdict": outcome.verdict.value,
        "accepted": outcome.accepted,
        "why": None if outcome.why is None else str(outcome.why),
        "findings": [
            _finding(f, first if i == 0 else Role.CONTRIBUTING, report.installer)
            for i, f in enumerate(outcome.findings)
        ],
    }


def _finding(finding: Finding, role: Role, by: Installer) -> dict[str, Any]:
    return {
        "message": str(finding.message),
        "values": {k: encode(v) for k, v in finding.message.values.items()},
        "evidence": [str(e) for e in finding.evidence],
        "role": role.value,
        "fixes": [fix_json(f, by) for f in finding.fixes],
    }


def fix_json(fix: Fix, by: Installer) -> dict[str, Any]:
    return {
        "title": str(fix.title),
        "needs": fix.needs.value,
        "steps": [step_json(s, by) for s in fix.steps],
        "commands": list(fix.commands(by)),
    }


def step_json(step: Step, by: Installer) -> dict[str, Any]:
    if step.kind == "command":  # whole only with what the person asked for
        return {"kind": step.kind, "line": step.commands(by)[0]}
    return {"kind": step.kind, **encode(step)}


def _deep(report: Report) -> dict[str, Any]:
    return {**_test_build(report), "imports": _imports(report)}


def _imports(report: Report) -> dict[str, Any]:
    made = report.imports
    why = made.failure if made else report.imports_missing
    return {
        "ran": made is not None,
        "seconds": round(made.seconds, 3) if made else 0.0,
        "modules": [
            {
                "module": row.module,
                "outcome": row.outcome,
                "seconds": round(row.seconds, 3),
                "why": printable(row.error) if row.error else "",
                "place": printable(row.error.place) if row.error else None,
            }
            for row in (made.rows if made else ())
        ],
        "why": "" if why is None else printable(why),
    }


def _test_build(report: Report) -> dict[str, Any]:
    proof = report.proof
    if proof is None:
        why = "" if report.proof_missing is None else str(report.proof_missing)
        return {
            "ran": False,
            "ok": None,
            "stage": None,
            "archs": [],
            "seconds": 0.0,
            "output_tail": why,
            "stand_in": False,
        }
    return {
        "ran": True,
        "ok": proof.ok,
        "stage": proof.stage,
        "archs": [f"sm_{a}" for a in proof.archs],
        "seconds": round(proof.seconds, 3),
        "output_tail": printable_lines(proof.output),
        "stand_in": proof.stand_in,
    }


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())


def object_of(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


TEXT = {"type": "string"}
MAYBE_TEXT = {"type": ["string", "null"]}
INT = {"type": "integer"}
NUMBER = {"type": "number"}
BOOL = {"type": "boolean"}
MACHINE = {"host": MAYBE_TEXT, "time": MAYBE_TEXT}


def fix_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `fix_json`."""
    step = {"type": "object", "properties": {"kind": TEXT}, "required": ["kind"]}
    return object_of(
        title=TEXT,
        needs={"enum": [n.value for n in Needs]},
        steps=list_of(step),
        commands=list_of(TEXT),
    )


def _imports_schema() -> dict[str, Any]:
    from doctor.probes.imports import ImportOutcome

    outcomes = {"enum": list(typing.get_args(ImportOutcome))}
    module = object_of(module=TEXT, outcome=outcomes, seconds=NUMBER, why=TEXT, place=MAYBE_TEXT)
    return object_of(ran=BOOL, seconds=NUMBER, modules=list_of(module), why=TEXT)


def report_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `to_json`."""
    finding = object_of(
        message=TEXT,
        values={"type": "object"},
        evidence=list_of(TEXT),
        role={"enum": [r.value for r in Role]},
        fixes=list_of(fix_schema()),
    )
    outcome = object_of(
        id=TEXT,
        title=TEXT,
        severity={"enum": [s.value for s in Severity]},
        verdict={"enum": [v.value for v in Verdict]},
        accepted=BOOL,
        why=MAYBE_TEXT,
        findings=list_of(finding),
    )
    recorded = object_of(tool=TEXT, at={"type": ["number", "null"]}, host=MAYBE_TEXT)
    schema = object_of(
        schema_version={"const": SCHEMA_VERSION},
        tool=object_of(name=TEXT, version=TEXT, rules=INT, signatures=INT),
        target=object_of(
            python=TEXT,
            prefix=TEXT,
            found_by=TEXT,
            profile=MAYBE_TEXT,
            model=MAYBE_TEXT,
            source={"enum": ["live", "tape"]},
            recorded={"anyOf": [recorded, {"type": "null"}]},
            checked_up_to=MAYBE_TEXT,
        ),
        command={"type": ["array", "null"], "items": TEXT},
        model={"anyOf": [_model_schema(), {"type": "null"}]},
        **MACHINE,
        versions=object_of(vllm=MAYBE_TEXT, torch=MAYBE_TEXT, driver=MAYBE_TEXT),
        gpus={"type": ["array", "null"], "items": TEXT},
        fail_on={"enum": [s.value for s in Severity]},
        verdict={"enum": ["healthy", "findings", "unknown"]},
        exit_code=INT,
        primary=MAYBE_TEXT,
        seconds=NUMBER,
        outcomes=list_of(outcome),
        deep=object_of(
            ran=BOOL,
            ok={"type": ["boolean", "null"]},
            stage={"enum": ["compile", "link", "load", None]},
            archs=list_of(TEXT),
            seconds=NUMBER,
            output_tail=TEXT,
            stand_in=BOOL,
            imports=_imports_schema(),
        ),
        not_checked=list_of(object_of(id=TEXT, why=TEXT)),
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
