"""What `fix` gives as JSON data: the report, the plan, what came of it; and its schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from doctor.model import printable
from doctor.report.json import (
    MAYBE_TEXT,
    TEXT,
    list_of,
    object_of,
    printable_lines,
    report_schema,
    step_json,
    to_json,
)

if TYPE_CHECKING:
    from doctor.diagnose import Report
    from doctor.repair.apply import Applied
    from doctor.repair.plan import Plan


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
                "steps": [step_json(step, report.installer) for step in action.steps],
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
                "output_tail": printable_lines(r.tail),
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
