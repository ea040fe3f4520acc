"""The report as JSON data, and its schema."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

from doctor import about
from doctor.codec import encode
from doctor.model import Finding, Fix, Installer, Outcome, Role, Severity, Step, Verdict, printable
from doctor.probes.imports import ImportOutcome

if TYPE_CHECKING:
    from doctor.diagnose import Report
    from doctor.repair.apply import Applied
    from doctor.repair.plan import Plan

SCHEMA_VERSION = 1


def to_json(report: Report) -> dict[str, Any]:
    """The whole report; its shape is `report_schema()`."""
    where = report.where
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
            "prefix": printable(report.interpreter.prefix),
            "found_by": where.how,
            "profile": report.profile_name,
            "model": None if report.model is None else printable(report.model),
            "source": report.source,
            "recorded": encode(report.recorded),
            "checked_up_to": report.checked_up_to,
        },
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "primary": report.primary.rule.id if report.primary else None,
        "seconds": round(report.seconds, 3),
        "outcomes": [_outcome(o, report) for o in report.outcomes],
        "deep": _deep(report),
        "not_checked": [{"id": n.rule.id, "why": str(n.why)} for n in report.not_checked],
    }


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
    steps = [_step(s, by) for s in fix.steps]
    return {"title": str(fix.title), "needs": fix.needs.value, "steps": steps}


def _step(step: Step, by: Installer) -> dict[str, Any]:
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
        "output_tail": _lines(proof.output),
        "stand_in": proof.stand_in,
    }


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())


def repair_json(report: Report, plan: Plan, applied: Applied | None) -> dict[str, Any]:
    """The report and the plan that follows from it; with `applied`, the report made after it and
    what came of each action. Its shape is `repair_schema()`."""
    resolution = plan.resolution
    made: dict[str, Any] = {
        **to_json(report),
        "plan": [
            {
                "action": action.kind,
                "ids": list(action.ids),
                "needs": action.needs.value,
                "steps": [_step(step, report.installer) for step in action.steps],
            }
            for action in plan.actions
        ],
        "moves": [
            {"name": m.name, "old": m.old, "new": m.new, "bytes": m.size}
            for m in (resolution.moves if resolution else ())
        ],
        "index": printable(resolution.index.name) if resolution else None,
        "passed_over": [printable(p) for p in (resolution.passed_over if resolution else ())],
        "why": str(resolution.why) if resolution and resolution.why else None,
        "download_bytes": resolution.download_bytes if resolution else 0,
        "withheld": [{"id": w.id, "why": str(w.why), "allow": w.consent} for w in plan.withheld],
    }
    if applied:
        made["results"] = [
            {
                "action": r.action,
                "ids": list(r.ids),
                "outcome": r.outcome,
                "output_tail": _lines(r.tail),
            }
            for r in applied.results
        ]
        made["run"] = applied.run
    return made


def repair_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `repair_json`; `results` and `run` are there after --apply."""
    schema = report_schema()
    step = {"type": "object", "properties": {"kind": TEXT}, "required": ["kind"]}
    action = object_of(
        action={"enum": ["install", "cuda-home", "environment", "set-aside"]},
        ids=list_of(TEXT),
        needs={"enum": ["safe", "ask"]},
        steps=list_of(step),
    )
    maybe_int = {"type": ["integer", "null"]}
    more = {
        "plan": list_of(action),
        "moves": list_of(object_of(name=TEXT, old=MAYBE_TEXT, new=MAYBE_TEXT, bytes=maybe_int)),
        "index": MAYBE_TEXT,
        "passed_over": list_of(TEXT),
        "why": MAYBE_TEXT,
        "download_bytes": maybe_int,
        "withheld": list_of(
            object_of(id=TEXT, why=TEXT, allow={"enum": ["core", "running", None]})
        ),
    }
    outcome = {"enum": ["healed", "already-healed", "still-there", "failed"]}
    result = object_of(action=TEXT, ids=list_of(TEXT), outcome=outcome, output_tail=TEXT)
    schema["properties"] |= {**more, "results": list_of(result), "run": MAYBE_TEXT}
    schema["required"] = [*schema["required"], *more]
    schema["dependentRequired"] = {"results": ["run"], "run": ["results"]}
    return schema


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


def fix_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `fix_json`."""
    step = {"type": "object", "properties": {"kind": TEXT}, "required": ["kind"]}
    return object_of(title=TEXT, needs={"enum": ["safe", "ask", "person"]}, steps=list_of(step))


def _imports_schema() -> dict[str, Any]:
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
            profile=TEXT,
            model=MAYBE_TEXT,
            source={"enum": ["live", "tape"]},
            recorded={"anyOf": [recorded, {"type": "null"}]},
            checked_up_to=MAYBE_TEXT,
        ),
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
